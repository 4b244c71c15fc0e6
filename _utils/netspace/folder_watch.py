"""Watch of one folder by inotify(7), which notices whether somebody else changed a file in it. Changes nothing."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection
from pathlib import Path

# linux/inotify.h: IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF.
_CHANGES = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_ONLY_A_FOLDER = 0x01000000
_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name
_AT_ONCE = 64 * 1024


class Watch:
    """A folder that is watched until :meth:`close`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, which is readable once something has changed."""
        return self._fd

    def touched(self, names: Collection[str]) -> bool:
        """Return whether all changed files belong to *names*: ``<name>.<suffix>`` or ``.<name>.<suffix>.new``.

        The result is True if nothing has changed, and False if the kernel could not record all changes.
        """
        while True:
            try:
                events = os.read(self._fd, _AT_ONCE)
            except BlockingIOError:
                return True
            at = 0
            while at < len(events):
                _, _, _, length = _EVENT.unpack_from(events, at)
                at += _EVENT.size
                file = events[at : at + length].rstrip(b"\0").decode(errors="surrogateescape")
                at += length
                if file.startswith("."):
                    file = file[1:].removesuffix(".new")
                # Without a name it is the folder itself, or the kernel's queue was full.
                if file.rpartition(".")[0] not in names:
                    return False

    def close(self) -> None:
        os.close(self._fd)


def begin(folder: Path) -> Watch | None:
    """Begin to watch *folder*; return None if the kernel can't do that now."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        return None
    if libc.inotify_add_watch(fd, os.fsencode(folder), ctypes.c_uint32(_CHANGES | _ONLY_A_FOLDER)) < 0:
        os.close(fd)
        return None
    return Watch(fd)
