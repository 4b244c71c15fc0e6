"""Selective receive, as in Erlang: a waiter gets the first message that it matches. Pure.

Messages without a matching waiter stay, in their order. The caller limits their number. If the limit is reached, no
matching message can come any more, and the caller fails the waiters.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Match = Callable[[T], bool]


class Waiter(Generic[T]):
    """A ``receive`` call that waits. ``future`` gets its message, or the error that explains why it gets none."""

    def __init__(self, match: Match[T], future: asyncio.Future[T]) -> None:
        self.match = match
        self.future = future


class Inbox(Generic[T]):
    """The held messages, and the waiters for other messages."""

    def __init__(self) -> None:
        self._held: deque[T] = deque()
        self._waiters: list[Waiter[T]] = []

    def __len__(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """The number of waiters."""
        return sum(not waiter.future.done() for waiter in self._waiters)

    def put(self, item: T) -> bool:
        """Give *item* to the first waiter that matches, else hold *item*; return whether it was given."""
        for index, waiter in enumerate(self._waiters):
            if not waiter.future.done() and _matches(waiter, item):
                del self._waiters[index]
                waiter.future.set_result(item)
                return True
        self._held.append(item)
        return False

    def put_back(self, item: T) -> None:
        """Give a taken item to the first waiter that matches; if no waiter matches, hold it before all others."""
        if not self.put(item):
            self._held.remove(item)
            self._held.appendleft(item)

    def take(self, match: Match[T]) -> T | None:
        """Remove and return the first held item that matches; None: no item matches."""
        for index, item in enumerate(self._held):
            if match(item):
                del self._held[index]
                return item
        return None

    def wait(self, waiter: Waiter[T]) -> None:
        """Add *waiter*, which gets the next matching item. The caller has searched the held items before."""
        self._waiters.append(waiter)

    def leave(self, waiter: Waiter[T]) -> None:
        """Remove *waiter*."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def fail(self, error: BaseException) -> None:
        """Remove all waiters and raise *error* in them."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_exception(error)

    def drop(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Remove and return all held items that are *unwanted*; the others keep their order."""
        dropped = [item for item in self._held if unwanted(item)]
        self._held = deque(item for item in self._held if not unwanted(item))
        return dropped


def _matches(waiter: Waiter[T], item: T) -> bool:
    """Return whether *waiter* matches *item*. If its function raises, give it the exception; return False."""
    try:
        return waiter.match(item)
    except Exception as err:
        waiter.future.set_exception(err)
        return False
