"""The packet filter of all interfaces, as the text of one nftables table. Pure.

Rules, in the order in which a packet meets them:

1. What neither comes from nor goes to an interface of ours passes untouched.
2. What an interface sends must bear its own MAC and its own address, else it is dropped
   before anything else looks at it.
3. From one environment to another nothing passes, whatever ``allow`` says.
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

Allowed connections outwards are masqueraded. Everything is looked up in maps by the
interface's name, so that a packet's cost doesn't grow with the number of environments,
and interfaces with the same rules share the chains of these. Names are known before the
interfaces are, so that the filter is there first. Without any ``allow`` the table doesn't
even ask for connection tracking.

Source of the syntax: nft(8).
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netspace.spec import check
from netspace.spec.types import Allow, Cidr

FAMILIES = ("ipv4", "ipv6")
# From an environment, to it: by which name it is found.
_WAYS = {"from": "iifname", "to": "oifname"}
_WORD = {"ipv4": "ip", "ipv6": "ip6"}
_TYPE = {"ipv4": "ipv4_addr", "ipv6": "ipv6_addr"}
_ICMP = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
# What is closed doesn't count any more: for how many seconds the host goes on remembering it.
_CLOSED = "time_wait : 2, close : 1"
_ERRORS = (
    "ct state related icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
    "ct state related icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
)


@dataclass(frozen=True)
class Guarded:
    """One interface as the filter sees it.

    :param environment: its environment's name; gives the order.
    :param interface: the host end's name.
    :param mac: the only MAC it may send from.
    :param addresses: by family, the only addresses it may send from.
    :param gateways: by family, the host's address at its end.
    :param connections: that may be open at once.
    """

    environment: str
    interface: str
    mac: str
    addresses: Mapping[str, str]
    gateways: Mapping[str, str]
    allow: tuple[Allow, ...] = ()
    connections: int = 1024


def family(rule: Allow) -> str:
    """``ipv4`` or ``ipv6``."""
    return "ipv6" if ":" in rule.cidr else "ipv4"


def forwarded(allow: Iterable[Allow], gateways: Mapping[str, str]) -> frozenset[str]:
    """The families in which *allow* concerns others than the host, so that it must forward packets."""
    return frozenset(
        fam for rule in allow if (fam := family(rule)) not in gateways or not _is(rule.cidr, gateways[fam])
    )


@functools.lru_cache(4096)
def _is(cidr: Cidr, address: str) -> bool:
    """Whether a network is that one address."""
    return cidr.network == ipaddress.ip_network(address)


def render(table: str, guarded: Sequence[Guarded]) -> str:
    """The transaction that puts the table (family ``inet``) in place of an older one, or removes it."""
    text = [f"add table inet {table}", f"delete table inet {table}"]
    if not guarded:
        return "\n".join(text) + "\n"
    ordered = sorted(guarded, key=lambda one: one.environment)
    ruled = any(one.allow for one in ordered)
    text.append(f"table inet {table} {{")
    text += _collection("set ends", "ifname", (f'"{one.interface}"' for one in ordered))
    for fam in FAMILIES:
        sources = (f'"{one.interface}" . {one.mac} . {one.addresses[fam]}' for one in ordered if fam in one.addresses)
        text += _collection(f"set sources_{fam}", f"ifname . ether_addr . {_TYPE[fam]}", sources)
    if ruled:
        text += _limits([one for one in ordered if one.allow])
        text += _chains(ordered)
    text += _base("spoofed", "filter", "prerouting", "raw", [
        "iifname != @ends accept",
        *(f"iifname . ether saddr . {_WORD[fam]} saddr @sources_{fam} accept" for fam in FAMILIES),
        "drop",
    ])  # fmt: skip
    text += _chain("beyond", _judged(ruled, "iifname", "out", "in.reply"))
    text += _chain("to_host", _judged(ruled, "iifname", "host", "in.reply"))
    text += _chain("towards", _judged(ruled, "oifname", "in", "out.reply"))
    text += _base("forward", "filter", "forward", "filter", [
        "iifname @ends oifname @ends drop",
        "iifname @ends goto beyond",
        "oifname @ends goto towards",
    ])  # fmt: skip
    text += _base("input", "filter", "input", "filter", ["iifname @ends goto to_host"])
    text += _base("output", "filter", "output", "filter", ["oifname @ends goto towards"])
    if any(rule.direction == "out" and forwarded([rule], one.gateways) for one in ordered for rule in one.allow):
        text += _base("outward", "nat", "postrouting", "srcnat", ["iifname @ends masquerade"])
    text.append("}")
    return "\n".join(text) + "\n"


def _judged(ruled: bool, end: str, original: str, reply: str) -> list[str]:
    if not ruled:
        return ["drop"]
    return [
        f"ct direction original {end} vmap @{original}",
        f"ct direction reply {end} vmap @{reply}",
        *_ERRORS,
        "drop",
    ]


def _chains(ordered: Sequence[Guarded]) -> list[str]:
    """Chains of rules, one for all interfaces with the same rules, and the maps that lead there."""
    chains: dict[str, list[str]] = {}
    ways: dict[str, list[str]] = {"out": [], "out.reply": [], "host": [], "in": [], "in.reply": []}
    for one in ordered:
        outward = [rule for rule in one.allow if rule.direction == "out"]
        inward = [rule for rule in one.allow if rule.direction == "in"]
        for way, rules, peer, port, verdict in (
            ("out", outward, "daddr", "dport", "goto opened.from"),
            ("out.reply", outward, "saddr", "sport", "accept"),
            ("host", [rule for rule in outward if _single(rule)], "daddr", "dport", "goto opened.from"),
            ("in", inward, "saddr", "dport", "goto opened.to"),
            ("in.reply", inward, "daddr", "sport", "accept"),
        ):
            if rules:
                text = [f"{_matches(rule, peer, port)} {verdict}" for rule in rules]
                name = f"{way}.{hashlib.sha256(repr(text).encode()).hexdigest()[:12]}"
                chains.setdefault(name, _chain(name, text))
                ways[way].append(f'"{one.interface}" : jump {name}')
    text = [line for name in sorted(chains) for line in chains[name]]
    for way, elements in ways.items():
        text += _collection(f"map {way}", "ifname : verdict", elements)
    return text


@functools.lru_cache(4096)
def _single(rule: Allow) -> bool:
    return rule.cidr.network.num_addresses == 1


def _limits(ruled: Sequence[Guarded]) -> list[str]:
    """Where the first packet of an allowed connection goes: connections are counted by interface."""
    text = []
    for fam in FAMILIES:
        text += _block(f"ct timeout brief_{fam}", "protocol tcp", f"l3proto {_WORD[fam]}", f"policy = {{ {_CLOSED} }}")
    for most in sorted({one.connections for one in ruled}):
        text += _block(f"set open.{most}", "type ifname", "size 65536", "flags dynamic")
        for way, end in _WAYS.items():
            text += _chain(f"most.{most}.{way}", [
                *(f'meta nfproto {fam} meta l4proto tcp ct timeout set "brief_{fam}"' for fam in FAMILIES),
                f"add @open.{most} {{ {end} ct count over {most} }} drop",
                "accept",
            ])  # fmt: skip
    for way, end in _WAYS.items():
        elements = (f'"{one.interface}" : goto most.{one.connections}.{way}' for one in ruled)
        text += _collection(f"map connections.{way}", "ifname : verdict", elements)
        text += _chain(f"opened.{way}", ["ct state != new accept", f"{end} vmap @connections.{way}", "drop"])
    return text


@functools.lru_cache(4096)
def _matches(rule: Allow, peer: str, port: str) -> str:
    fam = family(rule)
    network = rule.cidr.network
    if network.prefixlen == 0:
        words = [f"meta nfproto {fam}"]
    else:
        address: ipaddress.IPv4Network | ipaddress.IPv6Network | str = network
        if _single(rule):
            address = str(network.network_address)
        words = [f"{_WORD[fam]} {peer} {address}"]
    if rule.protocol == "icmp":
        words.append(f"meta l4proto {_ICMP[fam]}")
    elif rule.port is None:
        words.append(f"meta l4proto {rule.protocol}")
    else:
        bounds = check.ports(rule.port)
        assert bounds is not None  # the declaration was checked
        first, last = bounds
        words.append(f"{rule.protocol} {port} {first}" + (f"-{last}" if last != first else ""))
    return " ".join(words)


def _collection(head: str, type_: str, elements: Iterable[str]) -> list[str]:
    listed = list(elements)
    text = [f"\t{head} {{", f"\t\ttype {type_}"]
    if listed:
        text.append(f"\t\telements = {{ {', '.join(listed)} }}")
    return [*text, "\t}"]


def _chain(name: str, rules: Iterable[str]) -> list[str]:
    return _block(f"chain {name}", *rules)


def _block(head: str, *lines: str) -> list[str]:
    return [f"\t{head} {{", *(f"\t\t{line}" for line in lines), "\t}"]


def _base(name: str, type_: str, hook: str, priority: str, rules: Iterable[str]) -> list[str]:
    head = f"type {type_} hook {hook} priority {priority}; policy accept;"
    return _chain(name, [head, *rules])
