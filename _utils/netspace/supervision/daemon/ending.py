"""The end of services: stop, forced stop, cleanup, and the restart if the policy demands it.

The daemon finds the processes that a program leaves behind by their session and mark (see ``process``), and
kills them. A container runtime's own cleanup command removes the rest of its container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable

from netspace.errors import NetspaceError
from netspace.supervision import definitions, process, restart_policy
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.daemon import container_state, logs, spawn
from netspace.supervision.daemon.children import Children
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.oom import OomTracker
from netspace.supervision.daemon.relay import Relay
from netspace.supervision.daemon.units import Unit, Units, Waiter
from netspace.supervision.service import Service

HELPER_TIMEOUT = 30.0  # seconds for a cleanup or reload command
# The most passes over the processes that a service leaves behind, 10 ms apart; and the most of an incomplete pass that
# finds none.
PASSES, BLIND_PASSES = 100, 20


class Stopper:
    """The part of the daemon that ends services: each becomes ``idle``, or waits in ``backoff`` to be started again.

    :param again: function that starts a unit again.
    """

    def __init__(
        self,
        units: Units,
        loop: Loop,
        children: Children,
        shortage: OomTracker,
        relay: Relay,
        again: Callable[[Unit], None],
    ) -> None:
        self.units = units
        self.loop = loop
        self.children = children
        self.shortage = shortage
        self.relay = relay
        self.again = again
        self.sweeping: dict[str, int] = {}  # units whose leftover processes are being killed: number of rounds

    def stop(self, names: Iterable[str], asker: Waiter | None = None) -> None:
        for name in names:
            unit = self.units.find(name)
            if unit is None or unit.phase == "idle":
                continue
            unit.wanted = False
            if asker is not None:
                asker.pending.add(name)
                unit.waiters.append((asker, "stop"))
            self.units.tell(unit, "start", "the service was stopped during its start")
            if unit.phase == "running":
                self.halt(unit)
            elif unit.phase in ("waiting", "backoff"):
                unit.cancel()
                unit.held = False
                self.units.idle(unit, "stopped")
            # In launching, stopping and ending, the end of that phase handles the stop.

    def halt(self, unit: Unit) -> None:
        """Send SIGTERM to a running service. Send SIGKILL if the service doesn't end in time."""
        assert unit.service is not None
        self.units.note(unit, "stopping", "stopping")
        unit.kill(signal.SIGTERM)
        unit.timer = self.loop.after(unit.service.stop_timeout, lambda: self._force(unit))

    def _force(self, unit: Unit) -> None:
        unit.timer = None
        self.units.say(f"{unit.name}: does not end; the daemon kills it")
        unit.kill(signal.SIGKILL)

    def ended(self, unit: Unit) -> None:
        """Handle the end of a running service's main process."""
        assert unit.service is not None
        self.shortage.end(unit)
        self.units.say(f"{unit.name}: ended, {unit.exit}")
        if self._forgotten(unit):
            unit.session = 0
        self.end(unit)

    def _forgotten(self, unit: Unit) -> bool:
        """Delete the container without starting its runtime, if possible.

        Return whether it was deleted. A deleted container has no process left.
        """
        assert unit.service is not None
        cgroup = payload_cgroup(self.units.layout, unit.name)
        cleanup = unit.service.cleanup if unit.service.pid_file is not None else ()
        return bool(cleanup) and all(container_state.forget(argv, cgroup) for argv in cleanup)

    def end(self, unit: Unit) -> None:
        """Clean up after a service whose main process has ended, then decide whether to restart the service."""
        unit.pid = unit.ticks = 0
        unit.phase = "ending"
        self.units.active.add(unit.name)
        if unit.session:
            self.sweeping[unit.name] = 0
        else:
            self._clean(unit)

    def sweep(self) -> None:
        """Kill the processes that ended services left behind, in one pass over all processes for all services.

        SIGKILL takes a moment, so passes are repeated until a complete pass finds no process. After that, the services
        are cleaned up. The number of passes is limited, since other processes of the host may end and begin at any
        time.
        """
        marks = {f"{self.units.layout.instance}/{name}": name for name in self.sweeping}
        sessions = [self.units.by_name[name].session for name in self.sweeping]
        found, complete = process.left_over(marks, sessions)
        for pid, ticks in found.items():
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    if process.alive(pid, ticks):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
        most = PASSES if found else BLIND_PASSES
        for name, rounds in list(self.sweeping.items()):
            if (found or not complete) and rounds < most:
                self.sweeping[name] = rounds + 1
            else:
                del self.sweeping[name]
                self._clean(self.units.by_name[name])
        if self.sweeping:
            self.loop.after(0.01, lambda: None)

    def _clean(self, unit: Unit) -> None:
        assert unit.service is not None
        steps = iter(unit.service.cleanup)

        def step(_: str = "") -> None:
            argv = next((argv for argv in steps if not container_state.unknown(argv)), None)
            if argv is None:
                self._decide(unit)
            else:
                self.help(unit, argv, step)

        step()

    def help(self, unit: Unit, argv: tuple[str, ...], done: Callable[[str], None]) -> None:
        """Run a command for *unit*; then call *done* with an error text, or an empty text if the command exited 0."""
        assert unit.service is not None
        offset = logs.size(unit.log)
        try:
            pid, report = spawn.fork(self.units.layout, unit.name, unit.service, argv, None)
        except OSError as err:
            done(str(err))
            return
        os.close(report)
        slow = self.loop.after(HELPER_TIMEOUT, lambda: signal.pidfd_send_signal(pidfd, signal.SIGKILL))

        def ended(status: int | None) -> None:
            slow.cancel()
            told = logs.tail(unit.log, offset)
            done("" if status == 0 else f"{argv[0]}: {restart_policy.end_of(status)}{': ' + told if told else ''}")

        pidfd = self.children.follow(pid, ended)

    def _decide(self, unit: Unit) -> None:
        """Restart a cleaned-up service at once or after a delay, or leave it stopped or failed."""
        assert unit.service is not None
        service = self._present(unit.service)
        if unit.service.pid_file is not None:
            unit.service.pid_file.unlink(missing_ok=True)
            self.relay.end(unit)
        if unit.wanted and unit.again:
            unit.afresh()
            self.again(unit)
        elif not unit.wanted:
            self.units.idle(unit, "stopped")
        elif unit.error or restart_policy.again(service.restart, unit.exit):
            if unit.error and service.restart == "never":
                self.units.idle(unit, "failed")
                return
            condemned = service.condemned is not None and service.condemned.exists()
            if time.monotonic() - unit.began >= restart_policy.HEALTHY and not condemned:
                unit.failures = 0
            unit.failures += 1
            unit.restarts += 1
            wait = restart_policy.delay(unit.failures)
            self.units.note(unit, "backoff", "starting")
            self.units.tell(unit, "start", unit.error)
            unit.timer = self.loop.after(wait, lambda: self._retry(unit))
        else:
            self.units.idle(unit, "stopped" if unit.exit == "exit 0" else "failed")

    def _present(self, started: Service) -> Service:
        """Return a service as it was started, but with its present health check and ``restart``.

        A service without a readable definition is returned as it was started.
        """
        with contextlib.suppress(NetspaceError, OSError):
            return definitions.read(self.units.layout, started.name) or started
        return started

    def _retry(self, unit: Unit) -> None:
        """Start a unit again after its delay, unless its present ``restart`` forbids this."""
        unit.timer = None
        assert unit.service is not None
        restart = self._present(unit.service).restart
        if restart == "never" or not (unit.error or restart_policy.again(restart, unit.exit)):
            self.units.idle(unit, "stopped" if unit.exit == "exit 0" and not unit.error else "failed")
            return
        self.again(unit)
