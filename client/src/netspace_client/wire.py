"""Messages of one channel, without aiormq: published, confirmed, delivered and settled without a task for each.

aiormq opens, closes and supervises connections and channels, and reads the frames that aren't about messages. A
:class:`Wire` takes the frames about messages out of the stream before aiormq reads it. Outgoing frames are collected
while the event loop works, and then written at once: one record of TLS and one system call for many frames.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import aiormq.connection
import pamqp.frame
from aiormq import Channel, spec
from aiormq.exceptions import AMQPConnectionError
from pamqp.exceptions import PAMQPException
from pamqp.heartbeat import Heartbeat

from netspace_client import codec, frames
from netspace_client.codec import BODY, HEADER, METHOD

log = logging.getLogger("netspace_client")

CHUNK = 256 * 1024
"""Bytes that are read at once; also, waiting frames are written once they have so many bytes."""
LARGEST = 1024 * 1024
"""The most bytes of a frame. If a broker offers more, this limit is agreed on. RabbitMQ's default is 128 KiB."""
LARGEST_BODY = 512 * 1024 * 1024
"""The most bytes of a message: RabbitMQ's bound of ``max_message_size`` (https://www.rabbitmq.com/docs/configure)."""
QUIET = 1.0
"""If aiormq got no frame for these seconds, it is told that frames arrive, so that it doesn't end the connection."""
PATIENCE = 0.002
"""The most seconds that an acknowledgement waits for other frames, to be written together with them."""

_MADE: ContextVar[list[Receiver] | None] = ContextVar("netspace_client_receivers", default=None)


class Delivery:
    """A message from the broker.

    :ivar exchange: the exchange through which the message came, which identifies its sender.
    :ivar redelivered: whether the message may have been delivered before.
    """

    __slots__ = ("_about", "_header", "body", "delivery_tag", "exchange", "redelivered", "routing_key", "wire")

    def __init__(self, wire: Wire, method: bytes, header: bytes, body: bytes) -> None:
        self.wire = wire
        self.delivery_tag, self.redelivered, self.exchange, self.routing_key = codec.delivery(method)
        self.body = body
        self._header = header
        self._about: spec.Basic.Properties | None = None

    @property
    def channel(self) -> Channel:
        return self.wire.channel

    @property
    def properties(self) -> spec.Basic.Properties:
        """The message's properties, which its sender chose; empty if they can't be decoded."""
        if self._about is None:
            self._about = codec.properties(self._header)
        return self._about


class Wire:
    """Sender and receiver of the messages on one AMQP *channel*, until it is closed.

    :param delivered: called with each delivery.
    :ivar confirmed: called with tag, ``multiple``, and whether the broker accepted the message.
    :ivar returned: called with the id of a message that was not routed to any queue; its confirmation follows.
    """

    def __init__(
        self, channel: Channel, receiver: Receiver, delivered: Callable[[Delivery], None] | None = None
    ) -> None:
        self.channel = channel
        self._receiver = receiver
        self._number = channel.number
        self._most: int = channel.max_content_size if channel.max_content_size > 0 else CHUNK  # 0: without a bound
        self._tag = 0
        self._delivered = delivered
        self._method = self._header = b""
        self._left = 0
        self._parts: list[bytes] = []
        self._shut = False
        self.confirmed: Callable[[int, bool, bool], None] = lambda tag, multiple, taken: None
        self.returned: Callable[[str | None], None] = lambda identity: None
        receiver.wires[self._number] = self
        channel.closing.add_done_callback(self._closed)

    @property
    def closed(self) -> bool:
        """True if nothing may be sent on the channel any more. aiormq may notice the channel's end a little later."""
        return self._shut or self.channel.is_closed

    def shut(self) -> None:
        """Send nothing more on this channel, after waiting frames were written.

        Frames on a closed channel would make the broker end the connection.
        """
        self._shut = True
        self._receiver.flush()

    # -- to the broker ---------------------------------------------------------------
    def publish(self, method: bytes, about: spec.Basic.Properties, body: bytes) -> int:
        """Publish a message and return the tag of its confirmation.

        :param method: the payload from :func:`codec.publish`.
        :raises TypeError: a property has the wrong type; nothing was sent.
        :raises ValueError: a property can't be encoded; nothing was sent.
        """
        self._receiver.write(codec.message(self._number, method, about, body, self._most))
        self._tag += 1
        return self._tag

    def settle(self, tag: int, how: str) -> None:
        """Settle a delivery: ``ack``, ``requeue`` or ``reject``. The frame may wait until ``flush``."""
        self._receiver.write(codec.settle(self._number, tag, how), PATIENCE)

    def flush(self) -> None:
        """Write all waiting frames at once."""
        self._receiver.flush()

    # -- from the broker --------------------------------------------------------------
    def takes(self, kind: int, payload: bytes) -> bool:
        """Process a frame, and return True; return False if the frame is for aiormq.

        :raises AMQPConnectionError: the broker sent something other than AMQP.
        """
        try:
            if kind == METHOD:
                told = self._on_method(payload)
            elif kind == HEADER and self._method:
                self._header, self._left = payload, codec.body_size(payload)
                if self._left > LARGEST_BODY:
                    raise ValueError(f"a message of {self._left} bytes; {LARGEST_BODY} at most")
                told = self._whole()
            elif kind == BODY and self._header:
                self._parts.append(payload)
                self._left -= len(payload)
                if self._left < 0 or not payload:
                    raise ValueError("the body of a message is longer than its header says, or has an empty frame")
                told = self._whole()
            else:
                return False
        except (IndexError, ValueError) as err:
            raise AMQPConnectionError(f"channel {self._number}: {err}") from err
        if told is None:
            return False
        try:
            told()
        except Exception:  # one bad message must not end the connection
            log.exception("a message from the broker can't be taken")
        return True

    def _on_method(self, payload: bytes) -> Callable[[], None] | None:
        """Return the function to call for a method; None: the method is for aiormq."""
        method = payload[:4]
        if method in (codec.ACK, codec.NACK):
            if len(payload) != 13:
                raise ValueError("a confirmation of a wrong length")
            tag, multiple = codec.confirmation(payload)
            return functools.partial(self.confirmed, tag, multiple, method == codec.ACK)
        if method == codec.RETURN or (method == codec.DELIVER and self._delivered is not None):
            self._method, self._header = payload, b""
            self._parts.clear()
            return _nobody
        if method == codec.CLOSE:
            self.shut()
        return None

    def _whole(self) -> Callable[[], None]:
        """Return the function that passes on the received message. It does nothing if frames are still missing."""
        if self._left > 0:
            return _nobody
        method, header = self._method, self._header
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._method = self._header = b""
        self._parts.clear()
        if method[:4] == codec.RETURN:
            return functools.partial(self.returned, codec.properties(header).message_id)
        assert self._delivered is not None
        return functools.partial(self._delivered, Delivery(self, method, header, body))

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        if not closing.cancelled():
            closing.exception()  # retrieved, so that asyncio logs no warning
        if self._receiver.wires.get(self._number) is self:
            del self._receiver.wires[self._number]


def _nobody() -> None:
    """Do nothing, because more frames of the message follow."""


class Receiver(aiormq.connection.FrameReceiver):
    """Reader and writer of one connection's AMQP frames. Frames about messages go to their channel's :class:`Wire`."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.wires: dict[int, Wire] = {}
        self._stream = reader
        self._data = b""
        self._at = 0
        self._now = asyncio.get_running_loop().time
        self._told = self._now()
        self._gathered: list[bytes] = []
        self._size = 0
        self._due: asyncio.Handle | None = None
        self._soon = False

    async def __anext__(self) -> Any:
        return await self.get_frame()

    async def get_frame(self) -> Any:
        """Return the next frame for aiormq, which no wire takes: its bytes, its channel, and the frame.

        :raises AMQPError: the connection has ended, or the broker sent something other than AMQP.
        """
        while True:
            found = self._next()
            if found is not None:
                self._told = self._now()
                return found
            if self.wires and self._now() - self._told > QUIET:
                self._told = self._now()
                return 8, 0, Heartbeat()
            try:
                more = await self._stream.read(CHUNK)
            except OSError as err:
                raise AMQPConnectionError(f"the connection was lost: {err!r}") from err
            if not more:
                raise AMQPConnectionError("the broker closed the connection")
            self._data = self._data[self._at :] + more if self._at < len(self._data) else more
            self._at = 0

    def _next(self) -> Any:
        """Return the next complete frame that no wire takes; None: more bytes are needed."""
        data, at, size = self._data, self._at, len(self._data)
        if at == 0 and data.startswith(b"AMQP"):
            raise AMQPConnectionError("the broker doesn't speak AMQP 0-9-1")
        try:
            while size - at >= 8:
                kind, number = data[at], data[at + 1] << 8 | data[at + 2]
                length = int.from_bytes(data[at + 3 : at + 7], "big")
                if length > LARGEST:
                    raise AMQPConnectionError(f"a frame of {length} bytes; {LARGEST} at most")
                end = at + 7 + length
                if end >= size:
                    break
                if data[end] != 0xCE:
                    raise AMQPConnectionError("a frame without an end")
                wire = self.wires.get(number)
                start, at = at, end + 1
                if wire is not None and wire.takes(kind, data[start + 7 : end]):
                    continue
                head = data[start : start + 7]
                try:
                    found = pamqp.frame.unmarshal(head + frames.harmless(head, data[start + 7 : at]))
                except PAMQPException as err:
                    raise AMQPConnectionError(str(err)) from err
                if isinstance(found[2], spec.Connection.Tune):  # aiormq accepts any offer
                    found[2].frame_max = min(found[2].frame_max or LARGEST, LARGEST)
                return found
        finally:
            self._at = at
        return None

    # -- to the broker ----------------------------------------------------------------
    def write(self, raw: bytes, within: float = 0.0) -> None:
        """Write complete frames, after all frames that were written before.

        :param within: the most seconds for which the frames may wait for others; 0: until the event loop has run all
            ready callbacks.
        """
        self._gathered.append(raw)
        self._size += len(raw)
        if self._size >= CHUNK:
            self.flush()
        elif not within and not self._soon:
            self._schedule(asyncio.get_running_loop().call_soon(self.flush), soon=True)
        elif self._due is None:
            self._schedule(asyncio.get_running_loop().call_later(within, self.flush), soon=False)

    def _schedule(self, due: asyncio.Handle, *, soon: bool) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due, self._soon = due, soon

    def flush(self) -> None:
        """Write all waiting frames at once."""
        if self._due is not None:
            self._due.cancel()
        self._due, self._soon = None, False
        if not self._gathered:
            return
        raw = b"".join(self._gathered)
        self._gathered.clear()
        self._size = 0
        # aiormq writes only complete frames, too, so this doesn't split its frames. StreamReader has no public way to
        # its transport.
        transport: asyncio.Transport = self._stream._transport  # type: ignore[attr-defined]
        if not transport.is_closing():
            transport.write(raw)


class _Chosen(aiormq.connection.FrameReceiver):
    """The frame receiver of every aiormq connection.

    For a connection that :func:`connect` opens, it is a :class:`Receiver`. For any other connection, it is aiormq's own
    receiver.
    """

    def __new__(cls, reader: asyncio.StreamReader) -> Any:
        made = _MADE.get()
        if made is None:
            return super().__new__(cls)
        made.append(Receiver(reader))
        return made[-1]


async def connect(url: str, **options: Any) -> tuple[Any, Receiver]:
    """Connect by aiormq; return the connection and the receiver of its frames."""
    # The only hook that all versions of aiormq have is global. So _Chosen leaves all other connections unchanged.
    aiormq.connection.FrameReceiver = _Chosen  # type: ignore[misc]
    made: list[Receiver] = []
    before = _MADE.set(made)
    try:
        return await aiormq.connect(url, **options), made[-1]
    finally:
        _MADE.reset(before)
