"""Frames that a sender made so that they can't be decoded are made harmless, before they end the connection.

Content type, headers, time and routing key are the sender's to choose, and the broker hands on what is no UTF-8, no
date or nested without end. pamqp raises at these (or goes on for ever at what has a false length), aiormq then ends the
connection, and the broker hands the same message out again: one letter would keep its receiver from all
others. So each frame is tried first; of a header that can't be decoded the properties are left out, and of a delivery
all but ASCII in the routing key.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import aiormq.connection
import pamqp.frame

METHOD, HEADER = 1, 2
_DELIVER = struct.pack(">HH", 60, 60)
# Of a content header: class, weight, body size, then the flags that say which properties follow.
_BEFORE_FLAGS = 12


# The sizes of values in a table, by their type: https://www.rabbitmq.com/amqp-0-9-1-errata
_SIZES = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"U": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8, b"f": 4, b"d": 8}
_SIZES |= {b"D": 5, b"T": 8, b"V": 0}
_LONG, _ARRAY, _TABLE = (b"S", b"x"), b"A", b"F"
_DEEPEST = 16


def harmless(head: bytes, payload: bytes) -> bytes:
    """The frame's payload (its end mark included), changed only where it can't be decoded.

    :param head: type, channel and size.
    """
    kind = head[0]
    if kind == HEADER and len(payload) > _BEFORE_FLAGS + 2:
        if not (_sound(payload) and _decodes(head + payload)):
            return payload[:_BEFORE_FLAGS] + b"\0\0" + payload[_BEFORE_FLAGS + 2 :]
    elif kind == METHOD and payload.startswith(_DELIVER) and not _decodes(head + payload):
        return _plain_key(payload)
    return payload


def _decodes(frame: bytes) -> bool:
    try:
        pamqp.frame.unmarshal(frame)
    except Exception:  # whatever a sender can make it raise
        return False
    return True


def _sound(payload: bytes) -> bool:
    """Whether the lengths in a content header are true, and its table is not too deep."""
    flags = int.from_bytes(payload[_BEFORE_FLAGS : _BEFORE_FLAGS + 2], "big")
    if flags & 0b11:  # the last two are no properties; one says that more flags follow
        return False
    at, end = _BEFORE_FLAGS + 2, len(payload) - 1
    try:
        for flag in (0x8000, 0x4000):  # content type and encoding come before the table
            if flags & flag:
                at += 1 + payload[at]
        return not flags & 0x2000 or _table(payload, at, end, 0) <= end
    except (IndexError, ValueError):
        return False


def _table(raw: bytes, at: int, end: int, depth: int, named: bool = True) -> int:
    """Return the end of the table (or array: without names) that begins *at*, which is *end* at most.

    :raises ValueError: its length is false, it is nested too deep, or it holds a value of an unknown type.
    """
    stop = at + 4 + int.from_bytes(raw[at : at + 4], "big")
    at += 4
    if stop > end or at > end or depth > _DEEPEST:
        raise ValueError
    while at < stop:
        if named:
            at += 1 + raw[at]
        kind = raw[at : at + 1]
        at += 1
        if kind in _LONG:
            at += 4 + int.from_bytes(raw[at : at + 4], "big")
        elif kind in (_ARRAY, _TABLE):
            at = _table(raw, at, stop, depth + 1, kind == _TABLE)
        else:
            at += _SIZES.get(kind, end)  # an unknown one ends beyond the end
    if at != stop:
        raise ValueError
    return stop


def _plain_key(payload: bytes) -> bytes:
    """A delivery with a routing key of ASCII: consumer tag, delivery tag, a bit, exchange, routing key."""
    at = len(_DELIVER)
    at += 1 + payload[at] + 8 + 1
    at += 1 + payload[at] + 1
    key = bytes(byte if byte < 128 else ord("?") for byte in payload[at:-1])
    return payload[:at] + key + payload[-1:]


class _Reader:
    """A stream of frames, each of which is read in three pieces: one byte, the rest of its head, its payload."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._head = b""

    async def readexactly(self, size: int) -> bytes:
        read = await self._reader.readexactly(size)
        if len(self._head) < 7:
            self._head += read
            return read
        head, self._head = self._head, b""
        return harmless(head, read)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


class _Receiver(aiormq.connection.FrameReceiver):
    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(_Reader(reader))  # type: ignore[arg-type]


def guard() -> None:
    """Have aiormq read frames by :class:`_Receiver`. All of its versions have no other way in common."""
    aiormq.connection.FrameReceiver = _Receiver  # type: ignore[misc]
