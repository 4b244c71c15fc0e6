"""Bound on the work of a regular expression, computed from its parts before it is used. Pure.

Python's matcher tries each way in which the parts of an expression can match. With a repetition inside a repetition, as
in ``(a+)+b``, it may need hours for an id of 30 characters, and it can't be stopped. So an expression that may have too
many ways is refused.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

MOST = 1_000_000
"""The most ways that may be tried for one id."""
LENGTH = 64
"""The length of an id for which ways are counted."""
MAX_TEXT = 1000


def refused(expression: str) -> str:
    """Return the reason that an expression must not be used; empty if it may be used."""
    if len(expression) > MAX_TEXT:
        return f"longer than {MAX_TEXT} characters; name the hosts in several terms"
    try:
        re.compile(expression)
        parts = _parsed(expression)
    except (re.error, RecursionError, OverflowError) as err:
        return str(err) or type(err).__name__
    try:
        ways = _sequence(parts)
    except ValueError as err:
        return f"{err}; write several terms without it"
    if ways > MOST:
        return f"an id may have to be tried in more than {MOST} ways; use fewer repetitions in one term"
    return ""


def _parsed(expression: str) -> Iterable[Any]:
    """Return the parts of an expression, as Python's own parser returns them."""
    if sys.version_info >= (3, 11):
        from re import _parser as parser  # type: ignore[attr-defined]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import sre_parse as parser
    parts: Any = parser.parse(expression)  # it can be walked through, though its class doesn't say so
    return list(parts)


def _sequence(parts: Iterable[Any]) -> int:
    ways = 1
    for name, value in parts:
        ways = min(ways * _ways(str(name), value), MOST + 1)
    return ways


def _ways(name: str, value: Any) -> int:
    """Return the greatest number of ways in which one part of an expression can match.

    :param name: the name of the part's operation, in Python's parser.
    :raises ValueError: the number has no bound, or the operation isn't supported.
    """
    if name in ("LITERAL", "NOT_LITERAL", "IN", "ANY", "AT", "GROUPREF"):
        return 1
    if name in ("ASSERT", "ASSERT_NOT"):
        return _sequence(value[1])
    if name == "GROUPREF_EXISTS":
        return _sequence(value[1]) + _sequence(value[2] or ())
    if name == "SUBPATTERN":
        return _sequence(value[-1])
    if name == "BRANCH":
        return sum(_sequence(one) for one in value[1])
    if name == "ATOMIC_GROUP":
        return _sequence(value)
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, most, body = int(value[0]), min(int(value[1]), LENGTH), value[2]
        inner = _sequence(body)
        if most <= 1:
            return inner + (1 if least == 0 else 0)
        if inner > 1:
            raise ValueError("a repetition or an alternative is repeated")
        return max(most - least, 0) + 1
    raise ValueError(f"{name.lower()} isn't possible here")
