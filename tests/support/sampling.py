"""Shares of the cases that a test enumerates: a different share each day, so that all are tried within a few days.

With ``NETSPACE_FAULTS`` set to ``all`` or ``kinds``, a test tries all cases. With ``NETSPACE_DAY`` set to the number of
another day, a run repeats that day's choices.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FAULTS = os.environ.get("NETSPACE_FAULTS", "some")
EVERY = 4
"""Days from one run to the next of a test file that runs by turns (``FILES`` in ``tests/parts.py``)."""


def today() -> int:
    """Return the number of the day: days since 1970-01-01 UTC, or ``NETSPACE_DAY``."""
    return int(os.environ.get("NETSPACE_DAY") or time.time() // 86400)


def todays(values: Sequence[T], days: int, day: int | None = None, *, every: int = 1) -> list[T]:
    """Return today's share of *values*. In *days* days in a row, each value is returned once.

    :param day: number of the day; None: today's.
    :param every: the test runs only on each *every*-th day (:data:`EVERY` for the files that take turns). Only these
        days count as days in a row.
    """
    if FAULTS != "some":
        return list(values)
    return list(values[(today() if day is None else day) // every % days :: days])
