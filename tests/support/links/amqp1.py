"""A small AMQP 1.0 client for tests. It builds frames itself, so that nothing checks them before they are sent.

https://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-complete-v1.0-os.pdf
"""

from __future__ import annotations

import socket
import struct
from typing import Any

OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
MECHANISMS, INIT, OUTCOME = 0x40, 0x41, 0x44
SOURCE, TARGET, HEADER, ANNOTATIONS, PROPERTIES, APPLICATION, VALUE = 0x28, 0x29, 0x70, 0x72, 0x73, 0x74, 0x77
DATA, ACCEPTED = 0x75, 0x24
STATES = {0x24: "accepted", 0x25: "rejected", 0x26: "released", 0x27: "modified"}


class Symbol(str):
    """A symbol; a plain text is encoded as a string."""


class Byte(int):
    """A number that is encoded as one byte."""


class Encoded(bytes):
    """A value that is already encoded."""


class Described:
    """A list or value with a descriptor, the code for its type."""

    def __init__(self, code: int, value: Any) -> None:
        self.code, self.value = code, value


def encode(value: Any) -> bytes:
    match value:
        case Encoded():
            return bytes(value)
        case None:
            return b"\x40"
        case bool():
            return b"\x41" if value else b"\x42"
        case Byte():
            return b"\x50" + bytes([value])
        case int():
            return b"\x70" + struct.pack(">I", value)
        case bytes():
            return b"\xb0" + struct.pack(">I", len(value)) + value
        case str():
            raw = value.encode()
            return (
                b"\xa3" + bytes([len(raw)]) if isinstance(value, Symbol) else b"\xb1" + struct.pack(">I", len(raw))
            ) + raw
        case Described():
            return b"\x00\x53" + bytes([value.code]) + encode(value.value)
        case list():
            return _compound(0xD0, [encode(item) for item in value])
        case dict():
            return _compound(0xD1, [encode(item) for pair in value.items() for item in pair])
    raise TypeError(value)


def _compound(code: int, items: list[bytes]) -> bytes:
    body = b"".join(items)
    return bytes([code]) + struct.pack(">II", len(body) + 4, len(items)) + body


_FIXED = {0x40: 0, 0x41: 0, 0x42: 0, 0x43: 0, 0x44: 0, 0x45: 0, 0x50: 1, 0x51: 1, 0x52: 1, 0x53: 1, 0x54: 1, 0x55: 1}
_FIXED |= {0x56: 1, 0x60: 2, 0x61: 2, 0x70: 4, 0x71: 4, 0x72: 4, 0x73: 4, 0x80: 8, 0x81: 8, 0x82: 8, 0x83: 8, 0x98: 16}


def decode(raw: bytes, at: int = 0) -> tuple[Any, int]:
    """Return the value at an offset, and the offset of its end."""
    code = raw[at]
    at += 1
    if code == 0x00:
        what, at = decode(raw, at)
        value, at = decode(raw, at)
        return Described(what, value), at
    if code in _FIXED:
        end = at + _FIXED[code]
        if code in (0x40, 0x45):
            return (None if code == 0x40 else []), end
        return (code == 0x41 if code in (0x41, 0x42) else int.from_bytes(raw[at:end], "big")), end
    width = 1 if code in (0xA0, 0xA1, 0xA3, 0xC0, 0xC1, 0xE0) else 4
    size = int.from_bytes(raw[at : at + width], "big")
    at += width
    end = at + size
    if code in (0xA0, 0xB0):
        return raw[at:end], end
    if code in (0xA1, 0xA3, 0xB1, 0xB3):
        return raw[at:end].decode(), end
    if code in (0xE0, 0xF0):
        return raw[at:end], end  # arrays: nobody here looks into one
    at += width
    items = []
    while at < end:
        item, at = decode(raw, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if code in (0xC1, 0xD1) else items), end


class RefusedError(Exception):
    """Error: the peer ended the link, session or connection. The text is the peer's error condition."""


class Client:
    """One connection with one session, on a connected and secured socket."""

    def __init__(self, stream: socket.socket, vhost: str) -> None:
        self._stream = stream
        self._handles = 0
        self._delivery = 0
        self._hello(3)
        self._until(MECHANISMS)
        self._send(INIT, [Symbol("EXTERNAL"), b""], kind=1)
        outcome = self._until(OUTCOME)
        if outcome[0] != 0:
            raise RefusedError(f"sasl code {outcome[0]}")
        self._hello(0)
        self._send(OPEN, ["attacker", f"vhost:{vhost}", 1 << 20])
        self._until(OPEN)
        self._send(BEGIN, [None, 0, 2048, 2048])
        self._next = self._until(BEGIN)[1]

    def sender(self, address: str | None) -> int:
        """Attach a sender to *address*; None: each message has its own address."""
        return self._attach(False, Described(SOURCE, ["me"]), Described(TARGET, [address]))

    def receiver(self, address: str, filters: dict[str, Any] | None = None) -> int:
        """Attach a receiver with *filters*, and give credit."""
        wanted = {Symbol(name): value for name, value in (filters or {}).items()} or None
        source = Described(SOURCE, [address, *[None] * 6, wanted])
        handle = self._attach(True, source, Described(TARGET, ["me"]))
        self._send(FLOW, [self._next, 2048, 0, 2048, handle, 0, 100])
        return handle

    def send(self, handle: int, *, body: Any = "x", **properties: Any) -> str:
        """Send a message with *properties*, and return its outcome."""
        self._transfer(handle, body, properties)
        state = self._until(DISPOSITION)[4]
        return STATES[state.code]

    def receive(self) -> tuple[dict[str, Any], list[Any], bytes | str]:
        """Return the next message (annotations, properties and body) of the attached receivers, and accept it."""
        fields, payload = self._frame(TRANSFER)
        sections: dict[int, Any] = {}
        at = 0
        while at < len(payload):
            section, at = decode(payload, at)
            sections[section.code] = section.value
        self._send(DISPOSITION, [True, fields[1], fields[1], True, Described(ACCEPTED, [])])
        body = sections[VALUE] if VALUE in sections else sections[DATA]
        return sections.get(ANNOTATIONS, {}), sections.get(PROPERTIES, []), body

    def manage(self, method: str, path: str, body: Any = None) -> str:
        """Send a request to the broker's management node; return the status of its answer."""
        node, pair = "/management", f"pair {self._handles}"
        there = self._attach(False, Described(SOURCE, [node]), Described(TARGET, [node]), pair)
        here = self._attach(True, Described(SOURCE, [node]), Described(TARGET, [node]), pair)
        self._send(FLOW, [self._next, 2048, 0, 2048, here, 0, 100])
        request = {"message_id": "1", "to": path, "subject": method, "reply_to": "$me"}
        self._transfer(there, body, request, settled=True)
        _, answer = self._frame(TRANSFER)
        at = 0
        while at < len(answer):
            section, at = decode(answer, at)
            if section.code == PROPERTIES:
                return str(section.value[3])
        raise AssertionError("an answer without properties")

    def _transfer(self, handle: int, body: Any, properties: dict[str, Any], settled: bool = False) -> None:
        known = ("message_id", "user_id", "to", "subject", "reply_to", "correlation_id")
        message = encode(Described(HEADER, [True, None, properties.get("ttl")]))
        message += encode(Described(ANNOTATIONS, properties.get("annotations", {})))
        message += encode(Described(PROPERTIES, [properties.get(key) for key in known]))
        message += encode(Described(APPLICATION, properties.get("application", {})))
        message += encode(Described(DATA if isinstance(body, bytes) else VALUE, body))
        self._send(TRANSFER, [handle, self._delivery, struct.pack(">I", self._delivery), 0, settled], message)
        self._delivery += 1

    def _attach(self, receives: bool, source: Any, target: Any, pair: str = "") -> int:
        handle = self._handles
        self._handles += 1
        name, mode = (pair, Byte(1)) if pair else (f"link {handle}", None)
        first = None if receives else 0
        properties = {Symbol("paired"): True} if pair else None
        end = (None, None, first, None, None, None, properties)
        self._send(ATTACH, [name, handle, receives, mode, None, source, target, *end])
        answer = self._until(ATTACH)
        # A link that is refused has no such end, and a detach follows that says why (2.6.3).
        if answer[5 if receives else 6] is None:
            self._until(DETACH)
        return handle

    def _hello(self, protocol: int) -> None:
        header = b"AMQP" + bytes([protocol, 1, 0, 0])
        self._stream.sendall(header)
        if self._read(8) != header:
            raise RefusedError("another protocol")

    def _send(self, code: int, fields: list[Any], payload: bytes = b"", kind: int = 0) -> None:
        body = encode(Described(code, fields)) + payload
        self._stream.sendall(struct.pack(">IBBH", len(body) + 8, 2, kind, 0) + body)

    def _read(self, number: int) -> bytes:
        parts = b""
        while len(parts) < number:
            part = self._stream.recv(number - len(parts))
            if not part:
                raise RefusedError("connection closed")
            parts += part
        return parts

    def _until(self, code: int) -> Any:
        """Read frames until a frame of *code*; return the fields of this frame."""
        return self._frame(code)[0]

    def _frame(self, code: int) -> tuple[Any, bytes]:
        """Read frames until a frame of *code*; return the fields and the payload of this frame."""
        while True:
            size, offset, *_ = struct.unpack(">IBBH", self._read(8))
            body = self._read(size - 8)[(offset - 2) * 4 :]
            if not body:
                continue  # a heartbeat
            frame, end = decode(body)
            if frame.code in (DETACH, END, CLOSE):
                error = frame.value[-1] if frame.value else None
                raise RefusedError(" ".join(map(str, error.value[:2])) if isinstance(error, Described) else "no reason")
            if frame.code == code:
                return frame.value, body[end:]
