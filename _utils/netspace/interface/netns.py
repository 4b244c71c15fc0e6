"""Network namespaces that the host owns: create, enter, find and remove them. Starts no process.

A bind mount under ``/run/netns`` keeps a namespace, exactly as iproute2 does it (ip-netns(8)), so that ``ip netns
exec`` works. Other namespaces in that folder, and the propagation of their mounts, stay unchanged. A thread does the
work inside namespaces: it is started for a batch, enters one namespace after the other, and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from netspace import mountpoint, threads
from netspace.interface.endpoints import Endpoint

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2

# The sysctls of every namespace. A program without capabilities may bind any port in its
# namespace, and addresses come from the declaration alone.
SETTINGS: Mapping[str, str] = {
    "net/ipv4/ip_unprivileged_port_start": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/autoconf": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",
    "net/ipv6/conf/default/disable_ipv6": "0",
}


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def _mount(source: str, target: str, flags: int) -> None:
    _check(_libc().mount(source.encode(), target.encode(), b"none", flags, None), target)


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


def found(directory: Path, mountinfo: str | None = None) -> dict[str, int]:
    """Return the inode of each namespace that is kept under *directory*, by file name.

    ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)) is read once, however many namespaces there are.

    :param mountinfo: the content of that file, if the caller has it.
    """
    if mountinfo is None:
        mountinfo = _mountinfo()
    prefix = f"{directory}/"
    namespaces: dict[str, int] = {}
    for line in mountinfo.splitlines():
        if " net:[" not in line:
            continue
        fields = line.split(" ", 5)
        if fields[4].startswith(prefix) and fields[3].startswith("net:["):
            namespaces[fields[4][len(prefix) :]] = int(fields[3][5:-1])
    return namespaces


def among(directory: Path, names: Iterable[str]) -> dict[str, int]:
    """Return, by name, the inode of each namespace under *directory* whose name is in *names*."""
    namespaces: dict[str, int] = {}
    for name in names:
        with contextlib.suppress(OSError):
            fd = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET:  # ioctl_ns(2); refused for another file
                    namespaces[name] = os.fstat(fd).st_ino
            finally:
                os.close(fd)
    return namespaces


def enter(path: Path) -> None:
    """Move the calling thread (:mod:`netspace.threads`) into the namespace that is kept at *path*."""
    threads.enter_network(path)


def unshare() -> None:
    """Move the calling thread (:mod:`netspace.threads`) into a new namespace.

    The namespace ends with the thread unless a mount keeps it.
    """
    _check(_libc().unshare(_CLONE_NEWNET), "unshare")


def lacking(directory: Path) -> dict[str, bool]:
    """Return the parts that :func:`prepare` would create: ``folder``, ``mount``; empty if both exist."""
    try:
        mounted = mountpoint.is_mounted(str(directory))
    except mountpoint.UnknownError:
        mounted = any(line.split(" ", 5)[4] == str(directory) for line in _mountinfo().splitlines())
    return {what: True for what, there in (("folder", directory.is_dir()), ("mount", mounted)) if not there}


def prepare(directory: Path) -> None:
    """Create *directory* as iproute2 does: mode 0755, a shared bind mount of itself. Existing parts stay unchanged."""
    lacks = lacking(directory)
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if "mount" in lacks:
        target = str(directory)
        _mount(target, target, _MS_BIND | _MS_REC)
        _mount("", target, _MS_SHARED | _MS_REC)


def release(directory: Path, made: Mapping[str, bool]) -> bool:
    """Undo :func:`prepare` if the folder holds no namespace, whoever made it; return whether it was undone.

    :param made: the parts that :func:`prepare` created.
    """
    if directory.is_dir():
        if any(directory.iterdir()):
            return False
        unmounted = not made.get("mount") or _libc().umount2(str(directory).encode(), 0) == 0
        if not unmounted and ctypes.get_errno() != errno.EINVAL:  # EINVAL: it isn't mounted (any more)
            return False
        if made.get("folder"):
            directory.rmdir()
    return True


def create(path: Path) -> int:
    """Create a namespace, keep it at *path*, move the calling thread into it; return its inode.

    :raises OSError: a system call failed, or *path* is a symbolic link.
    """
    if path.is_symlink():  # mount(2) would follow it
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    with contextlib.suppress(FileExistsError):  # left by a run that was killed here
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    unshare()
    _mount("/proc/thread-self/ns/net", str(path), _MS_BIND)
    return path.stat().st_ino


def remove(path: Path) -> None:
    """Remove the mount and file at *path*. The namespace ends with the last program in it."""
    while _libc().umount2(str(path).encode(), _MNT_DETACH) == 0:
        pass
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        _check(-1, str(path))
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def write_settings(settings: Iterable[tuple[str, str]]) -> None:
    """Write sysctls of the calling thread's namespace. IPv6 sysctls are skipped if the kernel has no IPv6."""
    by_folder: dict[str, list[tuple[str, str]]] = {}
    for name, value in settings:
        folder, _, file = name.rpartition("/")
        by_folder.setdefault(folder, []).append((file, value))
    for folder, files in by_folder.items():
        with settings_folder(folder) as within:
            if within is not None:
                for file, value in files:
                    write_setting(within, file, value)


@contextlib.contextmanager
def settings_folder(name: str) -> Iterator[int | None]:
    """Open a folder of sysctls of the calling thread's namespace; yield its descriptor.

    Yield None for a folder of IPv6 if the kernel has no IPv6. Each namespace has its own folder under the same name, so
    a lookup takes longer the more namespaces exist. So look the folder up once for several sysctls.
    """
    try:
        fd = os.open(f"/proc/sys/{name}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if "/ipv6" not in name:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def write_setting(folder: int, name: str, value: str) -> None:
    """Write the sysctl *name* below *folder*, a descriptor of :func:`settings_folder`."""
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def write_end_settings(folder: int | None, name: str, wanted: Endpoint, disabled: bool) -> None:
    """Write the settings of an interface's host end that only a sysctl can change."""
    if wanted.accept_ra is not None and folder is not None:
        write_setting(folder, f"{name}/accept_ra", str(wanted.accept_ra))
        if disabled and any(":" in address for address in wanted.addresses):
            write_setting(folder, f"{name}/disable_ipv6", "0")
