"""The restart policy: whether an ended program is started again, and after which delay. Pure."""

from __future__ import annotations

import os

# Seconds. A program that ran for HEALTHY counts as healthy: its next crash has the first delay again.
FIRST_DELAY = 0.1
LAST_DELAY = 30.0
HEALTHY = 20.0


# A service flaps if it was restarted at least FLAPS times, and its last change is less than FLAPPING seconds ago.
FLAPS = 3
FLAPPING = 300.0


def flapping(state: str, restarts: int, since: float, now: float) -> bool:
    """Return whether a service is restarted again and again.

    :param since: time of the service's last change of state, in seconds since the epoch.
    :param now: the current time, in seconds since the epoch.
    """
    return state in ("running", "starting") and restarts >= FLAPS and now - since < FLAPPING


def delay(failures: int) -> float:
    """Return the seconds to wait before the restart after *failures* crashes in a row (>= 1)."""
    # Bound the exponent: the float would overflow after a thousand crashes.
    return min(FIRST_DELAY * 2.0 ** min(failures - 1, 32), LAST_DELAY)


def again(restart: str, end: str) -> bool:
    """Return whether the policy *restart* demands a restart after the end *end*."""
    return restart == "always" or (restart == "on-failure" and end != "exit 0")


def end_of(status: int | None) -> str:
    """Return the *status* of wait(2) in the form of ``Status.exit``; ``unknown`` for None.

    See :class:`~netspace.supervision.service.Status`.
    """
    if status is None:
        return "unknown"
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit {code}"
