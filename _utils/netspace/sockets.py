"""Listening sockets in the network namespace of the calling thread, read from /proc (proc(5)). Changes nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

TABLES = ("tcp", "tcp6", "udp", "udp6")
# The kernel's state of a listening socket: TCP_LISTEN; for UDP TCP_CLOSE, the state of an unconnected socket.
_WAITS = {"tcp": "0A", "udp": "07"}


class Listener(NamedTuple):
    """A listening TCP socket, or an unconnected UDP socket.

    :param protocol: ``tcp`` or ``udp``.
    :param address: the address in canonical form (an IPv4-mapped IPv6 address as IPv4); empty: any address.
    :param user: the uid of the socket's owner.
    :param inode: the number of the socket's inode.
    """

    protocol: str
    address: str
    port: int
    user: int
    inode: str


class Holder(NamedTuple):
    """A program that uses a port. ``pid`` is 0 if the process is unknown."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else self.name


def listeners(table: str, ports: Collection[int]) -> Iterator[Listener]:
    """Yield the sockets that listen on one of *ports*. Yield nothing if the kernel doesn't have the table.

    :param table: one of :data:`TABLES`.
    """
    protocol = table[:3]
    with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{table}") as lines:
        next(lines, None)  # skip the heading
        for fields in map(str.split, lines):
            if fields[3] != _WAITS[protocol]:
                continue
            address, _, number = fields[1].rpartition(":")
            if (port := int(number, 16)) in ports:
                yield Listener(protocol, decoded(address), port, int(fields[7]), fields[9])


def decoded(text: str) -> str:
    """Return an address of the kernel's tables in canonical form; empty for "any address".

    :param text: hexadecimal words of four bytes, in the machine's byte order.
    """
    words = (int(text[start : start + 8], 16) for start in range(0, len(text), 8))
    address = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return "" if address.is_unspecified else str(address)


def holder(found: Collection[Listener]) -> Holder:
    """Return the first program found that has one of these sockets open; "another program" if none can be found."""
    links = {f"socket:[{one.inode}]" for one in found}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if any(_link(f"/proc/{name}/fd/{number}") in links for number in os.listdir(f"/proc/{name}/fd")):
                return Holder(Path(f"/proc/{name}/comm").read_text(errors="replace").strip(), int(name))
        except OSError:  # the process has ended, or this process may not read it
            continue
    return Holder("another program", 0)


def _link(path: str) -> str:
    """Return the target of a link; empty if it is gone: a busy program closes descriptors while it is looked at."""
    try:
        return os.readlink(path)
    except OSError:
        return ""
