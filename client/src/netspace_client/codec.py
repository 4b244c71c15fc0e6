"""Frames of AMQP 0-9-1 that carry messages, as bytes: publish, deliver, return, acknowledge. Pure.

Every message needs three frames to send, three to receive and one to acknowledge. For each frame, aiormq makes an
object, a task and several queue entries, which took half of the time of a question and its answer. So these frames are
written and read here. aiormq and pamqp handle all other frames. :mod:`netspace_client.wire` uses this module.

https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf (2.3.5 and 4.2)
"""

from __future__ import annotations

import struct

import pamqp.frame
from aiormq import spec
from pamqp.header import ContentHeader

from netspace_client import frames

METHOD, HEADER, BODY = 1, 2, 3
END = b"\xce"

PUBLISH, RETURN, DELIVER = (bytes((0, 60, 0, method)) for method in (40, 50, 60))
ACK, NACK = (bytes((0, 60, 0, method)) for method in (80, 120))

CLOSE = bytes((0, 20, 0, 40))
"""A channel's end."""

_HEAD = struct.Struct(">BHI")
_SETTLED = struct.Struct(">4sQB")
_CONTENT = struct.Struct(">HHQH")
_LONGEST = 255
_HEADERS_OR_TIME = 0x2000 | 0x0040
_MORE_FLAGS = 0x0003
_TEXT, _OCTET = 0, 1
# The properties in their order, without headers and timestamp: flag, name, form.
_PROPERTIES = (
    (0x8000, "content_type", _TEXT),
    (0x4000, "content_encoding", _TEXT),
    (0x1000, "delivery_mode", _OCTET),
    (0x0800, "priority", _OCTET),
    (0x0400, "correlation_id", _TEXT),
    (0x0200, "reply_to", _TEXT),
    (0x0100, "expiration", _TEXT),
    (0x0080, "message_id", _TEXT),
    (0x0020, "message_type", _TEXT),
    (0x0010, "user_id", _TEXT),
    (0x0008, "app_id", _TEXT),
    (0x0004, "cluster_id", _TEXT),
)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"%b%b\xce" % (_HEAD.pack(kind, channel, len(payload)), payload)


def short(text: str) -> bytes:
    """Return *text* encoded as a short string.

    :raises TypeError: *text* isn't a str.
    :raises ValueError: *text* has more than 255 bytes, or can't be encoded in UTF-8.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a str, got {type(text).__name__}")
    raw = text.encode()
    if len(raw) > _LONGEST:
        raise ValueError(f"{len(raw)} bytes; a short string has {_LONGEST} at most")
    return bytes((len(raw),)) + raw


# -- writing --------------------------------------------------------------------------
def publish(exchange: str, key: str) -> bytes:
    """Return the payload of a publish method whose message must be routed (``mandatory``)."""
    return b"%b\0\0%b%b\1" % (PUBLISH, short(exchange), short(key))


def message(channel: int, method: bytes, about: spec.Basic.Properties, body: bytes, most: int) -> bytes:
    """Return the frames of a message.

    :param method: the payload from :func:`publish`.
    :param about: the message's properties, without headers and timestamp.
    :param most: the most bytes of a frame's payload.
    :raises TypeError: a property has the wrong type.
    :raises ValueError: a property can't be encoded.
    """
    flags, parts = 0, []
    for flag, name, form in _PROPERTIES:
        value = getattr(about, name)
        if value is None or value == "":
            continue
        flags |= flag
        parts.append(short(value) if form == _TEXT else bytes((value,)))
    content = _CONTENT.pack(60, 0, len(body), flags) + b"".join(parts)
    head = frame(METHOD, channel, method) + frame(HEADER, channel, content)
    if len(body) <= most:
        return head + frame(BODY, channel, body) if body else head
    pieces = (body[at : at + most] for at in range(0, len(body), most))
    return head + b"".join(frame(BODY, channel, piece) for piece in pieces)


def settle(channel: int, tag: int, how: str, multiple: bool = False) -> bytes:
    """Return the frame that settles a delivery.

    :param how: ``ack``, ``requeue`` or ``reject``.
    :param multiple: settle all unsettled deliveries up to this one.
    """
    if how == "ack":
        return frame(METHOD, channel, _SETTLED.pack(ACK, tag, multiple))
    return frame(METHOD, channel, _SETTLED.pack(NACK, tag, multiple | (2 if how == "requeue" else 0)))


# -- reading --------------------------------------------------------------------------
def confirmation(payload: bytes) -> tuple[int, bool]:
    """Return tag and ``multiple`` of an ack or a nack."""
    _, tag, bits = _SETTLED.unpack(payload)
    return tag, bool(bits & 1)


def delivery(payload: bytes) -> tuple[int, bool, str, str]:
    """Return tag, ``redelivered``, exchange and routing key of a delivery.

    The sender chooses the routing key, which may be any bytes.

    :raises ValueError: a length is wrong.
    """
    at = 5 + payload[4]
    tag, again = int.from_bytes(payload[at : at + 8], "big"), bool(payload[at + 8] & 1)
    exchange, at = _text(payload, at + 9)
    key, at = _text(payload, at)
    if at != len(payload):
        raise ValueError("a delivery of a wrong length")
    return tag, again, exchange.decode("utf-8", "replace"), key.decode("utf-8", "replace")


def body_size(payload: bytes) -> int:
    """Return the bytes of the body that follows a content header."""
    return int.from_bytes(payload[4:12], "big")


def properties(payload: bytes) -> spec.Basic.Properties:
    """Return the properties in a content header, or no properties if they can't be decoded.

    A sender chooses the properties, and the broker passes on values that are not valid text or dates.
    """
    flags = int.from_bytes(payload[12:14], "big")
    if flags & (_HEADERS_OR_TIME | _MORE_FLAGS):
        return _by_pamqp(payload)
    found: dict[str, str | int] = {}
    at = 14
    try:
        for flag, name, form in _PROPERTIES:
            if not flags & flag:
                continue
            if form == _TEXT:
                raw, at = _text(payload, at)
                found[name] = raw.decode()
            else:
                found[name] = payload[at]
                at += 1
        if at != len(payload):
            return spec.Basic.Properties()
        return spec.Basic.Properties(**found)  # type: ignore[arg-type]
    except (IndexError, ValueError):  # UnicodeDecodeError is a ValueError
        return spec.Basic.Properties()


def _by_pamqp(payload: bytes) -> spec.Basic.Properties:
    head = _HEAD.pack(HEADER, 0, len(payload))
    _, _, header = pamqp.frame.unmarshal(head + frames.harmless(head, payload + END))
    assert isinstance(header, ContentHeader)
    return header.properties


def _text(payload: bytes, at: int) -> tuple[bytes, int]:
    """Return the short string that begins *at* this offset, and the offset of its end.

    :raises ValueError: the string is longer than the payload.
    """
    end = at + 1 + payload[at]
    if end > len(payload):
        raise ValueError("a text that is longer than its frame")
    return payload[at + 1 : end], end
