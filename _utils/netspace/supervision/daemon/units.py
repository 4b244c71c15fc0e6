"""The services of the daemon, each with its phase.

This module sets and records phases, and answers the clients that wait for a start or stop. ``start`` and ``stop`` bring
a service from one phase to the next.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from netspace.layout import Layout
from netspace.supervision import definitions
from netspace.supervision.daemon.loop import Timer
from netspace.supervision.definitions import Trace
from netspace.supervision.service import Service

BY_MARK = -1
# Phases in which dependent services may start.
SETTLED = ("running", "idle", "backoff")


class Waiter(Protocol):
    """A client that waits for the outcome of a start or stop."""

    pending: set[str]
    errors: dict[str, str]

    def done(self, name: str, error: str) -> None: ...


class Unit:
    """A service and its phase.

    ``phase`` is one of: ``idle`` (nothing runs, nothing is planned), ``waiting`` (for
    another service, for files or its turn), ``launching``, ``running``, ``stopping`` (SIGTERM was
    sent), ``ending`` (the main process has ended; its remains are being removed) and
    ``backoff`` (waiting for the next restart).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.phase = "idle"
        self.service: Service | None = None
        self.wanted = False
        self.again = False  # a start was requested while it was ending
        self.pid = 0
        self.ticks = 0
        self.pidfd = -1
        self.report = -1  # descriptor for the error text of a child that is becoming its program
        # The session of the launched process (of the launcher, for a detached start), by which leftover processes are
        # found; BY_MARK: they are found by their mark alone; 0: none can be left.
        self.session = 0
        self.adopted = False
        self.held = False  # waits for files to exist
        self.exit = ""
        self.error = ""
        self.since = 0.0
        self.began = 0.0
        self.restarts = 0
        self.failures = 0
        self.oom_kills = 0  # number of its processes that were killed since the start was requested
        self.oom_seen = 0  # its control group's count when it was last read
        self.log_offset = 0
        self.timer: Timer | None = None
        self.blocked_by: set[str] = set()
        self.waiters: list[tuple[Waiter, str]] = []

    @property
    def log(self) -> Path:
        assert self.service is not None and self.service.log is not None
        return self.service.log

    def afresh(self) -> None:
        """Clear the counts and the record of the last run's end. Called when a start is requested."""
        self.restarts = self.failures = self.oom_kills = 0
        self.exit = self.error = ""

    def cancel(self) -> None:
        """Cancel the unit's timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def kill(self, number: int) -> None:
        """Send a signal to the unit's process, if it has one."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


class Units:
    """All units, by name.

    :param ready: called with a unit that no longer waits for others.
    """

    def __init__(self, layout: Layout, ready: Callable[[Unit], None]) -> None:
        self.layout = layout
        self.by_name: dict[str, Unit] = {}
        self.active: set[str] = set()  # units that are not idle
        self.dependents: dict[str, set[str]] = {}
        self._ready = ready

    def find(self, name: str) -> Unit | None:
        return self.by_name.get(name)

    def get(self, name: str) -> Unit:
        return self.by_name.setdefault(name, Unit(name))

    @staticmethod
    def say(text: str) -> None:
        """Write a line to the daemon's own log."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with contextlib.suppress(OSError):
            os.write(2, f"{stamp} {text}\n".encode())

    @staticmethod
    def trace(unit: Unit, state: str) -> Trace:
        service = definitions.encode(unit.service) if unit.service is not None else {}
        return Trace(
            state, unit.pid, unit.ticks, unit.since, unit.restarts, unit.exit, service, unit.oom_kills, unit.oom_seen
        )

    def note(self, unit: Unit, phase: str, state: str) -> None:
        """Set *phase* and record *state*."""
        unit.phase = phase
        unit.since = time.time()
        (self.active.discard if phase == "idle" else self.active.add)(unit.name)
        self.record(unit, state)
        if phase in SETTLED:
            self.unblock(unit)

    def record(self, unit: Unit, state: str) -> None:
        """Write the unit's trace with *state*."""
        try:
            definitions.write_trace(self.layout, unit.name, self.trace(unit, state))
        except OSError as err:
            self.say(f"{unit.name}: the daemon can't write the trace: {err}")

    def unblock(self, unit: Unit) -> None:
        """Release the units that waited for *unit*."""
        for name in self.dependents.pop(unit.name, ()):
            blocked = self.by_name[name]
            blocked.blocked_by.discard(unit.name)
            if blocked.phase == "waiting" and not blocked.blocked_by:
                self._ready(blocked)

    def idle(self, unit: Unit, state: str) -> None:
        if unit.service is None:
            unit.phase = "idle"
            self.active.discard(unit.name)
            definitions.remove_trace(self.layout, unit.name)
        else:
            self.note(unit, "idle", state)
        self.tell(unit, "stop")
        self.tell(unit, "start", unit.error or "the service ended before it could be used")

    def tell(self, unit: Unit, what: str, error: str = "") -> None:
        """Answer the clients that wait for the start or stop (*what*) of *unit*."""
        for asker, goal in [waiter for waiter in unit.waiters if waiter[1] == what]:
            unit.waiters.remove((asker, goal))
            asker.done(unit.name, error)

    def fail(self, asker: Waiter | None, name: str, error: str) -> None:
        """Report the error for *name* to the client, or to the log if there is no client."""
        if asker is not None:
            asker.errors[name] = error
        else:
            self.say(f"{name}: {error}")
