"""A share of what a test enumerates: another one each day, so that all are tried within some days, or all on request.

``NETSPACE_FAULTS``, set to ``all`` or ``kinds``, tries all, and so repeats what failed on another day.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FAULTS = os.environ.get("NETSPACE_FAULTS", "some")


def todays(values: Sequence[T], days: int, day: int | None = None) -> list[T]:
    """Return today's share of *values*: within *days* days in a row each is tried once.

    :param day: number of the day; None: today's.
    """
    if FAULTS != "some":
        return list(values)
    return list(values[(int(time.time() // 86400) if day is None else day) % days :: days])
