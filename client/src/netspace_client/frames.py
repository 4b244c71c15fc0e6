"""Filter for AMQP frames that can't be decoded, so that one message can't end the connection of its receiver.

A sender chooses content type, headers, timestamp and routing key. The broker passes on values that are not UTF-8, not a
date, or nested too deep. pamqp raises on such values, or loops for ever at a wrong length. aiormq then ends the
connection, and the broker redelivers the same message, so the receiver would never get another message.

So each frame is decoded here first. If a content header can't be decoded, its properties are left out. If a delivery
can't be decoded, non-ASCII bytes in its routing key are replaced.
"""

from __future__ import annotations

import struct

import pamqp.frame

METHOD, HEADER = 1, 2
_DELIVER = struct.pack(">HH", 60, 60)
# A content header begins with class, weight and body size; then come the flags of the properties that follow.
_BEFORE_FLAGS = 12


# Sizes of the values in a table, by type: https://www.rabbitmq.com/amqp-0-9-1-errata
_SIZES = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"U": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8, b"f": 4, b"d": 8}
_SIZES |= {b"D": 5, b"T": 8, b"V": 0}
_LONG, _ARRAY, _TABLE = (b"S", b"x"), b"A", b"F"
_DEEPEST = 16


def harmless(head: bytes, payload: bytes) -> bytes:
    """Return the frame's payload with its end mark, changed only if it can't be decoded.

    :param head: the frame's header: type, channel and size.
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
    except Exception:  # a sender can make it raise anything
        return False
    return True


def _sound(payload: bytes) -> bool:
    """Return whether the lengths in a content header are correct, and its table is not nested too deep."""
    flags = int.from_bytes(payload[_BEFORE_FLAGS : _BEFORE_FLAGS + 2], "big")
    if flags & 0b11:  # the last two bits stand for no property; the lowest says that more flags follow
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
    """Return the end of the table that begins *at*.

    :param end: the greatest permitted end.
    :param named: False: the table is an array, whose values have no names.
    :raises ValueError: a length is wrong, the table is nested too deep, or a value has an unknown type.
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
            at += _SIZES.get(kind, end)  # an unknown type gives a position beyond the end
    if at != stop:
        raise ValueError
    return stop


def _plain_key(payload: bytes) -> bytes:
    """Return a delivery with ``?`` for each non-ASCII byte in its routing key.

    A delivery has consumer tag, delivery tag, a bit, exchange and routing key.
    """
    at = len(_DELIVER)
    at += 1 + payload[at] + 8 + 1
    at += 1 + payload[at] + 1
    key = bytes(byte if byte < 128 else ord("?") for byte in payload[at:-1])
    return payload[:at] + key + payload[-1:]
