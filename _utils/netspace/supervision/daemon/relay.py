"""Relay of detached programs' output, from named pipes to their logs.

A program that runs as another user must not own its log, and must not have the log open for writing. It could fill the
disk (fallocate(2)), or by a lease (fcntl(2)) delay every process that opens the log. So the program's standard output
is a named pipe in a folder that only root can write. The daemon reads at most ``CHUNK`` bytes at a time from the pipe;
a program that writes faster has to wait.

The program itself also has the pipe open for reading, so the pipe always has a reader. If no supervisor runs, the
program therefore gets no SIGPIPE, and waits when the pipe is full. The next supervisor finds the pipe by its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path

from netspace.layout import Layout
from netspace.supervision.daemon import logs
from netspace.supervision.daemon.log_times import Times
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.units import Unit, Units

CAPACITY = 1024 * 1024  # bytes that a pipe holds while no supervisor reads
CHUNK = 128 * 1024  # bytes read at one time
PAUSE = 0.01  # seconds after each read: it bounds a program's output rate and the daemon's processor time
_PARTS = 300  # reads that empty a full pipe, even if it keeps each write apart (pipe(2), O_DIRECT)


def folder(layout: Layout) -> Path:
    return layout.run / "output"


def pipe(layout: Layout, name: str) -> Path:
    """Return the path of the named pipe that a detached program writes to."""
    return folder(layout) / name


def opened(path: Path) -> int:
    """Open the pipe for the launcher's output. The child that becomes the launcher calls this function."""
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)


class Relay:
    """The pipes of all running detached programs."""

    def __init__(self, units: Units, loop: Loop) -> None:
        self.units = units
        self.loop = loop
        self._pipes: dict[str, int] = {}
        self._times: dict[str, Times] = {}

    def begin(self, unit: Unit) -> None:
        """Create a new pipe for a program that is about to be launched.

        :raises OSError: when the pipe or the log can't be created.
        """
        path = pipe(self.units.layout, unit.name)
        self.end(unit)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.mkfifo(path, 0o600)
        # A program opens its own output again, as /dev/stdout. Some runtimes make it the pipe's owner, not crun 1.28.
        # Nobody else gets there: the folder is root's.
        path.chmod(0o622)
        own = logs.open_log(unit.log)
        try:
            os.fchown(own, os.geteuid(), os.getegid())  # earlier versions made the program its owner
            os.fchmod(own, 0o600)
        finally:
            os.close(own)
        with contextlib.suppress(OSError):  # a full disk
            self._noted(unit, start=True)
        self.follow(unit)

    def follow(self, unit: Unit) -> None:
        """Read the pipe of a running program. A program that an earlier version started may have no pipe."""
        path = pipe(self.units.layout, unit.name)
        if unit.name in self._pipes or not path.exists():
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, CAPACITY)
        self._pipes[unit.name] = descriptor
        self._watch(unit)

    def drain(self, unit: Unit) -> None:
        """Write the present content of the pipe to the log."""
        for _ in range(_PARTS):  # bounded, because the program may go on writing
            if not self._take(unit):
                break

    def end(self, unit: Unit) -> None:
        """Write the rest of an ended program's pipe to the log, and remove the pipe."""
        with contextlib.suppress(OSError):
            self.follow(unit)
        self.drain(unit)
        self._close(unit)
        self._times.pop(unit.name, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pipe(self.units.layout, unit.name))

    def _watch(self, unit: Unit) -> None:
        self.loop.watch(self._pipes[unit.name], lambda _: self._readable(unit))

    def _readable(self, unit: Unit) -> None:
        descriptor = self._pipes[unit.name]
        if self._take(unit) == 0:
            self._close(unit)  # no process has it open for writing any more
            return
        self.loop.unwatch(descriptor)

        def again() -> None:
            if self._pipes.get(unit.name) == descriptor:
                self._watch(unit)

        self.loop.after(PAUSE, again)

    def _take(self, unit: Unit) -> int | None:
        """Write a chunk to the log; return the chunk's size, 0 if no writer is left, None if the pipe is empty."""
        descriptor = self._pipes.get(unit.name)
        if descriptor is None:
            return None
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return None
        # If the disk is full, the output is lost: a program must not wait for free space.
        with contextlib.suppress(OSError):
            self._noted(unit)
            logs.append(unit.log, data)
        return len(data)

    def _noted(self, unit: Unit, start: bool = False) -> None:
        """Note the time of the data that is about to be written to the log.

        :raises OSError: when the time can't be noted.
        """
        times = self._times.setdefault(unit.name, Times(unit.log))
        times.note(logs.size(unit.log), time.time(), start)

    def _close(self, unit: Unit) -> None:
        descriptor = self._pipes.pop(unit.name, None)
        if descriptor is not None:
            self.loop.unwatch(descriptor)
            os.close(descriptor)
