"""Adoption of services that an earlier daemon started. The daemon finds them by their trace files.

Running services keep running undisturbed. If a service ended while no daemon ran, this daemon handles that end as if it
had seen it.
"""

from __future__ import annotations

import os
import time

from netspace.errors import NetspaceError
from netspace.supervision import definitions, process
from netspace.supervision.daemon.children import Children
from netspace.supervision.daemon.ending import Stopper
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.start import START_TIMEOUT, Starter, with_log
from netspace.supervision.daemon.units import BY_MARK, Unit, Units
from netspace.supervision.definitions import Trace


class Adoption:
    """The part of the daemon that adopts services, once, before the first request."""

    def __init__(self, units: Units, loop: Loop, children: Children, starting: Starter, ending: Stopper) -> None:
        self.units = units
        self.loop = loop
        self.children = children
        self.starting = starting
        self.ending = ending

    def adopt(self) -> None:
        """Adopt an earlier daemon's services: watch the running services, and handle the end of each ended service."""
        folder = definitions.traces(self.units.layout)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in os.listdir(folder):
            if entry.startswith("."):
                os.unlink(folder / entry)
        desired = definitions.desired(self.units.layout)
        for name in definitions.traced(self.units.layout):
            trace = definitions.read_trace(self.units.layout, name)
            try:
                service = definitions.decode(trace.service) if trace is not None else None
            except NetspaceError:
                service = None
            if trace is None or service is None:
                self.units.say(f"{name}: the trace is damaged; the daemon has removed it")
                definitions.remove_trace(self.units.layout, name)
                continue
            if trace.state in definitions.AT_REST:
                continue
            unit = self.units.get(name)
            unit.service = with_log(self.units.layout, service)
            unit.wanted = name in desired
            unit.restarts, unit.exit, unit.since = trace.restarts, trace.exit, trace.since
            unit.oom_kills, unit.oom_seen = trace.oom_kills, trace.oom_seen
            unit.adopted = True
            self.units.active.add(name)
            self._take_over(unit, trace)

    def _take_over(self, unit: Unit, trace: Trace) -> None:
        assert unit.service is not None
        unit.began = time.monotonic()
        if unit.service.pid_file is not None:
            self._read_on(unit)
        if process.alive(trace.pid, trace.ticks):
            unit.pid, unit.ticks = trace.pid, trace.ticks
            if trace.state == "launching":
                unit.phase, unit.session = "launching", trace.pid
                self.starting.launching.add(unit.name)
                unit.pidfd = self.children.follow(
                    trace.pid, lambda status: self.starting.launched(unit, status), adopted=True
                )
                unit.timer = self.loop.after(START_TIMEOUT, lambda: self.starting.too_slow(unit))
                return
            unit.session = 0 if process.contained(trace.pid) else trace.pid
            unit.pidfd = self.children.follow(trace.pid, lambda status: self.starting.ended(unit, status), adopted=True)
            unit.phase = "running"
            self.starting.shortage.follow(unit)
            self.units.say(f"{unit.name}: adopted, process {trace.pid}")
            if trace.state == "stopping" or not unit.wanted:
                self.ending.halt(unit)
            return
        if trace.state == "launching" and self.starting.main_of(unit, trace.ticks):
            self.starting.main_runs(unit)
            if not unit.wanted:
                self.ending.halt(unit)
            return
        if trace.state == "starting" and not trace.pid and not trace.exit:  # it still waited for its first start
            if unit.wanted:
                self.starting.enqueue(unit)
            else:
                self.units.idle(unit, "stopped")
            return
        # Find its leftover processes by their mark alone, since its session's number may be in use again.
        unit.session = BY_MARK
        unit.exit = "unknown" if trace.pid else trace.exit
        self.ending.shortage.end(unit)
        self.ending.end(unit)

    def _read_on(self, unit: Unit) -> None:
        """Continue to read a detached program's output. If reading fails, the program is still supervised."""
        try:
            self.ending.relay.follow(unit)
        except OSError as err:
            self.units.say(f"{unit.name}: the daemon can't read the program's output: {err}")
