"""ext4 file systems (ext4(5)) in files: makes file systems, reads their sizes, and grows mounted file systems.

A new file system has one inode per 16 KiB, and the smallest journal. Nothing here attaches or mounts.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from netspace import paths
from netspace.environment import runtimes
from netspace.environment.storage.disk_sizes import BLOCK, BYTES_PER_FILE, JOURNAL
from netspace.errors import MissingError, NetspaceError

_RESIZE_FS = 0x40086610
_SUPER_BLOCK = 1024
_MAGIC = 0xEF53
_LARGEST_BLOCK = 6  # 64 KiB, as a power of two times 1 KiB


def size_of(path: Path) -> int:
    """Return the size in bytes of the ext4 in *path*, by its super block.

    :param path: the file system's file. If the file system is mounted, pass its block device instead, because the file
        may be out of date.
    :raises ValueError: when there is no ext4, or a damaged one.
    """
    with path.open("rb", buffering=0) as stream:
        block = os.pread(stream.fileno(), 1024, _SUPER_BLOCK)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise ValueError(f"{path} holds no ext4")
    (low,), (high,) = struct.unpack_from("<I", block, 0x4), struct.unpack_from("<I", block, 0x150)
    (log,) = struct.unpack_from("<I", block, 0x18)
    if log > _LARGEST_BLOCK:
        raise ValueError(f"{path} holds a damaged ext4: blocks of 2^{10 + log} bytes")
    return int((high << 32 | low) << (10 + log))


def grow(point: Path, size: int) -> None:
    """Grow the file system that is mounted at *point* to *size* bytes. Its device must already be that large."""
    handle = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _RESIZE_FS, struct.pack("=Q", size // BLOCK))
    finally:
        os.close(handle)


def make(path: Path, size: int) -> None:
    """Make an empty file system of *size* bytes in a new sparse file, which only root can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, size)
        for offset, content in _blank(size):
            os.pwrite(handle, content, offset)
    finally:
        os.close(handle)


@functools.lru_cache(maxsize=4)
def _blank(size: int) -> tuple[tuple[int, bytes], ...]:
    """Return the parts of an empty ext4 of this size that aren't zeros, as pairs of offset and bytes.

    mkfs.ext4 runs once per size and process.
    """
    program = paths.program("mkfs.ext4", runtimes.SEARCHED)
    if program is None:
        raise MissingError("the program mkfs.ext4", "install it: apt-get install e2fsprogs")
    handle = os.memfd_create("ext4", os.MFD_CLOEXEC)
    try:
        os.ftruncate(handle, size)
        done = subprocess.run(
            [
                *(program, "-q", "-F", "-b", str(BLOCK), "-i", str(BYTES_PER_FILE), "-I", "256", "-m", "0"),
                *("-J", f"size={JOURNAL}", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
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
