"""Selective receive, as in Erlang: who waits gets the first message that he asked for. Pure.

What nobody waits for stays, in its order. How much may stay is bounded by whoever
puts messages in; a waiter whose message can't come any more, because the bound is
reached by others, is told so instead of being left to wait for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Match = Callable[[T], bool]


class Waiter(Generic[T]):
    """Somebody who waits; ``future`` gets his message, or why there will be none."""

    def __init__(self, match: Match[T], future: asyncio.Future[T]) -> None:
        self.match = match
        self.future = future


class Inbox(Generic[T]):
    """Messages that nobody has taken, and those who wait for others."""

    def __init__(self) -> None:
        self._held: deque[T] = deque()
        self._waiters: list[Waiter[T]] = []

    def __len__(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """The number of those who wait for a message that isn't here."""
        return sum(not waiter.future.done() for waiter in self._waiters)

    def put(self, item: T) -> bool:
        """Give *item* to who has waited longest of those that asked for it, or keep it; return whether it was given."""
        for index, waiter in enumerate(self._waiters):
            if not waiter.future.done() and _matches(waiter, item):
                del self._waiters[index]
                waiter.future.set_result(item)
                return True
        self._held.append(item)
        return False

    def put_back(self, item: T) -> None:
        """Return what was taken last: it is the first again."""
        if not self.put(item):
            self._held.remove(item)
            self._held.appendleft(item)

    def take(self, match: Match[T]) -> T | None:
        """Return the first held item that matches, which is then no longer held; None: none does."""
        for index, item in enumerate(self._held):
            if match(item):
                del self._held[index]
                return item
        return None

    def wait(self, waiter: Waiter[T]) -> None:
        """Have *waiter* get the next item that matches; those held were looked at by ``take``."""
        self._waiters.append(waiter)

    def leave(self, waiter: Waiter[T]) -> None:
        """Forget *waiter*, who waits no longer."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that there will be nothing."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_exception(error)

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out all held items that are *unwanted*; the others keep their order."""
        dropped = [item for item in self._held if unwanted(item)]
        self._held = deque(item for item in self._held if not unwanted(item))
        return dropped


def _matches(waiter: Waiter[T], item: T) -> bool:
    """Check whether *item* matches; an exception of the match goes to its waiter, and the item isn't lost."""
    try:
        return waiter.match(item)
    except Exception as err:
        waiter.future.set_exception(err)
        return False
