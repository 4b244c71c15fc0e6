"""The one process that watches the health of all environments of a host.

The supervisor keeps the watch running like other services, but the two don't communicate. The watch reads the
environments from their records, finds running environments by the PID files of their runtime, and follows processes by
pidfd. Probes run in a few threads, everything else in one loop. The watch writes its judgements to files (``record``).

If there is a supervisor, the watch ends an unhealthy environment whose ``restart`` isn't ``never``, by SIGTERM and, at
the deadline, SIGKILL. The supervisor then starts the environment again, as after a crash. A watch that is killed and
started again continues from the files. The environments run without a watch, too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from netspace.environment import record as records
from netspace.environment.container import oci_runtime
from netspace.environment.health import probes
from netspace.environment.health import record as verdict
from netspace.environment.health import state as machine
from netspace.environment.health.record import HealthVerdict
from netspace.environment.health.state import Judgement
from netspace.environment.record import Record
from netspace.layout import Layout
from netspace.supervision import process
from netspace.supervision.cgroup import booted, payload_cgroup
from netspace.supervision.daemon import presence
from netspace.supervision.daemon.loop import Loop, Timer

LOOK = 0.2  # seconds between two searches for started environments
REREAD = 1.0  # seconds between two checks whether records have changed
PROBES = 16  # probes that run at once, without those that take longer than LONG
LONG = 1.0  # seconds after which a probe keeps no other waiting
THREADS = 128  # probes that run at once, with those that take longer: each costs root a process of the runtime
_TICK = os.sysconf("SC_CLK_TCK")


class Watched:
    """A watched environment and the judgement on it. ``pidfd`` is -1 while the environment doesn't run."""

    def __init__(self, name: str, record: Record) -> None:
        self.name = name
        self.record = record
        self.pid = self.ticks = 0
        self.began = 0.0  # CLOCK_BOOTTIME of its start, or of the last probe without a result
        self.pidfd = -1
        self.judgement = Judgement()
        self.timer: Timer | None = None
        self.doomed = False  # it was sent SIGTERM

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Places:
    """Slots for probes: PROBES probes run at once, and others wait in a queue.

    The next probe starts when one has ended, or has run for LONG seconds. So a check that never answers delays other
    environments' checks only by LONG seconds, even if its own ``timeout`` is longer.

    :param submit: starts a probe in a thread of its own; at most THREADS run at once.
    """

    def __init__(self, loop: Loop, submit: Callable[[Callable[[], None]], object]) -> None:
        self._loop = loop
        self._submit = submit
        self._waiting: deque[Callable[[], None]] = deque()
        self._running: dict[Callable[[], None], Timer] = {}

    def ask(self, probe: Callable[[], None]) -> None:
        """Start a probe now, or as soon as a slot is free."""
        self._waiting.append(probe)
        self._fill()

    def free(self, probe: Callable[[], None]) -> None:
        """Free the slot of a probe, if it still has one."""
        timer = self._running.pop(probe, None)
        if timer is not None:
            timer.cancel()
            self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < PROBES:
            probe = self._waiting.popleft()
            self._running[probe] = self._loop.after(LONG, functools.partial(self.free, probe))
            self._submit(probe)


class Watch:
    """The loop of the watch, with the environments that it watches."""

    def __init__(self, layout: Layout, readers: Callable[[str], int]) -> None:
        self.layout = layout
        self.readers = readers
        self.loop = Loop()
        self.watched: dict[str, Watched] = {}
        self._pool = ThreadPoolExecutor(THREADS)
        self._places = Places(self.loop, self._pool.submit)
        self._found: list[tuple[Watched, int, probes.Found, Callable[[], None]]] = []
        self._told, self._tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stamp: tuple[int, ...] = ()
        self._over = False

    def run(self) -> None:
        """Watch the health of environments until SIGTERM or SIGINT."""
        verdict.folder(self.layout).mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self.loop.watch(self._told, lambda _: self._collect())
        self._reread()
        self._look()
        verdict.ready(self.layout).write_text(str(os.getpid()))
        while not self._over:
            self.loop.due()
            self.loop.wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _end(self, *_: object) -> None:
        self._over = True

    # -- watched environments ----------------------------------------------------
    def _reread(self) -> None:
        """Read the records again if their folder's modification time has changed."""
        self.loop.after(REREAD, self._reread)
        try:
            info = os.stat(self.layout.records(records.KIND))
            # Right after a change, another one may leave the same time: then read again at the next check.
            fresh = time.time_ns() - info.st_mtime_ns < 100_000_000
            stamp: tuple[int, ...] = (info.st_mtime_ns, info.st_ino, *([time.time_ns()] if fresh else []))
        except FileNotFoundError:
            stamp = (0,)
        if stamp == self._stamp:
            return
        every, damaged = records.read_each(self.layout)
        for error in damaged.values():
            sys.stderr.write(f"netspace health: {error}\n")
        known = needed(every)
        self._stamp = stamp
        for name in self.watched.keys() - known.keys() - damaged.keys():  # a damaged record keeps its last content
            gone = self.watched.pop(name)
            self._let_go(gone)
            verdict.clear(self.layout, [name])
        for name, record in known.items():
            one = self.watched.setdefault(name, Watched(name, record))
            changed = one.record.spec.health != record.spec.health
            one.record = record
            if changed and one.pidfd >= 0 and not one.doomed:  # a doomed one keeps its deadline
                one.judgement = Judgement()
                self._begin(one)

    # -- running environments ----------------------------------------------------
    def _look(self) -> None:
        """Find environments that were started."""
        self.loop.after(LOOK, self._look)
        for one in self.watched.values():
            if one.pidfd < 0:
                self._find(one)

    def _find(self, one: Watched) -> None:
        try:
            pid = int(oci_runtime.pid_file(self.layout, one.name).read_text()[:20])
            pidfd = os.pidfd_open(pid)
        except (OSError, ValueError):
            return
        there = process.stat(pid)
        # The PID file may be stale, and the PID in use by another process.
        if there is None or there.state in "ZX" or not self._own(one, pid):
            os.close(pidfd)
            return
        one.pid, one.ticks, one.pidfd, one.doomed = pid, there.ticks, pidfd, False
        one.began = there.ticks / _TICK
        before = verdict.read(self.layout, one.name)
        same = before is not None and (before.pid, before.ticks) == (pid, there.ticks)
        one.judgement = before.judgement if same and before is not None else Judgement()
        self.loop.watch(pidfd, lambda _: self._ended(one))
        self._begin(one)

    def _own(self, one: Watched, pid: int) -> bool:
        """Return whether a process belongs to the environment.

        A process of the host could share only its network namespace.
        """
        if not one.record.runtime.outside:
            return process.within(pid, payload_cgroup(self.layout, oci_runtime.service_name(one.name)))
        try:
            return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat(self.layout.netns(one.name)))
        except OSError:
            return False

    def _begin(self, one: Watched) -> None:
        """Write the first judgement and start probing. An environment without a check is healthy while it runs."""
        one.cancel()
        self._write(one)
        health = one.record.spec.health
        if health is not None:
            one.timer = self.loop.after(0, lambda: self._probe(one))

    def _ended(self, one: Watched) -> None:
        self._let_go(one)
        for path in (verdict.up, verdict.ill):
            verdict.mark(path(self.layout, one.name), False)

    def _let_go(self, one: Watched) -> None:
        one.cancel()
        if one.pidfd >= 0:
            self.loop.unwatch(one.pidfd)
            os.close(one.pidfd)
        one.pidfd, one.pid, one.ticks = -1, 0, 0

    # -- probes and judgements -------------------------------------------------------
    def _probe(self, one: Watched) -> None:
        one.timer = None
        name, record, pid, health = one.name, one.record, one.pid, one.record.spec.health
        assert health is not None

        def ask() -> None:
            try:
                if health.mailbox:
                    found = probes.mailbox(name, self.readers)
                else:
                    found = probes.inside(self.layout, name, record, health)
            except Exception as err:  # report every error to the loop, or it would wait for ever
                found = (False, f"{type(err).__name__}: {err}")
            self._found.append((one, pid, found, ask))
            os.write(self._tell, b"\0")

        self._places.ask(ask)

    def _collect(self) -> None:
        """Judge the results of finished probes."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._told, 4096)
        while self._found:
            one, pid, found, ask = self._found.pop(0)
            self._places.free(ask)
            # Meanwhile the environment may have ended, been started again, or been declared without a check.
            if one.pid == pid and one.pidfd >= 0 and one.record.spec.health is not None and one.timer is None:
                self._judge(one, *found)

    def _judge(self, one: Watched, passed: bool | None, detail: str) -> None:
        health = one.record.spec.health
        assert health is not None
        halted = oci_runtime.halt_mark(self.layout, one.name).exists()
        if one.doomed or halted:  # it is ending, so this result means nothing
            if halted:
                one.timer = self.loop.after(machine.SOON, lambda: self._probe(one))
            return
        before, now = one.judgement, time.clock_gettime(time.CLOCK_BOOTTIME)
        if passed is None:
            one.began = now
        one.judgement = machine.judge(before, health, passed, detail, now - one.began)
        if one.judgement != before:
            self._write(one)
        if one.judgement.state == "unhealthy" and one.record.spec.restart != "never" and self._restarted():
            self._doom(one)
            return
        one.timer = self.loop.after(machine.pause(one.judgement, health), lambda: self._probe(one))

    def _restarted(self) -> bool:
        """Return whether a supervisor restarts ended environments. If not, the watch doesn't end unhealthy ones."""
        return booted() or presence.attended(self.layout)

    def _write(self, one: Watched) -> None:
        """Write the judgement if the process still runs. After its end, a stop may have removed the verdict already."""
        if not process.alive(one.pid, one.ticks):
            return
        health, state = one.record.spec.health, one.judgement.state
        # Update the marks first, so that a reader of the verdict finds them consistent with it.
        if health is None or state == "healthy":
            verdict.mark(verdict.condemned(self.layout, one.name), False)
        verdict.mark(verdict.up(self.layout, one.name), health is None or state == "healthy")
        verdict.mark(verdict.ill(self.layout, one.name), health is not None and state == "unhealthy")
        if health is not None:
            before = verdict.read(self.layout, one.name)
            same = before is not None and before.pid == one.pid and before.judgement.state == state
            since = before.since if same and before is not None else time.time()
            verdict.write(self.layout, one.name, HealthVerdict(one.judgement, one.pid, one.ticks, since))

    # -- ending unhealthy environments ---------------------------------------------------
    def _doom(self, one: Watched) -> None:
        """End an unhealthy environment: by SIGTERM, and by SIGKILL at its stop timeout."""
        one.doomed = True
        said = f" ({one.judgement.detail})" if one.judgement.detail else ""
        sys.stderr.write(f"netspace health: {one.name} is unhealthy{said}; its program is ended and started again\n")
        sys.stderr.flush()
        verdict.mark(verdict.condemned(self.layout, one.name), True)
        pidfd = one.pidfd
        self._signal(one, pidfd, signal.SIGTERM)
        one.timer = self.loop.after(one.record.spec.stop_timeout, lambda: self._signal(one, pidfd, signal.SIGKILL))

    @staticmethod
    def _signal(one: Watched, pidfd: int, number: int) -> None:
        if one.pidfd == pidfd:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)


def needed(known: Mapping[str, Record]) -> dict[str, Record]:
    """Return the environments to watch: those with a check, and those that another environment names in ``after``."""
    awaited = {name for record in known.values() for name in record.spec.after}
    return {name: record for name, record in known.items() if record.spec.health is not None or name in awaited}


def main(layout: Layout, readers: Callable[[str], int]) -> int:
    """Watch until SIGTERM or SIGINT; return an exit code.

    :param readers: returns the number of consumers of an environment's mailbox; see ``netspace.link.status.readers``.
    """
    Watch(layout, readers).run()
    return 0
