"""Monitors of peers: they report when a peer's program starts or stops reading, and when the link is revoked."""

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

    ``down``: no program reads the peer's mailbox any more, because it ended or lost its connection. ``up``: a program
    reads the mailbox. ``revoked``: the link was revoked, by a change of the declaration or because trust was lost.
    """

    peer: str
    state: State


class Readers:
    """The known consumers of a peer's mailbox, from the broker's events. Pure.

    Consumers from before the first event are unknown. So if a consumer ends and no other is known, the peer counts as
    down.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def told(self, came: bool, reader: str) -> State | None:
        """Process an event about a consumer; return the peer's new state, or None if the state stays.

        :param came: True: the consumer was created; False: it ended.
        :param reader: the consumer's tag.
        """
        if came:
            self._known.add(reader)
            return "up" if len(self._known) == 1 else None
        self._known.discard(reader)
        return None if self._known else "down"


class Monitor:
    """The changes of one peer's state from now on: ``async for change in mailbox.monitor(peer)``.

    The iteration ends after ``revoked``. The newest ``MOST`` changes are kept until they are taken.
    """

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._readers = Readers()
        self._changes: deque[Change] = deque(maxlen=MOST)
        self._news = asyncio.Event()
        self._over = False
        self._since = time.time()

    async def change(self, timeout: float | None = None) -> Change:
        """Wait for the next change and return it.

        :param timeout: seconds; None: wait without limit.
        :raises Timeout: no change came in time.
        :raises Revoked: an earlier change was ``revoked``.
        """
        while not self._changes:
            if self._over:
                raise Revoked(f"the link to {self.peer} is revoked")
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), timeout)
            except asyncio.TimeoutError:
                raise Timeout(f"the state of {self.peer} didn't change within {timeout:g} s") from None
        return self._changes.popleft()

    async def down(self, timeout: float | None = None) -> Change:
        """Wait for the next change to ``down`` or ``revoked`` and return it. Errors as for :meth:`change`."""
        while (change := await self.change(timeout)).state == "up":
            pass
        return change

    async def __aiter__(self) -> AsyncIterator[Change]:
        while self._changes or not self._over:
            yield await self.change()

    def told(self, came: bool, reader: str, at: float) -> None:
        """Process the broker's event about a consumer of the peer's mailbox.

        :param at: the event's time, in seconds since 1970. Events from before this monitor began are ignored.
        """
        if at < self._since:
            return  # an older event that was still in the queue
        state = self._readers.told(came, reader)
        if state is not None:
            self._add(state)

    def revoked(self) -> None:
        """Add the change ``revoked`` and end."""
        if not self._over:
            self._over = True
            self._add("revoked")

    def _add(self, state: State) -> None:
        self._changes.append(Change(self.peer, state))
        self._news.set()
