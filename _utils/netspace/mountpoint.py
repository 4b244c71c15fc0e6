"""Queries about single mounts by statx(2) and statmount(2), without a list of all mounts. Changes nothing.

A host has several mounts for each environment, so a change of one environment must not read the whole list. Older
kernels can't answer: statx reports mount points since Linux 5.8, statmount describes a mount since 6.8, with its source
since 6.15. On an older kernel :class:`UnknownError` is raised, and the caller reads ``/proc/self/mountinfo``.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from typing import Any, NamedTuple

_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC = -100, 0x100, 0x800, 0x4000
_STATX_MNT_ID_UNIQUE, _STATX_ATTR_MOUNT_ROOT = 0x4000, 0x2000
# linux/stat.h, struct statx: stx_mask, stx_attributes, stx_attributes_mask, stx_mnt_id.
_STATX = struct.Struct("=I4xQ40xQ80xQ")
_SYS_STATMOUNT = 457  # the same on every architecture that Debian has
# linux/mount.h, STATMOUNT_*: SB_BASIC, MNT_ROOT, FS_TYPE and SB_SOURCE.
_WANTED = 0x1 | 0x8 | 0x20 | 0x200
# linux/mount.h, struct mnt_id_req; struct statmount: mask, device, and the places of the texts behind _TEXTS bytes.
_REQUEST = struct.Struct("=IIQQ")
_STATMOUNT = struct.Struct("=8xQII12xI64xI16xI")
_TEXTS = 512
_LARGEST = 64 * 1024


class UnknownError(Exception):
    """Error: this kernel can't answer the question about a single mount."""


class Found(NamedTuple):
    """A mount, as a line of ``/proc/self/mountinfo`` describes it.

    :param kind: the type of the file system.
    :param source: the mount's source, such as a device.
    :param device: the file system's device, ``major:minor``.
    :param root: the folder of the file system that is mounted.
    """

    kind: str
    source: str
    device: str
    root: str


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def is_mounted(path: str) -> bool:
    """Return whether something is mounted at *path* itself. A symbolic link at *path* isn't followed.

    :raises UnknownError: the kernel can't answer, or the mount can't be queried (say, because its server is gone).
    """
    return _mount_id(path) is not None


def find(path: str) -> Found | None:
    """Return the topmost mount at *path*; None if nothing is mounted at it.

    :raises UnknownError: as for :func:`is_mounted`, or the kernel can't describe single mounts.
    """
    number = _mount_id(path)
    if number is None:
        return None
    if number == 0:
        raise UnknownError
    answer = ctypes.create_string_buffer(_LARGEST)
    request = _REQUEST.pack(_REQUEST.size, 0, number, _WANTED)
    if _libc().syscall(ctypes.c_long(_SYS_STATMOUNT), request, answer, ctypes.c_size_t(_LARGEST), ctypes.c_uint(0)):
        raise UnknownError
    head = answer.raw[: _STATMOUNT.size]
    told, major, minor, kind, root, source = _STATMOUNT.unpack(head)
    if told & _WANTED != _WANTED:
        raise UnknownError
    texts = [os.fsdecode(ctypes.string_at(ctypes.addressof(answer) + _TEXTS + at)) for at in (kind, source, root)]
    return Found(texts[0], texts[1], f"{major}:{minor}", texts[2])


def _mount_id(path: str) -> int | None:
    """Return the unique id of the mount at *path*; None if nothing is mounted at it.

    The result is 0 if something is mounted, but the kernel has no such ids.
    """
    answer = ctypes.create_string_buffer(256)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _libc().statx(_AT_FDCWD, os.fsencode(path), flags, ctypes.c_uint(_STATX_MNT_ID_UNIQUE), answer):
        if ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise UnknownError
    mask, attributes, told, number = _STATX.unpack_from(answer)
    if not told & _STATX_ATTR_MOUNT_ROOT:
        raise UnknownError
    if not attributes & _STATX_ATTR_MOUNT_ROOT:
        return None
    return int(number) if mask & _STATX_MNT_ID_UNIQUE else 0
