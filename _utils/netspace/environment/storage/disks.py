"""File systems of a bounded size: writable layers with a size limit, and volumes without a ``source``.

Each is an ext4 in its own sparse file, on a loop device. So the kernel enforces its bounds (bytes, and one file per 16
KiB), regardless of the file system under the state folder. ``df`` in an environment shows the environment's own file
system. These file systems share no free space and no journal.

With CAP_SYS_RESOURCE, a file system can grow while in use. Without this capability, and to shrink, the file system is
rewritten. After a crash, either the old or the new file system is there.

Only :func:`remove` deletes the content of a file system.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from netspace import files, paths
from netspace.environment import runtimes
from netspace.environment.storage import disk_sizes, ext4, loop, mounts
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec import checks
from netspace.spec.types import Environment, Volume

LEAST = checks.DISK_SIZES[0]
SUFFIX = ".ext4"
_NEW = ".new"

# ext4 leaves space at the end unused that is too small for the tables of another block group.
_SLACK = 8 * 1024**2
_OPTIONS = "discard,noinit_itable,errors=remount-ro"
_MEASURED = 60.0  # seconds allowed for measuring a folder

_CAP_SYS_RESOURCE = 24


class DiskFile(msgspec.Struct, frozen=True):
    """A declared file system of an environment.

    :param key: ``layer``, or the volume's target.
    :param file: the file that holds it.
    :param point: its mount point.
    :param content: the folder in it that holds the environment's files.
    """

    key: str
    file: Path
    point: Path
    size: int
    content: str

    @property
    def folder(self) -> Path:
        return self.point / self.content


class Disk(msgspec.Struct, frozen=True):
    """A mounted file system, as observed.

    :param size: its size in bytes. It differs from the declared size after an interrupted change, or if an operator
        changed it.
    :param used: the bytes in use.
    :param files: the number of its files, including the file system's own.
    """

    size: int
    used: int
    files: int = 0


def layer(layout: Layout, name: str, digest: str, size: int) -> DiskFile:
    """Return the :class:`DiskFile` of the environment's writable layer on the image *digest*."""
    file = layout.environment(name) / f"{digest[:16]}{SUFFIX}"
    return DiskFile(disk_sizes.LAYER, file, layout.disks(name) / disk_sizes.LAYER, disk_sizes.whole(size), "upper")


def volume(layout: Layout, name: str, one: Volume) -> DiskFile:
    """Return the :class:`DiskFile` (file and mount point) of a volume that has no ``source``."""
    assert one.size is not None
    own = checks.quoted(one.target)
    file = layout.volumes(name) / f"{own}{SUFFIX}"
    return DiskFile(one.target, file, layout.disks(name) / f"volume-{own}", disk_sizes.whole(one.size), "data")


def places(layout: Layout, name: str, spec: Environment, digest: str) -> list[DiskFile]:
    """Return the :class:`DiskFile` of each bounded file system that an environment declares."""
    found = []
    if spec.limits.disk is not None and not spec.read_only:
        found.append(layer(layout, name, digest, spec.limits.disk))
    return found + [volume(layout, name, one) for one in spec.volumes if one.source is None]


def lacking() -> str:
    """Return why this host can't have file systems of a bounded size; empty if it can."""
    if not loop.CONTROL.exists():
        return f"there is no {loop.CONTROL} (is the kernel's loop module there?)"
    if paths.program("mkfs.ext4", runtimes.SEARCHED) is None:
        return "the program mkfs.ext4 is missing: apt-get install e2fsprogs"
    return ""


@functools.cache
def grows() -> bool:
    """Return whether this process may grow a file system while it is in use (CAP_SYS_RESOURCE, capabilities(7))."""
    with open("/proc/self/status") as stream:
        found = next((line.split()[1] for line in stream if line.startswith("CapEff:")), "0")
    return bool(int(found, 16) >> _CAP_SYS_RESOURCE & 1)


# -- seeing ------------------------------------------------------------------------


def observe(place: DiskFile, mounted: Mapping[str, mounts.Mount]) -> Disk | None:
    """Return the file system that is mounted at *place*; None if none is, or if it lies in another file."""
    mount = mounted.get(str(place.point))
    if mount is None or mount.kind != "ext4" or not mount.source.startswith("/dev/loop"):
        return None
    try:
        if not os.path.samestat(os.stat(loop.backing_file(mount.source)), os.stat(place.file)):
            return None
        system = os.statvfs(place.point)
        size = ext4.size_of(Path(mount.source))
        length = place.file.stat().st_size
    except (OSError, ValueError):
        return None
    if length == place.size and size <= place.size < size + _SLACK:
        size = place.size
    else:
        size = max(size, length) if length > place.size else min(size, length)
    return Disk(size, (system.f_blocks - system.f_bfree) * system.f_frsize, system.f_files - system.f_ffree)


def budget(layout: Layout) -> int | None:
    """Return the bytes that all bounded file systems of this host can hold together: allocated and free ones."""
    try:
        system = os.statvfs(layout.state)
        files = [file for folder in (layout.layers, layout.volumes("")) for file in folder.glob(f"*/*{SUFFIX}")]
        return system.f_bavail * system.f_frsize + sum(file.stat().st_blocks * 512 for file in files)
    except OSError:  # nothing was ever made here
        return None


# -- doing -------------------------------------------------------------------------


def ensure(place: DiskFile, owner: int, mode: int) -> None:
    """Mount the file system of *place* with at least its declared size; make it if it is missing.

    No process may use the file system meanwhile.

    :param owner: host id that owns the folder of new content.
    :param mode: mode of the folder of new content.
    :raises NetspaceError: when a step fails, with the reason.
    """
    try:
        detach(place.point)
        if not place.file.exists():
            # The mount flushes the device, so the whole file is on the disk before it gets its name:
            # a name that survives a power failure names a complete file system.
            aside = _aside(place)
            ext4.make(aside, place.size)
            device = attach(aside, place.point)
            aside.replace(place.file)
        else:
            if not _fits(place):
                with attached(place.file, place.point):
                    write(place, place.folder, owner, mode)
            device = attach(place.file, place.point)
        place.point.chmod(0o700)  # its files have the ids inside, which may belong to a user of this host
        grow(place, device)
        if not place.folder.exists():
            _folder(place.folder, owner, mode)
    except (OSError, ValueError) as err:
        damaged = isinstance(err, ValueError) or err.errno in (errno.EINVAL, errno.EUCLEAN, errno.EIO)
        hint = f"; is it damaged? e2fsck -f {place.file} repairs it" if damaged else ""
        raise NetspaceError(f"{place.file}: {err}{hint}") from err


def _fits(place: DiskFile) -> bool:
    """Return whether the file of *place* has the declared size, or can grow to that size without a rewrite."""
    size, length = ext4.size_of(place.file), place.file.stat().st_size
    if length > place.size or size > place.size:
        return False
    return grows() or (length == place.size and place.size < size + _SLACK)


def write(place: DiskFile, source: Path, owner: int, mode: int) -> None:
    """Make a new file system for *place* with the content of the folder *source*; then replace the old file.

    :param owner: host id that owns the folder of the content.
    :param mode: mode of the folder of the content.
    :raises NetspaceError: when the new file system is too small for the content.
    """
    aside = _aside(place)
    beside = place.point.with_name(place.point.name + _NEW)
    detach(beside)
    try:
        ext4.make(aside, place.size)
        with attached(aside, beside):
            _folder(beside / place.content, owner, mode)
            copy(source, beside / place.content)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(place.file)
    files.sync_folder(place.file.parent)


def _aside(place: DiskFile) -> Path:
    """Return the path at which the new file of *place* is made; delete the rest of an interrupted run there."""
    aside = place.file.with_name(place.file.name + _NEW)
    aside.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside.unlink(missing_ok=True)
    return aside


def copy(source: Path, target: Path) -> None:
    """Copy the whole folder *source* to *target*, with owners, modes, times, links and attributes.

    :raises NetspaceError: when that fails, for example because *target* is full.
    """
    done = subprocess.run(
        ["cp", "--archive", "--no-target-directory", str(source), str(target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={"PATH": runtimes.SEARCHED, "LC_ALL": "C"},
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["cp failed"]
        raise NetspaceError(f"the content of {source} can't be kept: {reason[0]}")
    files.sync_all(target)


def grow(place: DiskFile, device: str) -> None:
    """Grow a mounted file system to the declared size of *place*, if it is smaller. It may be in use.

    :param device: the loop device on which the file system is.
    """
    if place.file.stat().st_size < place.size:
        os.truncate(place.file, place.size)
    loop.notice_size(device)
    if ext4.size_of(Path(device)) < place.size and grows():
        ext4.grow(place.point, place.size)


def attach(file: Path, point: Path) -> str:
    """Mount the file system in *file* at *point*; return its loop device, which the kernel frees at the unmount."""
    for folder in (point.parent.parent, point.parent):
        folder.mkdir(parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o711 != 0o711:
            folder.chmod(0o711)
    point.mkdir(exist_ok=True, mode=0o700)
    device, handle = loop.attach(file)
    try:
        mounts.mount(device, point, "ext4", mounts.NOSUID | mounts.NODEV, _OPTIONS)
    finally:
        os.close(handle)
    return device


def detach(point: Path) -> None:
    """Unmount the file system at *point*, if there is one; its content stays."""
    mounts.unmount(point)
    with contextlib.suppress(FileNotFoundError):
        point.rmdir()


def detach_all(layout: Layout, name: str) -> None:
    """Unmount every file system of the environment."""
    folder = layout.disks(name)
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.listdir(folder)):
            detach(folder / entry)
        folder.rmdir()


def remove(file: Path) -> None:
    """Delete an unmounted file system with its content."""
    file.unlink(missing_ok=True)
    file.with_name(file.name + _NEW).unlink(missing_ok=True)


# -- parts -------------------------------------------------------------------------


@contextlib.contextmanager
def attached(file: Path, point: Path) -> Iterator[None]:
    """Mount the file system in *file* at *point* for the duration of the context."""
    attach(file, point)
    try:
        yield
    finally:
        detach(point)


def _folder(path: Path, owner: int, mode: int) -> None:
    path.mkdir(exist_ok=True)
    os.chown(path, owner, owner)
    path.chmod(mode)


def measure(folder: Path) -> tuple[int, int] | None:
    """Return the number of bytes and of files in a folder, which may be in use; None if they can't be counted."""
    found = []
    for what in (("--block-size=1",), ("--inodes",)):
        try:
            done = subprocess.run(
                ["du", "--summarize", *what, str(folder)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,  # du fails if a file disappears meanwhile: no error here
                env={"PATH": runtimes.SEARCHED, "LC_ALL": "C"},
                timeout=_MEASURED,
            )
            found.append(int(done.stdout.split()[0]))
        except (subprocess.TimeoutExpired, ValueError, IndexError):
            return None
    return found[0], found[1]
