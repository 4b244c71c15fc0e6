"""OOM accounting: the number of a service's processes that the kernel's OOM killer has killed.

A program may survive when the OOM killer kills one of its children, and end much later for another reason. So each kill
is noted when it happens. A kill counts as the cause of the main process's end only if both happen at about the same
time. The module counts only for services that are started detached, because only these have separate control groups.
The module doesn't start or end anything.
"""

from __future__ import annotations

from netspace.supervision import definitions, memory_events, process
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.units import Unit, Units

# Seconds from the kernel's notice until the count is read, and until it is read again. cgroup version 1 sends the
# notice before the kernel has chosen a process, and also when a group is removed.
SOON, LATER = 0.1, 1.0


class OomTracker:
    """The part of the daemon that updates ``Unit.oom_kills`` and ``Unit.oom_seen`` (the kernel's count)."""

    def __init__(self, units: Units, loop: Loop) -> None:
        self.units = units
        self.loop = loop
        self.notices = memory_events.Notices()
        self._whose: set[str] | None = set()  # names of units to check; None: all
        self._looks = 0  # number of checks still to come
        loop.watch(self.notices.fd, lambda _: self._told())

    def begin(self, unit: Unit) -> None:
        """Read the kernel's count before the launch, so that earlier kills in an existing group aren't counted."""
        if self._detached(unit):
            unit.oom_seen = memory_events.kills(payload_cgroup(self.units.layout, unit.name))

    def follow(self, unit: Unit) -> None:
        """Note kills of the running unit from now on."""
        if self._detached(unit):
            self.notices.watch(unit.name, payload_cgroup(self.units.layout, unit.name))
            self._look(unit)

    def end(self, unit: Unit) -> None:
        """Count the kills after the main process has ended, while its group still exists.

        If the OOM killer killed the main process, the unit's ``exit`` becomes ``oom``.
        """
        if not self._detached(unit):
            return
        assert unit.service is not None
        self.notices.forget(unit.name)
        # If the kernel kills the program below an init, the init exits with 137.
        killed = ("signal 9", "unknown", *(["exit 137"] if unit.service.init else []))
        if self._count(unit) and unit.exit in killed:
            unit.exit = "oom"

    @staticmethod
    def _detached(unit: Unit) -> bool:
        return unit.service is not None and unit.service.pid_file is not None

    def _told(self) -> None:
        names = self.notices.heard()
        if names is not None and not names:
            return
        self._whose = None if names is None or self._whose is None else self._whose | names
        if not self._looks:
            self.loop.after(SOON, self._look_around)
        self._looks = 2

    def _look_around(self) -> None:
        for name in list(self.units.active if self._whose is None else self._whose & self.units.active):
            self._look(self.units.by_name[name])
        self._looks -= 1
        if self._looks:
            self.loop.after(LATER, self._look_around)
        else:
            self._whose = set()

    def _look(self, unit: Unit) -> None:
        """Count new kills, unless the main process is about to end.

        In that case the main process may be the killed one, and ``end`` counts the kill.
        """
        if unit.phase != "running" or not self._detached(unit) or process.dying(unit.pid):
            return
        if killed := self._count(unit):
            self.units.say(f"{unit.name}: the kernel killed {killed} of its processes for lack of memory")
            self.units.record(unit, "running")

    def _count(self, unit: Unit) -> int:
        """Count the kills since the last count; return their number."""
        now = memory_events.kills(payload_cgroup(self.units.layout, unit.name))
        fresh = max(0, now - unit.oom_seen)
        unit.oom_kills += fresh
        unit.oom_seen = now
        return fresh


def since(trace: definitions.Trace, cgroup: str) -> int:
    """Return the number of OOM kills of a running service: the recorded kills, plus the kernel's count since then."""
    return trace.oom_kills + max(0, memory_events.kills(cgroup) - trace.oom_seen)
