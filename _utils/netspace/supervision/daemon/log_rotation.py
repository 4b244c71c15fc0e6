"""The schedule of log rotation: the faster a file grows, the sooner it is checked. ``logs`` does the rotation."""

from __future__ import annotations

import time
from pathlib import Path

from netspace.supervision.daemon import logs
from netspace.supervision.daemon.loop import Loop, Timer
from netspace.supervision.daemon.units import Units

SLOWEST = 10.0  # seconds between two checks
FASTEST = 0.5


class Rotation:
    """Rotation of the logs of all services that aren't idle, and of the daemon's own log."""

    def __init__(self, units: Units, loop: Loop) -> None:
        self.units = units
        self.loop = loop
        self._growth: dict[Path, tuple[int, float]] = {}
        self._wait = FASTEST
        self._timer = Timer(lambda: None)

    def look(self) -> None:
        """Rotate logs that are too large, and schedule the next check.

        The next check comes sooner if a file grows fast, or if a program was started recently.
        """
        now = time.monotonic()
        wait = min(2 * self._wait, SLOWEST)
        working = [self.units.by_name[name] for name in self.units.active]
        paths = {unit.log for unit in working if unit.service is not None}
        for path in (*paths, self.units.layout.logs / "supervisor.log"):
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
        self._wait = max(wait, FASTEST)
        self._timer = self.loop.after(self._wait, self.look)

    def look_soon(self) -> None:
        if self._wait > FASTEST:
            self._timer.cancel()
            self._wait = FASTEST
            self._timer = self.loop.after(self._wait, self.look)

    def remove(self, path: Path) -> None:
        """Remove a log, and the files that were rotated from it."""
        self._growth.pop(path, None)
        logs.remove(path)
