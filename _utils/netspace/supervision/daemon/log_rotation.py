"""The schedule of log rotation: the faster a file grows, the sooner its size is checked. ``logs`` rotates the files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from netspace.supervision.daemon import logs
from netspace.supervision.daemon.loop import Loop, Timer
from netspace.supervision.daemon.units import Units

SLOWEST = 10.0  # seconds between two checks
FASTEST = 0.5


class Rotation:
    """Rotation of the logs of all services that aren't idle, and of the daemon's own log.

    All these logs are checked regularly. The logs of recently started services are checked more often, and separately.
    So a start among a thousand services doesn't make the daemon check a thousand files.
    """

    def __init__(self, units: Units, loop: Loop) -> None:
        self.units = units
        self.loop = loop
        self._growth: dict[Path, tuple[int, float]] = {}
        self._wait = FASTEST
        self._young: set[Path] = set()
        self._young_wait = FASTEST
        self._young_timer: Timer | None = None

    def look(self) -> None:
        """Rotate logs that are too large, and schedule the next check. The check comes sooner if a file grows fast."""
        working = [self.units.by_name[name] for name in self.units.active]
        paths = {unit.log for unit in working if unit.service is not None}
        self._wait = self._looked((*paths, self.units.layout.logs / "supervisor.log"), self._wait)
        self.loop.after(self._wait, self.look)

    def look_soon(self, path: Path) -> None:
        """Check this log soon, and then less and less often, because its program was just started."""
        self._young.add(path)
        if self._young_timer is not None:
            if self._young_wait <= FASTEST:
                return
            self._young_timer.cancel()
        self._young_wait = FASTEST
        self._young_timer = self.loop.after(self._young_wait, self._look_at_young)

    def _look_at_young(self) -> None:
        self._young_wait = self._looked(self._young, self._young_wait)
        if self._young_wait < SLOWEST:
            self._young_timer = self.loop.after(self._young_wait, self._look_at_young)
        else:  # from now on they are looked at with all others
            self._young.clear()
            self._young_timer = None

    def _looked(self, paths: Iterable[Path], last: float) -> float:
        """Rotate those logs in *paths* that are too large; return the seconds until the next check.

        :param last: the seconds since the last check.
        """
        now = time.monotonic()
        wait = min(2 * last, SLOWEST)
        for path in paths:
            try:
                logs.rotate(path)
            except OSError as err:
                self.units.say(f"{path}: can't be rotated: {err}")
            size = logs.size(path)
            before, at = self._growth.get(path, (size, now - 1))
            rate = (size - before) / max(now - at, 0.001)
            if rate > 0:
                wait = min(wait, (logs.SIZE - size) / rate / 2)
            self._growth[path] = (size, now)
        return max(wait, FASTEST)

    def remove(self, path: Path) -> None:
        """Remove a log, and the files that were rotated from it."""
        self._growth.pop(path, None)
        self._young.discard(path)
        logs.remove(path)
