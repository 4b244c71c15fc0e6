"""Times in returns: as ISO 8601 beside the seconds since the epoch in data, and instead of them on a terminal. Pure.

Data keep their numbers, since programs compare and subtract them. For each time under a key such as ``since``, they
also have ``since_at``, the same time as text.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import TypeVar, cast

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
            "measured",
            "revoked",
        ),
        *("since", "until"),
    }
)
"""The keys whose numbers are seconds since the epoch."""
BY_NAME = frozenset({"asked_again"})
"""The keys whose values have such a number for each name."""
_FIRST, _END = 10**9, 2**33
"""Range of times: 2001 to 2242. A smaller number is a duration (key ``deadline``) or a count (key ``first``)."""


BESIDE = "_at"
"""The end of the key under which the same time is as text."""

T = TypeVar("T")


def with_texts(data: T) -> T:
    """Return *data* with each time under a key of :data:`MOMENTS` also as text with its zone: ``2026-01-31T12:00:00Z``.

    The text's key is the number's key with :data:`BESIDE` appended. An existing key is not replaced.
    """
    return cast(T, _with_texts(data))


def _with_texts(data: object) -> object:
    if type(data) is list:
        return [_with_texts(value) for value in data]
    if type(data) is not dict:
        return data
    found: dict[object, object] = {}
    for key, value in data.items():
        found[key] = _with_texts(value)
        if f"{key}{BESIDE}" in data:
            continue
        if (moment := _moment(key, value)) is not None:
            found[f"{key}{BESIDE}"] = text(moment)
        elif key in BY_NAME and (moments := _moments(value)):
            found[f"{key}{BESIDE}"] = {name: text(moment) for name, moment in moments.items()}
    return found


def beside(key: object, data: Collection[object]) -> bool:
    """Return whether *key* is a text that :func:`with_texts` added to *data* beside a time."""
    return (
        isinstance(key, str)
        and key.endswith(BESIDE)
        and key.removesuffix(BESIDE) in (MOMENTS | BY_NAME).intersection(data)
    )


def _moment(key: object, value: object) -> float | None:
    """Return the time that *value* is, in seconds since the epoch; None if it isn't a time."""
    return _within(value) if isinstance(key, str) and key in MOMENTS else None


def _moments(value: object) -> dict[object, float]:
    """Return the times in a mapping."""
    within = {key: _within(one) for key, one in value.items()} if isinstance(value, dict) else {}
    return {key: moment for key, moment in within.items() if moment is not None}


def _within(value: object) -> float | None:
    moment = tables.number(value)
    return moment if moment is not None and _FIRST <= moment < _END else None


def text(moment: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC: ``2026-01-31T12:00:00Z``."""
    return f"{datetime.datetime.fromtimestamp(int(moment), datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def dated(data: object, now: float) -> object:
    """Return *data* with each time under a key of :data:`MOMENTS` as text: ``2026-01-31T12:00:00Z (3 h ago)``.

    :param now: seconds since the epoch.
    :raises RecursionError: *data* is nested too deeply.
    """
    if type(data) is dict:
        return {key: _value(key, value, now) for key, value in data.items() if not beside(key, data)}
    if type(data) is list:
        return [dated(value, now) for value in data]
    return data


def _value(key: object, value: object, now: float) -> object:
    if (moment := _moment(key, value)) is not None:
        return _told(moment, now)
    if key in BY_NAME and (moments := _moments(value)):
        return {**cast(dict[object, object], value), **{name: _told(one, now) for name, one in moments.items()}}
    return dated(value, now)


def _told(moment: float, now: float) -> str:
    return f"{text(moment)} ({tables.until(moment, now)})"
