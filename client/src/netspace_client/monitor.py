"""Monitors of peers: they tell when a peer's program goes and comes, and when the link to it is revoked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from netspace_client.errors import Revoked, Timeout

State = Literal["up", "down", "revoked"]
MOST = 100


@dataclass(frozen=True)
class Change:
    """A change of a peer's state.

    ``down``: nothing reads its mailbox any more; it died, or lost its connection. ``up``: something does.
    ``revoked``: the link is no more, by a change of the declaration or because trust was lost.
    """

    peer: str
    state: State


class Readers:
    """The readers of a peer's mailbox, as far as the broker has told since we listen. Pure.

    Those who read before are not known by name: the first that goes counts as the last,
    unless another was seen to come.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def told(self, came: bool, reader: str) -> State | None:
        """Count a reader that came or went; return the peer's new state, None where it stays."""
        if came:
            self._known.add(reader)
            return "up" if len(self._known) == 1 else None
        self._known.discard(reader)
        return None if self._known else "down"


class Monitor:
    """The changes of one peer's state from now on: ``async for change in mailbox.monitor(peer)``.

    It ends after ``revoked``. Of the changes that nobody has taken yet, the newest hundred are kept.
    """

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._readers = Readers()
        self._changes: deque[Change] = deque(maxlen=MOST)
        self._news = asyncio.Event()
        self._over = False
        self._since = time.time()

    async def change(self, timeout: float | None = None) -> Change:
        """Return the next change.

        :raises Timeout: there was none.
        :raises Revoked: an earlier change was ``revoked``.
        """
        while not self._changes:
            if self._over:
                raise Revoked(f"the link to {self.peer} is no more")
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), timeout)
            except asyncio.TimeoutError:
                raise Timeout(f"nothing became of {self.peer} within {timeout:g} s") from None
        return self._changes.popleft()

    async def down(self, timeout: float | None = None) -> Change:
        """Return the next change for the worse: ``down`` or ``revoked``."""
        while (change := await self.change(timeout)).state == "up":
            pass
        return change

    async def __aiter__(self) -> AsyncIterator[Change]:
        while self._changes or not self._over:
            yield await self.change()

    def told(self, came: bool, reader: str, at: float) -> None:
        """Count a reader of the peer's mailbox that came or went *at* that time, as the broker says."""
        if at < self._since:
            return  # it waited for us in the queue
        state = self._readers.told(came, reader)
        if state is not None:
            self._add(state)

    def revoked(self) -> None:
        """End with the change ``revoked``: the link is no more."""
        if not self._over:
            self._over = True
            self._add("revoked")

    def _add(self, state: State) -> None:
        self._changes.append(Change(self.peer, state))
        self._news.set()
