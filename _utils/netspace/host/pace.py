"""Time budgets for requests to the keeper of children: how much of the keeper's time each environment may use. Pure.

The keeper's work for a request (to start a child, or to make or end a delegation) costs as much as an apply, and an
apply has to wait for it. No limit of the environment counts this work. So each environment has a budget of time, of
which it may use all at once. When it has used it up, its requests wait until it has time again. All environments
together gain a fixed part of the time that passes, in equal shares.
"""

from __future__ import annotations

SHARE = 0.25
"""The part of the keeper's time that all environments together may use in the long run (1: all)."""
BURST = 10.0
"""The largest budget: the seconds of work that an environment may save up."""
LINE = 0.25
"""The seconds that a line of the keeper's log costs the environment whose request failed: it could fill the log."""


class Pace:
    """The remaining time budgets of environments. All times are in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}  # by environment; one that isn't listed has BURST
        self._at = 0.0

    def wait(self, name: str, now: float, least: float = 0.0) -> float:
        """Return the seconds until the keeper may work for an environment; 0: it may now.

        :param least: the time that the environment must have left. A value below 0 permits an important request that
            exceeds the budget.
        """
        self._gain(now)
        lacking = least - self._left.get(name, BURST)
        return max(0.0, lacking * len(self._left) / SHARE)

    def spend(self, name: str, seconds: float, now: float) -> None:
        """Subtract the *seconds* that the keeper worked for an environment from its budget."""
        self._gain(now)
        self._left[name] = self._left.get(name, BURST) - seconds

    def _gain(self, now: float) -> None:
        """Share out the time that has passed. If an environment's budget is full, its share goes to the others."""
        passed, self._at = SHARE * max(0.0, now - self._at), now
        names = sorted(self._left, key=self._left.__getitem__) if passed else []
        while names:
            name = names.pop()  # the environment that lacks least
            gained = min(passed / (len(names) + 1), BURST - self._left[name])
            passed -= gained
            self._left[name] += gained
            if self._left[name] >= BURST:
                del self._left[name]
