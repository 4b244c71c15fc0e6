"""Waiting for events that happen outside of a test's own process."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. What takes one here takes twenty on a busy machine; only a test that fails waits so long.
PATIENCE = 60.0


def until(condition: Callable[[], object], what: str = "", *, patience: float = PATIENCE, pause: float = 0.01) -> None:
    """Wait until *condition* holds, and fail after *patience* seconds.

    After each check, rest for *pause* seconds; after one that takes long, three times as long as it took, but no more
    than a second. So what is waited for gets the processor. Without a pause, there is no rest at all.
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
