"""Strict reader for JSON from untrusted writers.

If a name occurs twice in an object, Python's reader keeps the last value, and other readers keep the first. Two
programs could thus understand one signed document differently (RFC 8259, 4; RFC 8725, 2.4). Python's reader also
accepts ``NaN``, which is not JSON; every comparison with ``NaN`` is false. This module refuses repeated names and
``NaN``. Callers limit the size.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn


def loads(text: str | bytes) -> Any:
    """Return the value that *text* encodes.

    :raises ValueError: *text* is not JSON, is nested too deep, or gives a name twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=_refuse)
    except RecursionError as err:
        raise ValueError("nested too deep") from err


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return *pairs* as a dict (an ``object_pairs_hook``).

    :raises ValueError: a name occurs twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
