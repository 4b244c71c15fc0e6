"""Numbers of generic netlink's families, which the kernel assigns when it loads a family.

Source: the kernel's ``linux/genetlink.h``.
"""

from __future__ import annotations

import functools
import struct

from netspace.netlink.connection import DUMP, NETLINK_GENERIC, Message, Socket, attribute
from netspace.netlink.reading import attributes, number

_CONTROL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2


def ask(family: int, command: int, body: bytes) -> Message:
    """Return the request for a dump by a *command* (version 1) of the family with this number."""
    return Message(family, DUMP, _head(command) + body, NETLINK_GENERIC)


def _head(command: int) -> bytes:
    return struct.pack("=BBH", command, 1, 0)


@functools.cache
def family(name: str) -> int | None:
    """Return the number of a family by its name; None if the kernel doesn't have it."""
    body = _head(_GETFAMILY) + attribute(_FAMILY_NAME, name.encode() + b"\0")
    try:
        with Socket(NETLINK_GENERIC) as control:
            found = control.dump(Message(_CONTROL, 0, body, NETLINK_GENERIC))
    except OSError:
        return None
    return next((number(value) for one in found for type_, value in attributes(one, 4) if type_ == _FAMILY_ID), None)
