"""Values that a declaration gives to an environment: limits on their names, types, depth and size. Pure.

A value is a text, a number, true or false, a list, or a mapping of names to values. Values are no secrets: they are in
records, in an apply's report, and in the environment's card.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from netspace.patterns import pattern

NAME = pattern(r"[a-z](?:[a-z0-9_-]{0,46}[a-z0-9])?")
NAME_RULE = "1 to 48 of a-z, 0-9, '-' and '_', beginning with a letter and ending with a letter or digit"
DEPTH = 6
"""The most lists and mappings within one another, the outermost included."""
SIZE = 32 * 1024
"""The most bytes of all values of an environment, as JSON."""
WHOLE = 2**53 - 1
"""The largest whole number that every reader of JSON understands alike (RFC 8259, section 6)."""


def problems(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the problems of an environment's values: (key, message)."""
    if not values:
        return
    found = list(_problems(values, "values", 1))
    yield from found
    if not found and (size := len(json.dumps(values, ensure_ascii=False).encode())) > SIZE:
        yield "values", f"{size} bytes as JSON; at most {SIZE} are accepted: put large ones into the image or a volume"


def _problems(value: Any, where: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, (dict, list, tuple)):
        if depth > DEPTH:
            yield where, f"more than {DEPTH} lists and mappings within one another; make it flatter"
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str) or not NAME.fullmatch(key):
                    yield f"{where}:{key!s:.60}", f"{key!r:.60} can't be a value's name: use {NAME_RULE}"
                else:
                    yield from _problems(inner, f"{where}:{key}", depth + 1)
        else:
            for index, inner in enumerate(value):
                yield from _problems(inner, f"{where}:{index}", depth + 1)
    elif isinstance(value, str):
        if "\0" in value or not _encodes(value):
            yield where, "has a NUL character or invalid Unicode; leave that out"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield where, f"{value} is not a number in JSON; give a finite one"
    elif isinstance(value, int):  # true and false, too
        if abs(value) > WHOLE:
            yield where, f"{str(value)[:30]} is beyond {WHOLE}, where readers of JSON differ; give it as a text"
    else:
        what = "nothing" if value is None else type(value).__name__
        yield where, f"is {what}; give a text, a number, true, false, a list or a mapping"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
