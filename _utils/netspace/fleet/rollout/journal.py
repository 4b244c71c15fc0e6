"""Journal of a rollout on the master's disk, and requests of operators to a rollout that runs.

===========  ================================================================================================
``journal``  one record per line. The first line is written with the file, by a rename; later lines are appended
``asked``    an operator's request to the process that runs the rollout, which removes the file once it is done
``lock``     held by the process that runs a rollout
===========  ================================================================================================

Each record is on the disk before the next step. A line that a kill cut off counts as not written. No written line is
ever changed. The last journal is kept until the next rollout begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from netspace import files
from netspace.errors import NetspaceError, StateError
from netspace.fleet.rollout import records
from netspace.fleet.rollout.records import Started
from netspace.fleet.rollout.state import Contradiction, Rollout

Asked = Literal["pause", "stop", "stop-and-take-back"]
ASKED: tuple[Asked, ...] = ("pause", "stop", "stop-and-take-back")
MAX_JOURNAL = 256 * 1024 * 1024
MAX_RECORDS = 1_000_000


class Busy(NetspaceError):
    """Error: another process runs a rollout."""


class Journal:
    """The journal in *folder*, which only the master's user can write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path, self._asked = folder / "journal", folder / "asked"
        self._size: int | None = None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock under which a rollout runs.

        :raises Busy: another process holds the lock.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise Busy("a rollout is running; salt-run netspace_fleet.rollout shows it") from err
            yield
        finally:
            os.close(fd)

    def read(self) -> Rollout | None:
        """Return the rollout in the state that the journal's records lead to; None if there is no journal.

        :raises StateError: the journal is damaged.
        """
        return self._read()[0]

    def _read(self) -> tuple[Rollout | None, int]:
        """Return the rollout, and the number of bytes of complete records in the journal."""
        try:
            raw = files.read(self._path, MAX_JOURNAL + 1)
        except FileNotFoundError:
            return None, 0
        except OSError as err:
            raise StateError(f"{self._path}: {err.strerror}") from err
        if len(raw) > MAX_JOURNAL or raw.count(b"\n") > MAX_RECORDS:
            raise self._damaged(1, f"longer than {MAX_JOURNAL} bytes or {MAX_RECORDS} records")
        *lines, cut = raw.split(b"\n")
        rollout: Rollout | None = None
        for number, line in enumerate(lines, 1):
            try:
                record = records.decode(line)
                if rollout is not None:
                    rollout.take(record)
                elif isinstance(record, Started):
                    rollout = Rollout(record)
                else:
                    raise Contradiction("it has no start")
            except (ValueError, RecursionError) as err:  # msgspec's errors are ValueErrors
                raise self._damaged(number, str(err)) from err
        if rollout is None:
            raise self._damaged(1, "it has no start")
        return rollout, len(raw) - len(cut)

    def _damaged(self, line: int, why: str) -> StateError:
        remedy = "look at the hosts by salt-run netspace_fleet.plan, and move the file away"
        return StateError(f"{self._path}: line {line}: {why}; {remedy}")

    def begin(self, started: Started) -> Rollout:
        """Begin a new journal in place of a finished one; the caller holds the lock."""
        rollout = Rollout(started)
        files.remove(self._asked)
        files.write(self._path, msgspec.json.encode(started) + b"\n")
        files.sync_folder(self.folder)
        self._size = None
        return rollout

    def append(self, record: records.Entry) -> None:
        """Write a record, and wait until it is on the disk; the caller holds the lock.

        :raises OSError: the record can't be written. In this case the journal is as before.
        """
        if self._size is None:
            self._size = self._read()[1]
        line = msgspec.json.encode(record) + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, self._size)  # a killed process may have written a part of a line
            left = memoryview(line)
            while left:
                left = left[os.pwrite(fd, left, self._size + len(line) - len(left)) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        self._size += len(line)

    def ask(self, what: Asked) -> None:
        """Store an operator's request (such as ``pause``) to the process that runs the rollout."""
        files.write(self._asked, what.encode())

    def asked(self) -> Asked | None:
        """Return the operator's request; None if there is none."""
        with contextlib.suppress(OSError):
            found = files.read(self._asked, 100).decode("ascii", "replace")
            return next((one for one in ASKED if one == found), None)
        return None

    def answered(self) -> None:
        """Remove the operator's request, because it has been carried out or no longer matters."""
        files.remove(self._asked)
