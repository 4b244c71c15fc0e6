"""AMQP 0-9-1 client for the host itself: gets messages unacknowledged, and acknowledges only the chosen ones.

While this client holds a message, no other consumer gets it. The broker requeues held messages when the connection
ends, for whatever reason. The management API can't do this: it can only remove the message at the head of a queue.
Properties and headers are passed on byte for byte.

The client has only the operations that ``dead_letters`` and ``peer_status`` need. It is synchronous, without
heartbeats; ``consumer`` adds consumers. https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping

import msgspec

from netspace.errors import NetspaceError
from netspace.link.broker.management import Login
from netspace.link.topology.names import shown
from netspace.text import printable

SECONDS = 30.0
_METHOD, _HEADER, _BODY, _HEARTBEAT, _END = 1, 2, 3, 8, 0xCE
_HOLD, _SEND = 1, 2  # channels: an error closes the sending channel without returning held messages
_MOST = 256 * 1024 * 1024

_Method = tuple[int, int]
_START, _START_OK, _TUNE, _TUNE_OK = (10, 10), (10, 11), (10, 30), (10, 31)
_OPEN, _OPEN_OK, _CLOSE, _CLOSE_OK = (10, 40), (10, 41), (10, 50), (10, 51)
_BLOCKED, _UNBLOCKED = (10, 60), (10, 61)
_CHANNEL_OPEN, _CHANNEL_OPEN_OK, _CHANNEL_CLOSE, _CHANNEL_CLOSE_OK = (20, 10), (20, 11), (20, 40), (20, 41)
_DECLARE, _DECLARE_OK = (40, 10), (40, 11)
_PUBLISH, _RETURN, _GET, _GET_OK, _GET_EMPTY = (60, 40), (60, 50), (60, 70), (60, 71), (60, 72)
_ACK, _NACK, _CONFIRM, _CONFIRM_OK = (60, 80), (60, 120), (85, 10), (85, 11)

# In the order of their flags, from the highest bit on. The size in bytes; 0: a short string; None: a table.
_PROPERTIES: tuple[tuple[str, int | None], ...] = (
    ("content_type", 0),
    ("content_encoding", 0),
    ("headers", None),
    ("delivery_mode", 1),
    ("priority", 1),
    ("correlation_id", 0),
    ("reply_to", 0),
    ("expiration", 0),
    ("message_id", 0),
    ("timestamp", 8),
    ("type", 0),
    ("user_id", 0),
    ("app_id", 0),
    ("cluster_id", 0),
)
_SIZES = {
    kind: size
    for kinds, size in ((b"V", 0), (b"tbB", 1), (b"Uus", 2), (b"Iif", 4), (b"D", 5), (b"LldT", 8))
    for kind in kinds
}
_LONG = b"SxAF"  # four bytes with the length, then the content


class Held(msgspec.Struct, frozen=True):
    """An unacknowledged message.

    :param tag: the delivery tag.
    :param properties: the encoded properties except the headers, by name.
    :param headers: the encoded headers, by name, each with its type octet.
    """

    tag: int
    body: bytes
    properties: Mapping[str, bytes]
    headers: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"Held(tag={self.tag})"

    def text(self, name: str) -> str | None:
        """Return a property that is a short string; None if it is missing."""
        raw = self.properties.get(name)
        return None if raw is None else raw[1:].decode(errors="replace")

    def header(self, name: str) -> str | None:
        """Return a header that is a string; None if it is missing or of another type."""
        raw = self.headers.get(name, b"")
        return raw[5:].decode(errors="replace") if raw[:1] == b"S" else None


class ClosedError(NetspaceError):
    """Error: the broker closed a channel or the connection. It has the broker's code and reason."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


class Connection:
    """One connection to a broker, with synchronous operations.

    :param trusted: the TLS context; None: no TLS.
    :param name: the server name for TLS.
    :param login: user and password; None: log in by the client certificate in *trusted*.
    :param seconds: the timeout of each read and write.
    :param connected: a connected socket, instead of *host* and *port*.
    """

    def __init__(
        self,
        host: str,
        port: int,
        vhost: str,
        trusted: ssl.SSLContext | None,
        name: str | bytes,
        login: Login | None,
        seconds: float = SECONDS,
        connected: socket.socket | None = None,
    ) -> None:
        if connected is None:
            connected = socket.create_connection((host, port), timeout=seconds)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(seconds)
        self._seconds = seconds
        self._socket: socket.socket = connected
        try:
            if trusted is not None:
                self._socket = trusted.wrap_socket(self._socket, server_hostname=name)
            self._input = self._socket.makefile("rb")
            self._greet(vhost, login)
            self._call(_HOLD, _CHANNEL_OPEN, _short(""), _CHANNEL_OPEN_OK)
            self._open_sender()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; the broker requeues held messages."""
        with contextlib.suppress(OSError, NetspaceError):
            # The broker's answer shows that acknowledged messages are removed and the others requeued.
            goodbye = struct.pack(">H", 200) + _short("") + bytes(4)
            self._call(_HOLD, _CHANNEL_CLOSE, goodbye, _CHANNEL_CLOSE_OK)
            self._call(0, _CLOSE, goodbye, _CLOSE_OK)
        self._input.close()
        self._socket.close()

    def hold(self, queue: str) -> Held | None:
        """Get the next message of *queue* without acknowledging it; None if there is no more.

        If a message's properties can't be decoded, it is returned without properties.
        """
        method, raw = self._call(_HOLD, _GET, bytes(2) + _short(queue) + b"\0", _GET_OK, _GET_EMPTY)
        if method == _GET_EMPTY:
            return None
        (tag,) = _unpacked(">Q", raw)
        encoded, body = self._content(_HOLD)
        try:
            return Held(tag, body, *decode(encoded))
        except NetspaceError:  # a message that can't be understood costs no other one: its link is unknown
            return Held(tag, body, {}, {})

    def remove(self, held: Held) -> None:
        """Acknowledge a held message, so that the broker deletes it."""
        self._send(_HOLD, _ACK, struct.pack(">QB", held.tag, 0))

    def has_exchange(self, name: str) -> bool:
        """Return whether an exchange of that name exists; this needs no permission."""
        try:
            self._call(_SEND, _DECLARE, bytes(2) + _short(name) + _short("fanout") + b"\1" + bytes(4), _DECLARE_OK)
        except ClosedError as err:
            self._open_sender()
            if err.code != 404:
                raise
            return False
        return True

    def publish(
        self, exchange: str, body: bytes, properties: Mapping[str, bytes], headers: Mapping[str, bytes], key: str = ""
    ) -> str:
        """Publish a message and wait for the confirmation; return why it was refused, or an empty text.

        :param properties: the encoded properties.
        :param headers: the encoded headers.
        :param key: the routing key.
        """
        self._send(_SEND, _PUBLISH, bytes(2) + _short(exchange) + _short(key) + b"\1")
        encoded = _encode(properties, headers)
        self._frame(_HEADER, _SEND, struct.pack(">HHQ", 60, 0, len(body)) + encoded)
        for start in range(0, len(body), self._most):
            self._frame(_BODY, _SEND, body[start : start + self._most])
        returned = False
        try:
            while True:
                method, _ = self._wait(_SEND, _ACK, _NACK, _RETURN)
                if method == _RETURN:
                    self._content(_SEND)
                    returned = True
                elif method == _NACK:
                    return "the mailbox is full"
                else:
                    return "the link's exchange leads to no queue: apply again" if returned else ""
        except ClosedError as err:
            self._open_sender()
            return "its link isn't on the broker: apply again" if err.code == 404 else str(err)

    def _open_sender(self) -> None:
        self._call(_SEND, _CHANNEL_OPEN, _short(""), _CHANNEL_OPEN_OK)
        self._call(_SEND, _CONFIRM, b"\0", _CONFIRM_OK)

    def _greet(self, vhost: str, login: Login | None) -> None:
        self._socket.sendall(b"AMQP\0\0\x09\x01")
        self._wait(0, _START)
        # With this capability, the broker reports a refused log-in instead of closing the connection: section 2.2.4.
        able = ("authentication_failure_close", "consumer_cancel_notify")
        capable = _short("capabilities") + b"F" + _long(b"".join(_short(one) + b"t\1" for one in able))
        mechanism, secret = "EXTERNAL", b""
        if login is not None:
            mechanism, secret = "PLAIN", f"\0{login.username}\0{login.password}".encode()
        answer = _long(capable) + _short(mechanism) + _long(secret) + _short("en_US")
        _, raw = self._call(0, _START_OK, answer, _TUNE)
        channels, frame, _ = _unpacked(">HIH", raw)
        frame = frame or 131072
        self._most = frame - 8
        self._send(0, _TUNE_OK, struct.pack(">HIH", channels, frame, 0))
        self._call(0, _OPEN, _short(vhost) + b"\0\0", _OPEN_OK)

    # -- frames ----------------------------------------------------------------
    def _frame(self, kind: int, channel: int, payload: bytes) -> None:
        self._socket.sendall(struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([_END]))

    def _send(self, channel: int, method: _Method, arguments: bytes) -> None:
        self._frame(_METHOD, channel, struct.pack(">HH", *method) + arguments)

    def _call(self, channel: int, method: _Method, arguments: bytes, *answers: _Method) -> tuple[_Method, bytes]:
        self._send(channel, method, arguments)
        return self._wait(channel, *answers)

    def _read(self) -> tuple[int, int, bytes]:
        """Return kind, channel and payload of the next frame that isn't a heartbeat."""
        while True:
            kind, channel, size = struct.unpack(">BHI", self._take(7))
            if kind == ord("A"):  # "AMQP": a server with another protocol version sends this header and closes
                raise NetspaceError("the broker doesn't speak AMQP 0-9-1")
            if size > _MOST:
                raise NetspaceError(f"the broker sent a frame of {size} bytes")
            payload = self._take(size + 1)[:-1]
            if kind != _HEARTBEAT:
                return kind, channel, payload

    def _take(self, size: int) -> bytes:
        raw = self._input.read(size)
        if len(raw) < size:
            raise ConnectionError("the broker ended the connection")
        return raw

    def _wait(self, channel: int, *expected: _Method) -> tuple[_Method, bytes]:
        while True:
            kind, came, payload = self._read()
            method = (0, 0) if kind != _METHOD else _unpacked(">HH", payload)
            if method in expected and came == channel:
                return method, payload[4:]
            if method in (_CLOSE, _CHANNEL_CLOSE):
                code, length = _unpacked(">HB", payload, 4)
                why = printable(shown(payload[7 : 7 + length].decode(errors="replace")))
                if method == _CLOSE:
                    raise ClosedError(code, f"the broker ended the connection: {why}")
                self._send(came, _CHANNEL_CLOSE_OK, b"")
                raise ClosedError(code, f"the broker refused: {why}")
            if method not in (_BLOCKED, _UNBLOCKED):
                raise NetspaceError(f"the broker sent {kind} {method} on channel {came} where {expected} was expected")

    def _content(self, channel: int) -> tuple[bytes, bytes]:
        """Return the encoded properties and the body of a message."""
        kind, came, payload = self._read()
        if (kind, came) != (_HEADER, channel):
            raise NetspaceError("the broker sent a message without its properties")
        _, _, size = _unpacked(">HHQ", payload)
        if size > _MOST:
            raise NetspaceError(f"the broker sent a message of {size} bytes")
        body = bytearray()
        while len(body) < size:
            kind, came, part = self._read()
            if (kind, came) != (_BODY, channel):
                raise NetspaceError("the broker sent a message without its end")
            body += part
        return payload[12:], bytes(body)


# -- values: kept in their encoded form ---------------------------------------------------
def _short(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw


def _long(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def _unpacked(form: str, raw: bytes, at: int = 0) -> tuple[int, ...]:
    """Return the numbers at an offset in *raw*.

    :param form: their format, as for :mod:`struct`.
    :raises NetspaceError: *raw* is too short.
    """
    try:
        return struct.unpack_from(form, raw, at)
    except struct.error as err:
        raise NetspaceError(f"the broker sent a frame that is too short: {err}") from err


def decode(raw: bytes) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the properties and the headers of a message, by name, in their encoded form.

    :raises NetspaceError: they are cut off, or of an unknown type.
    """
    try:
        return _decoded(raw)
    except (struct.error, IndexError) as err:
        raise NetspaceError(f"the properties of a message can't be understood: {err}") from err


def _decoded(raw: bytes) -> tuple[dict[str, bytes], dict[str, bytes]]:
    (flags,) = struct.unpack_from(">H", raw)
    at = 2
    properties: dict[str, bytes] = {}
    headers: dict[str, bytes] = {}
    for bit, (name, size) in enumerate(_PROPERTIES):
        if not flags & 0x8000 >> bit:
            continue
        if size is None:
            (length,) = struct.unpack_from(">I", raw, at)
            headers = dict(_fields(raw[at + 4 : at + 4 + length]))
            at += 4 + length
            continue
        end = at + (size or 1 + raw[at])
        properties[name] = raw[at:end]
        at = end
    return properties, headers


def _fields(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the entries of a table: name, and encoded value with its type octet."""
    at = 0
    while at < len(raw):
        begin = at + 1 + raw[at]
        name = raw[at + 1 : begin].decode(errors="surrogateescape")
        kind = raw[begin]
        if kind in _LONG:
            (size,) = struct.unpack_from(">I", raw, begin + 1)
            size += 4
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise NetspaceError(f"a message has a header of an unknown type: {chr(kind)!r}")
        at = begin + 1 + size
        yield name, raw[begin:at]


def _encode(properties: Mapping[str, bytes], headers: Mapping[str, bytes]) -> bytes:
    flags, values = 0, b""
    for bit, (name, size) in enumerate(_PROPERTIES):
        value = properties.get(name)
        if size is None and headers:
            table = b"".join(
                bytes([len(raw)]) + raw + value
                for key, value in headers.items()
                for raw in [key.encode(errors="surrogateescape")]
            )
            value = _long(table)
        if value is not None:
            flags |= 0x8000 >> bit
            values += value
    return struct.pack(">H", flags) + values
