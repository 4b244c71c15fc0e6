"""Answers of the fleet's runners. Salt's command line takes its exit status from their key ``retcode``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netspace.errors import NetspaceError


def answer(asked: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
    """Return the result of *asked*. If *asked* fails or its result isn't good, add ``retcode: 1``; never raise.

    An error is returned as ``{"error": <text>, "retcode": 1}``.

    :param good: returns whether a result is good; by default: it isn't empty.
    """
    try:
        found = asked()
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}
    return found if good(found) else {**found, "retcode": 1}
