"""Many messages to one peer, sent without waiting for each confirmation: ``batch`` and ``send_many``.

Unconfirmed messages are limited by number and bytes, so a fast sender waits for a slow broker. If the connection is
lost, the outlet sends all unconfirmed messages again, in their order and with their ids.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from netspace_client import letter
from netspace_client.card import Peer
from netspace_client.errors import BatchFailed, Closed, LinkError, Revoked, Unreachable
from netspace_client.outlet import Outlet, Parcel, Unroutable
from netspace_client.sending import Content, Sending
from netspace_client.window import SIZE

WINDOW = 1024
"""The most messages of a batch that are unconfirmed at once."""
LARGEST = SIZE // 2
"""The largest window.

After a lost connection the whole window is sent again. The receiver, which remembers ``SIZE`` ids of each sender, must
still know all ids of the window, even if other messages came in between.
"""
BYTES = 16 * 1024 * 1024
"""A further message of a batch waits while the unconfirmed ones have this many bytes or more."""

TURN, TURN_SECONDS = 64, 0.005
"""After so many messages, or seconds, the batch lets the event loop run, which writes them and reads confirmations."""


@dataclass(frozen=True)
class _Open:
    """An unconfirmed message."""

    id: str
    peer: Peer
    content: Content
    urgent: bool
    outlet: Outlet
    deadline: float
    size: int


class Batch:
    """Messages to one peer. Use: ``async with mailbox.batch("orders") as batch``, from one task.

    ``send`` returns as soon as there is room, before the broker has confirmed the message. The end of the block waits
    until all messages are confirmed, and raises :class:`BatchFailed` if some failed. If the block raises an exception,
    the end waits too, and the ``BatchFailed`` is the exception's ``__context__``. If the task is cancelled, or the
    block raises another ``BaseException``, the end doesn't wait: unconfirmed messages may arrive, and are not sent
    again.

    :ivar failed: the error of each message that failed, by the message's id. The error's ``unknown`` is true if the
        message may have arrived.
    :ivar repeated: ids of messages that were sent again because a connection was lost or the link was renamed. The
        broker may have each of them twice. netspace-client drops the second copy; other receivers must recognize it by
        its id.
    """

    def __init__(
        self, link: Callable[[], Peer], alive: Callable[[], None], sending: Sending, *, window: int, timeout: float
    ) -> None:
        if not 1 <= window <= LARGEST:
            raise ValueError(f"window {window} is out of 1..{LARGEST}")
        self._link = link
        self._alive = alive
        self._sending = sending
        self._window = window
        self._timeout = timeout
        self._open: dict[Parcel, _Open] = {}
        self._bytes = 0
        self._count = 0
        self._turned = 0.0
        self._ended = False
        self._free = asyncio.Event()
        self._late: asyncio.TimerHandle | None = None
        self.failed: dict[str, LinkError] = {}
        self.repeated: set[str] = set()

    @property
    def unconfirmed(self) -> int:
        """The number of messages that are neither confirmed nor failed yet."""
        return len(self._open)

    async def send(
        self, body: bytes | str, *, id: str | None = None, content_type: str | None = None, urgent: bool = False
    ) -> str:
        """Send a message and return its id; wait while ``window`` messages are unconfirmed.

        Messages arrive in the order of the calls. An error that the broker reports for a message is in ``failed``.

        :raises NotDeclared: there is no such link.
        :raises Refused: this message is too large or of another type than declared; it wasn't sent.
        :raises TooFast: this message would exceed the link's declared rate; it wasn't sent.
        :raises TypeError: the body is neither bytes nor text, or the id or type is not text.
        """
        self._alive()
        if self._ended:
            raise Closed("this batch has ended")
        named = letter.short(id, "id") if id not in (None, "") else secrets.token_hex(16)
        content = letter.content(body, content_type)
        while self._full:
            self._free.clear()
            await self._free.wait()
        peer = self._link()
        self._sending.narrow(peer, content)
        self._begin(named, peer, content, urgent, asyncio.get_running_loop().time() + self._timeout)
        self._count += 1
        now = asyncio.get_running_loop().time()
        if self._count % TURN == 0 or now - self._turned > TURN_SECONDS:
            self._turned = now
            await asyncio.sleep(0)
        return named

    async def confirmed(self) -> None:
        """Wait until no message is unconfirmed.

        :raises BatchFailed: some messages failed, since the batch began.
        """
        await self._none_open()
        if self.failed:
            raise BatchFailed(self._count, self.failed)

    async def _none_open(self) -> None:
        while self._open:
            self._free.clear()
            await self._free.wait()

    async def __aenter__(self) -> Batch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        try:
            if error is None or isinstance(error, Exception):
                await self._none_open()
        finally:
            self._forget()
        if self.failed:
            failed = BatchFailed(self._count, self.failed)
            if error is None:
                raise failed
            failed.__context__, failed.__suppress_context__ = error.__context__, error.__suppress_context__
            error.__context__, error.__suppress_context__ = failed, error.__cause__ is not None

    # -- its messages ------------------------------------------------------------------
    @property
    def _full(self) -> bool:
        return len(self._open) >= self._window or (self._bytes >= BYTES and len(self._open) > 0)

    def _begin(
        self, id: str, peer: Peer, content: Content, urgent: bool, deadline: float, former: Parcel | None = None
    ) -> None:
        """Begin to send a message.

        :param former: the earlier parcel with the same message, if it is sent again.
        """
        outlet, parcel = self._sending.parcel(peer, content, id, urgent)
        parcel.continues(former is not None and _unknown(former.error))
        parcel.tell = self._told
        self._open[parcel] = _Open(id, peer, content, urgent, outlet, deadline, len(parcel.body))
        self._bytes += len(parcel.body)
        if self._late is None:
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(max(0.0, deadline - loop.time()), self._overdue)
        outlet.begin(parcel)

    def _told(self, parcel: Parcel) -> None:
        """Record the outcome of a message. If its link has a new exchange, send the message again through it."""
        one = self._open.pop(parcel, None)
        if one is None:
            return
        self._bytes -= one.size
        if parcel.repeated:
            self.repeated.add(one.id)
        error = parcel.error
        again = self._sending.successor(one.peer) if isinstance(error, Revoked) else None
        if again is not None:
            try:
                self._begin(one.id, again, one.content, one.urgent, one.deadline, parcel)
                return
            except LinkError as err:
                error = error if _unknown(error) else err
        if isinstance(error, Unroutable):
            error = Unreachable(f"{one.peer.called} has no mailbox ({error})")
        if error is not None:
            self.failed[one.id] = error if isinstance(error, LinkError) else LinkError(repr(error))
        if not self._open or (not self._full and len(self._open) <= self._window * 3 // 4):
            self._free.set()

    def _forget(self) -> None:
        """Stop resending messages and waiting for them, because the block was left or its task is cancelled."""
        if self._late is not None:
            self._late.cancel()
        for parcel, one in self._open.items():
            one.outlet.forget(parcel)
        self._open.clear()
        self._bytes = 0

    def _overdue(self) -> None:
        """Give up the messages that weren't confirmed in time."""
        self._late = None
        loop = asyncio.get_running_loop()
        while self._open:
            parcel, one = next(iter(self._open.items()))
            left = one.deadline - loop.time()
            if left > 0:
                self._late = loop.call_later(left, self._overdue)
                return
            one.outlet.forget(parcel)
            parcel.error = one.outlet.late(self._timeout)
            self._told(parcel)


def _unknown(error: Exception | None) -> bool:
    return isinstance(error, LinkError) and error.unknown
