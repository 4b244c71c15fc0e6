"""Mount namespace in which the runtimes of containers start: the host's own mounts, without those of environments.

A container's mount namespace begins as a copy of its runtime's mount namespace, and the runtime removes the copied
mounts again. A host has four mounts for each environment, so a start takes longer on a host with more environments.
Therefore, where many services run, the supervisor makes a mount namespace with the host's system folders alone, and
keeps it open. The child that becomes a runtime enters a copy of this namespace, and attaches the mounts that its
container's configuration names: its root, its namespaces, its files and volumes.

Before each start, the supervisor checks whether the system folders are unchanged, and makes the namespace again if they
aren't. The child looks up all paths in the configuration and the command twice: before it enters the namespace, and
inside. If a path leads to another file inside, or the kernel refuses a step, the runtime starts in the host's
namespace, as it does where few services run. The supervisor's namespace holds only the root file system and the
kernel's own file systems, so it doesn't keep a disk busy that the operator unmounts.

The namespace has no file on disk. It ends with the supervisor, and the next supervisor makes another.

Written after open_tree(2), move_mount(2), pivot_root(2), setns(2) and mount_namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from netspace import mountpoint
from netspace.layout import Layout

MANY = 32
"""The number of running services from which on the namespace is made. With fewer, it would cost more than it saves."""
PAUSE = 10.0  # seconds until the namespace is made again, if that failed or the host's mounts changed again
_MOST = 256  # the most mounts that the namespace gets
_PATIENCE = 1.0  # seconds for the namespace to be made: the supervisor does nothing else meanwhile
# File systems without a disk or a server: they can be held, and a look at them doesn't wait for anything.
_KERNELS = frozenset({
    *("proc", "sysfs", "devtmpfs", "tmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "securityfs", "bpf"),
    *("hugetlbfs", "debugfs", "tracefs", "configfs", "pstore", "efivarfs"),
})  # fmt: skip
# Folders that a runtime uses, with all that is mounted in them; of other folders, those on the way to netspace's own.
_TREES = ("/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")
# The devices of every container are the host's own: OCI runtime specification, config-linux, Default Devices.
_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "tty", "random", "urandom"))
_CGROUPS = "/sys/fs/cgroup"
_RUNTIMES = ("crun", "runc")  # those that end once the program runs; the others would stay in the namespace

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 0x40000, 0x2
# The same numbers on every architecture that Debian has.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_AT_FDCWD, _AT_NO_AUTOMOUNT, _AT_RECURSIVE, _OPEN_TREE_CLONE = -100, 0x800, 0x8000, 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4

Identity = tuple[int, int] | None


class Namespace(NamedTuple):
    """The supervisor's mount namespace for starts, held open by descriptors.

    :param namespace: a descriptor of the namespace.
    :param root: a descriptor of its root folder, through which its mounts can be examined.
    :param points: its mount points.
    :param others: host folders with a mount that the namespace doesn't have; each start attaches the mounts that it
        needs.
    """

    namespace: int
    root: int
    points: frozenset[str]
    others: frozenset[str]


class HostMounts:
    """The owner of the mount namespace for starts, which is made at the first start that uses it."""

    def __init__(self, layout: Layout) -> None:
        own = (layout.run, layout.state, layout.netns("x").parent)
        self._ways = frozenset(str(way) for folder in own for way in (folder, *folder.parents))
        self._made: Namespace | None = None
        self._tried = -PAUSE

    def get(self, services: int) -> Namespace | None:
        """Return the namespace; None if the runtime must start in the host's namespace.

        :param services: the number of services that run.
        """
        if services < MANY:
            self.close()
            return None
        if self._made is not None and self._same(self._made):
            return self._made
        self.close()
        if time.monotonic() - self._tried >= PAUSE:
            with contextlib.suppress(OSError, mountpoint.UnknownError):
                points = self._points()
                self._made = _make(points, self._others(points))
            self._tried = time.monotonic()
            if self._made is not None and not self._same(self._made):  # the host's mounts changed meanwhile
                self.close()
        return self._made

    def close(self) -> None:
        """Close the descriptors of the namespace."""
        if self._made is not None:
            os.close(self._made.namespace)
            os.close(self._made.root)
            self._made = None

    def _points(self) -> list[str]:
        """Return the host's mount points that the namespace gets, parents before children."""
        found = set()
        with open("/proc/self/mountinfo", errors="surrogateescape") as stream:
            for line in stream:
                target = line.split(" ", 5)[4]  # one with a space or a backslash is escaped, and not found below
                held = target == "/" or line.partition(" - ")[2].split(" ", 1)[0] in _KERNELS
                if held and (target in self._ways or _below(target, _TREES)) and mountpoint.is_mounted(target):
                    found.add(target)
        if "/" not in found or len(found) > _MOST:
            raise OSError("no namespace can be made of these mounts")
        return sorted(found, key=lambda target: target.split("/"))

    def _others(self, points: Iterable[str]) -> frozenset[str]:
        """Return the mount points on the host that belong to netspace or the system, except *points*."""
        return frozenset(filter(mountpoint.is_mounted, (self._ways | {*_TREES}) - {*points}))

    def _same(self, made: Namespace) -> bool:
        """Return whether the namespace's system folders and mount options are still the host's."""
        try:
            paths = [*_DEVICES, *(f"{_CGROUPS}/{name}" for name in sorted(os.listdir(_CGROUPS)))]
            return (
                all(_mount(path) == _mount(path, made.root) for path in made.points)
                and all(_identity(path) == _identity(path, made.root) for path in paths)
                and self._others(made.points) == made.others
            )
        except (OSError, mountpoint.UnknownError):
            return False


def takes(argv: Sequence[str]) -> str | None:
    """Return the bundle of the container that *argv* starts; None if *argv* isn't a start by a known runtime."""
    words = list(argv)
    if "--bundle" not in words[:-1]:
        return None
    # Folders may have the name of a runtime, too; none comes before the runtime itself.
    own = words[: min(words.index(word) for word in ("--root", "--bundle") if word in words)]
    return words[words.index("--bundle") + 1] if any(os.path.basename(word) in _RUNTIMES for word in own) else None


def enter(made: Namespace, argv: Sequence[str]) -> bool:
    """Move this process into a copy of the namespace, with all mounts of the container; return whether it moved.

    The process must have one thread, and is about to become *argv*. After a failed move, the process is in the host's
    namespace as before.

    :param made: the supervisor's mount namespace for starts.
    :raises OSError: the process can't return to the host's namespace.
    """
    trees: list[tuple[str, int]] = []
    own = root = -1
    try:
        bundle = takes(argv)
        if bundle is None:
            return False
        config = json.loads(Path(bundle, "config.json").read_bytes())
        paths = [*_named(config, bundle), *_absolute(argv)]
        before = [_identity(path) for path in paths]
        for anchor, recursive in _anchors(paths, made.points, made.others):
            trees.append((anchor, _open_tree(anchor, _AT_RECURSIVE if recursive else 0)))
        own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        _check(_libc().setns(made.namespace, _CLONE_NEWNS), "setns")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, mountpoint.UnknownError):
        return False
    try:
        with contextlib.suppress(OSError):
            _check(_libc().unshare(_CLONE_NEWNS), "unshare")
            for anchor, tree in trees:
                _move_mount(tree, anchor)
            if [_identity(path) for path in paths] == before:
                return True
        _check(_libc().setns(own, _CLONE_NEWNS), "setns")
        os.fchdir(root)
        os.chroot(".")  # setns(2) chose the namespace's root, which need not be the supervisor's
        return False
    finally:
        for descriptor in (own, root, *(tree for _, tree in trees)):
            os.close(descriptor)


def _named(config: dict[str, Any], bundle: str) -> Iterator[str]:
    """Yield the host paths that a container's configuration names."""
    yield os.path.join(bundle, config["root"]["path"])
    yield from (one["source"] for one in config["mounts"] if str(one.get("source", "")).startswith("/"))
    yield from (one["path"] for one in config["linux"]["namespaces"] if one.get("path"))


def _absolute(argv: Iterable[str]) -> Iterator[str]:
    return (word for word in argv if word.startswith("/"))


def _anchors(paths: Iterable[str], points: frozenset[str], alone: frozenset[str]) -> list[tuple[str, bool]]:
    """Return the mount points on the way to *paths* that the namespace lacks, parents before children.

    Each mount point comes with True if everything mounted below it is attached too. This holds for the last mount point
    on the way to a path, since a volume may contain mounts. It doesn't hold for a mount point in *alone*: netspace's
    own disk contains the mounts of all environments.
    """
    found: dict[str, bool] = {}
    for path in paths:
        ways = (*reversed([*map(str, Path(path).parents)]), path)
        lacking = [way for way in ways if way not in points and mountpoint.is_mounted(way)]
        for way in lacking:
            found[way] = found.get(way, False) or (way == lacking[-1] and way not in alone)
    whole = [way for way, recursive in found.items() if recursive]
    return sorted(
        ((way, recursive) for way, recursive in found.items() if not _below(str(Path(way).parent), whole)),
        key=lambda one: one[0].split("/"),
    )


def _mount(path: str, root: int | None = None) -> tuple[Identity, int]:
    """Return device and inode of the file or folder at a mount point, and the mount's options (statvfs(3)).

    :raises OSError: nothing is at *path*.
    """
    descriptor = os.open(path if root is None else path[1:] or ".", os.O_PATH | os.O_CLOEXEC, dir_fd=root)
    try:
        found = os.fstat(descriptor)
        return (found.st_dev, found.st_ino), os.fstatvfs(descriptor).f_flag
    finally:
        os.close(descriptor)


def _identity(path: str, root: int | None = None) -> Identity:
    """Return device and inode of the file at *path*, as seen from *root*; None if there is no file."""
    try:
        found = os.stat(path if root is None else path[1:] or ".", dir_fd=root)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _below(path: str, trees: Iterable[str]) -> bool:
    return any(path == tree or path.startswith(f"{tree}/") for tree in trees)


# -- making it ---------------------------------------------------------------------------------
def _make(points: Sequence[str], others: frozenset[str]) -> Namespace | None:
    """Make a namespace with only the host's mounts at *points*; return None if the kernel refused.

    A child process makes the namespace, and waits until the supervisor has opened it.
    """
    with contextlib.ExitStack() as opened:
        told, tell = _pipe(opened)
        held, hold = _pipe(opened)
        pid = os.fork()
        if not pid:
            _be_maker(lambda: _build(points), tell.fileno(), (told.fileno(), hold.fileno()), held.fileno())
        try:
            tell.close()
            held.close()
            answer = select.poll()
            answer.register(told, select.POLLIN)
            if not answer.poll(_PATIENCE * 1000) or not told.read(1):
                return None
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                os.close(namespace)
                raise
            return Namespace(namespace, root, frozenset(points), others)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _pipe(opened: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    """Return the reading and the writing end of a pipe; *opened* closes both."""
    read, write = os.pipe()
    return opened.enter_context(FileIO(read, "r")), opened.enter_context(FileIO(write, "w"))


def _be_maker(build: Callable[[], None], tell: int, close: Iterable[int], held: int) -> None:
    """Run *build* in the child, write a byte to *tell*, and exit once *held* is readable or closed. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for descriptor in close:
            os.close(descriptor)
        build()
        os.write(tell, b"1")
        os.read(held, 1)
    finally:
        os._exit(0)


def _build(points: Sequence[str]) -> None:
    """Make a new mount namespace for this process, which has only copies of the mounts at *points*.

    A copy doesn't include the mounts below its mount point.
    """
    libc = _libc()
    _check(libc.unshare(_CLONE_NEWNS), "unshare")
    _check(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make private")
    trees = [(point, _open_tree(point)) for point in points]
    place = next(point for point in reversed(points) if os.path.isdir(point))
    _move_mount(trees[0][1], place)  # anywhere: it becomes the root below
    os.fchdir(trees[0][1])
    for point, tree in trees[1:]:
        _move_mount(tree, f".{point}")
    _check(libc.pivot_root(b".", b"."), "pivot_root")
    _check(libc.umount2(b".", _MNT_DETACH), "detach")  # the former root, which lies over the new one
    os.chdir("/")


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _open_tree(path: str, flags: int = 0) -> int:
    """Return a descriptor of a copy of the mount at *path*."""
    how = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_NO_AUTOMOUNT | flags)
    number = ctypes.c_long(_SYS_OPEN_TREE)
    return _check(_libc().syscall(number, ctypes.c_int(_AT_FDCWD), os.fsencode(path), how), path)


def _move_mount(tree: int, path: str) -> None:
    """Mount the copy *tree* at *path*."""
    number, here = ctypes.c_long(_SYS_MOVE_MOUNT), ctypes.c_int(_AT_FDCWD)
    how = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    _check(_libc().syscall(number, ctypes.c_int(tree), b"", here, os.fsencode(path), how), path)
