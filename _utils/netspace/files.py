"""Small files on disk, written atomically: after a crash a file has the old or the new content, never a part.

Only changed files are written, so a second apply doesn't touch the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from netspace.errors import NetspaceError, StateError

MAX_RECORD = 4 * 1024 * 1024
# Remedies for a damaged file: for a file that an apply can rebuild from the declaration, and for any other.
REBUILT = "remove the file and apply again to rebuild it"
KEPT = "restore it from a backup: nothing can rebuild it"
# _TOGETHER: the number of files per sync; more files take several syncs. ext4 needs long to find an inode near inodes
# that were just freed, and each replaced file frees one. So create as many files as possible before the first is
# replaced. _FEW: below this number, syncing each file costs less than syncing the file system.
_TOGETHER = 1024
_FEW = 4
_CHUNK = 65536
_PAUSE = 0.005  # seconds between two attempts to take a lock
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def write(path: Path, content: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> bool:
    """Write *content* to *path* with *mode* and *owner* if anything differs; return whether the file was written.

    The file is replaced atomically (write a temporary file, fsync, rename), and is never visible with a wider mode or
    another owner. The next run reuses the temporary file of a killed run. So only one process may write a file at a
    time: the process that holds the lock.
    """
    if _same(path, content, mode, owner):
        return False
    aside = _aside(path)
    try:
        try:
            _put(aside, content, mode, owner, sync=True)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _put(aside, content, mode, owner, sync=True)
        os.replace(aside, path)
    except BaseException:
        _discard(aside)
        raise
    return True


def opened(path: Path) -> BinaryIO:
    """Open a file for reading that another user may own or have created; never follow a link, and never block.

    open(2): ``O_NOFOLLOW`` refuses a symlink, and with ``O_NONBLOCK`` the call doesn't wait for the writer of a pipe
    or the holder of a lease.

    :raises OSError: there is no file, or it isn't a regular one.
    """
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return stream


def write_all(contents: Mapping[Path, bytes], *, mode: int = 0o600) -> tuple[set[Path], dict[Path, OSError]]:
    """Write many files like :func:`write`, but wait for the disk once, not for each file.

    :return: the paths that were written, and the errors by path.
    """
    written: set[Path] = set()
    failed: dict[Path, OSError] = {}
    todo = [(path, content) for path, content in contents.items() if not _same(path, content, mode, None)]
    for folder in {os.path.dirname(path) for path, _ in todo}:
        if not os.path.isdir(folder):
            with contextlib.suppress(OSError):  # then writing each file fails, which is reported below
                Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    for start in range(0, len(todo), _TOGETHER):
        asides: dict[Path, str] = {}
        try:
            for path, content in todo[start : start + _TOGETHER]:
                aside = _aside(path)
                try:
                    _put(aside, content, mode)
                except OSError as err:
                    failed[path] = err
                    _discard(aside)
                else:
                    asides[path] = aside
            try:
                _sync(asides.values())
            except OSError as err:
                failed.update(dict.fromkeys(asides, err))
                continue
            for path, aside in asides.items():
                try:
                    os.replace(aside, path)
                except OSError as err:
                    failed[path] = err
                else:
                    written.add(path)
        finally:
            for path, aside in asides.items():
                if path not in written:
                    _discard(aside)
    return written, failed


def _put(aside: str, content: bytes, mode: int, owner: tuple[int, int] | None = None, *, sync: bool = False) -> None:
    """Create a file with *content*, and fsync it if *sync*.

    The file is closed at once, so that writing many files needs few descriptors.
    """
    fd = os.open(aside, _NEW, 0o600)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        if owner is not None:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _discard(aside: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(aside)


def _sync(paths: Collection[str]) -> None:
    """Sync these files to disk: a few one by one, many by one syncfs(2) per file system."""
    few = len(paths) < _FEW
    seen: set[int] = set()
    for path in paths:
        if not few:
            device = os.lstat(path).st_dev
            if device in seen:
                continue
            seen.add(device)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd) if few else _syncfs(fd)
        finally:
            os.close(fd)


def sync_folder(folder: Path) -> None:
    """Flush a folder to its disk (fsync(2)). Before that, a crash may lose the name of a new file in the folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(folder: Path) -> None:
    """Sync the file system that contains *folder* to its disk (syncfs(2))."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _syncfs(fd)
    finally:
        os.close(fd)


def _syncfs(fd: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "syncfs: " + os.strerror(ctypes.get_errno()))


def _aside(path: Path) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.new")


def _same(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None) -> bool:
    try:
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode) or info.st_size != len(content):
            return False
        if stat.S_IMODE(info.st_mode) != mode or (owner is not None and (info.st_uid, info.st_gid) != owner):
            return False
        return read(path) == content
    except OSError:
        return False


def differs(path: Path, content: bytes) -> bool:
    """Return whether a file exists at *path* with other content."""
    try:
        return read(path) != content
    except FileNotFoundError:
        return False


def encode(value: Any) -> bytes:
    """Return *value* as canonical JSON: keys are sorted, so that equal values give equal bytes."""
    import msgspec.json  # msgspec indents in a tenth of the time of json

    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def write_json(path: Path, value: Any, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> bool:
    """Write *value* as canonical JSON; see :func:`write`."""
    return write(path, encode(value), mode=mode, owner=owner)


def read(path: Path | str, most: int | None = None) -> bytes:
    """Return a file's content, or its first *most* bytes.

    A run reads hundreds of small files; this function takes a third of the time of ``Path.read_bytes``.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, found = [], 0
        while part := os.read(fd, _CHUNK if most is None else min(_CHUNK, most - found)):
            parts.append(part)
            found += len(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def stamp(path: Path) -> tuple[int, int, int]:
    """Return inode, size and modification time: if two stamps are equal, the file was not written in between.

    :raises OSError: stat(2) failed.
    """
    info = path.stat()
    return info.st_ino, info.st_size, info.st_mtime_ns


def read_json(path: Path | str, remedy: str = REBUILT) -> dict[str, Any] | None:
    """Return the JSON object in *path*, or None if there is no such file.

    :param remedy: the remedy for a damaged file, for the message.
    :raises StateError: the file doesn't hold a JSON object.
    """
    try:
        raw = read(path, MAX_RECORD + 1)
    except FileNotFoundError:
        return None
    try:
        if len(raw) > MAX_RECORD:
            raise ValueError(f"larger than {MAX_RECORD} bytes")
        value = json.loads(raw.decode())
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as err:
        raise StateError(f"{path}: {err}; {remedy}") from err
    return value


def read_records(directory: Path, remedy: str = REBUILT) -> dict[str, dict[str, Any]]:
    """Return every record ``<name>.json`` in *directory*, by name; nothing if the directory is absent.

    See :func:`read_json` for errors.
    """
    records = {}
    for name in sorted(record_names(directory)):
        record = read_json(f"{directory}/{name}.json", remedy)
        if record is not None:
            records[name] = record
    return records


def record_names(directory: Path, among: Iterable[str] | None = None) -> set[str]:
    """Return the names of the records in *directory*, without reading them.

    :param among: the names to look up; None: all names in *directory*.
    """
    if among is not None:  # an operator may ask for any name
        plain = (name for name in among if name and "/" not in name and not name.startswith("."))
        return {name for name in plain if os.path.exists(f"{directory}/{name}.json")}
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return set()
    return {entry[: -len(".json")] for entry in entries if entry.endswith(".json") and not entry.startswith(".")}


@contextlib.contextmanager
def folder(path: str | Path) -> Iterator[int | None]:
    """Open a folder; yield its descriptor, for opening names in it (``dir_fd``). None if the folder doesn't exist.

    With the descriptor, the kernel walks the path to the folder only once. After None the caller must not open names,
    because the kernel would look them up in the working folder.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove(path: Path) -> bool:
    """Remove a file and the temporary file of a killed run; return whether the file existed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_aside(path))
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def refusals_told() -> Iterator[None]:
    """Turn a system error inside the context (no space, too many open files) into a NetspaceError with a remedy.

    :raises NetspaceError: the system refused a call.
    """
    try:
        yield
    except OSError as err:
        where = f": {err.filename}" if err.filename is not None else ""
        raise NetspaceError(
            f"the system refuses: {err.strerror or err}{where}; apply again once the cause is gone"
        ) from err
    except RuntimeError as err:
        if "start new thread" not in str(err):
            raise
        raise NetspaceError(f"the system refuses: {err} (no more processes or memory); apply again later") from err


@contextlib.contextmanager
def locked(path: Path, give_up: Callable[[], bool] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on *path* for the duration of the context, so that two runs don't interleave.

    The file is created if it is absent.

    :param give_up: called again and again while another run holds the lock; None: wait however long it takes.
    :raises NetspaceError: *give_up* returned True.
    """

    def busy() -> NetspaceError | None:
        ended = give_up is not None and give_up()
        return NetspaceError("another run of netspace is changing this host; try again later") if ended else None

    fd = held(path, None if give_up is None else busy)
    try:
        yield
    finally:
        os.close(fd)


def held(path: Path, busy: Callable[[], Exception | None] | None = None) -> int:
    """Take an exclusive lock on *path*; return the descriptor that holds the lock until it is closed.

    The file is created if it is absent.

    :param busy: called again and again while another process holds the lock; what it returns is raised. None: wait
        however long it takes.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if busy is None:
            fcntl.flock(fd, fcntl.LOCK_EX)
        else:
            _patiently(fd, busy)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _patiently(fd: int, busy: Callable[[], Exception | None]) -> None:
    """Wait until the lock on *fd* is free, and take it; raise an error as soon as *busy* returns one."""
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (error := busy()) is not None:
                raise error from None
        time.sleep(_PAUSE)


def boot_id(root: Path = Path("/")) -> str:
    """Return the kernel's id of this boot (random(4)).

    :param root: the folder that has the host's ``proc``.
    :raises OSError: the id can't be read.
    """
    return read(root / "proc/sys/kernel/random/boot_id", 64).decode().strip()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Return ``{"old": ..., "new": ...}`` for each differing key of two nested mappings, keys joined by ``:``.

    A key whose value is None counts as absent.
    """
    changes: dict[str, dict[str, Any]] = {}
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        path = f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes.update(differences(before, after, f"{path}:"))
        else:
            changes[path] = {"old": before, "new": after}
    return changes
