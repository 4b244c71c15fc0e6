"""Waiting for events that happen outside of a test's own process."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. What takes one here takes twenty on a busy machine; only a test that fails waits so long.
PATIENCE = 60.0


def until(condition: Callable[[], object], what: str = "", *, patience: float = PATIENCE, pause: float = 0.01) -> None:
    """Check *condition* repeatedly until it holds; fail after *patience* seconds.

    Between two checks, the function sleeps *pause* seconds, or three times as long as the last check took, whichever is
    longer (but then at most one second). So a slow check leaves the processor to the process that it waits for. With a
    *pause* of 0, the function doesn't sleep.

    :param what: the text of the failure.
    """
    deadline = time.monotonic() + patience
    while True:
        began = time.monotonic()
        if condition():
            return
        ended = time.monotonic()
        assert ended < deadline, what or "it did not come to pass"
        if pause:
            time.sleep(max(pause, min(3 * (ended - began), 1.0)))
