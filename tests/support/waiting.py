"""Waiting for events that happen outside of a test's own process."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. What takes one here takes twenty on a busy machine; only a test that fails waits so long.
PATIENCE = 60.0


def until(condition: Callable[[], object], what: str = "", *, patience: float = PATIENCE, pause: float = 0.01) -> None:
    """Wait until *condition* holds; check it every *pause* seconds, and fail after *patience* seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, what or "it did not come to pass"
        time.sleep(pause)
