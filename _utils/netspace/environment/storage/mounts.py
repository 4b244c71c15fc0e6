"""Mount operations as direct system calls, without a mount program.

The calls are described in mount(2), umount2(2), open_tree(2), move_mount(2), mount_setattr(2) and user_namespaces(7).
Newer calls have the same numbers on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from netspace import mountpoint
from netspace.errors import NetspaceError
from netspace.patterns import pattern
from netspace.threads import in_thread

RDONLY = 0x1
NOSUID = 0x2
NODEV = 0x4
NOEXEC = 0x8
BIND = 0x1000
REMOUNT = 0x20
PRIVATE = 1 << 18

_MNT_DETACH = 0x2
_UMOUNT_NOFOLLOW = 0x8

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 0x1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOUNT_ATTR_IDMAP = 0x00100000

_CLONE_VM = 0x00000100
_CLONE_VFORK = 0x00004000
_CLONE_NEWUSER = 0x10000000
_WALL = 0x40000000

# prctl(2), capabilities(7): a change of the user id takes no capability.
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 0x4
_SYS_SETRESUID = {"x86_64": 117, "aarch64": 147}

_OCTAL = pattern(r"\\([0-7]{3})")


class _Attributes(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class Mount(msgspec.Struct, frozen=True):
    """One line of ``/proc/self/mountinfo``.

    :param device: the file system's device, ``major:minor``.
    :param root: the folder of the file system that is mounted.
    """

    target: str
    kind: str
    source: str
    device: str = ""
    root: str = "/"


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str | Path, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """Mount by mount(2).

    :raises OSError: with the source and the target in its text.
    """
    _check(
        _libc().mount(
            os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(data)
        ),
        f"mount {source} ({kind}) at {target}",
    )


def unmount(target: Path) -> bool:
    """Unmount everything at *target* at once; processes keep the files that they have open (MNT_DETACH).

    :return: whether anything was mounted there.
    """
    found = False
    while True:
        if _libc().umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
            found = True
            continue
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOENT):
            return found
        raise OSError(number, f"unmount {target}: {os.strerror(number)}")


def bind(source: Path, target: Path, flags: int) -> None:
    """Bind-mount the folder *source* at *target*, with the mount flags *flags*."""
    mount(source, target, "none", BIND)
    mount("none", target, "none", BIND | REMOUNT | flags)


def idmapped(source: Path, target: Path, user_namespace_fd: int) -> None:
    """Mount *source* also at *target*, with its ids mapped as in a user namespace.

    :param user_namespace_fd: descriptor of the user namespace.
    """
    libc = _libc()
    tree = _check(
        libc.syscall(
            ctypes.c_long(_SYS_OPEN_TREE),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(source)),
            ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC),
        ),
        f"open_tree {source}",
    )
    try:
        attributes = _Attributes(_MOUNT_ATTR_IDMAP, 0, PRIVATE, user_namespace_fd)
        _check(
            libc.syscall(
                ctypes.c_long(_SYS_MOUNT_SETATTR),
                ctypes.c_int(tree),
                ctypes.c_char_p(b""),
                ctypes.c_uint(_AT_EMPTY_PATH),
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            ),
            f"map the ids of {source} (does its file system support idmapped mounts?)",
        )
        _check(
            libc.syscall(
                ctypes.c_long(_SYS_MOVE_MOUNT),
                ctypes.c_int(tree),
                ctypes.c_char_p(b""),
                ctypes.c_int(_AT_FDCWD),
                ctypes.c_char_p(os.fsencode(target)),
                ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
            ),
            f"move_mount to {target}",
        )
    finally:
        os.close(tree)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open the file or folder at *path* for :func:`idmapped`; yield its file descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def keep_user_namespace(target: Path, base: int, count: int) -> None:
    """Make a user namespace, and keep it by a bind mount on the file *target*.

    It maps *count* ids, from 0 inside and from *base* on the host. A process of the user *base* makes it, because the
    kernel charges some resources that are used in a user namespace to its maker, too (user_namespaces(7),
    ``/proc/sys/user``): inotify instances, queued signals, locked memory. If root made all user namespaces, they would
    share root's own bounds.

    :raises OSError: when it can't be made.
    """
    libc = _libc()

    def make() -> int:
        # prctl and the raw system call change this thread alone: it keeps its capabilities as another user.
        _check(libc.prctl(_PR_SET_SECUREBITS, ctypes.c_ulong(_NO_SETUID_FIXUP), 0, 0, 0), "keep capabilities")
        number = _SYS_SETRESUID[os.uname().machine]
        unchanged = ctypes.c_uint(0xFFFFFFFF)
        _check(libc.syscall(ctypes.c_long(number), unchanged, ctypes.c_uint(base), unchanged), f"become user {base}")
        return _user_namespace(base, count)

    namespace = in_thread(make)
    try:
        target.touch(mode=0o600)
        mount(f"/proc/self/fd/{namespace}", target, "none", BIND)
    finally:
        os.close(namespace)


def _user_namespace(base: int, count: int) -> int:
    """Make a user namespace; return a descriptor of it.

    A new process makes the namespace (clone(2), CLONE_NEWUSER). This process shares the caller's memory and only calls
    ``_exit``, so the memory of a large or threaded caller is not copied. Until the process is reaped, its ``/proc``
    entry serves to write the id maps and to open the namespace. It sends no SIGCHLD.
    """
    libc = _libc()
    stack = ctypes.create_string_buffer(65536)
    top = (ctypes.addressof(stack) + len(stack)) & ~0xF
    leave = ctypes.cast(libc._exit, ctypes.c_void_p)
    pid = _check(
        libc.clone(leave, ctypes.c_void_p(top), ctypes.c_int(_CLONE_VM | _CLONE_VFORK | _CLONE_NEWUSER), None),
        "make a user namespace (is user.max_user_namespaces 0?)",
    )
    try:
        for ids in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{ids}", "wb", buffering=0) as stream:
                stream.write(f"0 {base} {count}".encode())
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, _WALL)


def overlay(lowers: Sequence[Path], upper: Path, work: Path, target: Path, flags: int) -> None:
    """Mount an overlay of *upper* on *lowers* at *target*.

    The layers are named by file descriptor, so ``/proc/self/mountinfo`` inside shows no path of the host.

    :param lowers: the read-only layers, the uppermost first.
    :param work: the overlay's work folder, on the file system of *upper*.
    """
    with contextlib.ExitStack() as stack:

        def handle(path: Path) -> str:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"

        options = f"lowerdir={':'.join(map(handle, lowers))},upperdir={handle(upper)},workdir={handle(work)}"
        try:
            mount("overlay", target, "overlay", flags, options)
        except OSError as err:
            raise NetspaceError(
                f"overlay at {target} of {lowers[-1]} and {upper}: {err.strerror}; `dmesg` tells more"
            ) from err


class Table(Mapping[str, Mount]):
    """Mapping of mount points to mounts; for a mount point with several mounts, the topmost one.

    A line is parsed only when its mount is looked up, because a host with a thousand environments has thousands of
    mounts.

    :param text: the content of ``/proc/self/mountinfo``.
    """

    def __init__(self, text: str) -> None:
        self._lines = {line.split(" ", 5)[4]: line for line in text.splitlines()}  # a space in a name is escaped
        for target in [target for target in self._lines if "\\" in target]:
            self._lines[_plain(target)] = self._lines.pop(target)

    def __getitem__(self, target: str) -> Mount:
        place, _, rest = self._lines[target].partition(" - ")
        _, _, device, root, _ = place.split(" ", 4)
        kind, source, _ = rest.split(" ", 2)
        return Mount(target, kind, _plain(source), device, _plain(root))

    def __contains__(self, target: object) -> bool:
        return target in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


def table() -> Table:
    """Return this process's mounts."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as stream:
        return Table(stream.read())


class Single(Mapping[str, Mount]):
    """Mapping like :class:`Table`, but each lookup asks the kernel for that one mount, if the kernel can do so.

    That is faster than a table as long as only some mounts are looked up. The answer describes the mount at the time of
    the lookup.
    """

    @functools.cached_property
    def _table(self) -> Table:
        return table()

    def __getitem__(self, target: str) -> Mount:
        try:
            found = mountpoint.find(target)
        except mountpoint.UnknownError:
            return self._table[target]
        if found is None:
            raise KeyError(target)
        return Mount(target, *found)

    def __contains__(self, target: object) -> bool:
        try:
            return isinstance(target, str) and mountpoint.is_mounted(target)
        except mountpoint.UnknownError:
            return target in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


def below(folder: str, mounted: Mapping[str, Mount]) -> dict[str, Mount]:
    """Return the mounts at *folder* and at the names directly in it, by mount point."""
    if isinstance(mounted, Single):
        try:
            names = os.listdir(folder)
        except OSError:
            names = []
        targets: Iterable[str] = (folder, *(f"{folder}/{name}" for name in sorted(names)))
    else:
        targets = [one for one in mounted if one == folder or one.rpartition("/")[0] == folder]
    return {target: found for target in targets if (found := mounted.get(target)) is not None}


def over(path: str, mounted: Mapping[str, Mount]) -> Mount:
    """Return the mount that holds a path, which must contain no links. Pure."""
    target = path
    while target not in mounted and target != "/":
        target = target.rpartition("/")[0] or "/"
    return mounted.get(target, Mount(target, "", ""))


def origin(path: str, mounted: Mapping[str, Mount]) -> tuple[str, str]:
    """Return the device of a path's file system, and the path as seen from that file system's own root.

    *path* must contain no links. All names that bind mounts give to a folder have the same result. Pure.
    """
    mount = over(path, mounted)
    rest = path[len(mount.target.rstrip("/")) :]
    return mount.device, f"{mount.root.rstrip('/')}{rest}" or "/"


def _plain(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field) if "\\" in field else field
