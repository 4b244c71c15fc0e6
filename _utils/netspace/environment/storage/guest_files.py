"""Files of a running environment, read and changed from the host with the rights of the environment's user.

No program of the image is run, so this works even if the image holds a single static binary. An environment may be
hostile, so nothing is done in its root with root's rights: a thread takes the environment's user and group, without any
capability. The kernel resolves every path within the environment's root (``openat2(2)``, ``RESOLVE_IN_ROOT``), whatever
links are there. Only plain files, folders and links are touched, and never /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import secrets
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from netspace.environment.user_ids import COUNT
from netspace.errors import MissingError, NetspaceError
from netspace.threads import in_thread

T = TypeVar("T")

MOST = 1024 * 1024  # bytes of a file at most
PATIENCE = 1.0  # seconds to wait for a file whose opening a process inside delays
_PAUSE = 0.002
DEPTH = 64  # levels of folders that are removed

_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _IN_ROOT = 0x01, 0x02, 0x10
_PATH = os.O_PATH | os.O_CLOEXEC
# Numbers of system calls, which change one thread; the C library's functions change the whole process.
_CALLS = {
    "x86_64": {"setgroups": 116, "setresgid": 119, "setresuid": 117},
    "aarch64": {"setgroups": 159, "setresgid": 149, "setresuid": 147},
}


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: Any) -> int:
    result: int = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return result


def opened(root: int, path: str, flags: int, *, one_file_system: bool = False) -> int:
    """Open *path* with *root* (a descriptor) as ``/``: no link and no ``..`` leads out of *root*.

    It never blocks longer than ``PATIENCE`` seconds.

    :param one_file_system: whether a path that leads into another mounted file system is refused.
    :raises OSError: as open(2). EAGAIN: the file couldn't be opened for ``PATIENCE`` seconds, because another process
        has a lease on it (fcntl(2)) or keeps renaming folders above it.
    """
    resolve = _IN_ROOT | _NO_MAGICLINKS | (_NO_XDEV if one_file_system else 0)
    flags |= os.O_CLOEXEC if flags & os.O_PATH else os.O_CLOEXEC | os.O_NONBLOCK
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags, 0, resolve), 24)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _call(_OPENAT2, ctypes.c_long(root), os.fsencode(path), how, ctypes.c_size_t(24))
        except OSError as err:
            if err.errno != errno.EAGAIN or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def beginning(folder: str, path: str, most: int) -> bytes:
    """Return the first *most* bytes of a plain file in a root that may be hostile; empty if there is no such file.

    Only the root's own file system is read, and nothing that is mounted in it.
    """
    try:
        root = os.open(folder, _PATH | os.O_DIRECTORY)
    except OSError:
        return b""
    try:
        file = opened(root, path, os.O_RDONLY, one_file_system=True)
    except OSError:
        return b""
    finally:
        os.close(root)
    try:
        return os.read(file, most) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(file)


def as_user(uid: int, gid: int, action: Callable[[], T]) -> T:
    """Call *action* in a thread with the host's user *uid* and group *gid*, no other group and no capability.

    :raises MissingError: when netspace doesn't know the numbers of this machine's system calls.
    """
    calls = _CALLS.get(platform.machine())
    if calls is None:
        raise MissingError(f"a table of system calls for {platform.machine()}", "x86_64 and aarch64 can do this")

    def work() -> T:
        _call(calls["setgroups"], ctypes.c_size_t(0), None)
        _call(calls["setresgid"], *[ctypes.c_uint(gid)] * 3)
        _call(calls["setresuid"], *[ctypes.c_uint(uid)] * 3)
        return action()

    return in_thread(work)


@dataclass(frozen=True)
class Entry:
    """An entry of a folder.

    :param kind: ``file``, ``folder``, ``link`` or ``other``.
    :param mode: the permissions.
    :param target: a link's target.
    """

    kind: str
    mode: int = 0
    target: str = ""


class GuestFiles:
    """The files of one environment; :func:`entered` makes it. Every method raises NetspaceError with the path."""

    def __init__(self, root: int, uid: int, gid: int) -> None:
        self._root, self._uid, self._gid = root, uid, gid

    def look(self, path: str) -> Entry | None:
        """Return the entry at *path*, links not followed; None if there is none."""

        def act() -> Entry | None:
            with self._parent(path) as (parent, name):
                return _entry(parent, name)

        return self._do(path, act, absent=None)

    def read(self, path: str, most: int = MOST) -> bytes | None:
        """Return the content of a plain file; None if it doesn't exist.

        :raises NetspaceError: when the file is larger than *most* bytes, or isn't a plain file.
        """

        def act() -> bytes:
            with _closing(opened(self._root, path, os.O_RDONLY)) as file:
                _plain(file)
                self._no_proc(file)
                found = b""
                while len(found) <= most and (chunk := os.read(file, most + 1 - len(found))):
                    found += chunk
                if len(found) > most:
                    raise OSError(errno.EFBIG, f"it is larger than {most} bytes")
                return found

        return self._do(path, act, absent=None)

    def write(self, path: str, content: bytes, mode: int | None) -> None:
        """Write *content* into a plain file, atomically. A link at *path* is followed.

        :param mode: the file's permissions; None: they stay as they are, or are 0600 for a new file.
        """

        def act() -> None:
            target = self._followed(path)
            with self._parent(target) as (parent, name):
                there = _entry(parent, name)
                if there is not None and there.kind != "file":
                    raise OSError(errno.EEXIST, f"there is a {there.kind}")
                wanted = mode if mode is not None else there.mode if there is not None else 0o600
                aside = f".{name[:200]}.{secrets.token_hex(4)}"
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with _closing(os.open(aside, flags, 0o600, dir_fd=parent)) as file:
                    try:
                        left = memoryview(content)
                        while left:
                            left = left[os.write(file, left) :]
                        os.fchmod(file, wanted)
                        os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
                    except BaseException:
                        with contextlib.suppress(OSError):
                            os.unlink(aside, dir_fd=parent)
                        raise

        self._do(path, act)

    def chmod(self, path: str, mode: int) -> None:
        """Set the permissions of a plain file or a folder."""

        def act() -> None:
            with _closing(opened(self._root, path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                if not stat.S_ISDIR(os.fstat(file).st_mode):
                    _plain(file)
                self._no_proc(file)
                os.fchmod(file, mode)

        self._do(path, act)

    def make_folder(self, path: str, mode: int) -> None:
        """Make one folder; its parent folder must exist."""

        def act() -> None:
            with self._parent(path) as (parent, name):
                os.mkdir(name, 0o700, dir_fd=parent)
                with _closing(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)) as file:
                    os.fchmod(file, mode)

        self._do(path, act)

    def make_link(self, path: str, target: str) -> None:
        """Make *path* a symbolic link to *target*; an existing link or file is replaced."""

        def act() -> None:
            with self._parent(path) as (parent, name):
                aside = f".{name[:200]}.{secrets.token_hex(4)}"
                os.symlink(target, aside, dir_fd=parent)
                try:
                    os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
                except BaseException:
                    os.unlink(aside, dir_fd=parent)
                    raise

        self._do(path, act)

    def remove(self, path: str) -> None:
        """Remove a file, a link, or a folder with all that is in it."""

        def act() -> None:
            with self._parent(path) as (parent, name):
                _remove(parent, name, DEPTH)

        self._do(path, act)

    # -- parts -------------------------------------------------------------------

    def _do(self, path: str, action: Callable[[], T], **absent: T) -> T:
        if "\0" in path or not path.startswith("/"):
            raise NetspaceError(f"{path!r}: expected an absolute path in the environment")
        try:
            return as_user(self._uid, self._gid, action)
        except FileNotFoundError as err:
            if "absent" in absent:
                return absent["absent"]
            raise NetspaceError(f"{path} in the environment: {err.strerror}") from err
        except OSError as err:
            raise NetspaceError(f"{path} in the environment: {err.strerror}") from err

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the folder above *path*; yield its descriptor and the last part of *path*."""
        whole = PurePosixPath(path)
        if whole.name in ("", ".."):
            raise OSError(errno.EINVAL, "no name that can be used")
        with _closing(opened(self._root, str(whole.parent), os.O_PATH | os.O_DIRECTORY)) as parent:
            self._no_proc(parent)
            yield parent, whole.name

    def _followed(self, path: str) -> str:
        """Return the path, within the root, to which *path* leads over a chain of at most eight links.

        If *path* isn't a link, the result is *path* itself.
        """
        for _ in range(8):
            with self._parent(path) as (parent, name):
                there = _entry(parent, name)
            if there is None or there.kind != "link":
                return path
            path = os.path.join(os.path.dirname(path), there.target)  # the kernel resolves any ".." in it
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _no_proc(self, file: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            with _closing(opened(self._root, "/proc", os.O_PATH)) as proc:
                if os.fstat(proc).st_dev == os.fstat(file).st_dev != os.fstat(self._root).st_dev:
                    raise OSError(errno.EPERM, "nothing is done in /proc")


@contextlib.contextmanager
def entered(pid: int, base: int, uid: int, gid: int, root: str) -> Iterator[GuestFiles]:
    """Yield the files that process *pid* of an environment sees.

    :param base: the host id of the environment's id 0; the process must have one of the environment's ids.
    :param uid: the environment's user id with which the files are read and written.
    :param gid: the environment's group id with which the files are read and written.
    :param root: the host's mount point of the environment's root; the process must have that root.
    :raises NetspaceError: when the process has ended, has other ids or another root.
    """
    lost = f"process {pid} is no longer the environment's"
    try:
        with _closing(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as process:
            if not base <= os.fstat(process).st_uid < base + COUNT:
                raise NetspaceError(lost)
            # Relative to the opened process: this fails if another process has the number by now.
            inside = os.open("root", _PATH | os.O_DIRECTORY, dir_fd=process)
    except OSError as err:
        raise NetspaceError(lost) from err
    with _closing(inside):
        if os.fstat(inside).st_dev != os.stat(root).st_dev:
            raise NetspaceError("the files of this environment can't be reached from the host")
        yield GuestFiles(inside, base + uid, base + gid)


@contextlib.contextmanager
def _closing(file: int) -> Iterator[int]:
    try:
        yield file
    finally:
        os.close(file)


def _plain(file: int) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file")


def _entry(parent: int, name: str) -> Entry | None:
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISREG(info.st_mode):
        return Entry("file", mode)
    if stat.S_ISDIR(info.st_mode):
        return Entry("folder", mode)
    if stat.S_ISLNK(info.st_mode):
        return Entry("link", mode, os.readlink(name, dir_fd=parent))
    return Entry("other", mode)


def _remove(parent: int, name: str, depth: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
        return
    except (IsADirectoryError, PermissionError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
    if not depth:
        raise OSError(errno.ELOOP, f"folders lie more than {DEPTH} deep in one another")
    with _closing(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)) as folder:
        # Not all at once: an environment can make more names than the host has memory for.
        while batch := _some(folder):
            for one in batch:
                _remove(folder, one, depth - 1)
    os.rmdir(name, dir_fd=parent)


def _some(folder: int) -> list[str]:
    import itertools

    os.lseek(folder, 0, os.SEEK_SET)
    with os.scandir(folder) as entries:
        return [entry.name for entry in itertools.islice(entries, 1000)]
