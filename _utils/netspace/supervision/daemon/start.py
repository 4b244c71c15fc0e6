"""The start of services: dependencies first, and a bounded number at a time.

For a detached start, the daemon follows the launcher until the launcher has written the PID of the program.
``stop`` handles the end of services.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from collections.abc import Iterable

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.supervision import definitions, process, restart_policy
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.daemon import logs, spawn
from netspace.supervision.daemon.children import Children
from netspace.supervision.daemon.ending import Stopper
from netspace.supervision.daemon.host_mounts import HostMounts, takes
from netspace.supervision.daemon.log_rotation import Rotation
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.oom import OomTracker
from netspace.supervision.daemon.units import SETTLED, Unit, Units, Waiter
from netspace.supervision.service import Service

START_TIMEOUT = 90.0  # seconds for a detached start
HOLD = 0.1  # seconds between two checks for files that a service waits for
# The number of programs launched at the same time: enough to fill the processors without overloading them.
LAUNCHES = 4 * (os.cpu_count() or 2)


class Starter:
    """The part of the daemon that brings services from ``idle`` or ``backoff`` to ``running``."""

    def __init__(
        self, units: Units, loop: Loop, children: Children, ending: Stopper, shortage: OomTracker, rotation: Rotation
    ) -> None:
        self.units = units
        self.loop = loop
        self.children = children
        self.ending = ending
        self.shortage = shortage
        self.logs = rotation
        self.launching: set[str] = set()
        self.host_mounts = HostMounts(units.layout)
        self._queue: deque[Unit] = deque()

    def ready(self, unit: Unit) -> None:
        """Queue *unit* for its launch."""
        self._queue.append(unit)

    def start(self, names: Iterable[str], asker: Waiter | None = None) -> None:
        """Start *names* and, before them, their dependencies; answer *asker* for *names* only."""
        after: dict[str, tuple[str, ...]] = {}
        fetch = list(names)
        asked = set(fetch)
        services: dict[str, Service] = {}
        while fetch:
            name = fetch.pop()
            if name in after:
                continue
            try:
                service = definitions.read(self.units.layout, name)
            except NetspaceError as err:
                self.units.fail(asker, name, str(err))
                continue
            if service is None:
                if name in asked:
                    self.units.fail(asker, name, definitions.unknown([name], ())[name])
                continue
            after[name], services[name] = service.after, service
            fetch.extend(service.after)
        earlier: set[str] = set()
        for name in definitions.in_order(sorted(after), after):
            unit = self.units.get(name)
            unit.wanted = True
            # A client that killed the process may request its start before the daemon learns of its end.
            dying = unit.phase == "running" and process.dying(unit.pid)
            if asker is not None and name in asked and (dying or unit.phase != "running"):
                asker.pending.add(name)
                unit.waiters.append((asker, "start"))
            if unit.phase in ("idle", "backoff"):
                unit.cancel()
                unit.afresh()
                self.enqueue(unit, earlier.intersection(after[name]))
            elif unit.phase in ("stopping", "ending"):
                unit.again = True
                self.units.tell(unit, "stop", "the service was started again during its stop")
            elif dying:
                unit.again = True
            earlier.add(name)

    def enqueue(self, unit: Unit, after: Iterable[str] = ()) -> None:
        unit.phase = "waiting"
        self.units.active.add(unit.name)
        unit.blocked_by = {other for other in after if self.units.by_name[other].phase not in SETTLED}
        for other in unit.blocked_by:
            self.units.dependents.setdefault(other, set()).add(unit.name)
        if not unit.blocked_by:
            self._queue.append(unit)

    def pump(self) -> None:
        """Launch queued units, as many as may be launched at the same time."""
        while self._queue and len(self.launching) < LAUNCHES:
            unit = self._queue.popleft()
            if unit.phase == "waiting" and not unit.blocked_by:
                self._launch(unit)

    def _launch(self, unit: Unit) -> None:
        try:
            service = definitions.read(self.units.layout, unit.name)
        except NetspaceError as err:
            service, unit.error = None, str(err)
        if service is None:  # its definition was removed or damaged while it waited
            unit.wanted, unit.service = False, None
            self.units.idle(unit, "failed" if unit.error else "stopped")
            return
        unit.service = service = with_log(self.units.layout, service)
        if not all(path.exists() for path in service.until):
            self._hold(unit)
            return
        unit.held = False
        unit.adopted, unit.again, unit.session, unit.error = False, False, 0, ""
        unit.pid = unit.ticks = 0
        unit.log_offset = logs.size(unit.log)
        unit.began = time.monotonic()
        unit.since = time.time()
        self.shortage.begin(unit)
        detached = service.pid_file is not None
        try:
            if service.pid_file is not None:
                service.pid_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                service.pid_file.unlink(missing_ok=True)
                self.ending.relay.begin(unit)
            template = self.units.trace(unit, "launching" if detached else "running")
            made = self.host_mounts.get(len(self.units.active)) if detached and takes(service.command) else None
            pid, unit.report = spawn.fork(self.units.layout, unit.name, service, service.command, template, made)
        except OSError as err:
            unit.error = f"can't be started: {err}"
            self._failed_launch(unit)
            return
        unit.pid = unit.session = pid
        there = process.stat(pid)
        unit.ticks = there.ticks if there is not None else 0
        unit.phase = "launching"
        self.units.active.add(unit.name)
        self.launching.add(unit.name)
        if detached:
            unit.pidfd = self.children.follow(pid, lambda status: self.launched(unit, status))
            unit.timer = self.loop.after(START_TIMEOUT, lambda: self.too_slow(unit))
        else:
            unit.pidfd = self.children.follow(pid, lambda status: self.ended(unit, status))
        self.loop.watch(unit.report, lambda _: self._executed(unit))

    def _hold(self, unit: Unit) -> None:
        """Answer the unit's clients now, and check again soon whether its files exist.

        The clients don't wait, because the files may appear only much later.
        """
        if not unit.held:
            unit.held = True
            unit.pid = unit.ticks = 0
            self.units.note(unit, "waiting", "starting")
        self.units.unblock(unit)
        self.units.tell(unit, "start")

        def again() -> None:
            unit.timer = None
            self._queue.append(unit)

        unit.timer = self.loop.after(HOLD, again)

    def _executed(self, unit: Unit) -> None:
        """Read the child's report: an error text, or nothing if the child has become its program."""
        assert unit.service is not None
        error = os.read(unit.report, 4096).decode(errors="replace")
        self.loop.unwatch(unit.report)
        os.close(unit.report)
        unit.report = -1
        if error:
            unit.error = f"can't be started: {error}"
        elif unit.service.pid_file is None:
            self.main_runs(unit)

    def launched(self, unit: Unit, status: int | None) -> None:
        """Handle the end of a detached program's launcher."""
        unit.cancel()
        unit.pidfd = -1
        if unit.report >= 0:
            self._executed(unit)
        # An adopted launcher's status is unknown: then only the PID file shows success.
        if status in (0, None) and not unit.error and self.main_of(unit, unit.ticks):
            self.main_runs(unit)
            return
        unit.exit = restart_policy.end_of(status)
        if not unit.error:
            self.ending.relay.drain(unit)
            told = logs.tail(unit.log, unit.log_offset)
            reason = "the runtime wrote no PID file" if status == 0 else restart_policy.end_of(status)
            unit.error = f"can't be started: {reason}{': ' + told if told else ''}"
        self._failed_launch(unit)

    def main_of(self, unit: Unit, launcher_ticks: int) -> bool:
        """Follow the process in the PID file if it is the launched program; return whether it is that program.

        The PID may have been reused for another process. The process is the launched program if it started after the
        launcher and is in the service's cgroup, which holds no other processes.
        """
        assert unit.service is not None and unit.service.pid_file is not None
        try:
            pid = int(unit.service.pid_file.read_text()[:20])
        except (OSError, ValueError):
            return False
        born = process.stat(pid)
        if born is None:
            if pid not in self.children.statuses:
                return False
            # The program has ended already, and its status was collected.
            unit.pid, unit.ticks = pid, launcher_ticks
            status = self.children.statuses.pop(pid)
            self.loop.after(0, lambda: self.ended(unit, status))
            return True
        if born.ticks < launcher_ticks:
            return False
        # An ending process leaves its cgroup a moment before its end is visible, so wait for either.
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not _ends_or_is_within(pid, pidfd, payload_cgroup(self.units.layout, unit.name)):
                return False
        finally:
            os.close(pidfd)
        unit.pid, unit.ticks = pid, born.ticks
        try:
            unit.pidfd = self.children.follow(pid, lambda status: self.ended(unit, status), adopted=unit.adopted)
        except OSError:
            return False
        return True

    def main_runs(self, unit: Unit) -> None:
        assert unit.service is not None
        self.launching.discard(unit.name)
        if unit.service.pid_file is None:
            unit.phase = "running"  # the child has written its trace
            self.units.unblock(unit)
        else:
            unit.session = 0 if process.contained(unit.pid) else unit.pid
            self.units.note(unit, "running", "running")
            self.shortage.follow(unit)
        self.units.say(f"{unit.name}: started, process {unit.pid}")
        self.logs.look_soon(unit.log)
        self.units.tell(unit, "start")
        if not unit.wanted:
            self.ending.halt(unit)

    def _failed_launch(self, unit: Unit) -> None:
        self.launching.discard(unit.name)
        self.units.say(f"{unit.name}: {unit.error}")
        self.ending.end(unit)

    def too_slow(self, unit: Unit) -> None:
        unit.timer = None
        unit.error = f"can't be started: the start took more than {START_TIMEOUT:.0f} s"
        unit.kill(signal.SIGKILL)

    def ended(self, unit: Unit, status: int | None) -> None:
        """Handle the end of the main process."""
        unit.cancel()
        unit.pidfd = -1
        unit.exit = restart_policy.end_of(status)
        if unit.report >= 0:
            self._executed(unit)
        if unit.phase == "launching":  # the child has not become its program
            self._failed_launch(unit)
        else:
            self.ending.ended(unit)


def _ends_or_is_within(pid: int, pidfd: int, cgroup: str) -> bool:
    """Return True if a process is in *cgroup*, or ends within half a second."""
    end = select.poll()
    end.register(pidfd, select.POLLIN)
    return any(process.within(pid, cgroup) or end.poll(5) for _ in range(100))


def with_log(layout: Layout, service: Service) -> Service:
    """Return *service* with its log file filled in."""
    if service.log is not None:
        return service
    return service._replace(log=layout.logs / f"{service.name}.log")
