"""AMQP 0-9-1 consumer for the host itself: receives the messages of many queues over one TLS connection.

It extends the synchronous client of ``amqp``. This process holds at most one message of each queue, and keeps no more
bytes of it than the caller wants. Senders can't change that.
"""

from __future__ import annotations

import collections
import itertools
import socket
import ssl
import struct
from collections.abc import Collection

import msgspec

from netspace.errors import NetspaceError
from netspace.link.broker.amqp import ClosedError, Connection, decode
from netspace.link.topology.names import shown
from netspace.text import printable

PER_CHANNEL = 200
"""The most queues of a channel; the broker permits 256 consumers there."""
FIRST = 3  # the channels before are the base class's own
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_CHANNEL_OPEN, _CHANNEL_OPEN_OK, _CHANNEL_CLOSE = (20, 10), (20, 11), (20, 40)
_CLOSE, _QOS, _QOS_OK, _CONSUME, _CONSUME_OK = (10, 50), (60, 10), (60, 11), (60, 20), (60, 21)
_CANCEL, _CANCEL_OK, _DELIVER, _ACK = (60, 30), (60, 31), (60, 60), (60, 80)
_FRAME = struct.Struct(">BHI")


class Delivery(msgspec.Struct):
    """A message of a queue.

    :param properties: the encoded properties.
    :param body: the first bytes of the body, at most as many as the consumer wants.
    :param size: the number of bytes of the whole body.
    :param received: the number of bytes that have arrived.
    """

    channel: int
    tag: int
    exchange: str
    properties: bytes = b""
    body: bytearray = msgspec.field(default_factory=bytearray)
    size: int = 0
    received: int = 0

    def __repr__(self) -> str:
        return f"Delivery(channel={self.channel}, tag={self.tag}, exchange={self.exchange!r}, size={self.size})"

    def text(self, name: str) -> str:
        """Return a property that is a short string; empty if it is missing or can't be decoded."""
        try:
            raw = decode(self.properties)[0].get(name, b"\0")
            return raw[1:].decode()
        except (NetspaceError, ValueError):
            return ""


class Consumer(Connection):
    """A connection that consumes queues.

    :param connected: a connected socket.
    :param most: how many bytes of a message's body are kept.
    """

    def __init__(self, connected: socket.socket, vhost: str, trusted: ssl.SSLContext, name: bytes, most: int) -> None:
        self._buffer = bytearray()
        self._kept = most
        self._begun: dict[int, Delivery] = {}
        self.waiting: collections.deque[Delivery] = collections.deque()
        self._wanted: set[str] = set()
        self._queues: dict[str, int] = {}  # each consumed queue's channel
        self._open: set[int] = set()
        super().__init__("", 0, vhost, trusted, name, None, connected=connected)

    def __enter__(self) -> Consumer:
        return self

    # -- queues ----------------------------------------------------------------
    @property
    def lacking(self) -> bool:
        """Whether one of the queues to consume is not consumed: the broker refused it, or it was deleted."""
        return not self._wanted <= self._queues.keys()

    def follow(self, queues: Collection[str]) -> None:
        """Consume exactly these queues. A queue that is missing, or that the broker refuses, is left out."""
        failed: set[str] = set()
        self._wanted = set(queues)
        for queue in self._queues.keys() - self._wanted:
            channel = self._queues.pop(queue, None)
            if channel is None:  # deleted while an answer for another one was awaited
                continue
            self._call(channel, _CANCEL, _short(queue) + b"\0", _CANCEL_OK)
        while missing := sorted(self._wanted - self._queues.keys() - failed):
            for queue in missing:
                channel = self._room()
                try:
                    # The consumer's tag is the queue's name.
                    arguments = bytes(2) + _short(queue) + _short(queue) + b"\0" + bytes(4)
                    self._call(channel, _CONSUME, arguments, _CONSUME_OK)
                except ClosedError as err:
                    if err.code not in (403, 404):
                        raise
                    failed.add(queue)
                    self._lose(channel)
                    break  # the channel's other queues are to be consumed again
                self._queues[queue] = channel

    def _room(self) -> int:
        """Return a channel on which one more queue can be consumed; open a new one if there is none."""
        for channel in self._open:
            if sum(one == channel for one in self._queues.values()) < PER_CHANNEL:
                return channel
        channel = next(number for number in itertools.count(FIRST) if number not in self._open)
        self._call(channel, _CHANNEL_OPEN, _short(""), _CHANNEL_OPEN_OK)
        # One unacknowledged message for each consumer. Quorum queues know no bound for all of a channel together.
        self._call(channel, _QOS, struct.pack(">IHB", 0, 1, 0), _QOS_OK)
        self._open.add(channel)
        return channel

    def _lose(self, channel: int) -> None:
        """Remove a channel that the broker closed, with its queues and messages."""
        self._open.discard(channel)
        self._begun.pop(channel, None)
        self._queues = {queue: of for queue, of in self._queues.items() if of != channel}
        self.waiting = collections.deque(one for one in self.waiting if one.channel != channel)

    # -- messages --------------------------------------------------------------
    def settle(self, delivery: Delivery) -> None:
        """Acknowledge a delivered message."""
        self._send(delivery.channel, _ACK, struct.pack(">QB", delivery.tag, 0))

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether there is something to do without waiting for the socket."""
        more = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
        return bool(self.waiting) or more or self._complete()

    def pump(self) -> None:
        """Read the frames that have arrived, without waiting, until a message is complete.

        :raises ClosedError: the broker closed a channel or the connection.
        :raises OSError: the connection is lost.
        """
        self._socket.settimeout(0)
        try:
            while not self.waiting:
                while not self.waiting and self._complete():
                    frame = super()._read()
                    if not self._taken(*frame):
                        self._told(*frame)
                if self.waiting:
                    return
                try:
                    data = self._socket.recv(65536)
                except (ssl.SSLWantReadError, BlockingIOError):
                    return
                if not data:
                    raise ConnectionError("the broker ended the connection")
                self._buffer += data
        finally:
            self._socket.settimeout(self._seconds)

    def _told(self, kind: int, channel: int, payload: bytes) -> None:
        """Handle a frame that answers no request: raise an error if it closes a channel or the connection."""
        method = struct.unpack_from(">HH", payload) if kind == _METHOD and len(payload) >= 4 else (0, 0)
        if method in (_CLOSE, _CHANNEL_CLOSE):
            code, length = struct.unpack_from(">HB", payload, 4)
            raise ClosedError(code, printable(shown(payload[7 : 7 + length].decode(errors="replace"))))

    def _complete(self) -> bool:
        """Return whether the buffer begins with a whole frame."""
        return len(self._buffer) >= 8 and len(self._buffer) >= 8 + _FRAME.unpack_from(self._buffer)[2]

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the broker ended the connection")
            self._buffer += data
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        return raw

    def _read(self) -> tuple[int, int, bytes]:
        """Return the next frame that isn't part of a delivery."""
        while True:
            frame = super()._read()
            if not self._taken(*frame):
                return frame

    def _taken(self, kind: int, channel: int, payload: bytes) -> bool:
        """Handle a frame if it is part of a delivery or cancels a consumer; return whether it was such a frame."""
        if channel < FIRST:
            return False
        if kind == _METHOD:
            method = struct.unpack_from(">HH", payload)
            if method == _CANCEL:  # its queue was deleted
                self._queues.pop(payload[5 : 5 + payload[4]].decode(errors="replace"), None)
                return True
            if method != _DELIVER:
                return False
            at = 5 + payload[4]
            (tag,) = struct.unpack_from(">Q", payload, at)
            name = payload[at + 10 : at + 10 + payload[at + 9]].decode(errors="replace")
            self._begun[channel] = Delivery(channel, tag, name)
            return True
        one = self._begun.get(channel)
        if one is None:
            raise NetspaceError("the broker sent a part of a message without its beginning")
        if kind == _HEADER:
            one.properties, one.size = payload[12:], struct.unpack_from(">Q", payload, 4)[0]
        else:
            one.received += len(payload)
            one.body += payload[: max(0, self._kept - len(one.body))]
        if one.received >= one.size:
            self.waiting.append(self._begun.pop(channel))
        return True


def _short(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw
