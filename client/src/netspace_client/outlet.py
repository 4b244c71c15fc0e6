"""Publication into one exchange: messages are sent in order, and again until the broker confirms them.

Each exchange has its own channel, because the broker closes the channel if the exchange is revoked. If the channel or
its connection is lost, all unconfirmed messages are sent again in their order and with their ids. So the order stays,
and a receiver can recognize duplicates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiormq import Channel, spec
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)

from netspace_client.errors import LinkError, MailboxFull, Refused, Revoked, Timeout
from netspace_client.session import FAILURES, Session, answer, hang_up

CONFIRM_SECONDS = 20.0
"""Seconds to wait for a confirmation. A healthy broker is far faster; one without its majority may never confirm."""


class Unroutable(LinkError):
    """The exchange has no binding to a queue."""


class Parcel:
    """One message, until it is confirmed or has failed."""

    def __init__(self, body: bytes, properties: spec.Basic.Properties, key: str) -> None:
        self.body = body
        self.properties = properties
        self.key = key
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Outlet:
    """A publisher into *exchange* with its own channel.

    :param what: its name in errors: ``the link to orders``.
    :param room: called before a channel is opened, to close idle ones of other outlets.
    :param confirm: seconds to wait for a confirmation before trying another connection.
    """

    def __init__(
        self, session: Session, exchange: str, what: str, room: Callable[[], None], confirm: float = CONFIRM_SECONDS
    ) -> None:
        self.session = session
        self.exchange = exchange
        self.what = what
        self._room = room
        self._confirm = confirm
        self._pending: dict[Parcel, None] = {}
        self._channel: Channel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_by_one = False
        self._closed = False

    @property
    def idle(self) -> bool:
        return not self._pending

    @property
    def open(self) -> bool:
        return self._channel is not None

    async def publish(self, body: bytes, properties: spec.Basic.Properties, key: str = "", *, timeout: float) -> None:
        """Publish a message; return after the broker has confirmed it.

        :raises LinkError: the broker refused it, or it is unknown whether the broker has it.
        """
        parcel = Parcel(body, properties, key)
        self._pending[parcel] = None
        if self._channel is not None and self._channel.is_closed:
            self._channel = None
        if self._channel is None:
            self._reopen()
        elif not self._one_by_one:
            self._put(self._channel, parcel)
        try:
            await asyncio.wait_for(parcel.done, timeout)
        except asyncio.TimeoutError:
            if self.session.connected:
                raise Timeout(f"{self.what}: the broker didn't confirm within {timeout:g} s") from None
            raise self.session.unreached(self.what, timeout) from None
        finally:
            self._pending.pop(parcel, None)

    def release(self) -> None:
        """Close the channel, if no message is unconfirmed."""
        if self._channel is not None and self.idle:
            self._lose(self._channel)

    async def close(self) -> None:
        self._closed = True
        tasks = [task for task in (*self._tasks, self._opening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _put(self, channel: Channel, parcel: Parcel) -> None:
        self._keep(asyncio.create_task(self._send(channel, parcel)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, channel: Channel, parcel: Parcel) -> None:
        try:
            await answer(
                channel.basic_publish(
                    parcel.body,
                    exchange=self.exchange,
                    routing_key=parcel.key,
                    properties=parcel.properties,
                    mandatory=True,
                    wait=False,
                ),
                self._confirm,
            )
        except PublishError:
            parcel.fail(Unroutable(f"{self.what}: it leads to no mailbox"))
        except DeliveryError:
            parcel.fail(MailboxFull(f"{self.what}: the mailbox took no more"))
        except (ChannelNotFoundEntity, ChannelAccessRefused) as err:
            self._lose(channel)
            parcel.fail(Revoked(f"{self.what} is revoked ({err})"))
        except ChannelPreconditionFailed as err:
            # The broker refuses one of the messages on the channel. Send them one by one to find out which.
            if len(self._pending) == 1 or (self._one_by_one and channel is self._channel):
                parcel.fail(Refused(f"{self.what}: the broker refuses the message: {err}"))
                self._pending.pop(parcel, None)
            self._one_by_one = True
            self._lose(channel)
        except asyncio.TimeoutError:
            # The node may have lost the majority of its cluster. Another connection may lead to another node.
            self._lose(channel)
            self._keep(asyncio.create_task(self.session.leave(channel.connection)))
        except FAILURES:
            self._lose(channel)
        except Exception as err:
            # aiormq may have counted the message as sent; it would then assign confirmations to the wrong messages.
            parcel.fail(err)
            self._pending.pop(parcel, None)
            self._lose(channel)
        else:
            parcel.finish()
        if parcel.done.done():
            self._pending.pop(parcel, None)
            self._next(channel)

    def _next(self, channel: Channel) -> None:
        if not self._one_by_one or channel is not self._channel:
            return
        if self._pending:
            self._put(channel, next(iter(self._pending)))
        else:
            self._one_by_one = False

    def _lose(self, channel: Channel) -> None:
        """Give up a channel, and send unconfirmed messages through another."""
        if channel is self._channel:
            self._channel = None
            if not channel.is_closed:
                self._keep(asyncio.create_task(hang_up(channel)))
        if self._pending and self._channel is None:
            self._reopen()

    def _reopen(self) -> None:
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        pause = 0.01
        while any(not parcel.done.done() for parcel in self._pending):
            self._room()
            try:
                channel = await self.session.channel()
            except (LinkError, ConnectionError):
                if self._closed:
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                continue
            self._channel = channel
            parcels = [parcel for parcel in self._pending if not parcel.done.done()]
            for parcel in parcels[:1] if self._one_by_one else parcels:
                self._put(channel, parcel)
            return
