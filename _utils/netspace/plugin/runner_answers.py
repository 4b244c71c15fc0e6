"""Answers of the runners about a fleet. Salt's command line takes its exit status from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netspace.errors import NetspaceError


def answer(asked: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
    """Return the result of *asked*, with Salt's key for the exit status if it isn't good; never raise."""
    try:
        found = asked()
    except (NetspaceError, OSError, ValueError) as err:
        return {"error": str(err), "retcode": 1}
    return found if good(found) else {**found, "retcode": 1}
