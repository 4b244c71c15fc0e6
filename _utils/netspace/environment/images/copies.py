"""Copies of images, for environments that share no page in memory with others (``image_cache: own``).

The kernel caches pages per file. If one environment has read a page of a shared image, another environment reads this
page faster. By the time of its own reads, it can learn what the first environment has read. A copy is a separate file
with separate pages.

The copy is mounted, and its name is removed at once. The kernel frees the copy's space when its last mount, the
environment's root, is gone. So nobody has to remove a copy, and a crash leaves none. If the file system can share
blocks (XFS, btrfs), a copy takes no space.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from netspace.environment.images import FLAGS, MOUNTED, Store, sources, verity
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError

_PIECE = 64 * 1024**2


@contextlib.contextmanager
def mounted(store: Store, digest: str) -> Iterator[Path]:
    """Context manager that mounts a copy of an image, and yields the mount point.

    At the end, this mount is removed. Mounts that were cloned from it stay.

    :raises NetspaceError: when the disk has no room, the copy differs from the image, or this host can't mount image
        files.
    """
    with store.aside() as aside:
        copy, point = aside / "image", aside / MOUNTED
        _copy(store.file(digest), copy)
        with copy.open("rb") as stream:
            found = sources.digest(stream)
        if found != digest:
            raise NetspaceError(store.damage(digest) or f"a copy of image {store.file(digest)} differs; apply again")
        verity.enable(copy)
        with _mounted(copy, point):
            yield point


def check(store: Store, digest: str) -> None:
    """Check that an image can be copied and mounted here. Changes nothing.

    :raises NetspaceError: when the disk has no room, or this host can't mount image files.
    """
    path = store.file(digest)
    info, disk = path.stat(), os.statvfs(path)
    if info.st_size > disk.f_bavail * disk.f_frsize and not _shares(store, path):
        raise _full(path, info.st_size)
    with store.aside() as aside, _mounted(path, aside / MOUNTED):
        pass


@contextlib.contextmanager
def _mounted(file: Path, point: Path) -> Iterator[None]:
    point.mkdir(mode=0o700)
    try:
        mounts.mount(file, point, "erofs", FLAGS)
    except OSError as err:
        if err.errno not in (errno.ENODEV, errno.ENOTBLK, errno.EINVAL):
            raise NetspaceError(str(err)) from err
        raise NetspaceError(
            f"image_cache: own: this kernel can't mount an erofs file in {file.parent}; that needs Linux 6.12, and a "
            "disk; or leave it out"
        ) from err
    try:
        yield
    finally:
        mounts.unmount(point)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        os.fchmod(written.fileno(), 0o600)
        left = size = os.fstat(read.fileno()).st_size
        try:
            # copy_file_range(2): shares the blocks where the file system can, else copies within the kernel.
            while left and (done := os.copy_file_range(read.fileno(), written.fileno(), min(left, _PIECE))):
                left -= done
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(source, size) from err
            raise NetspaceError(f"image {source} can't be copied: {err.strerror}") from err


def _shares(store: Store, path: Path) -> bool:
    """Return whether the images' file system lets a copy share the blocks of *path* (FICLONE, ioctl_ficlone(2))."""
    import fcntl

    with store.aside() as aside, path.open("rb") as read, (aside / "image").open("xb") as written:
        try:
            fcntl.ioctl(written, 0x40049409, read.fileno())
        except OSError:
            return False
    return True


def _full(path: Path, size: int) -> NetspaceError:
    return NetspaceError(
        f"image_cache: own: {path.parent} has no room for a copy of {size} bytes; make room, for example by "
        "netspace_image.prune, and apply again"
    )
