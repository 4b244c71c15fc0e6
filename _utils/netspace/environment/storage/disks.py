"""File systems of a bounded size, each in a file of its own: writable layers and volumes without a source.

Each is an ext4 in a sparse file on a loop device. So the kernel keeps its bounds (bytes, and
files: one per 16 KiB) on any host, whatever file system holds the state folder. ``df`` in an
environment shows its own file system. File systems share neither free space nor a journal.

With CAP_SYS_RESOURCE, a file system is grown while in use. Without it, and to shrink, it is
rewritten; a crash leaves either the old or the new one. The loop device bypasses the host's page
cache (direct I/O). So an environment is charged for the memory and the disk I/O of all that it
reads and writes.

Only *remove* deletes the content of a file system. Written after loop(4), ext4(5) and linux/loop.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from netspace import files
from netspace.environment import runtimes
from netspace.environment.storage import mounts
from netspace.errors import MissingError, NetspaceError
from netspace.layout import Layout
from netspace.spec import checks
from netspace.spec.types import Environment, Volume

LAYER = "layer"
LEAST = checks.DISK_SIZES[0]
SUFFIX = ".ext4"
_NEW = ".new"

_BLOCK = 4096
_BYTES_PER_FILE = 16384
_JOURNAL = 4  # MiB, the minimum
# ext4 leaves space at the end unused that is too small for the tables of another block group.
_SLACK = 8 * 1024**2
_OPTIONS = "discard,noinit_itable,errors=remount-ro"

_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_EXT4_IOC_RESIZE_FS = 0x40086610
_CONTROL = Path("/dev/loop-control")
_ATTEMPTS = 100
_MEASURED = 60.0  # seconds allowed for measuring a folder
_RELEASED = 2.0  # seconds allowed to the kernel for releasing an unmounted file system

_CAP_SYS_RESOURCE = 24

_SUPER_BLOCK = 1024
_MAGIC = 0xEF53


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

    :param size: its size in bytes. It differs from the declared one after a change by hand or an interrupted change.
    :param used: its bytes in use.
    :param files: the number of its files, including the file system's own.
    """

    size: int
    used: int
    files: int = 0


def layer(layout: Layout, name: str, digest: str, size: int) -> DiskFile:
    """Return the place of the layer on the image *digest*."""
    file = layout.environment(name) / f"{digest[:16]}{SUFFIX}"
    return DiskFile(LAYER, file, layout.disks(name) / LAYER, whole(size), "upper")


def volume(layout: Layout, name: str, one: Volume) -> DiskFile:
    """Return the :class:`DiskFile` (file and mount point) of a volume that has no ``source``."""
    assert one.size is not None
    own = checks.quoted(one.target)
    file = layout.volumes(name) / f"{own}{SUFFIX}"
    return DiskFile(one.target, file, layout.disks(name) / f"volume-{own}", whole(one.size), "data")


def places(layout: Layout, name: str, spec: Environment, digest: str) -> list[DiskFile]:
    """Return the places of all file systems of its own that the environment declares."""
    found = []
    if spec.limits.disk is not None and not spec.read_only:
        found.append(layer(layout, name, digest, spec.limits.disk))
    return found + [volume(layout, name, one) for one in spec.volumes if one.source is None]


def lacking() -> str:
    """Return why this host can't have file systems of a bounded size; empty if it can."""
    if not _CONTROL.exists():
        return f"there is no {_CONTROL} (is the kernel's loop module there?)"
    if shutil.which("mkfs.ext4", path=runtimes.SEARCHED) is None:
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
    """Return the file system that is mounted at the place; None if there is none, or it isn't in the place's file."""
    mount = mounted.get(str(place.point))
    if mount is None or mount.kind != "ext4" or not mount.source.startswith("/dev/loop"):
        return None
    try:
        backing = Path(f"/sys/block/{mount.source[5:]}/loop/backing_file").read_text().rstrip("\n")
        if not os.path.samestat(os.stat(backing), os.stat(place.file)):
            return None
        system = os.statvfs(place.point)
        size = size_of(Path(mount.source))
        length = place.file.stat().st_size
    except (OSError, ValueError):
        return None
    if length == place.size and size <= place.size < size + _SLACK:
        size = place.size
    else:
        size = max(size, length) if length > place.size else min(size, length)
    return Disk(size, (system.f_blocks - system.f_bfree) * system.f_frsize, system.f_files - system.f_ffree)


def size_of(path: Path) -> int:
    """Return the size in bytes of the ext4 in *path* (a file, or better its mounted device), by its super block."""
    with path.open("rb", buffering=0) as stream:
        block = os.pread(stream.fileno(), 1024, _SUPER_BLOCK)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise ValueError(f"{path} holds no ext4")
    (low,), (high,) = struct.unpack_from("<I", block, 0x4), struct.unpack_from("<I", block, 0x150)
    (log,) = struct.unpack_from("<I", block, 0x18)
    return int((high << 32 | low) << (10 + log))


def sizes(spec: Environment) -> dict[str, int]:
    """Return the declared sizes of an environment's own file systems, by their keys."""
    found = {one.target: int(one.size) for one in spec.volumes if one.size is not None}
    if spec.limits.disk is not None and not spec.read_only:
        found[LAYER] = int(spec.limits.disk)
    return found


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
    """Mount the place's file system with at least its size; make it if it is missing. No process may use it.

    :param owner: host id that owns the folder of new content.
    :param mode: mode of the folder of new content.
    :raises NetspaceError: when that fails, with the reason.
    """
    try:
        detach(place.point)
        if not place.file.exists():
            # The mount flushes the device, so the whole file is on the disk before it gets its name:
            # a name that survives a power failure names a complete file system.
            aside = _aside(place)
            _blank_file(aside, place.size)
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
    """Return whether the place's file has the declared size, or can grow to it without a rewrite."""
    size, length = size_of(place.file), place.file.stat().st_size
    if length > place.size or size > place.size:
        return False
    return grows() or (length == place.size and place.size < size + _SLACK)


def write(place: DiskFile, source: Path, owner: int, mode: int) -> None:
    """Rewrite the place's file with the content of the folder *source*; replace the old file once all is written.

    :raises NetspaceError: when the file system has no room for the content.
    """
    aside = _aside(place)
    beside = place.point.with_name(place.point.name + _NEW)
    detach(beside)
    try:
        _blank_file(aside, place.size)
        with attached(aside, beside):
            _folder(beside / place.content, owner, mode)
            copy(source, beside / place.content)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(place.file)
    files.sync_folder(place.file.parent)


def _aside(place: DiskFile) -> Path:
    """Return the path at which the place's new file is made; delete what an interrupted run left there."""
    aside = place.file.with_name(place.file.name + _NEW)
    aside.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside.unlink(missing_ok=True)
    return aside


def copy(source: Path, target: Path) -> None:
    """Copy all of the folder *source* into the folder *target*: owners, modes, times, links, attributes.

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
        raise NetspaceError(f"what is in {source} can't be kept: {reason[0]}")
    files.sync_all(target)


def grow(place: DiskFile, device: str) -> None:
    """Grow a mounted file system to its place's size, if it is smaller; it may be in use.

    :param device: the loop device that is mounted there.
    """
    if place.file.stat().st_size < place.size:
        os.truncate(place.file, place.size)
    with open(device, "rb", buffering=0) as stream:
        fcntl.ioctl(stream, _LOOP_SET_CAPACITY, 0)
    if size_of(Path(device)) < place.size and grows():
        point = os.open(place.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(point, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", place.size // _BLOCK))
        finally:
            os.close(point)


def attach(file: Path, point: Path) -> str:
    """Mount the file system in *file* at *point*; return its loop device, which is freed with the mount."""
    for folder in (point.parent.parent, point.parent):
        folder.mkdir(parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o711 != 0o711:
            folder.chmod(0o711)
    point.mkdir(exist_ok=True, mode=0o700)
    device, handle = _loop(file)
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


def _loop(file: Path) -> tuple[str, int]:
    """Return a new loop device on *file*, and an open handle of it.

    The kernel frees the device once it is neither open nor mounted.
    """
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _claim(file, backing)
        config = bytearray(304)  # struct loop_config: fd, block_size, struct loop_info64 (lo_flags at 52), reserved
        struct.pack_into("=II", config, 0, backing, 0)
        struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO)
        for _ in range(_ATTEMPTS):
            with _CONTROL.open("rb") as control:
                device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(handle, _LOOP_CONFIGURE, config)
            except OSError as err:
                os.close(handle)
                if err.errno != errno.EBUSY:  # another process took it first
                    raise
            else:
                return device, handle
        raise OSError(errno.EBUSY, "no loop device is free")
    finally:
        os.close(backing)


def _claim(file: Path, backing: int) -> None:
    """Lock *file* for one loop device: two independent mounts of one ext4 would destroy it.

    The device keeps its backing file open, and with it the lock. It does so as long as any process has
    a file open in a mount of it, even after netspace has unmounted it.

    :raises NetspaceError: when another device still has the lock.
    """
    deadline = time.monotonic() + _RELEASED
    while True:
        try:
            fcntl.flock(backing, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
        time.sleep(0.01)
    device = next((name for name, path in _backing_files() if path == str(file)), "a loop device")
    raise NetspaceError(
        f"{file} is still in use by {device}: a process outside of the environment has a file or folder "
        "in it open; end that one (a backup? a shell?) and apply again"
    )


def _backing_files() -> Iterator[tuple[str, str]]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # the device was just freed
            yield f"/dev/{path.parts[3]}", path.read_text().rstrip("\n")


def _blank_file(path: Path, size: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, size)
        for offset, content in _blank(size):
            os.pwrite(handle, content, offset)
    finally:
        os.close(handle)


@functools.lru_cache(maxsize=4)
def _blank(size: int) -> tuple[tuple[int, bytes], ...]:
    """Return the parts of an empty ext4 of this size that are not zero: offset and bytes. mkfs runs once per size."""
    program = shutil.which("mkfs.ext4", path=runtimes.SEARCHED)
    if program is None:
        raise MissingError("the program mkfs.ext4", "install it: apt-get install e2fsprogs")
    handle = os.memfd_create("ext4", os.MFD_CLOEXEC)
    try:
        os.ftruncate(handle, size)
        done = subprocess.run(
            [
                *(program, "-q", "-F", "-b", str(_BLOCK), "-i", str(_BYTES_PER_FILE), "-I", "256", "-m", "0"),
                *("-J", f"size={_JOURNAL}", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
                f"/proc/self/fd/{handle}",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            pass_fds=(handle,),
            env={"PATH": runtimes.SEARCHED, "LC_ALL": "C"},
        )
        if done.returncode:
            raise NetspaceError(f"mkfs.ext4: {done.stderr.decode(errors='replace').strip()}")
        return tuple(_extents(handle, size))
    finally:
        os.close(handle)


def _extents(handle: int, size: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < size:
        try:
            at = os.lseek(handle, at, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # nothing more
                return
            raise
        end = os.lseek(handle, at, os.SEEK_HOLE)
        yield at, os.pread(handle, end - at, at)
        at = end


def _folder(path: Path, owner: int, mode: int) -> None:
    path.mkdir(exist_ok=True)
    os.chown(path, owner, owner)
    path.chmod(mode)


def whole(size: int) -> int:
    """Return the size rounded down to whole blocks of a file system."""
    return int(size) // _BLOCK * _BLOCK


def overfull(size: int, used: int, files: int) -> str:
    """Return why a file system of *size* can't hold so many bytes and files; empty if it can."""
    if used > room(size):
        return f"it holds {used / 1024**2:.1f} MiB already, {size} bytes have no room for that"
    if files > most_files(size):
        return f"it holds {files} files, {size} bytes have room for {most_files(size)}"
    return ""


def measure(folder: Path) -> tuple[int, int] | None:
    """Return the bytes and files in a folder, which may be in use; None if they can't be counted."""
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


def room(size: int) -> int:
    """Return roughly the bytes that a file system of *size* has for content: all but its journal and tables."""
    return size - size * 256 // _BYTES_PER_FILE - (_JOURNAL + 1) * 1024**2


def most_files(size: int) -> int:
    """Return roughly the number of files that a file system of *size* can have."""
    return size // _BYTES_PER_FILE
