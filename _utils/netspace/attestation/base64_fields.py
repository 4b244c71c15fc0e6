"""Binary fields of messages, in base64. Pure."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from netspace.attestation.refusals import Malformed


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def octets(text: Any, limit: int, name: str) -> bytes:
    """Decode a base64 field of a message.

    :param limit: maximum number of bytes.
    :param name: the field's name, for the error's message.
    :raises Malformed: when the field is not base64 of at most *limit* bytes.
    """
    if not isinstance(text, str) or len(text) > limit * 4 // 3 + 4:
        raise Malformed(f"{name} is not base64 of at most {limit} bytes")
    try:
        data: bytes = msgspec.convert(text, bytes)  # as strict as base64 with validate, in a quarter of its time
    except (msgspec.ValidationError, ValueError) as err:
        raise Malformed(f"{name} is not base64: {err}") from err
    if len(data) > limit:
        raise Malformed(f"{name} is not base64 of at most {limit} bytes")
    return data
