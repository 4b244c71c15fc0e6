"""Answers of the fleet's runners. Salt's command line takes its exit status from their key ``retcode``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netspace.errors import NetspaceError
from netspace.plugin import dates


def answer(
    asked: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool] = bool, *, texts: bool = True
) -> dict[str, Any]:
    """Return the result of *asked*. If *asked* fails or its result isn't good, add ``retcode: 1``; never raise.

    An error is returned as ``{"error": <text>, "retcode": 1}``.

    :param good: returns whether a result is good; by default: it isn't empty.
    :param texts: whether each time in the result gets its text as well (:mod:`netspace.plugin.dates`).
    """
    try:
        found = dates.with_texts(asked()) if texts else asked()
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}
    return found if good(found) else {**found, "retcode": 1}
