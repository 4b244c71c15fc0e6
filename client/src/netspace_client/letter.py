"""Checks of a message that a program wants to send, before anything is done with it. Pure.

AMQP's short strings have 255 bytes at most. Longer ones are refused here: aiormq finds out only when it has
counted the message as sent, and whoever sends on the same channel would be told of another's message.
"""

from __future__ import annotations

from netspace_client.errors import Refused

LONGEST = 255


def short(value: str, what: str) -> str:
    """Return *value* if AMQP can carry it as a short string.

    :param what: what to call it in the error.
    :raises TypeError: it is no text.
    :raises Refused: it is too long, or no text that UTF-8 has.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what}: expected a str, got {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as err:
        raise Refused(f"{what} is no text that can be sent: {err}") from None
    if size > LONGEST:
        raise Refused(f"{what} has {size} bytes; {LONGEST} is the most that a message can carry")
    return value


def content(body: bytes | str, content_type: str | None) -> tuple[bytes, str]:
    """Return the bytes of a body, and their type.

    :raises TypeError: it is neither bytes nor text.
    :raises Refused: as :func:`short`.
    """
    if isinstance(body, str):
        try:
            raw, kind = body.encode(), "text/plain"
        except UnicodeEncodeError as err:
            raise Refused(f"the body is no text that can be sent: {err}") from None
    elif isinstance(body, bytes | bytearray | memoryview):
        raw, kind = bytes(body), "application/octet-stream"
    else:
        raise TypeError(f"the body: expected bytes or a str, got {type(body).__name__}")
    return raw, short(content_type or kind, "content_type")
