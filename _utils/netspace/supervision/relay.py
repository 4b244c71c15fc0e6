"""What detached programs write, taken out of named pipes and put into their logs.

A program that runs as somebody else must neither own its log nor have it open for writing: it could
take all of the disk with it (fallocate(2)), or by a lease keep waiting whoever opens it (fcntl(2)). So
its standard output is a named pipe in a folder of root's, from which this process reads a bounded
part at each turn; who writes faster waits.

The program has the pipe open for reading too, so it always has a reader: where no supervisor is there
it waits when the pipe is full, and gets no SIGPIPE. The next supervisor finds the pipe by its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from netspace.layout import Layout
from netspace.supervision import logs
from netspace.supervision.loop import Loop
from netspace.supervision.units import Unit, Units

CAPACITY = 1024 * 1024  # of a pipe: so much is written while no supervisor reads
CHUNK = 128 * 1024  # read at one time
PAUSE = 0.01  # seconds after each: nobody writes more than CHUNK in that time, or takes much of our processor time
_PARTS = 300  # what a full pipe holds, even where each write is kept apart (pipe(2), O_DIRECT)


def folder(layout: Layout) -> Path:
    return layout.run / "output"


def pipe(layout: Layout, name: str) -> Path:
    """The named pipe that a detached program writes to."""
    return folder(layout) / name


def opened(path: Path) -> int:
    """In the child that becomes the launcher: open the pipe as its output."""
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)


class Relay:
    """The pipes of all detached programs that run."""

    def __init__(self, units: Units, loop: Loop) -> None:
        self.units = units
        self.loop = loop
        self._pipes: dict[str, int] = {}

    def begin(self, unit: Unit) -> None:
        """Have a new pipe for one that is about to be launched.

        :raises OSError: when it can't be made.
        """
        path = pipe(self.units.layout, unit.name)
        self.end(unit)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.mkfifo(path, 0o600)
        own = logs.open_log(unit.log)
        try:
            os.fchown(own, os.geteuid(), os.getegid())  # a program of an older version was its owner
            os.fchmod(own, 0o600)
        finally:
            os.close(own)
        self.follow(unit)

    def follow(self, unit: Unit) -> None:
        """Read the pipe of one that runs, if it has one: an older version's program has its log itself."""
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
        """Put into the log what is in the pipe by now."""
        for _ in range(_PARTS):  # whoever goes on writing must not keep us
            if not self._take(unit):
                break

    def end(self, unit: Unit) -> None:
        """Forget the pipe of one that has ended, once what is in it is in the log."""
        with contextlib.suppress(OSError):
            self.follow(unit)
        self.drain(unit)
        self._close(unit)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pipe(self.units.layout, unit.name))

    def _watch(self, unit: Unit) -> None:
        self.loop.watch(self._pipes[unit.name], lambda _: self._readable(unit))

    def _readable(self, unit: Unit) -> None:
        descriptor = self._pipes[unit.name]
        if self._take(unit) == 0:
            self._close(unit)  # nobody has it open any more
            return
        self.loop.unwatch(descriptor)

        def again() -> None:
            if self._pipes.get(unit.name) == descriptor:
                self._watch(unit)

        self.loop.after(PAUSE, again)

    def _take(self, unit: Unit) -> int | None:
        """Put a chunk into the log; return its size: 0 where nobody can write any more, None where nothing is there."""
        descriptor = self._pipes.get(unit.name)
        if descriptor is None:
            return None
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return None
        # What finds no room on the disk is lost: a program must not wait for that.
        with contextlib.suppress(OSError):
            logs.append(unit.log, data)
        return len(data)

    def _close(self, unit: Unit) -> None:
        descriptor = self._pipes.pop(unit.name, None)
        if descriptor is not None:
            self.loop.unwatch(descriptor)
            os.close(descriptor)
