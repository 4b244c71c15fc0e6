"""Deletion of stale entries in the kernel's connection tracking table, after published ports have changed.

Only the first packet of a connection is matched against published ports. A peer that keeps sending UDP from one port
has one connection. This connection may have begun before the port was published, or while the port led to another
environment. If so, the peer's packets would keep going to the old place. If the host itself sent a packet to the peer
from that port before, the peer's packets would count as answers. Connections through the host, and those to the right
environment, stay unchanged.

Sources: ``linux/netfilter/nfnetlink_conntrack.h``.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Sequence

from netspace.interface.match import FAMILIES, PROTOCOLS
from netspace.netlink import connection, reading
from netspace.netlink.connection import Message, Socket, attribute
from netspace.spec.publish import Led

_SUBSYSTEM = 1 << 8
_GET, _DELETE = 1, 2
_ORIGINAL, _REPLY, _ID = 1, 2, 12
_IP, _PROTOCOL = 1, 2  # of a tuple
_SOURCE_OF = {"ipv4": (1, 2), "ipv6": (3, 4)}  # source and destination
_NESTED = 0x8000
End = tuple[bytes, int]
Tuple = tuple[int, End, End]
"""The protocol's number, and address and port of source and destination."""


def forget_stale(published: Sequence[Led]) -> None:
    """Delete tracked connections that go to a published port, but lead to a wrong place.

    This concerns the network namespace of the calling thread. If the kernel can't list its connections, none is
    deleted, and each stale one ends by its timeout.
    """
    if not published:
        return
    ports = re.compile(b"|".join({re.escape(_to_port(one.host.port)) for one, _ in published}))
    try:
        with Socket() as host:
            own = {ipaddress.ip_interface(one.text).ip.packed for one in host.addresses()}
        with Socket(connection.NETLINK_NETFILTER) as table:
            for family, of in FAMILIES.items():
                found = table.dump(Message(_SUBSYSTEM | _GET, connection.DUMP, _head(of.number)))
                # There may be a hundred thousand connections, and hardly any has one of these ports.
                near = (entry for entry in found if ports.search(entry))
                stale = [named for entry in near if (named := _stale(family, entry, published, own))]
                if stale:
                    table.batch([Message(_SUBSYSTEM | _DELETE, 0, _head(of.number) + named) for named in stale])
    except OSError:
        return


def _to_port(port: int) -> bytes:
    """Return the netlink attribute of a destination port."""
    return attribute(3, struct.pack(">H", port))


def _head(family: int) -> bytes:
    return struct.pack("=BBH", family, 0, 0)


def _stale(family: str, entry: bytes, published: Sequence[Led], own: set[bytes]) -> bytes:
    """Return the netlink attributes that identify the connection in *entry* for deletion; empty if it isn't stale.

    :param own: the host's addresses.
    """
    values = dict(reading.attributes(entry, 4))
    if not {_ORIGINAL, _REPLY, _ID} <= values.keys():
        return b""
    original, reply = (_parsed(family, values[one]) for one in (_ORIGINAL, _REPLY))
    if original is None or reply is None:
        return b""
    led_elsewhere = original[2][0] in own and not goes_right(family, original, reply, published)
    if not led_elsewhere and not (reply[2][0] in own and answered_at_one(family, reply, published)):
        return b""
    return attribute(_ORIGINAL | _NESTED, bytes(values[_ORIGINAL])) + attribute(_ID, bytes(values[_ID]))


def goes_right(family: str, original: Tuple, reply: Tuple, published: Sequence[Led]) -> bool:
    """Return whether a connection to one of the host's addresses goes to the right environment. Pure.

    The right environment is the one that publishes the port. If none publishes the port, the connection counts as
    right.
    """
    found = _taker(family, original[0], original[2], published)
    if found is None:
        return True
    one, addresses = found
    return reply[1] == (ipaddress.ip_address(addresses[family]).packed, one.inside)


def answered_at_one(family: str, reply: Tuple, published: Sequence[Led]) -> bool:
    """Return whether a connection's answers go to a published port. Pure.

    If so, packets of the port's users would count as answers.
    """
    return _taker(family, reply[0], reply[2], published) is not None


def _taker(family: str, protocol: int, target: End, published: Sequence[Led]) -> Led | None:
    """Return the published port that takes packets to this address and port, with its environment's addresses."""
    sent_to, port = target
    for one, addresses in published:
        host = one.host
        if family not in one.families or family not in addresses:
            continue
        if (PROTOCOLS[host.protocol], host.port) != (protocol, port):
            continue
        if host.address and ipaddress.ip_address(host.address).packed != sent_to:
            continue
        return one, addresses
    return None


def _parsed(family: str, value: memoryview) -> Tuple | None:
    parts = dict(reading.attributes(value))
    if not {_IP, _PROTOCOL} <= parts.keys():
        return None
    ip, protocol = dict(reading.attributes(parts[_IP])), dict(reading.attributes(parts[_PROTOCOL]))
    source, target = _SOURCE_OF[family]
    if not {source, target} <= ip.keys() or not {1, 2, 3} <= protocol.keys():
        return None
    ports = (int.from_bytes(protocol[one], "big") for one in (2, 3))
    return protocol[1][0], (bytes(ip[source]), next(ports)), (bytes(ip[target]), next(ports))
