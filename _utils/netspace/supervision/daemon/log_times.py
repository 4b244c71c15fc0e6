"""Times of a log's lines, and the starts of its program: a file beside the log, which only the daemon writes.

A log contains a program's bytes unchanged, and no part of the log is interpreted as a time or a mark. So a program
can't forge times or starts. Each entry of ``<log>.times`` has 16 bytes: an offset in the log, and the microseconds
since the epoch, doubled, plus 1 if the program was started at that time. The daemon read the bytes from this offset to
the next entry's offset at that time or later.

Entries are written every tenth of a second at most. A file of ``LIMIT`` bytes loses the older half of its entries, and
the log's lines before the rest have no times. An incomplete entry, left by a full disk or a crash, is cut off before
the next entry is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from pathlib import Path
from typing import NamedTuple

from netspace import files

LIMIT = 2 * 1024 * 1024
APART = 0.1  # seconds between two entries
_ENTRY = struct.Struct("<QQ")
_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LARGEST = 2**58  # of a time: a later one is damage, as no calendar goes beyond the year 9999


class Entry(NamedTuple):
    """One entry: the log's bytes from *offset* on were read at *moment* (seconds since the epoch) or later."""

    offset: int
    moment: float
    start: bool


def beside(log: Path) -> Path:
    return Path(f"{log}.times")


def read(log: Path, size: int) -> list[Entry]:
    """Return the entries about the first *size* bytes of a log, in order; empty if entries are missing or damaged.

    A log whose owner is not root was written by its program itself, under an earlier version; such a log has no times.
    """
    try:
        with files.opened(beside(log)) as stream:
            if os.stat(log).st_uid != os.fstat(stream.fileno()).st_uid:
                return []
            raw = stream.read(2 * LIMIT)
    except OSError:
        return []
    found: list[Entry] = []
    for offset, doubled in _ENTRY.iter_unpack(raw[: len(raw) - len(raw) % _ENTRY.size]):
        if doubled > _LARGEST or (found and offset < found[-1].offset):
            return []
        if offset > size:  # an entry is written before the bytes of the log that it describes
            break
        found.append(Entry(offset, (doubled >> 1) / 1e6, bool(doubled % 2)))
    return found


class Times:
    """Writer of the entries about one log.

    :param log: the path of the log; the file with the entries need not exist.
    """

    def __init__(self, log: Path) -> None:
        self._path = beside(log)
        self._offset, self._moment = -1, 0.0  # of the last entry; -1: it isn't known

    def note(self, offset: int, moment: float, start: bool = False) -> None:
        """Note that the bytes after *offset*, the log's current size, were read at *moment*.

        Do nothing if the last entry is too recent.

        :raises OSError: the entry can't be written; the next call repairs the file.
        """
        soon = 0 <= moment - self._moment < APART
        if soon and not start and 0 <= self._offset <= offset:  # a log that was rotated is shorter
            return
        known, self._offset = self._offset, -1
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _CAREFUL, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if known < 0 or known > offset or size % _ENTRY.size:
                size = _mended(descriptor, size, offset)
            entry = _ENTRY.pack(offset, int(moment * 1e6) * 2 + start)
            if size >= LIMIT:
                _write(self._path, os.pread(descriptor, LIMIT // 2, size - LIMIT // 2) + entry)
            elif os.pwrite(descriptor, entry, size) != len(entry):
                raise OSError(errno.ENOSPC, "half an entry was written", str(self._path))
        finally:
            os.close(descriptor)
        self._offset, self._moment = offset, moment


def _mended(descriptor: int, size: int, offset: int) -> int:
    """Repair the file of entries, and return its size in bytes.

    Cut off an incomplete entry. Cut off all entries if the last entry's offset is beyond the end of the log.
    """
    size -= size % _ENTRY.size
    if size and _ENTRY.unpack(os.pread(descriptor, _ENTRY.size, size - _ENTRY.size))[0] > offset:
        size = 0
    os.ftruncate(descriptor, size)
    return size


def _write(path: Path, content: bytes) -> None:
    """Replace a file by rename. A power cut may destroy the file; the log's lines then have no times."""
    aside = f"{path}.new"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _CAREFUL, 0o600)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)
    os.rename(aside, path)


def moved(log: Path, older: Path) -> None:
    """Rename the entries' file, because its log is about to be renamed."""
    try:
        os.rename(beside(log), beside(older))
    except FileNotFoundError:
        remove(older)


def copied(log: Path, older: Path, size: int, cut: int) -> None:
    """Move the entries about the first *size* bytes of *log* to its copy *older*.

    *older* lacks the first *cut* bytes of *log*, so the offsets are reduced by *cut*. *log* has no entries afterwards.
    The caller then empties *log*.
    """
    entries = read(log, size)
    first = max((number for number, entry in enumerate(entries) if entry.offset <= cut), default=0)
    remove(older)
    if entries:
        _write(
            beside(older),
            b"".join(
                _ENTRY.pack(max(entry.offset - cut, 0), round(entry.moment * 1e6) * 2 + entry.start)
                for entry in entries[first:]
            ),
        )
    remove(log)


def remove(log: Path) -> None:
    """Remove the entries about *log*."""
    for path in (str(beside(log)), f"{beside(log)}.new"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
