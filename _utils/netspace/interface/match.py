"""Matches that both packet filters share: offsets in a packet, and the expressions of an ``allow`` rule. Pure."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

import msgspec

from netspace.interface import nftables as nf
from netspace.interface.nftables import Expression
from netspace.spec import checks
from netspace.spec.types import Allow


class Family(msgspec.Struct, frozen=True):
    """Constants of one address family.

    :param proto: the kernel's number of the family.
    :param ether: the EtherType of its frames.
    :param address: the offsets of source and destination address, of *length* bytes each.
    :param icmp: the protocol number of its ICMP.
    :param errors: the types of ICMP errors.
    """

    proto: bytes
    ether: int
    address: Mapping[str, int]
    length: int
    icmp: int
    errors: tuple[int, ...]


FAMILIES = {
    # destination-unreachable, time-exceeded, parameter-problem
    "ipv4": Family(bytes([socket.AF_INET]), nf.IPV4, {"saddr": 12, "daddr": 16}, 4, 1, (3, 11, 12)),
    # destination-unreachable, packet-too-big, time-exceeded, parameter-problem
    "ipv6": Family(bytes([socket.AF_INET6]), nf.IPV6, {"saddr": 8, "daddr": 24}, 16, 58, (1, 2, 3, 4)),
}
_PORT = {"sport": 0, "dport": 2}
PROTOCOLS = {"tcp": 6, "udp": 17}


def family(rule: Allow) -> str:
    """Return ``ipv4`` or ``ipv6``."""
    return "ipv6" if ":" in rule.cidr else "ipv4"


def icmp(of: Family, *types: int) -> list[list[Expression]]:
    """Return, for each ICMP type of *types*, the expressions that match its packets."""
    head = [*nf.is_(nf.NFPROTO, of.proto), *nf.is_(nf.L4PROTO, bytes([of.icmp]))]
    return [[*head, nf.payload(nf.TRANSPORT, 0, 1), nf.equal(bytes([type_]))] for type_ in types]


def address(name: str, which: str, length: int = 0) -> list[Expression]:
    """Match packets of the family *name*, and load one of their addresses.

    :param which: ``saddr`` or ``daddr``.
    :param length: number of leading bytes to load; 0: all.
    """
    of = FAMILIES[name]
    return [*nf.is_(nf.NFPROTO, of.proto), nf.payload(nf.NETWORK, of.address[which], length or of.length)]


def covers(rule: Allow, peer: str, port: str) -> list[Expression]:
    """Return the expressions that match packets which *rule* covers.

    :param peer: the field with the peer's address: ``saddr`` or ``daddr``.
    :param port: the field with the server's port: ``sport`` or ``dport``.
    """
    of = FAMILIES[family(rule)]
    network = rule.cidr.network
    words = nf.is_(nf.NFPROTO, of.proto)
    if bits := network.prefixlen:
        octets = -(-bits // 8)
        address = network.network_address.packed
        if bits % 8:
            words += [
                nf.payload(nf.NETWORK, of.address[peer], of.length),
                nf.masked(network.netmask.packed),
                nf.equal(address),
            ]
        else:
            words += [nf.payload(nf.NETWORK, of.address[peer], octets), nf.equal(address[:octets])]
    protocol = of.icmp if rule.protocol == "icmp" else PROTOCOLS[rule.protocol]
    words += nf.is_(nf.L4PROTO, bytes([protocol]))
    if rule.protocol != "icmp" and rule.port is not None:
        bounds = checks.ports(rule.port)
        assert bounds is not None  # the declaration was checked
        first, last = (struct.pack(">H", bound) for bound in bounds)
        words += [nf.payload(nf.TRANSPORT, _PORT[port], 2), _from_to(first, last)]
    return words


def _from_to(first: bytes, last: bytes) -> Expression:
    return nf.equal(first) if first == last else nf.between(first, last)
