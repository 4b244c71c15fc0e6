"""Checks of an outgoing message, before the message is counted, sealed or sent. Pure.

AMQP's short strings have at most 255 bytes. Longer strings are refused here, because aiormq detects them only after it
has counted the message as sent. aiormq would then assign confirmations on that channel to the wrong messages.
"""

from __future__ import annotations

from netspace_client.errors import Refused

LONGEST = 255


def short(value: str, what: str) -> str:
    """Return *value*, after a check that it can be an AMQP short string.

    :param what: the name of the value in errors.
    :raises TypeError: *value* is not text.
    :raises Refused: *value* is too long, or can't be encoded in UTF-8.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what}: expected a str, got {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as err:
        raise Refused(f"{what} can't be sent as text: {err}") from None
    if size > LONGEST:
        raise Refused(f"{what} has {size} bytes; {LONGEST} is the most that a message can carry")
    return value


def content(body: bytes | str, content_type: str | None) -> tuple[bytes, str]:
    """Return the bytes of a body, and its content type.

    :raises TypeError: the body is neither bytes nor text.
    :raises Refused: body or type can't be encoded in UTF-8, or the type is too long.
    """
    if isinstance(body, str):
        try:
            raw, kind = body.encode(), "text/plain"
        except UnicodeEncodeError as err:
            raise Refused(f"the body can't be sent as text: {err}") from None
    elif isinstance(body, bytes | bytearray | memoryview):
        raw, kind = bytes(body), "application/octet-stream"
    else:
        raise TypeError(f"the body: expected bytes or a str, got {type(body).__name__}")
    return raw, short(content_type or kind, "content_type")
