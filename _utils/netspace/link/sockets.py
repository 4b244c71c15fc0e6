"""TCP sockets that listen in the calling thread's network namespace, as proc(5) tells them. Changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

LOOPBACK4, LOOPBACK6 = "0100007F", "00000000000000000000000001000000"
"""Loopback addresses as the tables write them on little-endian machines: 127.0.0.1 and ::1."""
_LISTEN = "0A"  # TCP_LISTEN


class Listener(NamedTuple):
    """A socket that listens.

    :param address: hexadecimal, as the table has it.
    :param user: the id of the user who made it.
    """

    address: str
    user: int
    inode: str


def listeners(table: str, port: int) -> Iterator[Listener]:
    """Yield the sockets that listen at *port*; none where the kernel has no such table.

    :param table: ``tcp`` or ``tcp6``.
    """
    with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{table}") as lines:
        next(lines, None)  # the heading
        for fields in map(str.split, lines):
            address, _, number = fields[1].rpartition(":")
            if fields[3] == _LISTEN and int(number, 16) == port:
                yield Listener(address, int(fields[7]), fields[9])
