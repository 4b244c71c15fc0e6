"""The packet filter of all interfaces, as one nftables table. Pure.

Rules, in the order in which a packet meets them:

1. What neither comes from nor goes to an interface of ours passes untouched.
2. What an interface sends must bear its own MAC and its own address, else it is dropped
   before anything else looks at it.
3. From one environment to another nothing passes, whatever ``allow`` says, and wherever the
   other is: with an end on the host, or on somebody's network, by its address there.
4. A connection passes if an ``allow`` rule covers it. That is judged anew for each of its
   packets, in both directions, so that a rule taken away cuts what it had opened.
5. The host itself is reached by an ``out`` rule only if that names one single address;
   a network, such as ``0.0.0.0/0``, never means the host. (The host as environments
   see it is the gateway's address.) Towards an environment the host is like anybody:
   it needs an ``in`` rule that covers its address.
6. An environment has at most ``connections`` open ones, from it and to it together; what it
   closed leaves the host's table of connections within seconds. So none can fill that table.
7. ICMP errors about a connection that passed may follow it. All else is dropped. No helper
   reads along, so no other connection is ever expected.
8. Ports of the host that are published are led on: ``netspace.interface.published``.

Allowed connections outwards are masqueraded. Everything is looked up in maps by the
interface's name, so that a packet's cost doesn't grow with the number of environments,
and interfaces with the same rules share the chains of these. Names are known before the
interfaces are, so that the filter is there first. Without any ``allow`` the table doesn't
even ask for connection tracking.

The same table as text for nft(8) is ``tests/filter_text.py``: a test has nft load that, and
compares what it then lists with what it lists of this.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from netspace.interface import matching, published
from netspace.interface import nftables as nf
from netspace.interface.matching import FAMILIES, family
from netspace.interface.nftables import Verdict
from netspace.interface.table import Base, Chain, Collection, Rule, Table, Timeout
from netspace.spec.publish import Publication
from netspace.spec.types import Allow, Cidr

# From an environment, to it: by which name it is found.
_WAYS = {"from": nf.IIFNAME, "to": nf.OIFNAME}
# What is closed doesn't count any more: for how many seconds the host goes on remembering it (TIME_WAIT, CLOSE).
_CLOSED = {7: 2, 8: 1}
_MOST = 65536  # interfaces whose connections are counted
_RAW, _SRCNAT = -300, 100  # priorities: linux/netfilter_ipv4.h
# Of a set's keys: nft's number of the type, bytes, and what nft wants to know of their byte order.
_NAME = (41, 16, bytes.fromhex("000401000000"))
_ADDRESS = {"ipv4": (7, 4), "ipv6": (8, 16)}
_NAME_TO_VERDICT = (41, 16, bytes.fromhex("000401000000010400000000"))
# A name, a MAC and an address: each padded to four bytes.
_SOURCE = {
    "ipv4": (41 << 12 | 9 << 6 | 7, 16 + 8 + 4, bytes.fromhex("000400000000")),
    "ipv6": (41 << 12 | 9 << 6 | 8, 16 + 8 + 16, bytes.fromhex("000400000000")),
}


class Guarded(msgspec.Struct, frozen=True):
    """One interface as the filter sees it.

    :param environment: its environment's name; gives the order.
    :param interface: the host end's name.
    :param mac: the only MAC it may send from.
    :param addresses: by family, the only addresses it may send from.
    :param gateways: by family, the host's address at its end.
    :param connections: that may be open at once.
    :param publish: ports of the host that lead to it.
    """

    environment: str
    interface: str
    mac: str
    addresses: Mapping[str, str]
    gateways: Mapping[str, str]
    allow: tuple[Allow, ...] = ()
    connections: int = 1024
    publish: tuple[Publication, ...] = ()


def forwarded(
    allow: Iterable[Allow], gateways: Mapping[str, str], publish: Iterable[Publication] = ()
) -> frozenset[str]:
    """Return the families in which rules concern others than the host, so that it must forward packets."""
    return frozenset(
        fam for rule in allow if (fam := family(rule)) not in gateways or not _is(rule.cidr, gateways[fam])
    ) | {fam for one in publish for fam in one.families}


@functools.lru_cache(4096)
def _is(cidr: Cidr, address: str) -> bool:
    """Return whether a network is that one address."""
    return cidr.network == ipaddress.ip_network(address)


def build(guarded: Sequence[Guarded], elsewhere: Iterable[str] = ()) -> Table:
    """Return the table (family ``inet``) for these; an empty one for none.

    :param elsewhere: addresses of environments that have no end on the host.
    """
    if not guarded:
        return Table()
    ordered = sorted(guarded, key=lambda one: one.environment)
    ruled = [one for one in ordered if one.allow or one.publish]
    keys = {one.interface: _key(one.interface) for one in ordered}
    sets = {"ends": Collection(*_NAME, dict.fromkeys(keys.values()))}
    for fam in FAMILIES:
        sources = (_source(one.interface, one.mac, one.addresses[fam]) for one in ordered if fam in one.addresses)
        sets[f"sources_{fam}"] = Collection(*_SOURCE[fam], dict.fromkeys(sources))
    chains: dict[str, Chain] = {}
    timeouts: dict[str, Timeout] = {}
    if ruled:
        for fam, of in FAMILIES.items():
            timeouts[f"brief_{fam}"] = Timeout(of.proto[0], socket.IPPROTO_TCP, _CLOSED)
        _limits(ruled, keys, chains, sets)
        _allowed(ruled, keys, chains, sets)
        chains["errors"] = Chain(_ICMP_ERRORS)
    chains["spoofed"] = Chain(_SPOOFED, Base("filter", nf.PREROUTING, _RAW))
    for name, end, original, reply in (
        ("beyond", nf.IIFNAME, "out", "in.reply"),
        ("to_host", nf.IIFNAME, "host", "in.reply"),
        ("towards", nf.OIFNAME, "in", "out.reply"),
    ):
        chains[name] = Chain(_judged(end, original, reply) if ruled else [[_DROP]])
    others = _elsewhere(elsewhere, sets) if ruled else []
    for name, (hook, rules) in _HOOKED.items():
        apart: list[Rule] = []
        if name == "forward":
            for which, ours in (("daddr", _OURS_IN), ("saddr", _OURS_OUT)):
                apart += [[*ours, *matching.address(fam, which), nf.member(one), _DROP] for fam, one in others]
        chains[name] = Chain([*apart, *rules], Base("filter", hook))
    if any(rule.direction == "out" and forwarded([rule], one.gateways) for one in ruled for rule in one.allow):
        chains["outward"] = Chain([[*_OURS_IN, nf.MASQUERADE]], Base("nat", nf.POSTROUTING, _SRCNAT))
    if led := [(publication, one.addresses) for one in ordered for publication in one.publish]:
        sent_by = [[*matching.address(fam, "saddr"), nf.member(one)] for fam, one in others]
        more, maps = published.chains(led, sent_by)
        chains.update(more)
        sets.update(maps)
    return Table(chains, sets, timeouts)


def _elsewhere(addresses: Iterable[str], sets: dict[str, Collection]) -> list[tuple[str, str]]:
    """Add sets of these addresses; return the family and the name of each, none where there are no addresses."""
    found: dict[str, set[bytes]] = {}
    for one in addresses:
        parsed = ipaddress.ip_address(one)
        found.setdefault(f"ipv{parsed.version}", set()).add(parsed.packed)
    names = []
    for fam, packed in sorted(found.items()):
        sets[f"elsewhere_{fam}"] = Collection(*_ADDRESS[fam], b"", dict.fromkeys(sorted(packed)))
        names.append((fam, f"elsewhere_{fam}"))
    return names


def chain_name(way: str, rules: Sequence[Allow], publish: Sequence[Publication] = ()) -> str:
    """Return the name of the chain that interfaces with the same rules share."""
    text = repr([*publish, *((str(rule.cidr), rule.protocol, str(rule.port)) for rule in rules)])
    return f"{way}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# Per way that a packet may go: the rules' direction, where the peer and the service stand in it, what then.
WAYS = {
    "out": ("out", "daddr", "dport", "opened.from"),
    "out.reply": ("out", "saddr", "sport", ""),
    "host": ("out", "daddr", "dport", "opened.from"),
    "in": ("in", "saddr", "dport", "opened.to"),
    "in.reply": ("in", "daddr", "sport", ""),
}


def of_way(way: str, allow: Iterable[Allow]) -> tuple[Allow, ...]:
    """Return the rules of *allow* that concern packets on *way*."""
    direction = WAYS[way][0]
    return tuple(rule for rule in allow if rule.direction == direction and (way != "host" or single(rule)))


@functools.lru_cache(4096)
def single(rule: Allow) -> bool:
    """Return whether it names one address."""
    return rule.cidr.network.num_addresses == 1


_DROP, _ACCEPT = nf.verdict(nf.DROP), nf.verdict(nf.ACCEPT)
_OURS_IN = [nf.meta(nf.IIFNAME), nf.member("ends")]
_OURS_OUT = [nf.meta(nf.OIFNAME), nf.member("ends")]
_HOOKED: Mapping[str, tuple[int, Sequence[Rule]]] = {
    "forward": (
        nf.FORWARD,
        [
            [*_OURS_IN, *_OURS_OUT, _DROP],
            [*_OURS_IN, nf.goto("beyond")],
            [*_OURS_OUT, nf.goto("towards")],
        ],
    ),
    "input": (nf.INPUT, [[*_OURS_IN, nf.goto("to_host")]]),
    "output": (nf.OUTPUT, [[*_OURS_OUT, nf.goto("towards")]]),
}
_ICMP_ERRORS: Sequence[Rule] = [
    *([*one, _ACCEPT] for of in FAMILIES.values() for one in matching.icmp(of, *of.errors)),
    [_DROP],
]
_SPOOFED: Sequence[Rule] = [
    [nf.meta(nf.IIFNAME), nf.member("ends", negate=True), _ACCEPT],
    *(
        [
            *nf.is_(nf.IIFTYPE, struct.pack("=H", 1)),  # Ethernet
            nf.payload(nf.LINK, 12, 2),
            nf.equal(struct.pack(">H", of.ether)),
            nf.meta(nf.IIFNAME),
            nf.payload(nf.LINK, 6, 6, nf.SECOND),
            nf.payload(nf.NETWORK, of.address["saddr"], of.length, nf.SECOND_THIRD),
            nf.member(f"sources_{fam}"),
            _ACCEPT,
        ]
        for fam, of in FAMILIES.items()
    ),
    [_DROP],
]


def _judged(end: int, original: str, reply: str) -> list[Rule]:
    return [
        [nf.connection(nf.DIRECTION), nf.equal(nf.ORIGINAL), nf.meta(end), nf.by_map(original)],
        [nf.connection(nf.DIRECTION), nf.equal(nf.REPLY), nf.meta(end), nf.by_map(reply)],
        [*nf.related(), nf.goto("errors")],
        [_DROP],
    ]


def _allowed(
    ruled: Sequence[Guarded], keys: Mapping[str, bytes], chains: dict[str, Chain], sets: dict[str, Collection]
) -> None:
    """Add chains of rules, one for all interfaces with the same rules, and the maps that lead there."""
    for way in WAYS:
        elements: dict[bytes, Verdict | None] = {}
        for one in ruled:
            name, rules = _chain(way, one.allow, one.publish)
            if rules:
                chains.setdefault(name, Chain(rules))
                elements[keys[one.interface]] = nf.to_jump(name)
        sets[way] = Collection(*_NAME_TO_VERDICT, elements, verdicts=True)


@functools.lru_cache(4096)
def _chain(way: str, allow: tuple[Allow, ...], publish: tuple[Publication, ...]) -> tuple[str, Sequence[Rule]]:
    direction, peer, port, chain = WAYS[way]
    then = nf.goto(chain) if chain else _ACCEPT
    rules = of_way(way, allow)
    led = publish if direction == "in" else ()
    made = [[*published.let_in(one, reply=not chain), then] for one in led]
    return chain_name(way, rules, led), [*made, *([*matching.covers(rule, peer, port), then] for rule in rules)]


def _limits(
    ruled: Sequence[Guarded], keys: Mapping[str, bytes], chains: dict[str, Chain], sets: dict[str, Collection]
) -> None:
    """Add the chains for the first packet of an allowed connection: they count connections by interface."""
    for most in sorted({one.connections for one in ruled}):
        sets[f"open.{most}"] = Collection(*_NAME, most=_MOST)
        for way, end in _WAYS.items():
            briefly = (
                [*nf.is_(nf.NFPROTO, of.proto), *nf.is_(nf.L4PROTO, b"\x06"), nf.use_timeout(f"brief_{fam}")]
                for fam, of in FAMILIES.items()
            )
            counted = [nf.meta(end), nf.more_open_each(f"open.{most}", most), _DROP]
            chains[f"most.{most}.{way}"] = Chain([*briefly, counted, [_ACCEPT]])
    for way, end in _WAYS.items():
        led = {keys[one.interface]: nf.to_goto(f"most.{one.connections}.{way}") for one in ruled}
        sets[f"connections.{way}"] = Collection(*_NAME_TO_VERDICT, led, verdicts=True)
        chains[f"opened.{way}"] = Chain([
            [*nf.not_new(), _ACCEPT],
            [nf.meta(end), nf.by_map(f"connections.{way}")],
            [_DROP],
        ])  # fmt: skip


@functools.lru_cache(16384)
def _key(interface: str) -> bytes:
    return interface.encode().ljust(16, b"\0")


@functools.lru_cache(16384)
def _source(interface: str, mac: str, address: str) -> bytes:
    ether = bytes.fromhex(mac.replace(":", "")) + bytes(2)
    return _key(interface) + ether + ipaddress.ip_address(address).packed
