"""Parser of points in time that an operator gives. Pure."""

from __future__ import annotations

import datetime
import math

from netspace.errors import NetspaceError


def since(given: str | float, now: float) -> float:
    """Return the time that *given* describes, in seconds since the epoch.

    *given* is a number of seconds before *now*, or an ISO 8601 time. A time without an offset is the host's local time.

    :raises NetspaceError: when *given* is neither of these, or is in the future.
    """
    problem = f"since: {given!r:.80}: not a time; give a number of seconds ago, or a time such as 2026-01-31T12:00:00"
    if isinstance(given, bool):
        raise NetspaceError(problem)
    try:
        ago = float(given)
    except (TypeError, ValueError, OverflowError):
        try:
            moment = datetime.datetime.fromisoformat(str(given).replace("Z", "+00:00")).timestamp()
        except (ValueError, OverflowError, OSError) as err:
            raise NetspaceError(problem) from err
        if moment > now:
            raise NetspaceError(f"since: {given!r:.80}: lies in the future; give a past time") from None
        return moment
    if not math.isfinite(ago) or not 0 <= ago <= now:
        raise NetspaceError(problem)
    return now - ago
