"""Small files on disk, written so that a crash leaves the old or the new one, never half.

Only what has changed is written: a second apply must not touch the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from netspace.errors import NetspaceError, StateError

MAX_RECORD = 4 * 1024 * 1024
# What to do about a damaged file: of what is made anew from the declaration, and of what is not.
REBUILT = "remove the file and apply again to rebuild it"
KEPT = "restore it from a backup: nothing can make it anew"
# Files written at one time: whoever has more waits for the disk several times. ext4 looks long for a file's inode
# where others were given up a moment ago, as each old one is when it is replaced: the more are made before, the better.
# And so few that syncing each costs less than syncing all.
_TOGETHER = 1024
_FEW = 4
_CHUNK = 65536
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def write(path: Path, content: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> bool:
    """Make *path* hold *content* with *mode* and *owner*; return whether anything was written.

    The file is replaced atomically (write aside, fsync, rename), and is never
    visible with a wider mode or another owner than asked. What a killed run left aside
    is replaced by the next, so a file has one writer at a time: whoever holds the lock.
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
    """Open a file to read that another user may own, or have put there; no link is followed, nobody is waited for.

    open(2): ``O_NOFOLLOW`` refuses a link, and ``O_NONBLOCK`` waits for no writer of a pipe, nor for the holder of a
    lease.

    :raises OSError: when there is none, or it isn't a regular file.
    """
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return stream


def write_all(contents: Mapping[Path, bytes], *, mode: int = 0o600) -> tuple[set[Path], dict[Path, OSError]]:
    """Like :func:`write` for many files, but the disk is waited for once, not for each.

    :return: the paths that were written, and what went wrong, by path.
    """
    written: set[Path] = set()
    failed: dict[Path, OSError] = {}
    todo = [(path, content) for path, content in contents.items() if not _same(path, content, mode, None)]
    for folder in {os.path.dirname(path) for path, _ in todo}:
        if not os.path.isdir(folder):
            with contextlib.suppress(OSError):  # told below, by each file
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
    """Make a file with *content*, on disk with *sync*; it is closed at once, so that many need no descriptors."""
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
    """Have these files on disk: one by one where they are few, else by one syncfs(2) for each file system."""
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


def sync_all(folder: Path) -> None:
    """Have all of the file system that a folder lies in on its disk (syncfs(2))."""
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
    """Return whether there is a file at *path* with another content."""
    try:
        return read(path) != content
    except FileNotFoundError:
        return False


def encode(value: Any) -> bytes:
    """Canonical JSON: sorted keys, so that equal values are equal bytes."""
    import msgspec.json  # a tenth of the time that json takes to indent

    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def write_json(path: Path, value: Any, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> bool:
    """Write *value* as canonical JSON; see :func:`write`."""
    return write(path, encode(value), mode=mode, owner=owner)


def read(path: Path | str, most: int | None = None) -> bytes:
    """Return a file's content, or its first *most* bytes.

    For the small files that each run reads by the hundred: a third of what ``Path.read_bytes`` takes.
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
    """Return inode, size and time of modification: a file whose stamp is the same was not written since.

    :raises OSError: when the file can't be looked at.
    """
    info = path.stat()
    return info.st_ino, info.st_size, info.st_mtime_ns


def read_json(path: Path | str, remedy: str = REBUILT) -> dict[str, Any] | None:
    """Return the object in *path*, or None where there is no such file.

    :param remedy: what to do about a damaged one.
    :raises StateError: when the file is not a JSON object of ours.
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
    """Return every record ``<name>.json`` in *directory* by name; none where it is absent. See :func:`read_json`."""
    records = {}
    for name in sorted(record_names(directory)):
        record = read_json(f"{directory}/{name}.json", remedy)
        if record is not None:
            records[name] = record
    return records


def record_names(directory: Path) -> set[str]:
    """Return the names of the records in *directory*, which aren't read."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return set()
    return {entry[: -len(".json")] for entry in entries if entry.endswith(".json") and not entry.startswith(".")}


def remove(path: Path) -> bool:
    """Remove a file, and what a killed run left beside it; return whether there was one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_aside(path))
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def refusals_told() -> Iterator[None]:
    """Make what the system refuses (no space, too many files, no process) an error for the operator."""
    try:
        yield
    except OSError as err:
        where = f": {err.filename}" if err.filename is not None else ""
        raise NetspaceError(f"the system refuses: {err.strerror or err}{where}; apply again once it doesn't") from err
    except RuntimeError as err:
        if "start new thread" not in str(err):
            raise
        raise NetspaceError(f"the system refuses: {err} (no more processes or memory); apply again later") from err


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on *path* (made if absent), so that two runs don't interleave."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Return per-key ``{"old": ..., "new": ...}`` of two nested mappings, keys joined by ``:``.

    None and absent are the same.
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
