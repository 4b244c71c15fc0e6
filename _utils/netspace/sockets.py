"""Sockets that wait for somebody in the calling thread's network namespace, as proc(5) tells them. Changes nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

TABLES = ("tcp", "tcp6", "udp", "udp6")
# TCP_LISTEN; of UDP TCP_CLOSE, which a socket has as long as it isn't connected to anybody.
_WAITS = {"tcp": "0A", "udp": "07"}


class Listener(NamedTuple):
    """A socket that listens, or of UDP one that takes packets from anybody.

    :param protocol: ``tcp`` or ``udp``.
    :param address: in canonical form, an IPv4 address also where the socket is IPv6's; empty: any.
    :param user: the id of the user who made it.
    """

    protocol: str
    address: str
    port: int
    user: int
    inode: str


class Holder(NamedTuple):
    """A program that has a port; ``pid`` is 0 where that can't be told."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else self.name


def listeners(table: str, ports: Collection[int]) -> Iterator[Listener]:
    """Yield the sockets that wait at one of *ports*; none where the kernel has no such table.

    :param table: one of :data:`TABLES`.
    """
    protocol = table[:3]
    with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{table}") as lines:
        next(lines, None)  # the heading
        for fields in map(str.split, lines):
            if fields[3] != _WAITS[protocol]:
                continue
            address, _, number = fields[1].rpartition(":")
            if (port := int(number, 16)) in ports:
                yield Listener(protocol, decoded(address), port, int(fields[7]), fields[9])


def decoded(text: str) -> str:
    """Return an address as the tables have it, words of four bytes in the machine's order, in canonical form."""
    words = (int(text[start : start + 8], 16) for start in range(0, len(text), 8))
    address = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return "" if address.is_unspecified else str(address)


def holder(found: Collection[Listener]) -> Holder:
    """Return the program that has one of these sockets."""
    links = {f"socket:[{one.inode}]" for one in found}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with os.scandir(f"/proc/{name}/fd") as descriptors:
                if any(os.readlink(one.path) in links for one in descriptors):
                    return Holder(Path(f"/proc/{name}/comm").read_text().strip(), int(name))
        except OSError:  # it ended, or is another's
            continue
    return Holder("another program", 0)
