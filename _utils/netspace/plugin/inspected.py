"""The screen for a return of ``inspect`` about one environment, image or interface: a line for each value. Pure.

Times are dates with their age, and bytes have a unit. Values that are empty are left out. For programs there is
``--out=json``.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping

from netspace.plugin import dates, tables
from netspace.plugin.tables import Paint, text

_TIMES = frozenset({"since", "built"})
_BYTES = frozenset({"memory", "size", "shm", "tmp", "disk"})
_DEPTH = 8
_MOST = 200
"""The most values that are shown."""
_KEY = 28
"""The most columns of a key that has a value on its line."""


def lines(found: Mapping[str, object], now: float, paint: Paint) -> list[str]:
    """Return the lines of the screen.

    :param now: seconds since the epoch.
    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    values = list(_values(found, "", now, _DEPTH))
    if not values or len(values) > _MOST:
        raise ValueError("too few or too many values for a screen")
    width = min(max(len(key) for key, _ in values), _KEY)
    shown: list[str] = []
    for key, value in values:
        room = tables.WIDTH - tables.INDENT - width - 2
        wrapped = tables.wrap(value, room, 8) if len(key) <= width else []
        first = f"{key.ljust(width)}  {wrapped[0]}" if wrapped else key
        rest = wrapped[1:] if wrapped else tables.wrap(value, room, 8)
        shown.append(" " * tables.INDENT + paint(first, ""))
        shown += [" " * (tables.INDENT + width + 2) + line for line in rest]
    return shown


def _values(found: object, key: str, now: float, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the values that aren't empty, with the keys that lead to them: (``limits:memory``, ``64 MiB``)."""
    if depth == 0:
        raise ValueError("too deep")
    if found is None or (isinstance(found, str | list | tuple | Mapping) and not found):
        return
    if isinstance(found, Mapping):
        for name in sorted((one for one in found if not dates.beside(one, found)), key=text):
            yield from _values(found[name], f"{key}:{tables.cut(text(name), 60)}".removeprefix(":"), now, depth - 1)
    elif isinstance(found, list | tuple):
        if any(isinstance(one, Mapping | list | tuple) for one in found):
            for index, one in enumerate(found):
                yield from _values(one, f"{key}:{index}", now, depth - 1)
        else:
            yield key, ", ".join(text(one) for one in found)
    else:
        yield key, _shown(key.rpartition(":")[2], found, now)


def _shown(name: str, value: object, now: float) -> str:
    count = tables.number(value)
    if count is not None and name in _BYTES:
        return tables.size(count) or text(value)
    if count is not None and name in _TIMES and 0 < count < datetime.datetime.max.timestamp():
        moment = datetime.datetime.fromtimestamp(count, datetime.timezone.utc)
        return f"{moment:%Y-%m-%dT%H:%M:%SZ}, {tables.age(count, now)} ago"
    return text(value)
