"""The one supervisor process of a host without systemd: it keeps all services running.

One poll loop watches every process by its pidfd; there is no thread, no process per
service and no polling of processes. Programs started detached (``crun run --detach``)
become this process's children, since it is a *child subreaper*, so their exit is known
too. It is needed for restarts only: killed, it leaves the services running, and the next
one adopts them by their traces (see ``records``).

What makes that safe: the lock file is held by whoever supervises. A forked child shares
the lock until it becomes its program, and writes its own trace before that. So whoever
gets the lock sees a trace of every process there is.

It listens on a socket that only root may use, ends when there is nothing left to watch,
and never reads a network, a declaration or Salt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import heapq
import itertools
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.supervision import (
    Service,
    container,
    logs,
    messages,
    payload_cgroup,
    policy,
    process,
    records,
    spawn,
)
from netspace.supervision.records import Trace

START_TIMEOUT = 90.0  # seconds for a detached start
HELPER_TIMEOUT = 30.0  # seconds for a cleanup or reload command
REQUEST_TIMEOUT = 10.0  # seconds for a client to send its request
IDLE = 10.0  # seconds with nothing to watch, after which the daemon ends
IDLE_FOR_GOOD = 0.2  # the same where nothing is defined either
CONNECTIONS = 32
DESCRIPTORS = 524288  # what systemd grants at most, too: systemd-system.conf(5), DefaultLimitNOFILE
BY_MARK = -1
UNREAPED = 200  # looks, a hundredth of a second apart, at a process that has ended and that its parent doesn't reap
# Phases in which others that come after need not wait (any longer).
SETTLED = ("running", "idle", "backoff")
# So many programs are being started at one time: enough to fill the processors, not to drown them.
LAUNCHES = 4 * (os.cpu_count() or 2)
SLOWEST_LOG_CHECK = 10.0
FASTEST_LOG_CHECK = 0.5


def socket_path(layout: Layout) -> Path:
    return layout.run / "supervisor.sock"


def lock_path(layout: Layout) -> Path:
    return layout.run / "supervisor.lock"


def running(layout: Layout) -> bool:
    """Whether a daemon holds the lock; forks nothing and starts nothing."""
    try:
        fd = os.open(lock_path(layout), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Unit:
    """A service and what is being done with it.

    ``phase`` is one of: ``idle`` (nothing runs, nothing is planned), ``waiting`` (for
    another service or its turn), ``launching``, ``running``, ``stopping`` (SIGTERM was
    sent), ``ending`` (the main process is gone; what is left of it is being removed) and
    ``backoff`` (until it is started again).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.phase = "idle"
        self.service: Service | None = None
        self.wanted = False
        self.again = False  # asked to start while it was ending
        self.pid = 0
        self.ticks = 0
        self.pidfd = -1
        self.report = -1  # from a child that is becoming its program
        # The launched process's (of a detached start, the launcher's), by which what it leaves is found;
        # BY_MARK; or 0 where nothing can be left.
        self.session = 0
        self.adopted = False
        self.exit = ""
        self.error = ""
        self.since = 0.0
        self.began = 0.0
        self.restarts = 0
        self.failures = 0
        self.log_offset = 0
        self.timer: Timer | None = None
        self.blocked_by: set[str] = set()
        self.waiters: list[tuple[Client, str]] = []

    @property
    def log(self) -> Path:
        assert self.service is not None and self.service.log is not None
        return self.service.log


class Timer:
    """Something to do at a time, unless cancelled."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action


class Client:
    """One connection: reads a request, is answered when all it asked for is done."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.pending: set[str] = set()
        self.errors: dict[str, str] = {}
        self.remove: tuple[str, ...] = ()
        self.timer: Timer | None = None
        self.answer = b""


class Daemon:
    """The poll loop and all it knows. ``run`` returns when there is nothing left to do.

    :param lock: descriptor of the held lock file; released by the end of the process.
    """

    def __init__(self, layout: Layout, version: str, lock: int) -> None:
        self.layout = layout
        self.version = version
        self.lock = lock
        self.units: dict[str, Unit] = {}
        self.active: set[str] = set()  # units that are not idle
        self.queue: deque[Unit] = deque()
        self.launching: set[str] = set()
        self.dependents: dict[str, set[str]] = {}
        self.sweeping: dict[str, int] = {}  # units whose left-overs are being killed: rounds so far
        self.statuses: dict[int, int] = {}
        self.followed: set[int] = set()
        self.growth: dict[Path, tuple[int, float]] = {}
        self.log_wait = FASTEST_LOG_CHECK
        self.log_timer = Timer(lambda: None)
        self.timers: list[tuple[float, int, Timer]] = []
        self.sequence = itertools.count()
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.clients: set[Client] = set()
        self.idle_since = 0.0
        self.ending = False
        self.renewing = False

    # -- life ------------------------------------------------------------------
    def run(self, ready: Callable[[], None]) -> None:
        """Adopt what runs, call *ready* once requests are listened to, and work until there is nothing to do."""
        process.prctl(process.PR_SET_CHILD_SUBREAPER)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._watch(wake_read, lambda _: self._woken(wake_read))
        listener = self._listen()
        self.adopt()
        ready()
        self._check_logs()
        while not self.ending and not self.renewing:
            self._turn()
        self._unwatch(listener.fileno())
        listener.close()
        if not self.renewing:
            # Before the lock is released, so that no successor's socket is removed.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(socket_path(self.layout))
            if not records.defined(self.layout):
                self._leave_nothing()

    def _listen(self) -> socket.socket:
        path = socket_path(self.layout)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(CONNECTIONS)
        self._watch(listener.fileno(), lambda _: self._accept(listener))
        return listener

    def _leave_nothing(self) -> None:
        """Remove what only this process needed: the folder of traces, cgroups of detached programs."""
        for directory in (records.traces(self.layout), *_cgroups(self.layout)):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def _turn(self) -> None:
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            action = heapq.heappop(self.timers)[2].action
            if action is not None:
                action()
        self._pump()
        timeout = None
        if self.timers:
            timeout = max(0, self.timers[0][0] - time.monotonic()) * 1000 + 1
        due = [(fd, events, self.handlers.get(fd)) for fd, events in self.poll.poll(timeout)]
        for fd, events, handler in due:
            # One that was closed meanwhile may have been opened again, for something else.
            if handler is not None and self.handlers.get(fd) is handler:
                handler(events)
        self._reap()
        if self.sweeping:
            self._sweep()
        if self.statuses and not self.launching:  # else one may be of a program whose PID is yet to be told
            self.statuses = {pid: status for pid, status in self.statuses.items() if pid in self.followed}
        self._rest()

    def _rest(self) -> None:
        """End when nothing is defined any more, or after a while without anything to watch."""
        if self.active or self.clients:
            self.idle_since = 0.0
            return
        now = time.monotonic()
        if not self.idle_since:
            self.idle_since = now
        wait = IDLE if records.defined(self.layout) else IDLE_FOR_GOOD
        if now - self.idle_since >= wait:
            self.ending = True
        else:
            self._after(wait, lambda: None)

    def _woken(self, wake: int) -> None:
        """A signal came. SIGTERM ends this process only: the services are adopted by the next."""
        if signal.SIGTERM in os.read(wake, 4096):
            self.ending = True

    # -- small tools -------------------------------------------------------------
    def _watch(self, fd: int, handler: Callable[[int], None], events: int = select.POLLIN) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def _after(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        heapq.heappush(self.timers, (time.monotonic() + seconds, next(self.sequence), timer))
        return timer

    @staticmethod
    def _cancel(holder: Unit | Client) -> None:
        if holder.timer is not None:
            holder.timer.action = None
            holder.timer = None

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with contextlib.suppress(OSError):
            os.write(2, f"{stamp} {text}\n".encode())

    def _trace(self, unit: Unit, state: str) -> Trace:
        service = records.encode(unit.service) if unit.service is not None else {}
        return Trace(state, unit.pid, unit.ticks, unit.since, unit.restarts, unit.exit, service)

    def _note(self, unit: Unit, phase: str, state: str) -> None:
        """Enter *phase* and record *state*."""
        unit.phase = phase
        unit.since = time.time()
        (self.active.discard if phase == "idle" else self.active.add)(unit.name)
        try:
            records.write_trace(self.layout, unit.name, self._trace(unit, state))
        except OSError as err:
            self._say(f"{unit.name}: its trace can't be written: {err}")
        if phase in SETTLED:
            self._unblock(unit)

    def _unblock(self, unit: Unit) -> None:
        """Let those go on that waited for *unit*."""
        for name in self.dependents.pop(unit.name, ()):
            blocked = self.units[name]
            blocked.blocked_by.discard(unit.name)
            if blocked.phase == "waiting" and not blocked.blocked_by:
                self.queue.append(blocked)

    def _reap(self) -> None:
        """Collect every child that ended, ours or a stray's."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.statuses[ended[0]] = ended[1]

    def _follow(self, pid: int, ended: Callable[[int | None], None], adopted: bool = False) -> int:
        """Call *ended* with wait(2)'s status (None: unknown) once *pid* has ended; return its pidfd."""
        pidfd = os.pidfd_open(pid)
        self.statuses.pop(pid, None)  # of an earlier process of that number
        self.followed.add(pid)

        patience = itertools.count()

        def readable(_: int) -> None:
            self._reap()
            status = self.statuses.pop(pid, None)
            there = process.stat(pid)
            if (
                status is None
                and not adopted
                and there is not None
                and there.state == "Z"
                and there.ppid != os.getpid()
                and next(patience) < UNREAPED
            ):
                # Its parent, a runtime's helper, is about to go: then it is ours to reap. Another may never reap it.
                self._unwatch(pidfd)
                self._after(0.01, lambda: self._watch(pidfd, readable))
                return
            self.followed.discard(pid)
            self._unwatch(pidfd)
            os.close(pidfd)
            ended(status)

        self._watch(pidfd, readable)
        return pidfd

    # -- adopting ------------------------------------------------------------------
    def adopt(self) -> None:
        """Take over what an earlier daemon started: watch what runs, follow up what ended meanwhile."""
        folder = records.traces(self.layout)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in os.listdir(folder):
            if entry.startswith("."):
                os.unlink(folder / entry)
        desired = records.desired(self.layout)
        for name in records.traced(self.layout):
            trace = records.read_trace(self.layout, name)
            try:
                service = records.decode(trace.service) if trace is not None else None
            except NetspaceError:
                service = None
            if trace is None or service is None:
                self._say(f"{name}: its trace is damaged; forgotten")
                records.remove_trace(self.layout, name)
                continue
            if trace.state in ("stopped", "failed"):
                continue
            unit = self._unit(name)
            unit.service = _with_log(self.layout, service)
            unit.wanted = name in desired
            unit.restarts, unit.exit, unit.since = trace.restarts, trace.exit, trace.since
            unit.adopted = True
            self.active.add(name)
            self._take_over(unit, trace)

    def _take_over(self, unit: Unit, trace: Trace) -> None:
        assert unit.service is not None
        unit.began = time.monotonic()
        if process.alive(trace.pid, trace.ticks):
            unit.pid, unit.ticks = trace.pid, trace.ticks
            if trace.state == "launching":
                unit.phase, unit.session = "launching", trace.pid
                self.launching.add(unit.name)
                unit.pidfd = self._follow(trace.pid, lambda status: self._launched(unit, status), adopted=True)
                unit.timer = self._after(START_TIMEOUT, lambda: self._too_slow(unit))
                return
            unit.session = 0 if process.contained(trace.pid) else trace.pid
            unit.pidfd = self._follow(trace.pid, lambda status: self._ended(unit, status), adopted=True)
            unit.phase = "running"
            self._say(f"{unit.name}: adopted, process {trace.pid}")
            if trace.state == "stopping" or not unit.wanted:
                self._halt(unit)
            return
        if trace.state == "launching" and self._main_of(unit, trace.ticks):
            self._main_runs(unit)
            if not unit.wanted:
                self._halt(unit)
            return
        # What it left is known by its mark alone: its session's number may be another's by now.
        unit.session = BY_MARK
        unit.exit = "unknown" if trace.pid else trace.exit
        self._end(unit)

    def _unit(self, name: str) -> Unit:
        return self.units.setdefault(name, Unit(name))

    # -- starting --------------------------------------------------------------------
    def start(self, names: Iterable[str], client: Client | None = None) -> None:
        """Start *names*, and what they come after first; *client* is answered for its names."""
        after: dict[str, tuple[str, ...]] = {}
        fetch = list(names)
        asked = set(fetch)
        services: dict[str, Service] = {}
        while fetch:
            name = fetch.pop()
            if name in after:
                continue
            try:
                service = records.read(self.layout, name)
            except NetspaceError as err:
                self._fail(client, name, str(err))
                continue
            if service is None:
                if name in asked:
                    self._fail(client, name, records.unknown([name], ())[name])
                continue
            after[name], services[name] = service.after, service
            fetch.extend(service.after)
        earlier: set[str] = set()
        for name in records.in_order(sorted(after), after):
            unit = self._unit(name)
            unit.wanted = True
            if client is not None and name in asked and unit.phase != "running":
                client.pending.add(name)
                unit.waiters.append((client, "start"))
            if unit.phase in ("idle", "backoff"):
                self._cancel(unit)
                unit.restarts = unit.failures = 0
                unit.exit = unit.error = ""
                self._enqueue(unit, earlier.intersection(after[name]))
            elif unit.phase in ("stopping", "ending"):
                unit.again = True
                self._tell(unit, "stop", "it was started again meanwhile")
            earlier.add(name)

    def _enqueue(self, unit: Unit, after: Iterable[str] = ()) -> None:
        unit.phase = "waiting"
        self.active.add(unit.name)
        unit.blocked_by = {other for other in after if self.units[other].phase not in SETTLED}
        for other in unit.blocked_by:
            self.dependents.setdefault(other, set()).add(unit.name)
        if not unit.blocked_by:
            self.queue.append(unit)

    def _pump(self) -> None:
        """Launch what waits only for its turn."""
        while self.queue and len(self.launching) < LAUNCHES:
            unit = self.queue.popleft()
            if unit.phase == "waiting" and not unit.blocked_by:
                self._launch(unit)

    def _launch(self, unit: Unit) -> None:
        try:
            service = records.read(self.layout, unit.name)
        except NetspaceError as err:
            service, unit.error = None, str(err)
        if service is None:  # forgotten, or damaged, while it waited
            unit.wanted, unit.service = False, None
            self._idle(unit, "failed" if unit.error else "stopped")
            return
        unit.service = service = _with_log(self.layout, service)
        unit.adopted, unit.again, unit.session, unit.error = False, False, 0, ""
        unit.pid = unit.ticks = 0
        unit.log_offset = logs.size(unit.log)
        unit.began = time.monotonic()
        unit.since = time.time()
        detached = service.pid_file is not None
        try:
            if service.pid_file is not None:
                service.pid_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                service.pid_file.unlink(missing_ok=True)
            template = self._trace(unit, "launching" if detached else "running")
            pid, unit.report = spawn.fork(self.layout, unit.name, service, service.command, template)
        except OSError as err:
            unit.error = f"can't be started: {err}"
            self._failed_launch(unit)
            return
        unit.pid = unit.session = pid
        there = process.stat(pid)
        unit.ticks = there.ticks if there is not None else 0
        unit.phase = "launching"
        self.active.add(unit.name)
        self.launching.add(unit.name)
        if detached:
            unit.pidfd = self._follow(pid, lambda status: self._launched(unit, status))
            unit.timer = self._after(START_TIMEOUT, lambda: self._too_slow(unit))
        else:
            unit.pidfd = self._follow(pid, lambda status: self._ended(unit, status))
        self._watch(unit.report, lambda _: self._executed(unit))

    def _executed(self, unit: Unit) -> None:
        """The child became its program, or says why it can't."""
        assert unit.service is not None
        error = os.read(unit.report, 4096).decode(errors="replace")
        self._unwatch(unit.report)
        os.close(unit.report)
        unit.report = -1
        if error:
            unit.error = f"can't be started: {error}"
        elif unit.service.pid_file is None:
            self._main_runs(unit)

    def _launched(self, unit: Unit, status: int | None) -> None:
        """The launcher of a detached program ended."""
        self._cancel(unit)
        unit.pidfd = -1
        if unit.report >= 0:
            self._executed(unit)
        # An adopted launcher's status is unknown: then the PID file alone tells.
        if status in (0, None) and not unit.error and self._main_of(unit, unit.ticks):
            self._main_runs(unit)
            return
        unit.exit = policy.end_of(status)
        if not unit.error:
            told = logs.tail(unit.log, unit.log_offset)
            reason = "it left no PID file" if status == 0 else policy.end_of(status)
            unit.error = f"can't be started: {reason}{': ' + told if told else ''}"
        self._failed_launch(unit)

    def _main_of(self, unit: Unit, launcher_ticks: int) -> bool:
        """Follow the process that the PID file names, if it is the one that was just launched.

        A PID alone may have been given to another process meanwhile: ours was born after
        its launcher, and is in the service's cgroup, where nobody else is.
        """
        assert unit.service is not None and unit.service.pid_file is not None
        try:
            pid = int(unit.service.pid_file.read_text()[:20])
        except (OSError, ValueError):
            return False
        born = process.stat(pid)
        if born is None:
            if pid not in self.statuses:
                return False
            # Born and gone since: its exit was collected already.
            unit.pid, unit.ticks = pid, launcher_ticks
            status = self.statuses.pop(pid)
            self._after(0, lambda: self._ended(unit, status))
            return True
        if born.ticks < launcher_ticks:
            return False
        # One that ends leaves its cgroup a moment before it is seen to have ended: then it is waited for.
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not _ends_or_is_within(pid, pidfd, payload_cgroup(self.layout, unit.name)):
                return False
        finally:
            os.close(pidfd)
        unit.pid, unit.ticks = pid, born.ticks
        try:
            unit.pidfd = self._follow(pid, lambda status: self._ended(unit, status), adopted=unit.adopted)
        except OSError:
            return False
        return True

    def _main_runs(self, unit: Unit) -> None:
        assert unit.service is not None
        self.launching.discard(unit.name)
        if unit.service.pid_file is None:
            unit.phase = "running"  # the child wrote its trace itself
            self._unblock(unit)
        else:
            unit.session = 0 if process.contained(unit.pid) else unit.pid
            self._note(unit, "running", "running")
        self._say(f"{unit.name}: started, process {unit.pid}")
        self._check_logs_soon()
        self._tell(unit, "start")
        if not unit.wanted:
            self._halt(unit)

    def _failed_launch(self, unit: Unit) -> None:
        self.launching.discard(unit.name)
        self._say(f"{unit.name}: {unit.error}")
        self._end(unit)

    def _too_slow(self, unit: Unit) -> None:
        unit.timer = None
        unit.error = f"can't be started: not done within {START_TIMEOUT:.0f} s"
        self._kill(unit, signal.SIGKILL)

    # -- ending ------------------------------------------------------------------------
    def stop(self, names: Iterable[str], client: Client | None = None) -> None:
        for name in names:
            unit = self.units.get(name)
            if unit is None or unit.phase == "idle":
                continue
            unit.wanted = False
            if client is not None:
                client.pending.add(name)
                unit.waiters.append((client, "stop"))
            self._tell(unit, "start", "it was stopped meanwhile")
            if unit.phase == "running":
                self._halt(unit)
            elif unit.phase in ("waiting", "backoff"):
                self._cancel(unit)
                self._idle(unit, "stopped")
            # launching, stopping, ending: seen to when that is done

    def _halt(self, unit: Unit) -> None:
        """Ask a running service to end, and see to it that it does."""
        assert unit.service is not None
        self._note(unit, "stopping", "stopping")
        self._kill(unit, signal.SIGTERM)
        unit.timer = self._after(unit.service.stop_timeout, lambda: self._force(unit))

    def _force(self, unit: Unit) -> None:
        unit.timer = None
        self._say(f"{unit.name}: does not end; killed")
        self._kill(unit, signal.SIGKILL)

    @staticmethod
    def _kill(unit: Unit, number: int) -> None:
        if unit.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(unit.pidfd, number)

    def _ended(self, unit: Unit, status: int | None) -> None:
        """The main process is gone."""
        self._cancel(unit)
        unit.pidfd = -1
        unit.exit = policy.end_of(status)
        if unit.report >= 0:
            self._executed(unit)
        if unit.phase == "launching":  # it did not become its program
            self._failed_launch(unit)
            return
        self._say(f"{unit.name}: ended, {unit.exit}")
        if self._forgotten(unit):
            unit.session = 0
        self._end(unit)

    def _forgotten(self, unit: Unit) -> bool:
        """Have the runtime's container be forgotten without its help; then nothing of it is left either."""
        assert unit.service is not None
        cgroup = payload_cgroup(self.layout, unit.name)
        cleanup = unit.service.cleanup if unit.service.pid_file is not None else ()
        return bool(cleanup) and all(container.forget(argv, cgroup) for argv in cleanup)

    def _end(self, unit: Unit) -> None:
        """Remove what is left of a service whose main process is gone, then decide what comes."""
        unit.pid = unit.ticks = 0
        unit.phase = "ending"
        self.active.add(unit.name)
        if unit.session:
            self.sweeping[unit.name] = 0
        else:
            self._clean(unit)

    def _sweep(self) -> None:
        """Kill what ended services left behind: one pass over all processes for all of them.

        SIGKILL takes a moment, so a service goes on only when a pass finds nothing of it.
        """
        marks = {f"{self.layout.instance}/{name}": name for name in self.sweeping}
        sessions = [self.units[name].session for name in self.sweeping]
        found = process.left_over(marks, sessions)
        for pid, ticks in found.items():
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    if process.alive(pid, ticks):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
        for name, rounds in list(self.sweeping.items()):
            if found and rounds < 100:
                self.sweeping[name] = rounds + 1
            else:
                del self.sweeping[name]
                self._clean(self.units[name])
        if self.sweeping:
            self._after(0.01, lambda: None)

    def _clean(self, unit: Unit) -> None:
        assert unit.service is not None
        steps = iter(unit.service.cleanup)

        def step(_: str = "") -> None:
            argv = next((argv for argv in steps if not container.unknown(argv)), None)
            if argv is None:
                self._decide(unit)
            else:
                self._help(unit, argv, step)

        step()

    def _help(self, unit: Unit, argv: tuple[str, ...], done: Callable[[str], None]) -> None:
        """Run a command for *unit*; call *done* with an error text, empty when it exited 0."""
        assert unit.service is not None
        offset = logs.size(unit.log)
        try:
            pid, report = spawn.fork(self.layout, unit.name, unit.service, argv, None)
        except OSError as err:
            done(str(err))
            return
        os.close(report)
        slow = self._after(HELPER_TIMEOUT, lambda: signal.pidfd_send_signal(pidfd, signal.SIGKILL))

        def ended(status: int | None) -> None:
            slow.action = None
            told = logs.tail(unit.log, offset)
            done("" if status == 0 else f"{argv[0]}: {policy.end_of(status)}{': ' + told if told else ''}")

        pidfd = self._follow(pid, ended)

    def _decide(self, unit: Unit) -> None:
        """All of a service is gone: start it again, later, or not at all."""
        assert unit.service is not None
        if unit.service.pid_file is not None:
            unit.service.pid_file.unlink(missing_ok=True)
        if unit.wanted and unit.again:
            unit.restarts = unit.failures = 0
            self._enqueue(unit)
        elif not unit.wanted:
            self._idle(unit, "stopped")
        elif unit.error or policy.again(unit.service.restart, unit.exit):
            if unit.error and unit.service.restart == "never":
                self._idle(unit, "failed")
                return
            if time.monotonic() - unit.began >= policy.HEALTHY:
                unit.failures = 0
            unit.failures += 1
            unit.restarts += 1
            wait = policy.delay(unit.failures)
            self._note(unit, "backoff", "starting")
            self._tell(unit, "start", unit.error)
            unit.timer = self._after(wait, lambda: self._retry(unit))
        else:
            self._idle(unit, "stopped" if unit.exit == "exit 0" else "failed")

    def _retry(self, unit: Unit) -> None:
        unit.timer = None
        self._enqueue(unit)

    def _idle(self, unit: Unit, state: str) -> None:
        if unit.service is None:
            unit.phase = "idle"
            self.active.discard(unit.name)
            records.remove_trace(self.layout, unit.name)
        else:
            self._note(unit, "idle", state)
        self._tell(unit, "stop")
        self._tell(unit, "start", unit.error or "it ended before it could be used")

    # -- requests ------------------------------------------------------------------------
    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[
            1
        ]
        if uid != 0 or len(self.clients) >= CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection)
        client.timer = self._after(REQUEST_TIMEOUT, lambda: self._drop(client))
        self.clients.add(client)
        self._watch(connection.fileno(), lambda _: self._receive(client))

    def _receive(self, client: Client) -> None:
        try:
            chunk = client.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.received += chunk
        if len(client.received) > messages.LARGEST:
            self._drop(client)
        elif not chunk:
            self._cancel(client)
            self._unwatch(client.connection.fileno())
            try:
                request = messages.parse_request(bytes(client.received))
            except ValueError as err:
                self._say(f"a request that is none: {err}")
                self._drop(client)
                return
            if request.version in ("", self.version):
                self._serve(client, request)
            self._answer_if_done(client)

    def _serve(self, client: Client, request: messages.Request) -> None:
        if request.do == "start":
            self.start(request.names, client)
        elif request.do == "resume":
            # What has a trace was started since the boot: it runs, or ended for good.
            known = set(records.defined(self.layout)) - set(records.traced(self.layout))
            self.start(sorted(records.desired(self.layout) & known))
        elif request.do == "reload":
            self._reload(client, request.names)
        elif request.do == "renew":
            self.renewing = True
        elif request.do in ("stop", "remove"):
            client.remove = request.names if request.do == "remove" else ()
            self.stop(request.names, client)

    def _reload(self, client: Client, names: Iterable[str]) -> None:
        for name in names:
            unit = self.units.get(name)
            if unit is None or unit.phase != "running" or unit.service is None:
                self._fail(client, name, f"the service {name} does not run")
                continue
            if not unit.service.reload:
                self._fail(client, name, f"the service {name} has no way to reload; restart it")
                continue
            client.pending.add(name)
            argv = tuple(part.replace("{pid}", str(unit.pid)) for part in unit.service.reload)

            def done(error: str, name: str = name) -> None:
                self._done(client, name, error)

            self._help(unit, argv, done)

    def _tell(self, unit: Unit, what: str, error: str = "") -> None:
        """Answer those who wait for *unit* to *what*."""
        for client, goal in [waiter for waiter in unit.waiters if waiter[1] == what]:
            unit.waiters.remove((client, goal))
            self._done(client, unit.name, error)

    def _fail(self, client: Client | None, name: str, error: str) -> None:
        if client is not None:
            client.errors[name] = error
        else:
            self._say(f"{name}: {error}")

    def _done(self, client: Client, name: str, error: str) -> None:
        client.pending.discard(name)
        if error:
            client.errors[name] = error
        self._answer_if_done(client)

    def _answer_if_done(self, client: Client) -> None:
        if client.pending or client.answer or client not in self.clients:
            return
        for name in client.remove:
            self._forget(name)
        client.answer = messages.render(messages.Answer(self.version, client.errors))
        client.timer = self._after(REQUEST_TIMEOUT, lambda: self._drop(client))
        self._watch(client.connection.fileno(), lambda _: self._send(client), select.POLLOUT)

    def _send(self, client: Client) -> None:
        try:
            sent = client.connection.send(client.answer)
        except BlockingIOError:
            return
        except OSError:
            sent = len(client.answer)
        client.answer = client.answer[sent:]
        if not client.answer:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self._cancel(client)
        self._unwatch(client.connection.fileno())
        self.clients.discard(client)
        client.connection.close()

    def _forget(self, name: str) -> None:
        """Remove every file of a service that is stopped."""
        unit = self.units.get(name)
        if unit is not None and unit.phase != "idle":
            return  # it was asked to start again meanwhile
        self.units.pop(name, None)
        service = None
        with contextlib.suppress(NetspaceError):
            service = records.read(self.layout, name)
        if service is not None:
            log = _with_log(self.layout, service).log
            assert log is not None
            self.growth.pop(log, None)
            logs.remove(log)
        records.remove_trace(self.layout, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(records.folder(self.layout) / f"{name}.json")

    # -- logs ------------------------------------------------------------------------------
    def _check_logs(self) -> None:
        """Rotate what is too large; look again the sooner, the faster a file grows or the newer a program is."""
        now = time.monotonic()
        wait = min(2 * self.log_wait, SLOWEST_LOG_CHECK)
        paths = {self.units[name].log for name in self.active if self.units[name].service is not None}
        for path in (*paths, self.layout.logs / "supervisor.log"):
            try:
                logs.rotate(path)
            except OSError as err:
                self._say(f"{path}: can't be rotated: {err}")
            size = logs.size(path)
            before, at = self.growth.get(path, (size, now - 1))
            rate = (size - before) / max(now - at, 0.001)
            if rate > 0:
                wait = min(wait, (logs.SIZE - size) / rate / 2)
            self.growth[path] = (size, now)
        self.log_wait = max(wait, FASTEST_LOG_CHECK)
        self.log_timer = self._after(self.log_wait, self._check_logs)

    def _check_logs_soon(self) -> None:
        if self.log_wait > FASTEST_LOG_CHECK:
            self.log_timer.action = None
            self.log_wait = FASTEST_LOG_CHECK
            self.log_timer = self._after(self.log_wait, self._check_logs)


def _ends_or_is_within(pid: int, pidfd: int, cgroup: str) -> bool:
    """Whether a process is in the cgroup, or ends within a moment."""
    end = select.poll()
    end.register(pidfd, select.POLLIN)
    return any(process.within(pid, cgroup) or end.poll(5) for _ in range(20))


def _with_log(layout: Layout, service: Service) -> Service:
    """Return *service* with its log file filled in."""
    if service.log is not None:
        return service
    return dataclasses.replace(service, log=layout.logs / f"{service.name}.log")


def _cgroups(layout: Layout) -> list[Path]:
    """Folders that detached programs' cgroups were made in, in any hierarchy."""
    root = Path("/sys/fs/cgroup")
    return [root / layout.instance, *root.glob(f"*/{layout.instance}")]


# -- becoming the daemon -----------------------------------------------------------------------
def main(layout: Layout, version: str, foreground: bool = False) -> int:
    """Supervise until there is nothing to do; by default in the background.

    In the background it returns as soon as the daemon listens. Where one runs already it
    returns at once.

    :return: an exit code.
    """
    layout.run.mkdir(parents=True, exist_ok=True, mode=0o755)
    told, tell = os.pipe()
    if not foreground:
        if os.fork():
            os.close(tell)
            with open(told, "rb") as stream:
                word = stream.read()
            if word != b"ready":
                sys.stderr.write(f"the supervisor did not start; see {layout.logs / 'supervisor.log'}\n")
            return int(word != b"ready")
        os.close(told)
        os.setsid()
    return _supervise(layout, version, foreground, tell)


def _supervise(layout: Layout, version: str, foreground: bool, tell: int) -> int:
    os.chdir("/")
    os.umask(0o077)
    _widen()
    lock = os.open(lock_path(layout), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Children of a killed predecessor that are just becoming their programs hold it a moment longer.
        for attempt in range(200):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt > 5 and answers(layout):
                    os.write(tell, b"ready")
                    return 0
                time.sleep(0.01)
        else:
            return 1
        if not foreground:
            _detach(layout, keep={lock, tell})
        daemon = Daemon(layout, version, lock)

        def ready() -> None:
            os.write(tell, b"ready")
            os.close(tell)

        daemon.run(ready)
        if daemon.renewing:
            renew()
        return 0
    finally:
        os.close(lock)


def _widen() -> None:
    """Have descriptors enough for any number of services, whatever limit was inherited from who started us.

    A program gets the usual soft limit (see ``spawn``), and may raise it as under systemd.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = max(hard, DESCRIPTORS)
    for limit in (enough, hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


def _detach(layout: Layout, keep: set[int]) -> None:
    """Let go of all that was inherited: descriptors, terminal. Errors go to a log of our own."""
    log = logs.open_log(layout.logs / "supervisor.log")
    null = os.open("/dev/null", os.O_RDWR)
    for number, target in ((0, null), (1, log), (2, log)):
        os.dup2(target, number)
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) > 2 and int(entry) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(entry))


def renew() -> NoReturn:
    """Become the library's present version, in the same process: children stay children.

    The lock is let go by that; whoever takes it meanwhile adopts all, and we end.
    """
    arguments = [part for part in sys.orig_argv[1:] if part != "--foreground"]
    os.execv(  # noqa: S606
        sys.executable, [sys.executable, *arguments, "--foreground"]
    )


def answers(layout: Layout) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_path(layout)))
        except OSError as err:
            return err.errno == errno.EAGAIN
    return True
