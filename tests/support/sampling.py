"""Shares of the cases that a test enumerates: a different share each day, so that all are tried within a few days.

With ``NETSPACE_FAULTS`` set to ``all`` or ``kinds``, a test tries all cases, and so repeats a failure of another day.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FAULTS = os.environ.get("NETSPACE_FAULTS", "some")


def todays(values: Sequence[T], days: int, day: int | None = None) -> list[T]:
    """Return today's share of *values*. In *days* days in a row, each value is returned once.

    :param day: number of the day; None: today's.
    """
    if FAULTS != "some":
        return list(values)
    return list(values[(int(time.time() // 86400) if day is None else day) % days :: days])
