"""How many of a service's processes the kernel killed for want of memory, and whether its main process is one of them.

A program may live on when one of its children is killed, and be killed by somebody else, much
later: so each kill is taken note of when it happens. Only one that comes with the end of the
main process is that one's end. Services have control groups of their own only where they are
started detached. Nothing is started or ended here.
"""

from __future__ import annotations

from netspace.supervision import memory, payload_cgroup, process, records
from netspace.supervision.loop import Loop
from netspace.supervision.units import Unit, Units

# Seconds after the kernel's word until the count is read, and is read once more: version 1 gives it before it has
# chosen whom to kill, and also when a group is removed, which is mostly of many at a time.
SOON, LATER = 0.1, 1.0


class Shortage:
    """Keeps ``Unit.oom_kills``: since the service was asked to start; and ``oom_seen``, what the kernel counts."""

    def __init__(self, units: Units, loop: Loop) -> None:
        self.units = units
        self.loop = loop
        self.notices = memory.Notices()
        self._whose: set[str] | None = set()  # to be looked at; None: all
        self._looks = 0  # to come
        loop.watch(self.notices.fd, lambda _: self._told())

    def begin(self, unit: Unit) -> None:
        """Before it is launched: what its group has counted by now, if it is there already, is none of its kills."""
        if self._detached(unit):
            unit.oom_seen = memory.kills(payload_cgroup(self.units.layout, unit.name))

    def follow(self, unit: Unit) -> None:
        """It runs: take note of kills from now on."""
        if self._detached(unit):
            self.notices.watch(unit.name, payload_cgroup(self.units.layout, unit.name))
            self._look(unit)

    def end(self, unit: Unit) -> None:
        """Its main process has ended, and its group is still there."""
        if not self._detached(unit):
            return
        if self._count(unit) and unit.exit in ("signal 9", "unknown"):
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
        """Take note of what was killed, unless its main process is about to end: maybe it was that one."""
        if unit.phase != "running" or not self._detached(unit) or process.dying(unit.pid):
            return
        if killed := self._count(unit):
            self.units.say(f"{unit.name}: the kernel killed {killed} of its processes for want of memory")
            self.units.record(unit, "running")

    def _count(self, unit: Unit) -> int:
        """Count what was killed since the last time; return how many that were."""
        now = memory.kills(payload_cgroup(self.units.layout, unit.name))
        fresh = max(0, now - unit.oom_seen)
        unit.oom_kills += fresh
        unit.oom_seen = now
        return fresh


def since(trace: records.Trace, cgroup: str) -> int:
    """How many were killed of a service that runs, by what was recorded and by the kernel's count now."""
    return trace.oom_kills + max(0, memory.kills(cgroup) - trace.oom_seen)
