"""Streams of confirmed messages from one program to another, while a test disturbs the path between them."""

from __future__ import annotations

import asyncio
from typing import Any

from support.links.programs import Program
from support.waiting import until

PATIENCE = 300.0


class Stream:
    """A stream of *number* messages ``0``, ``1``, ... from *sender* over its link *to*.

    :param by: the receiver's name for the sender.

    The stream begins at once. Each message has a separate id, so that repeated messages are noticed.
    """

    def __init__(self, sender: Program, receiver: Program, to: str, by: str, number: int) -> None:
        self.number = number
        self.receiver = receiver
        self.seen: list[int] = []
        self._to = to
        self._by = by
        self._sender = sender
        self._collecting = receiver.start(self._collect())
        self._pouring = sender.start(self._pour())

    async def _collect(self) -> None:
        async for message in self.receiver.mailbox.messages(self._by):
            async with message:
                self.seen.append(int(message.text))

    async def _pour(self) -> list[Any]:
        send = self._sender.mailbox.send
        work = (send(self._to, str(one), timeout=PATIENCE, id=f"m{one}") for one in range(self.number))
        return await asyncio.gather(*work, return_exceptions=True)

    def until(self, count: int) -> None:
        """Wait until *count* messages have arrived."""
        until(lambda: len(self.seen) >= count, f"{count} of {self.number}", patience=PATIENCE)

    def failed(self) -> list[Exception]:
        """Wait until all messages are sent; return the errors."""
        return [result for result in self._pouring.result(PATIENCE) if isinstance(result, Exception)]

    def got(self) -> list[int]:
        """Wait until as many messages have arrived as were sent; return their numbers in the order of arrival."""
        until(lambda: len(self.seen) >= self.number, f"{len(self.seen)} of {self.number}", patience=PATIENCE)
        self._collecting.cancel()
        return self.seen
