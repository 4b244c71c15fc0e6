"""Matches that both packet filters share: offsets in a packet, and nft expressions for an ``allow`` rule. Pure."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping

import msgspec

from netspace.spec import checks
from netspace.spec.types import Allow


class Family(msgspec.Struct, frozen=True):
    """Constants of one address family.

    :param number: the kernel's number of the family.
    :param word: nft's name of the family's packet header.
    :param type: nft's name of the family's address type.
    :param address: the offsets of the source and the destination address in the header.
    :param icmp: nft's name of the family's ICMP header, and of the ICMP protocol.
    :param errors: the types of ICMP errors.
    """

    number: int
    word: str
    type: str
    address: Mapping[str, int]
    icmp: tuple[str, str]
    errors: tuple[str, ...]


FAMILIES = {
    "ipv4": Family(
        socket.AF_INET,
        "ip",
        "ipv4_addr",
        {"saddr": 12, "daddr": 16},
        ("icmp", "icmp"),
        ("destination-unreachable", "time-exceeded", "parameter-problem"),
    ),
    "ipv6": Family(
        socket.AF_INET6,
        "ip6",
        "ipv6_addr",
        {"saddr": 8, "daddr": 24},
        ("icmpv6", "ipv6-icmp"),
        ("destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"),
    ),
}
PROTOCOLS = {"tcp": 6, "udp": 17}


def family(rule: Allow) -> str:
    """Return the address family of a rule: ``ipv4`` or ``ipv6``. The rule must be for one family (``Allow.each``)."""
    return "ipv6" if ":" in str(rule.cidr) else "ipv4"


def name_set(name: str, network: str, fam: str) -> str:
    """Return the name of the nft set that holds a DNS name's addresses of family *fam* within *network*.

    :param network: the ``cidr`` of the rule; the network of a whole family means all public addresses.
    """
    digest = hashlib.sha256(f"{name} {network}".encode()).hexdigest()
    return f"name.{digest[:16]}.{fam}"


def errors(of: Family) -> list[str]:
    """Return a match for each type of ICMP error of a family."""
    return [f"{of.icmp[0]} type {type_}" for type_ in of.errors]


def covers(rule: Allow, peer: str, port: str) -> str:
    """Return the match for packets that *rule* covers.

    :param peer: the field with the peer's address: ``saddr`` or ``daddr``.
    :param port: the field with the server's port: ``sport`` or ``dport``.
    """
    assert rule.cidr is not None
    fam, network = family(rule), rule.cidr.network
    of = FAMILIES[fam]
    if rule.name is not None:
        words = f"{of.word} {peer} @{name_set(rule.name, str(rule.cidr), fam)}"
    elif network.prefixlen == 0:
        words = f"meta nfproto {fam}"
    else:
        single = network.prefixlen == network.max_prefixlen
        words = f"{of.word} {peer} {network.network_address if single else network}"
    if rule.protocol == "icmp":
        return f"{words} meta l4proto {of.icmp[1]}"
    assert rule.protocol in PROTOCOLS
    if rule.port is None:
        return f"{words} meta l4proto {rule.protocol}"
    bounds = checks.ports(rule.port)
    assert bounds is not None  # the declaration was checked
    first, last = bounds
    return f"{words} {rule.protocol} {port} {first}" + (f"-{last}" if last != first else "")
