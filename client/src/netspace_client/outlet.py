"""Publication into one exchange: messages are sent in order, and repeated until the broker confirms them.

Each exchange has its own channel, because the broker closes the channel if the exchange is revoked. If the channel or
its connection is lost, all unconfirmed messages are sent again in their order and with their ids. So the order is kept,
and a receiver can recognize duplicates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiormq import spec
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from netspace_client import codec
from netspace_client.errors import LinkError, MailboxFull, Refused, Revoked, Timeout
from netspace_client.session import Session, hang_up
from netspace_client.wire import Wire

CONFIRM_SECONDS = 20.0
"""Seconds to wait for a confirmation. A healthy broker is far faster; one without its majority may never confirm."""


class Unroutable(LinkError):
    """Error: the exchange has no binding to a queue."""


def _nobody(parcel: Parcel) -> None:
    """Do nothing: the default of ``Parcel.tell``."""


class Parcel:
    """One message, until it is confirmed or has failed.

    :ivar tell: called once with the parcel, when the message is confirmed or has failed.
    :ivar error: the reason of the failure; None: the message is confirmed.
    :ivar sent: whether the message was published, in this parcel or an earlier one, and so may have arrived.
    :ivar repeated: whether the message was published again, so that the receiver's queue may have it twice.
    :ivar doubtful: whether an earlier copy was sent that the broker neither confirmed nor refused.
    """

    __slots__ = (
        *("at", "body", "doubtful", "error", "key", "properties", "repeated", "returned", "sent", "settled", "tell"),
    )

    def __init__(self, body: bytes, properties: spec.Basic.Properties, key: str = "") -> None:
        self.body = body
        self.properties = properties
        self.key = key
        self.tell: Callable[[Parcel], None] = _nobody
        self.at = 0.0
        self.sent = self.repeated = self.doubtful = self.returned = self.settled = False
        self.error: Exception | None = None

    def continues(self, unknown: bool) -> None:
        """Mark this message as a copy of an earlier message that was sent to another exchange.

        :param unknown: whether the earlier message may have arrived.
        """
        self.sent = self.doubtful = unknown

    def finish(self, error: Exception | None = None) -> None:
        if not self.settled:
            self.settled, self.error = True, error
            self.tell(self)


class Outlet:
    """A publisher into *exchange* with its own channel.

    :param what: the name of the outlet in errors: ``the link to orders``.
    :param room: function called before a channel is opened, which closes idle channels of other outlets.
    :param confirm: seconds without a confirmation, while messages wait, after which another connection is tried.
    """

    def __init__(
        self, session: Session, exchange: str, what: str, room: Callable[[], None], confirm: float = CONFIRM_SECONDS
    ) -> None:
        self.session = session
        self.exchange = exchange
        self.what = what
        self._room = room
        self._confirm = confirm
        self._plain = codec.publish(exchange, "")
        self._pending: dict[Parcel, None] = {}
        self._sent: dict[int, Parcel] = {}
        self._wire: Wire | None = None
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None
        self._suspects: set[Parcel] = set()
        self._heard = 0.0
        self._closed = False

    @property
    def idle(self) -> bool:
        return not self._pending

    @property
    def open(self) -> bool:
        return self._wire is not None

    def begin(self, parcel: Parcel) -> None:
        """Publish a message, after all messages that were begun before. The parcel's ``tell`` reports the outcome."""
        self._pending[parcel] = None
        if self._wire is None:
            self._reopen()
        elif not self._suspects:
            self._put(self._wire, parcel)

    def forget(self, parcel: Parcel) -> None:
        """Stop sending a message again. Its outcome doesn't matter any more."""
        parcel.settled = True
        self._pending.pop(parcel, None)

    async def publish(self, parcel: Parcel, timeout: float) -> None:
        """Publish a message; return after the broker has confirmed it.

        :raises LinkError: the broker refused the message, or it is unknown whether the broker has it.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def tell(parcel: Parcel) -> None:
            if not done.done():
                if parcel.error is None:
                    done.set_result(None)
                else:
                    done.set_exception(parcel.error)

        parcel.tell = tell
        late = loop.call_later(timeout, lambda: parcel.finish(self.late(timeout)))
        try:
            self.begin(parcel)
            if self._wire is not None and len(self._pending) == 1:
                self._wire.flush()  # it is alone, so it gains nothing by waiting for a turn of the event loop
            await done
        finally:
            late.cancel()
            self.forget(parcel)

    def late(self, timeout: float) -> LinkError:
        """Return the error for a message that wasn't confirmed within *timeout* seconds."""
        if self.session.connected:
            return Timeout(f"{self.what}: the broker didn't confirm within {timeout:g} s")
        return self.session.unreached(self.what, timeout)

    def release(self) -> None:
        """Close the channel, if no message is unconfirmed."""
        if self._wire is not None and self.idle:
            self._lose(self._wire)

    async def close(self) -> None:
        self._closed = True
        if self._look is not None:
            self._look.cancel()
        tasks = [task for task in (*self._tasks, self._opening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- sending ------------------------------------------------------------------------
    def _put(self, wire: Wire, parcel: Parcel) -> None:
        if wire.closed:  # its end will be judged in a moment; then the parcel is sent again
            return
        try:
            method = codec.publish(self.exchange, parcel.key) if parcel.key else self._plain
            tag = wire.publish(method, parcel.properties, parcel.body)
        except Exception as err:
            self._end(parcel, err)
            self._next(wire)
            return
        parcel.repeated, parcel.sent = parcel.sent, True
        parcel.returned = False
        parcel.at = asyncio.get_running_loop().time()
        self._sent[tag] = parcel
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(self._confirm, self._overdue)

    def _end(self, parcel: Parcel, error: Exception | None) -> None:
        self._pending.pop(parcel, None)
        parcel.finish(error)

    def _next(self, wire: Wire) -> None:
        """Send the next suspect, if suspects are sent one at a time and the last one is confirmed.

        A suspect is a message that may have made the broker close the channel. After the last suspect, send all other
        messages.
        """
        if not self._suspects or wire is not self._wire or self._sent:
            return
        first = next((parcel for parcel in self._pending if not parcel.settled), None)
        if first is not None and first in self._suspects:
            self._put(wire, first)
            return
        self._suspects.clear()
        self._put_all(wire)

    def _put_all(self, wire: Wire) -> None:
        for parcel in [parcel for parcel in self._pending if not parcel.settled]:
            self._put(wire, parcel)

    def _overdue(self) -> None:
        """Try another connection if messages wait, and none was confirmed for ``confirm`` seconds.

        As long as confirmations come, the path is only slow, and another connection would repeat all messages. Without
        confirmations, the node may have lost the majority of its cluster; another connection may lead to another node.
        """
        self._look = None
        wire, oldest = self._wire, next(iter(self._sent.values()), None)
        if wire is None or oldest is None:
            return
        loop = asyncio.get_running_loop()
        left = max(oldest.at, self._heard) + self._confirm - loop.time()
        if left > 0:
            self._look = loop.call_later(left, self._overdue)
            return
        connection = wire.channel.connection
        self._lose(wire)
        self._keep(asyncio.create_task(self.session.leave(connection)))

    # -- what the broker says --------------------------------------------------------------
    def _confirmed(self, wire: Wire, sent: dict[int, Parcel], tag: int, multiple: bool, taken: bool) -> None:
        if wire is self._wire:
            self._heard = asyncio.get_running_loop().time()
        tags = [tag]
        if multiple:
            tags = []
            for one in sent:  # in their order
                if one > tag:
                    break
                tags.append(one)
        for one in tags:
            parcel = sent.pop(one, None)
            if parcel is None:
                continue
            if parcel.returned:
                self._end(parcel, Unroutable(f"{self.what}: it leads to no mailbox"))
            else:
                self._end(parcel, None if taken else self._full(parcel))
        self._next(wire)

    def _full(self, parcel: Parcel) -> LinkError:
        """Return the error for a message that the broker didn't accept."""
        if parcel.repeated:  # perhaps its first copy is among those that fill the mailbox
            return Timeout(f"{self.what}: the mailbox took no more; an earlier copy of the message may have arrived")
        return MailboxFull(f"{self.what}: the mailbox took no more")

    def _returned(self, sent: dict[int, Parcel], identity: str | None) -> None:
        for parcel in sent.values():
            if not parcel.returned and parcel.properties.message_id == identity:
                parcel.returned = True
                return

    def _ended(self, wire: Wire, sent: dict[int, Parcel], closing: asyncio.Future[Any]) -> None:
        """Find out why a channel ended: because of one of its messages, or because the link was revoked."""
        if wire is not self._wire:
            return
        err = None if closing.cancelled() else closing.exception()
        if isinstance(err, (ChannelNotFoundEntity, ChannelAccessRefused)):
            self._wire = None
            last = max(sent, default=0)
            for tag, parcel in list(sent.items()):
                # The broker reads in order: it has refused the last one or one before it, and nothing after that one.
                self._end(parcel, self._revoked(err, parcel.repeated or tag != last))
        elif isinstance(err, ChannelPreconditionFailed):
            # The broker refuses one of the messages on the channel. Send them one by one to find out which.
            if len(sent) == 1:
                for parcel in list(sent.values()):
                    self._end(parcel, self._refused(parcel, err))
                self._suspects.clear()
            else:
                self._suspects = set(sent.values())
            sent.clear()
        self._lose(wire)

    def _refused(self, parcel: Parcel, err: Exception) -> Refused:
        more = "; an earlier copy may have arrived" if parcel.doubtful else ""
        error = Refused(f"{self.what}: the broker refuses the message: {err}{more}")
        error.unknown = parcel.doubtful
        return error

    def _revoked(self, err: Exception, unknown: bool) -> Revoked:
        more = "; the message may have arrived" if unknown else ""
        error = Revoked(f"{self.what} is revoked ({err}){more}")
        error.unknown = unknown
        return error

    def _lose(self, wire: Wire) -> None:
        """Give up a channel, and send unconfirmed messages through another channel."""
        if wire is self._wire:
            self._wire = None
            for parcel in self._sent.values():
                parcel.doubtful = True
            if not wire.closed:
                wire.shut()
                self._keep(asyncio.create_task(hang_up(wire.channel)))
        if self._pending and self._wire is None:
            self._reopen()

    def _reopen(self) -> None:
        if not self._closed and (self._opening is None or self._opening.done()):
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        pause = 0.01
        while any(not parcel.settled for parcel in self._pending):
            self._room()
            try:
                wire = await self.session.wire()
            except (LinkError, ConnectionError):
                if self._closed:
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                continue
            self._begin_on(wire)
            return

    def _begin_on(self, wire: Wire) -> None:
        """Send all unconfirmed messages on a new channel, in their order."""
        sent: dict[int, Parcel] = {}
        self._wire, self._sent, self._heard = wire, sent, 0.0
        wire.confirmed = lambda tag, multiple, taken: self._confirmed(wire, sent, tag, multiple, taken)
        wire.returned = lambda identity: self._returned(sent, identity)
        wire.channel.closing.add_done_callback(lambda closing: self._ended(wire, sent, closing))
        if self._suspects:
            self._next(wire)
        else:
            self._put_all(wire)
