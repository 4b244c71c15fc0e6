"""Book of trust on the master's disk: the hosts that the master distrusts, and the minions still to be informed.

The file ``trust.json`` lies beside the facts that hosts published, and is replaced by a rename. While the file is
damaged, no minion gets a slice, until the master has checked all hosts again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from netspace import files
from netspace.errors import StateError
from netspace.fleet.in_force import Stamp, stamp
from netspace.fleet.trust import Book

LOOK = "salt-run netspace_trust.look"
MAX_FILE = 64 * 1024**2


@functools.lru_cache(8)
def book(folder: Path) -> TrustBook:
    """Return the book in a folder. A process has one object per folder, which caches the decoded file."""
    return TrustBook(folder)


class TrustBook:
    """The book in *folder*, which only the master's user can write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trust.json"
        self._folder = folder
        self._seen: tuple[Stamp, Book] = (None, Book())

    def looking(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock under which hosts are checked and the book is written."""
        return files.locked(self._folder / ".trust.lock")

    @contextlib.contextmanager
    def telling(self) -> Iterator[bool]:
        """Hold the lock for informing minions again that didn't confirm; yield False if another process holds it."""
        fd = os.open(self._folder / ".tell.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        try:
            yield mine
        finally:
            os.close(fd)

    def read(self) -> Book:
        """Return the book; an empty one if there is no file.

        :raises StateError: the file is damaged.
        """
        now = stamp(self.path)
        if now is None:
            return Book()
        if self._seen[0] != now:
            try:
                raw = files.read(self.path, MAX_FILE + 1)
                if len(raw) > MAX_FILE:
                    raise ValueError(f"larger than {MAX_FILE} bytes")
                found = msgspec.json.decode(raw, type=Book)
            except FileNotFoundError:
                return Book()
            except (OSError, ValueError) as err:
                raise StateError(f"{self.path}: {err}; {LOOK} makes it again") from err
            self._seen = now, found
        return self._seen[1]

    def write(self, new: Book) -> bool:
        """Store the book; return whether it differs from the stored one. The caller holds :meth:`looking`."""
        return files.write(self.path, msgspec.json.format(msgspec.json.encode(new, order="sorted")) + b"\n")
