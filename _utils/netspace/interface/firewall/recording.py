"""Rules that record which packets of an interface were refused (``audit: true``). Pure.

The rules accept nothing. They stand right before the rules that drop, and each interface has its own sets. Packets that
other environments send are never recorded in them; machines outside can fill the sets for direction ``in``, and only
those. The sets are bounded, so a scan of a network costs a fixed amount of memory. Each element counts its packets, and
stores the times of the first and the last one.

A packet is recorded with its protocol, peer and port if an ``allow`` rule could let it through: the first packet of a
TCP connection, a UDP packet, an ICMP echo request. All other packets are counted by their protocol alone (``rest``),
and so are packets for which the set is full. Packets with a forged source are counted separately (``forged``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from netspace.interface.match import FAMILIES, PROTOCOLS
from netspace.nftables.table import Collection, Rule
from netspace.spec.types import Direction, Protocol

MOST = 256
"""The most refused (protocol, peer, port) that are recorded for each direction and family."""
_REST = 256  # all IP protocols
_NAMES: Mapping[int, Protocol] = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp"}
_PEER: Mapping[Direction, str] = {"out": "daddr", "in": "saddr"}
_NEIGHBOURS = ("130-137", "143")  # RFC 4861, 2710, 3810: both kernels send them, and no program
DIRECTIONS: tuple[Direction, ...] = ("out", "in")

Why = Literal["rule", "rest", "forged"]


class Place(NamedTuple):
    """A set in which refused packets are recorded, and the common properties of these packets.

    :param name: the set's name.
    :param why: ``rule``: a rule of ``allow`` could permit these packets, but there is none. ``rest``: no rule could
        permit them, or the set for ``rule`` was full. ``forged``: their source address isn't the environment's.
    :param direction: ``out`` or ``in``.
    :param family: ``ipv4`` or ``ipv6``; empty: both.
    """

    name: str
    why: Why
    direction: Direction
    family: str = ""


class What(NamedTuple):
    """The packets that an element of a set stands for.

    :param protocol: the protocol's name, or its number if no rule can name it.
    :param peer: the peer's address; empty if only the protocol is known.
    :param port: the server's port; None for a protocol without ports.
    """

    protocol: str
    peer: str = ""
    port: int | None = None


def chain(owner: str, direction: Direction | Literal["forged", "unforwarded"]) -> str:
    """Return the name of the chain that records refused packets of one interface.

    :param owner: the environment's name; empty in a table that belongs to one interface alone.
    """
    return f"{_prefix(owner)}.{direction}"


def places(owner: str) -> tuple[Place, ...]:
    """Return the sets that record the refused packets of one interface."""
    prefix = _prefix(owner)
    return (
        *(Place(f"{prefix}.{way}.{fam}", "rule", way, fam) for way in DIRECTIONS for fam in FAMILIES),
        *(Place(f"{prefix}.{way}.rest", "rest", way) for way in DIRECTIONS),
        Place(f"{prefix}.forged.rest", "forged", "out"),
    )


def sets(owner: str) -> dict[str, Collection]:
    """Return the definitions of one interface's sets, without elements, since packets add these."""
    return {
        one.name: Collection(("inet_proto", FAMILIES[one.family].type, "inet_service"), most=MOST, counting="times")
        if one.family
        else Collection(("inet_proto",), most=_REST, counting="times")
        for one in places(owner)
    }


def rules(owner: str, direction: Direction, *, tracked: bool) -> list[Rule]:
    """Return the rules of :func:`chain`. After them, processing returns to the rule that drops the packet.

    :param tracked: whether connections are tracked. If so, the rules can distinguish an answer from a connection's
        first packet.
    """
    prefix = f"{_prefix(owner)}.{direction}"
    rest = f"add @{prefix}.rest {{ meta l4proto }} return"
    made = [f"icmpv6 type {types} return" for types in _NEIGHBOURS]
    made += [f"ct direction reply {rest}"] if tracked else []
    for fam, of in FAMILIES.items():
        peer = f"meta l4proto . {of.word} {_PEER[direction]}"
        for first, port in (
            ("tcp flags & (fin | syn | rst | ack) == syn", "th dport"),
            (f"meta l4proto {PROTOCOLS['udp']}", "th dport"),
            (f"{of.icmp[0]} type echo-request", "0"),
        ):
            made.append(f"meta nfproto {fam} {first} add @{prefix}.{fam} {{ {peer} . {port} }} return")
    return [*made, rest]


def forged(owner: str) -> list[Rule]:
    """Return the rules of :func:`chain` for packets whose source isn't the environment's."""
    return [f"add @{_prefix(owner)}.forged.rest {{ meta l4proto }}"]


def what(place: Place, key: bytes) -> What:
    """Return the packets that an element of the set *place* stands for.

    :param key: the element's key, as the kernel holds it: each part has a multiple of four bytes.
    """
    protocol = _NAMES.get(key[0], str(key[0]))
    if not place.family:
        return What(protocol)
    peer, port = key[4:-4], int.from_bytes(key[-4:-2], "big")
    return What(protocol, str(ipaddress.ip_address(peer)), port if key[0] in PROTOCOLS.values() else None)


def _prefix(owner: str) -> str:
    return f"refused.{owner}" if owner else "refused"


def joined(rules_: Sequence[Rule], then: Sequence[Rule]) -> list[Rule]:
    """Return *rules_* with *then* inserted before the last rule, which drops."""
    return [*rules_[:-1], *then, rules_[-1]]
