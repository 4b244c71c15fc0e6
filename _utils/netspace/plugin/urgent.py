"""Priority for work that must not wait for the processors: the end of a distrusted host's links."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

NICE = -10
"""Where others have 0, the scheduler gives about nine times as much time to this value (sched(7))."""


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """Give this thread, and processes that it begins, more of busy processors during the context.

    Without the right to do so, as on a master that doesn't run as root, nothing changes.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, NICE))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
