"""Pace of the keeper's work: how much of the keeper's time each environment may have. Pure.

A request to start a child, or to make or end a delegation, has the host work as an apply does, and while the host works
for it, an apply waits. No limit of the environment counts that work. So each environment has some time, which it may
use up at once. After that, its requests wait until it has time again. All environments together gain a part of the time
that passes, in equal shares.
"""

from __future__ import annotations

SHARE = 0.25
"""The part of the keeper's time that all environments together may have in the long run."""
BURST = 10.0
"""The seconds of work that an environment may save up."""


class Pace:
    """The time that environments have left. Times are in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}  # only of environments that have less than BURST
        self._at = 0.0

    def wait(self, name: str, now: float, least: float = 0.0) -> float:
        """Return the seconds until an environment may have the keeper work; 0: it may now.

        :param least: the time that it must have left. Less than 0 lets an important request overdraw.
        """
        self._gain(now)
        lacking = least - self._left.get(name, BURST)
        return max(0.0, lacking * len(self._left) / SHARE)

    def spend(self, name: str, seconds: float, now: float) -> None:
        """Note that the keeper worked for an environment."""
        self._gain(now)
        self._left[name] = self._left.get(name, BURST) - seconds

    def _gain(self, now: float) -> None:
        """Share out the time that has passed. Who has all that he may save up leaves his share to the others."""
        passed, self._at = SHARE * max(0.0, now - self._at), now
        names = sorted(self._left, key=self._left.__getitem__) if passed else []
        while names:
            name = names.pop()  # who lacks least
            gained = min(passed / (len(names) + 1), BURST - self._left[name])
            passed -= gained
            self._left[name] += gained
            if self._left[name] >= BURST:
                del self._left[name]
