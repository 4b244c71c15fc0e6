"""Connections of an environment's program to its broker, for the exhaustion audit: AMQP 0-9-1, and AMQP 1.0's sessions.

This file uses only the standard library, because the audit copies it into an environment. It sends any data, also data
that breaks the protocol. https://www.rabbitmq.com/resources/specs/amqp0-9-1.xml (sections 2.3.5 and 4.2),
https://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-complete-v1.0-os.pdf (parts 1 and 2)
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any, TypeVar

CARD = "/run/netspace/environment.json"
PATIENCE = 30.0  # seconds for one answer
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
MANDATORY = 1
_REPLY_TO, _CORRELATION, _MESSAGE = 9, 10, 7  # bits of a header's flags
_S = TypeVar("_S", bound="_Stream")


class ClosedError(ConnectionError):
    """Error: the broker ended the connection or the channel."""


def card() -> dict[str, Any]:
    """Return the environment's card."""
    with open(CARD, encoding="utf-8") as stream:
        found: dict[str, Any] = json.load(stream)
    return found


def plain(timeout: float = PATIENCE) -> socket.socket:
    """Connect to the forwarder's port, and send nothing."""
    account = card()["broker"]
    return socket.create_connection((account["host"], account["port"]), timeout)


def secured() -> ssl.SSLSocket:
    """Connect by TLS, with the environment's own certificate."""
    return _context().wrap_socket(plain(), server_hostname=card()["broker"]["tls"]["server_name"])


def greeting() -> bytes:
    """Return the first message of a TLS handshake."""
    sent = ssl.MemoryBIO()
    one = _context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname=card()["broker"]["tls"]["server_name"])
    with contextlib.suppress(ssl.SSLWantReadError):
        one.do_handshake()
    return sent.read()


def _context() -> ssl.SSLContext:
    told = card()["broker"]["tls"]
    context = ssl.create_default_context(cafile=told["ca_file"])
    context.load_cert_chain(told["certificate_file"], told["key_file"])
    return context


def short(text: str) -> bytes:
    """Encode a short string."""
    raw = text.encode()
    return bytes([len(raw)]) + raw


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Encode a frame."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + END


def method(channel: int, number: tuple[int, int], arguments: bytes = b"") -> bytes:
    """Encode the frame of a method, which is named by its class and its number in the class."""
    return frame(METHOD, channel, struct.pack(">HH", *number) + arguments)


def header(channel: int, size: int, properties: dict[int, str] | None = None) -> bytes:
    """Encode the header of a message of *size* bytes.

    :param properties: short strings, each by its bit of the flags.
    """
    given = dict(sorted((properties or {}).items(), reverse=True))
    flags = sum(1 << bit for bit in given)
    texts = b"".join(short(text) for text in given.values())
    return frame(HEADER, channel, struct.pack(">HHQH", 60, 0, size, flags) + texts)


def publish(channel: int, exchange: str, key: str = "", bits: int = 0) -> bytes:
    """Encode the frame that begins a message."""
    return method(channel, (60, 40), b"\0\0" + short(exchange) + short(key) + bytes([bits]))


def message(exchange: str, key: str, body: bytes, properties: dict[int, str] | None = None, channel: int = 1) -> bytes:
    """Encode a whole message with the flag ``mandatory``: the broker returns it if it can't be routed."""
    begun = publish(channel, exchange, key, MANDATORY) + header(channel, len(body), properties)
    return begun + (frame(BODY, channel, body) if body else b"")


def consume(queue: str, tag: str = "", acknowledged: bool = True, quiet: bool = False, channel: int = 1) -> bytes:
    """Encode ``basic.consume``.

    :param acknowledged: whether the consumer acknowledges each message.
    :param quiet: whether the broker sends no answer.
    """
    bits = (0 if acknowledged else 2) | (8 if quiet else 0)
    return method(channel, (60, 20), b"\0\0" + short(queue) + short(tag) + bytes([bits]) + bytes(4))


def bind(queue: str, exchange: str, key: str, quiet: bool = False) -> bytes:
    """Encode ``queue.bind``."""
    names = short(queue) + short(exchange) + short(key)
    return method(1, (50, 20), b"\0\0" + names + bytes([int(quiet)]) + bytes(4))


class _Stream:
    """A connection by TLS, read by exact sizes."""

    def __init__(self) -> None:
        self.stream = secured()
        self._unread = b""

    def __enter__(self: _S) -> _S:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()

    def send(self, raw: bytes) -> None:
        self.stream.sendall(raw)

    def _exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            part = self.stream.recv(65536)
            if not part:
                raise ClosedError("the connection ended")
            self._unread += part
        found, self._unread = self._unread[:size], self._unread[size:]
        return found


class Connection(_Stream):
    """A logged-in connection by AMQP 0-9-1, with one open channel."""

    def __init__(self) -> None:
        super().__init__()
        self.send(b"AMQP\0\0\x09\x01")
        self.until((10, 10))
        self.send(method(0, (10, 11), bytes(4) + short("EXTERNAL") + bytes(4) + short("en_US")))
        tune = self.until((10, 30))
        self.channels, self.largest, _ = struct.unpack(">HIH", tune[:8])
        self.send(method(0, (10, 31), struct.pack(">HIH", self.channels, self.largest, 0)))
        self.send(method(0, (10, 40), short(card()["broker"]["vhost"]) + b"\0\0"))
        self.until((10, 41))
        self.open(1)
        self.until((20, 11))

    def open(self, channel: int) -> None:
        """Ask the broker to open a channel, without waiting for the answer."""
        self.send(method(channel, (20, 10), b"\0"))

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield each frame that the broker sends: its type, its channel, its payload.

        :raises ClosedError: when the broker ends the connection or a channel.
        """
        while True:
            kind, channel, size = struct.unpack(">BHI", self._exactly(7))
            payload = self._exactly(size + 1)[:-1]
            if kind == METHOD and payload[:4] in (b"\0\x0a\0\x32", b"\0\x14\0\x28"):
                code = int.from_bytes(payload[4:6], "big")
                raise ClosedError(f"{code} {payload[7 : 7 + payload[6]].decode(errors='replace')}")
            yield kind, channel, payload

    def until(self, number: tuple[int, int]) -> bytes:
        """Read frames up to a method, and return its arguments."""
        wanted = struct.pack(">HH", *number)
        for kind, _, payload in self.frames():
            if kind == METHOD and payload[:4] == wanted:
                return payload[4:]
        raise ClosedError("nothing more comes")

    def delivery(self) -> tuple[int, dict[int, str], bytes]:
        """Read the next message of a consumer; return its delivery tag, its header's texts by bit, and its body."""
        arguments = self.until((60, 60))
        tag = int.from_bytes(arguments[1 + arguments[0] :][:8], "big")
        _, _, about = next(self.frames())
        size, flags = struct.unpack(">QH", about[4:14])
        body = b""
        while len(body) < size:
            body += next(self.frames())[2]
        return tag, _texts(flags, about[14:]), body


def _texts(flags: int, raw: bytes) -> dict[int, str]:
    """Return the short strings of a header, by flag bit. Only headers that :func:`header` made are understood."""
    found = {}
    for bit in (_CORRELATION, _REPLY_TO, _MESSAGE):
        if flags & 1 << bit:
            found[bit], raw = raw[1 : 1 + raw[0]].decode(), raw[1 + raw[0] :]
    return found


def reply_to(exchange: str, key: str) -> dict[int, str]:
    """Return the header of a request: its ``reply_to`` names *exchange* and *key*, and its ``message_id`` is *key*."""
    return {_REPLY_TO: f"{exchange}/{key}", _MESSAGE: key}


def answering(texts: dict[int, str]) -> tuple[str, str, dict[int, str]]:
    """Return the exchange, routing key and header for the answer to a request with this header."""
    exchange, _, key = texts[_REPLY_TO].rpartition("/")
    return exchange, key, {_CORRELATION: texts[_MESSAGE]}


# -- AMQP 1.0 --------------------------------------------------------------------------------------
OPEN, BEGIN, ENDED, CLOSE, OUTCOME, INIT = 0x10, 0x11, 0x17, 0x18, 0x44, 0x41
NULL = b"\x40"


def number(value: int) -> bytes:
    """Encode an unsigned number of 32 bits."""
    return b"\x70" + struct.pack(">I", value)


def performative(channel: int, code: int, *fields: bytes, sasl: bool = False) -> bytes:
    """Encode a frame of AMQP 1.0 with encoded fields."""
    body = b"".join(fields)
    listed = b"\0\x53" + bytes([code]) + b"\xd0" + struct.pack(">II", len(body) + 4, len(fields)) + body
    return struct.pack(">IBBH", len(listed) + 8, 2, int(sasl), channel) + listed


class Sessions(_Stream):
    """A logged-in connection by AMQP 1.0, without a session."""

    def __init__(self) -> None:
        super().__init__()
        self._hello(3)
        self.send(performative(0, INIT, b"\xa3\x08EXTERNAL", b"\xa0\0", sasl=True))
        self.until(OUTCOME)
        self._hello(0)
        host = f"vhost:{card()['broker']['vhost']}".encode()
        self.send(performative(0, OPEN, b"\xa1\x05worst", b"\xa1" + bytes([len(host)]) + host))
        self.until(OPEN)

    def until(self, code: int, times: int = 1) -> None:
        """Read frames until *times* performatives with the number *code* have come.

        :raises ClosedError: when the broker ends the connection.
        """
        while times:
            size = int.from_bytes(self._exactly(4), "big")
            rest = self._exactly(size - 4)
            found = rest[6] if len(rest) > 6 else -1
            if found == CLOSE:
                raise ClosedError("the broker closed the connection")
            times -= found == code

    def _hello(self, protocol: int) -> None:
        greeting = b"AMQP" + bytes([protocol, 1, 0, 0])
        self.send(greeting)
        if self._exactly(8) != greeting:
            raise ClosedError("the broker speaks another version")
