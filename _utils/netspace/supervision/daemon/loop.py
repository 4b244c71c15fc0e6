"""The event loop of a single-threaded process: it waits for ready descriptors and for timers.

It uses no thread, and has no code for services or processes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import time
from collections.abc import Callable


class Timer:
    """An action that the loop calls at a given time, unless it is cancelled."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Loop:
    """An event loop: it calls the handlers of ready descriptors and the actions of timers, one at a time."""

    def __init__(self) -> None:
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._poll = select.epoll()  # not poll: each wait would cost as much as there are descriptors
        self._handlers: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        self._handlers[fd] = handler
        try:
            self._poll.register(fd, events)
        except FileExistsError:
            self._poll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed already
                self._poll.unregister(fd)

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._sequence), timer))
        return timer

    def due(self) -> None:
        """Call the actions whose time has come."""
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            action = heapq.heappop(self._timers)[2].action
            if action is not None:
                action()

    def wait(self) -> None:
        """Wait for a ready descriptor or the next timer; call the handlers of ready descriptors."""
        timeout = None
        if self._timers:
            timeout = max(0, self._timers[0][0] - time.monotonic()) + 0.001
        due = [(fd, events, self._handlers.get(fd)) for fd, events in self._poll.poll(timeout)]
        for fd, events, handler in due:
            # An earlier handler may have closed this descriptor, and its number may be in use again.
            if handler is not None and self._handlers.get(fd) is handler:
                handler(events)
