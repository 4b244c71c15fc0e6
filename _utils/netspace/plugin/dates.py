"""Times in returns that have no table of their own: a date instead of seconds since the epoch. Pure.

Only what a terminal shows is changed; the data of a function keep their numbers, which programs compare and subtract.
"""

from __future__ import annotations

import datetime

from netspace.plugin import tables

MOMENTS = frozenset(
    {
        *(
            "asked",
            "built",
            "deadline",
            "died",
            "enrolled",
            "evidence",
            "expires",
            "first",
            "issued",
            "last",
            "revoked",
        ),
        *("since", "until"),
    }
)
"""The keys whose numbers are seconds since the epoch."""
_FIRST, _END = 10**9, 2**33
"""From 2001 to 2242. A smaller number under such a key is a duration (``deadline``) or a count (``first``)."""


def dated(data: object, now: float) -> object:
    """Return *data* with each time under a key of :data:`MOMENTS` as text: ``2026-01-31T12:00:00Z (3 h ago)``.

    :param now: seconds since the epoch.
    :raises RecursionError: *data* is nested too deeply.
    """
    if type(data) is dict:
        return {key: _value(key, value, now) for key, value in data.items()}
    if type(data) is list:
        return [dated(value, now) for value in data]
    return data


def _value(key: object, value: object, now: float) -> object:
    moment = tables.number(value) if isinstance(key, str) and key in MOMENTS else None
    if moment is None or not _FIRST <= moment < _END:
        return dated(value, now)
    shown = datetime.datetime.fromtimestamp(int(moment), datetime.timezone.utc)
    return f"{shown:%Y-%m-%dT%H:%M:%SZ} ({tables.until(moment, now)})"
