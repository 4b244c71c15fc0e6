"""The packet filter of one interface whose packets don't pass the host's network stack. Pure.

A table in the environment's namespace. The namespace belongs to the host's user namespace, so
no capability of an environment suffices to change the table. It is loaded before the
interface is up. Rules, in the order in which a packet meets them:

1. A packet that leaves must have the environment's own MAC and address as its source, and so
   must its ARP and neighbour discovery data. Other protocols, tagged frames, router advertisements
   and redirects are dropped.
2. No packet passes to or from another environment of this host, whatever ``allow`` says.
3. A packet that arrives must be for the environment's own address.
4. A connection passes if an ``allow`` rule covers it. Each of its packets is checked, in both
   directions. At most ``connections`` are open at once.
5. ICMP errors about an allowed connection pass. All other packets are dropped.

The rules mean the same as the host's table (``netspace.interface.firewall.host_rules``) does for the kinds
that pass the host's network stack; a test checks both against one model.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence

import msgspec

from netspace.interface import match
from netspace.interface import nftables as nf
from netspace.interface.match import FAMILIES
from netspace.interface.netlink.connection import Message
from netspace.spec.types import Allow

_LOOPBACK = struct.pack("=I", 1)
_SOLICITATION, _ADVERTISEMENT, _QUERY, _REPORT = 135, 136, 130, 143
_LONGER = (struct.pack(">H", 33), b"\xff\xff")
_REPORTS_TO = ipaddress.IPv6Address("ff02::16").packed  # RFC 3810 section 5.2.14


class Guarded(msgspec.Struct, frozen=True):
    """The facts about one interface that its table depends on.

    :param link: its name.
    :param mac: the only MAC it may send from; empty for a kind without its own MAC.
    :param arp: whether it resolves neighbours.
    :param addresses: the only address it may send from, by family.
    :param local: its IPv6 link-local address, if it has one; used only for messages to neighbours.
    :param others: addresses of other environments that ``allow`` covers, by family.
    """

    link: str
    mac: str
    arp: bool
    addresses: Mapping[str, str]
    allow: tuple[Allow, ...] = ()
    connections: int = 1024
    local: str = ""
    others: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)


def covered(allow: Sequence[Allow], addresses: Sequence[tuple[int, int]]) -> dict[str, list[str]]:
    """Return the addresses among *addresses* (version and number, sorted) that some rule covers, by family."""
    from bisect import bisect_left, bisect_right

    found: dict[str, set[str]] = {}
    for rule in allow:
        network = rule.cidr.network
        first, last = (network.version, int(network[0])), (network.version, int(network[-1]))
        for _, number in addresses[bisect_left(addresses, first) : bisect_right(addresses, last)]:
            address = ipaddress.IPv4Address(number) if network.version == 4 else ipaddress.IPv6Address(number)
            found.setdefault(f"ipv{network.version}", set()).add(str(address))
    return {family: sorted(ones) for family, ones in found.items()}


def render(table: str, guarded: Guarded) -> list[Message]:
    """Return the messages that create and fill the tables named *table* (families ``inet`` and ``netdev``)."""
    text = [*nf.add_table(nf.INET, table), *nf.add_table(nf.NETDEV, table)]
    # Add the set even if it is empty: a later environment then only adds an element.
    for family in guarded.addresses:
        packed = [ipaddress.ip_address(other).packed for other in guarded.others.get(family, ())]
        text += nf.add_set(nf.INET, table, f"others_{family}", family, packed)
    chains: dict[str, list[list[bytes]]] = {
        "opened": [
            [*nf.not_new(), _accept()],
            [nf.more_open_than(guarded.connections), _drop()],
            [_accept()],
        ],
        "output": _judged(guarded, outwards=True),
        "input": _judged(guarded, outwards=False),
        "forward": [],
    }
    text.append(nf.add_chain(nf.INET, table, "opened"))
    hooks = {"output": nf.OUTPUT, "input": nf.INPUT, "forward": nf.FORWARD}
    text += [nf.add_base(nf.INET, table, name, hook) for name, hook in hooks.items()]
    for name, rules in chains.items():
        text += [nf.add_rule(nf.INET, table, name, rule) for rule in rules]
    text.append(nf.add_base(nf.NETDEV, table, "leaving", nf.EGRESS, device=guarded.link))
    text += [nf.add_rule(nf.NETDEV, table, "leaving", rule) for rule in _pinned(guarded)]
    return text


def _accept() -> bytes:
    return nf.verdict(nf.ACCEPT)


def _drop() -> bytes:
    return nf.verdict(nf.DROP)


def _judged(guarded: Guarded, *, outwards: bool) -> list[list[bytes]]:
    """Return the rules on packets that the environment sends (*outwards*) or receives."""
    six = FAMILIES["ipv6"]
    rules = [[*nf.is_(nf.OIF if outwards else nf.IIF, _LOOPBACK), _accept()]]
    # Hop limit 255: neighbour discovery never comes from beyond the link (RFC 4861 section 7.1).
    whole = [nf.payload(nf.NETWORK, 7, 1), nf.equal(b"\xff")]
    rules += [[*one, *whole, _accept()] for one in match.icmp(six, _SOLICITATION, _ADVERTISEMENT)]
    if outwards:
        rules += [[*one, *_at(six.address["daddr"], _REPORTS_TO), _accept()] for one in match.icmp(six, _REPORT)]
    else:
        once = [nf.payload(nf.NETWORK, 7, 1), nf.equal(b"\x01")]
        rules += [[*one, *once, _accept()] for one in match.icmp(six, _QUERY)]
    for name, family in FAMILIES.items():
        is_family = nf.is_(nf.NFPROTO, family.proto)
        if name not in guarded.addresses:
            rules.append([*is_family, _drop()])
            continue
        own = ipaddress.ip_address(guarded.addresses[name]).packed
        mine, theirs = ("saddr", "daddr") if outwards else ("daddr", "saddr")
        rules.append([*is_family, *_at(family.address[mine], own, negate=True), _drop()])
        peer = nf.payload(nf.NETWORK, family.address[theirs], family.length)
        rules.append([*is_family, peer, nf.member(f"others_{name}"), _drop()])
        for direction in ("out", "in"):
            original = (direction == "out") == outwards
            rules += [
                [
                    nf.connection(nf.DIRECTION),
                    nf.equal(nf.ORIGINAL if original else nf.REPLY),
                    *match.covers(rule, theirs, "dport" if original else "sport"),
                    nf.goto("opened") if original else _accept(),
                ]
                for rule in guarded.allow
                if rule.direction == direction and match.family(rule) == name
            ]
        rules += [[*nf.related(), *one, _accept()] for one in match.icmp(family, *family.errors)]
    return rules


def _at(offset: int, value: bytes, *, negate: bool = False) -> list[bytes]:
    return [nf.payload(nf.NETWORK, offset, len(value)), nf.equal(value, negate=negate)]


def _pinned(guarded: Guarded) -> list[list[bytes]]:
    """Return the rules that let only frames with the environment's own MAC and addresses leave."""
    rules = []
    mac = bytes.fromhex(guarded.mac.replace(":", ""))
    if mac:
        rules.append([nf.payload(nf.LINK, 6, 6), nf.equal(mac, negate=True), _drop()])
    for name, address in sorted(guarded.addresses.items()):
        family = FAMILIES[name]
        own = ipaddress.ip_address(address).packed
        if name == "ipv6":
            rules += _neighbourly(mac, [own, *([ipaddress.ip_address(guarded.local).packed] if guarded.local else [])])
        rules.append([*nf.of_protocol(family.ether), *_at(family.address["saddr"], own), _accept()])
        if name == "ipv4" and guarded.arp:
            # The sender's MAC and address in the ARP packet (RFC 826).
            about = _at(8, mac + own) if mac else _at(14, own)
            rules.append([*nf.of_protocol(nf.ARP), *about, _accept()])
    return rules


def _neighbourly(mac: bytes, own: Sequence[bytes]) -> list[list[bytes]]:
    """Return the rules on messages to IPv6 neighbours: neighbour discovery (RFC 4861), group reports (RFC 3810)."""
    six = nf.of_protocol(nf.IPV6)
    rules = []
    for type_, option in ((_ADVERTISEMENT, b"\x02\x01"), (_SOLICITATION, b"\x01\x01")):
        about = [*six, *_at(6, b"\x3a"), *_at(40, bytes([type_]))]
        if type_ == _ADVERTISEMENT:  # about itself only
            others = [part for address in own for part in _at(48, address, negate=True)]
            rules.append([*about, *others, _drop()])
        # Both messages have exactly one option, with a MAC.
        rules.append([*about, nf.payload(nf.NETWORK, 4, 2), nf.between(*_LONGER), _drop()])
        if mac:
            rules.append([*about, *_at(64, option + mac, negate=True), _drop()])
    # Allow group reports from the unspecified address, and all these messages from the link-local address.
    rules.append([*six, *_at(8, bytes(16)), *_at(24, _REPORTS_TO), *_at(6, b"\0"), _accept()])
    for address in own[1:]:
        rules.append([*six, *_at(8, address), *_at(24, _REPORTS_TO), *_at(6, b"\0"), _accept()])
        for type_ in (_ADVERTISEMENT, _SOLICITATION):
            rules.append([*six, *_at(8, address), *_at(6, b"\x3a"), *_at(40, bytes([type_])), _accept()])
    return rules
