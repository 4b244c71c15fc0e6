"""The count of a service's processes that the kernel killed for want of memory, its main process among them or not.

A program may live on when one of its children is killed, and be killed by somebody else, much
later: so each kill is noted when it happens. Only a kill that comes with the end of the
main process counts as the cause of that end. Services have control groups of their own only if they are
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
    """Keeps ``Unit.oom_kills``, counted since the service was asked to start, and ``oom_seen``, the kernel's count."""

    def __init__(self, units: Units, loop: Loop) -> None:
        self.units = units
        self.loop = loop
        self.notices = memory.Notices()
        self._whose: set[str] | None = set()  # to be looked at; None: all
        self._looks = 0  # to come
        loop.watch(self.notices.fd, lambda _: self._told())

    def begin(self, unit: Unit) -> None:
        """Read the kernel's count before the launch: kills that an existing group counted before aren't the unit's."""
        if self._detached(unit):
            unit.oom_seen = memory.kills(payload_cgroup(self.units.layout, unit.name))

    def follow(self, unit: Unit) -> None:
        """Note kills of the running unit from now on."""
        if self._detached(unit):
            self.notices.watch(unit.name, payload_cgroup(self.units.layout, unit.name))
            self._look(unit)

    def end(self, unit: Unit) -> None:
        """Count the kills once the main process has ended, while its group exists.

        A kill of its own is noted as ``oom``.
        """
        if not self._detached(unit):
            return
        assert unit.service is not None
        # An init is not the one that is killed where the kernel kills a single process.
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
        """Note kills, unless the main process is about to end: a kill may have been its own, which ``end`` judges."""
        if unit.phase != "running" or not self._detached(unit) or process.dying(unit.pid):
            return
        if killed := self._count(unit):
            self.units.say(f"{unit.name}: the kernel killed {killed} of its processes for want of memory")
            self.units.record(unit, "running")

    def _count(self, unit: Unit) -> int:
        """Count the kills since the last count; return their number."""
        now = memory.kills(payload_cgroup(self.units.layout, unit.name))
        fresh = max(0, now - unit.oom_seen)
        unit.oom_kills += fresh
        unit.oom_seen = now
        return fresh


def since(trace: records.Trace, cgroup: str) -> int:
    """Return the kills of a running service: the recorded ones, and those that the kernel has counted since."""
    return trace.oom_kills + max(0, memory.kills(cgroup) - trace.oom_seen)
