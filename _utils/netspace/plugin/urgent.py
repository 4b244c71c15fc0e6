"""Priority for work that must not wait for the processors: the end of a distrusted host's links."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

NICE = -10
"""The nice value. The scheduler gives about nine times as much time to it as to 0, the usual value (sched(7))."""


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """Raise the priority of this thread, and of the processes that it starts, during the context.

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
