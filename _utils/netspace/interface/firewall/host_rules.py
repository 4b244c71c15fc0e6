"""The packet filter of all interfaces with an end on the host, as one nftables table. Pure.

Rules, in the order in which a packet meets them:

1. A packet that neither comes from nor goes to an interface of netspace passes untouched.
2. A packet from an interface must have the interface's own MAC and address as its source; otherwise it is dropped
  before any other check.
3. No packet passes from one environment to another, whatever ``allow`` says. That holds for environments with an end on
  the host, and for those on an external network, by their address there.
4. A connection passes if an ``allow`` rule covers it. Each of its packets is checked, in both directions, so that
  removing a rule cuts the connections that it had allowed.
5. An ``out`` rule allows connections to the host itself only if it names one single address; a network, such as
  ``0.0.0.0/0``, never includes the host. (Environments reach the host at the gateway's address.) To reach an
  environment, the host needs an ``in`` rule that covers its address, like every other peer. A rule for a name never
  includes the host.
6. An environment has at most ``connections`` open connections, counted over both directions. Connections through its
  published ports are counted separately, with the same limit, so that a flood of them blocks no other connection. A
  closed connection leaves the host's connection tracking table within seconds. So no environment can fill that table.
7. ICMP errors about an allowed connection pass. All other packets are dropped. No connection tracking helper is used,
  so no additional connection is ever expected.
8. Published ports of the host are forwarded: see ``netspace.interface.firewall.published``.
9. Before rules 2, 3 and 7 drop a packet of an audited environment, the packet is recorded: see
  ``netspace.interface.firewall.recording``. Packets that rule 6 drops are not recorded.

Allowed connections to other hosts are masqueraded, from source ports that nobody can publish: see rule 5 in
``netspace.interface.firewall.published``. Rules are found by maps with the interface's name as key. So a packet's cost
doesn't grow with the number of environments, and interfaces with the same rules share chains. The names are known
before the interfaces exist, so the filter is loaded first. Without any ``allow``, the table doesn't enable connection
tracking.

``nft list table inet netspace`` shows the table with the names that are used here.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from netspace.interface import match
from netspace.interface.firewall import counting, published, recording
from netspace.interface.match import FAMILIES, family
from netspace.nftables.table import Base, Chain, Collection, Rule, Table, Timeout
from netspace.nftables.words import Verdict, to_goto, to_jump
from netspace.spec.publish import OUTWARDS, Publication
from netspace.spec.types import ADDRESSES_OF_NAME, Allow, Cidr, Direction

# For connections from an environment, to it, and to it by a published port: the match for the environment's interface
# in the first packet, and the set that counts these connections.
_COUNTED = {"from": ("iifname", "open"), "to": ("oifname", "open"), "led": ("oifname", "led")}
# Seconds that the host tracks a closed connection.
_CLOSED = {"time_wait": 2, "close": 1}
_MOST = 65536  # the most interfaces whose connections one set can count
_RAW, _SRCNAT = -300, 100  # priorities: linux/netfilter_ipv4.h
_NAME = ("ifname",)


class HostFiltered(msgspec.Struct, frozen=True):
    """The facts about one interface that the filter depends on.

    :param environment: its environment's name; interfaces are sorted by it.
    :param interface: the host end's name.
    :param mac: the only MAC from which it may send.
    :param addresses: the only addresses from which it may send, by family.
    :param gateways: the host's address at the host's end, by family.
    :param connections: the most connections that may be open at once.
    :param allow: its rules, each for one family (``Allow.each``).
    :param publish: the ports of the host that are forwarded to it.
    :param audit: whether its refused packets are recorded.
    """

    environment: str
    interface: str
    mac: str
    addresses: Mapping[str, str]
    gateways: Mapping[str, str]
    allow: tuple[Allow, ...] = ()
    connections: int = 1024
    publish: tuple[Publication, ...] = ()
    audit: bool = False


def forwarded(
    allow: Iterable[Allow], gateways: Mapping[str, str], publish: Iterable[Publication] = ()
) -> frozenset[str]:
    """Return the families in which the host must forward packets, because a rule or publication needs it.

    A rule for the gateway's address alone needs no forwarding: it allows connections to the host itself.
    """
    return frozenset(
        fam for rule in allow if (fam := family(rule)) not in gateways or not _is(rule.cidr, gateways[fam])
    ) | {fam for one in publish for fam in one.families}


@functools.lru_cache(4096)
def _is(cidr: Cidr | None, address: str) -> bool:
    """Return whether a network consists of this one address."""
    return cidr is not None and cidr.network == ipaddress.ip_network(address)


def build(guarded: Sequence[HostFiltered], elsewhere: Iterable[str] = ()) -> Table:
    """Return the table (family ``inet``) for these interfaces; an empty table if there are none.

    :param elsewhere: the addresses of environments whose interfaces have no end on the host.
    """
    if not guarded:
        return Table()
    ordered = sorted(guarded, key=lambda one: one.environment)
    ruled = [one for one in ordered if one.allow or one.publish]
    keys = {one.interface: _key(one.interface) for one in ordered}
    sets = {"ends": Collection(_NAME, dict.fromkeys(keys.values()))}
    for fam, of in FAMILIES.items():
        sources = (_source(one.interface, one.mac, one.addresses[fam]) for one in ordered if fam in one.addresses)
        sets[f"sources_{fam}"] = Collection(("ifname", "ether_addr", of.type), dict.fromkeys(sources))
    chains: dict[str, Chain] = {}
    timeouts: dict[str, Timeout] = {}
    if ruled:
        for fam, of in FAMILIES.items():
            timeouts[f"brief_{fam}"] = Timeout(of.word, "tcp", _CLOSED)
        sets.update(name_sets(rule for one in ruled for rule in one.allow))
        _limits(ruled, keys, chains, sets)
        _allowed(ruled, keys, chains, sets)
        chains["errors"] = Chain(_ICMP_ERRORS)
    audited = [one for one in ordered if one.audit]
    _recorded(audited, keys, chains, sets, tracked=bool(ruled))
    _counted(ordered, keys, chains, sets)
    forged = [*(["iifname vmap @audited.forged"] if audited else []), counting.count("out", "forged")]
    chains["spoofed"] = Chain(recording.joined(_spoofed(), forged), Base("filter", "prerouting", _RAW))
    for name, end, original, reply in (
        ("beyond", "iifname", "out", "in.reply"),
        ("to_host", "iifname", "host", "in.reply"),
        ("towards", "oifname", "in", "out.reply"),
    ):
        judged = _judged(end, original, reply) if ruled else ["drop"]
        recorded = [f"{end} vmap @audited.{'out' if end == 'iifname' else 'in'}"] if audited else []
        counted = f"jump dropped.{'out' if end == 'iifname' else 'in'}"
        chains[name] = Chain(recording.joined(judged, [*recorded, counted]))
    others = _elsewhere(elsewhere, sets) if ruled else []
    for name, (hook, rules) in _HOOKED.items():
        apart: list[Rule] = []
        if name == "forward":
            for which, end in (("daddr", "iifname"), ("saddr", "oifname")):
                apart += [f"{end} @ends {FAMILIES[fam].word} {which} @{one} goto between" for fam, one in others]
            apart.append("iifname @ends oifname @ends goto between")
        chains[name] = Chain([*apart, *rules], Base("filter", hook))
    if any(rule.direction == "out" and forwarded([rule], one.gateways) for one in ruled for rule in one.allow):
        chains["outward"] = Chain(_MASQUERADED, Base("nat", "postrouting", _SRCNAT))
    if led := [(publication, one.addresses) for one in ordered for publication in one.publish]:
        sent_by = [f"{FAMILIES[fam].word} saddr @{one}" for fam, one in others]
        more, maps = published.chains(led, sent_by)
        chains.update(more)
        sets.update(maps)
    return Table(chains, sets, timeouts)


def _elsewhere(addresses: Iterable[str], sets: dict[str, Collection]) -> list[tuple[str, str]]:
    """Add a set of these addresses for each family among them; return pairs of family and set name."""
    found: dict[str, set[bytes]] = {}
    for one in addresses:
        parsed = ipaddress.ip_address(one)
        found.setdefault(f"ipv{parsed.version}", set()).add(parsed.packed)
    names = []
    for fam, packed in sorted(found.items()):
        sets[f"elsewhere_{fam}"] = Collection((FAMILIES[fam].type,), dict.fromkeys(sorted(packed)))
        names.append((fam, f"elsewhere_{fam}"))
    return names


def _told(rule: Allow) -> tuple[str, ...]:
    named = (rule.name,) if rule.name is not None else ()
    return (str(rule.cidr), rule.protocol, str(rule.port), *named)


def name_sets(allow: Iterable[Allow]) -> dict[str, Collection]:
    """Return empty sets, one for each name in these rules. ``netspace.interface.names`` fills them with addresses."""
    named = [(rule.name, str(rule.cidr), family(rule)) for rule in allow if rule.name is not None]
    return {
        match.name_set(name, network, fam): Collection((FAMILIES[fam].type,), most=ADDRESSES_OF_NAME, expiring=True)
        for name, network, fam in named
    }


def chain_name(way: str, rules: Sequence[Allow], publish: Sequence[Publication] = ()) -> str:
    """Return the name of the chain that all interfaces with these rules share."""
    text = repr([*publish, *(_told(rule) for rule in rules)])
    return f"{way}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# For each way of a packet: the direction of its rules, the fields with the peer's address and the server's port, and
# the chain for packets that a rule covers (empty: accept).
WAYS: Mapping[str, tuple[Direction, str, str, str]] = {
    "out": ("out", "daddr", "dport", "opened.from"),
    "out.reply": ("out", "saddr", "sport", ""),
    "host": ("out", "daddr", "dport", "opened.from"),
    "in": ("in", "saddr", "dport", "opened.to"),
    "in.reply": ("in", "daddr", "sport", ""),
}


def of_way(way: str, allow: Iterable[Allow]) -> tuple[Allow, ...]:
    """Return the rules of *allow* that concern packets on *way* (a key of :data:`WAYS`)."""
    direction = WAYS[way][0]
    return tuple(rule for rule in allow if rule.direction == direction and (way != "host" or single(rule)))


@functools.lru_cache(4096)
def single(rule: Allow) -> bool:
    """Return whether a rule names exactly one address. A rule for a host name never does."""
    return rule.cidr is not None and rule.name is None and rule.cidr.network.num_addresses == 1


_MASQUERADED: Sequence[Rule] = [
    *(
        f"iifname @ends meta l4proto {protocol} masquerade to :{OUTWARDS[0]}-{OUTWARDS[-1]}"
        for protocol in match.PROTOCOLS
    ),
    "iifname @ends masquerade",
]
_HOOKED: Mapping[str, tuple[str, Sequence[Rule]]] = {
    "forward": (
        "forward",
        ["iifname @ends goto beyond", "oifname @ends goto towards"],
    ),
    "input": ("input", ["iifname @ends goto to_host"]),
    "output": ("output", ["oifname @ends goto towards"]),
}
_ICMP_ERRORS: Sequence[Rule] = [
    *(f"{one} accept" for of in FAMILIES.values() for one in match.errors(of)),
    "drop",
]


def _spoofed() -> list[Rule]:
    """Return the rules that drop a packet whose MAC or address isn't the own one of its interface."""
    own = [f"iifname . ether saddr . {of.word} saddr @sources_{fam} goto genuine" for fam, of in FAMILIES.items()]
    return ["iifname != @ends accept", *own, "drop"]


def _judged(end: str, original: str, reply: str) -> list[Rule]:
    return [
        f"ct direction original {end} vmap @{original}",
        f"ct direction reply {end} vmap @{reply}",
        "ct state related goto errors",
        "drop",
    ]


def _allowed(
    ruled: Sequence[HostFiltered], keys: Mapping[str, bytes], chains: dict[str, Chain], sets: dict[str, Collection]
) -> None:
    """Add the chains with the interfaces' rules, and maps from interfaces to chains.

    Interfaces with the same rules share a chain.
    """
    for way in WAYS:
        elements: dict[bytes, Verdict | None] = {}
        for one in ruled:
            name, rules, counted = _chain(way, one.allow, one.publish)
            if rules:
                chains.setdefault(name, Chain(rules))
                chains.update(counted)
                elements[keys[one.interface]] = to_jump(name)
        sets[way] = Collection(_NAME, elements, verdicts=True)


@functools.lru_cache(4096)
def _chain(
    way: str, allow: tuple[Allow, ...], publish: tuple[Publication, ...]
) -> tuple[str, Sequence[Rule], Mapping[str, Chain]]:
    """Return the chain of these rules for packets on *way*: name, rules, and the counting chains that it leads to.

    :param way: a key of :data:`WAYS`.
    """
    direction, peer, port, opened = WAYS[way]
    rules = of_way(way, allow)
    led = publish if direction == "in" else ()
    made: list[Rule] = []
    counted: dict[str, Chain] = {}

    def then(what: str, opened: str) -> str:
        """Return the end of a rule: accept the packet, or go to the chain that counts it first.

        Only packets in the rule's own direction are counted.
        """
        if not opened:
            return "accept"
        name = counting.chain(direction, what)
        counted[name] = Chain([counting.count(direction, what), f"goto {opened}"])
        return f"goto {name}"

    for one in led:
        to = then(counting.published(one), "opened.led" if opened else "")
        made.append(f"{published.let_in(one, reply=not opened)} {to}")
    made += [f"{match.covers(rule, peer, port)} {then(counting.text(rule), opened)}" for rule in rules]
    return chain_name(way, rules, led), made, counted


_NEVER_FORWARDED = ("local", "broadcast", "multicast", "anycast")  # the hook "input" sees packets to these


def _counted(
    ordered: Sequence[HostFiltered], keys: Mapping[str, bytes], chains: dict[str, Chain], sets: dict[str, Collection]
) -> None:
    """Add the set and the chains that count dropped packets. Change the chain of packets with a genuine source.

    A packet that the host doesn't forward never reaches the rules that count dropped packets. So the chain of packets
    with a genuine source counts it.
    """
    sets[counting.SET] = counting.collection(counting.INTERFACE)
    counted = []
    for fam in FAMILIES:
        name = f"forwarded.{fam}"
        ends = (one for one in ordered if fam in forwarded(one.allow, one.gateways, one.publish))
        sets[name] = Collection(_NAME, dict.fromkeys(keys[one.interface] for one in ends))
        counted.append(f"meta nfproto {fam} iifname != @{name} jump unforwarded")
    others = [f"fib daddr type {one} return" for one in _NEVER_FORWARDED]
    chains["unforwarded"] = Chain([*others, "goto dropped.out"])
    chains["genuine"] = Chain([*counted, *chains["genuine"].rules] if "genuine" in chains else [*counted, "accept"])
    # Only the sender's counts and record have what one environment sends to another.
    recorded = chains["between"].rules if "between" in chains else ["drop"]
    chains["between"] = Chain(recording.joined(recorded, [counting.count("out", "neighbour")]))
    for direction in recording.DIRECTIONS:
        chains[f"dropped.{direction}"] = counting.dropped(direction)


def _recorded(
    audited: Sequence[HostFiltered],
    keys: Mapping[str, bytes],
    chains: dict[str, Chain],
    sets: dict[str, Collection],
    *,
    tracked: bool,
) -> None:
    """Add chains and sets that record refused packets of audited interfaces, and maps from interfaces to chains.

    :param tracked: whether connections are tracked.
    """
    if not audited:
        return
    unforwarded = {fam: f"unforwarded.{fam}" for fam in FAMILIES}
    leading: dict[str, dict[bytes, Verdict | None]] = {
        which: {} for which in (*recording.DIRECTIONS, "forged", *unforwarded.values())
    }
    for one in audited:
        name, key = one.environment, keys[one.interface]
        sets.update(recording.sets(name))
        for direction in recording.DIRECTIONS:
            chains[recording.chain(name, direction)] = Chain(recording.rules(name, direction, tracked=tracked))
            leading[direction][key] = to_jump(recording.chain(name, direction))
        chains[recording.chain(name, "forged")] = Chain(recording.forged(name))
        leading["forged"][key] = to_jump(recording.chain(name, "forged"))
        chains[recording.chain(name, "unforwarded")] = Chain([f"jump {recording.chain(name, 'out')}", "drop"])
        for fam in FAMILIES.keys() - forwarded(one.allow, one.gateways, one.publish):
            leading[unforwarded[fam]][key] = to_jump(recording.chain(name, "unforwarded"))
    for which, elements in leading.items():
        sets[f"audited.{which}"] = Collection(_NAME, elements, verdicts=True)
    # The host drops packets that it doesn't forward before the other hooks could see them.
    beyond = [
        f"meta nfproto {fam} fib daddr type != local iifname vmap @audited.{it}" for fam, it in unforwarded.items()
    ]
    chains["genuine"] = Chain([*beyond, "accept"])
    # Only the sender's record has what one environment sends to another: else a neighbour could fill the receiver's.
    chains["between"] = Chain(["iifname vmap @audited.out", "drop"])


def _limits(
    ruled: Sequence[HostFiltered], keys: Mapping[str, bytes], chains: dict[str, Chain], sets: dict[str, Collection]
) -> None:
    """Add the chains that limit each interface's connections. A connection is counted at its first allowed packet."""
    any_led = any(one.publish for one in ruled)
    counted_ways = {way: how for way, how in _COUNTED.items() if way != "led" or any_led}
    for direction in recording.DIRECTIONS:
        chains[f"full.{direction}"] = Chain([counting.count(direction, "connections"), "drop"])
    for most in sorted({one.connections for one in ruled}):
        for way, (end, counter) in counted_ways.items():
            direction = "out" if way == "from" else "in"
            sets[f"{counter}.{most}"] = Collection(_NAME, most=_MOST)
            briefly = (f'meta nfproto {fam} meta l4proto tcp ct timeout set "brief_{fam}"' for fam in FAMILIES)
            counted = f"add @{counter}.{most} {{ {end} ct count over {most} }} goto full.{direction}"
            chains[f"most.{most}.{way}"] = Chain([*briefly, counted, "accept"])
    for way, (end, _) in counted_ways.items():
        led = {keys[one.interface]: to_goto(f"most.{one.connections}.{way}") for one in ruled}
        sets[f"connections.{way}"] = Collection(_NAME, led, verdicts=True)
        chains[f"opened.{way}"] = Chain(["ct state != new accept", f"{end} vmap @connections.{way}", "drop"])


@functools.lru_cache(16384)
def _key(interface: str) -> bytes:
    return interface.encode().ljust(16, b"\0")


@functools.lru_cache(16384)
def _source(interface: str, mac: str, address: str) -> bytes:
    ether = bytes.fromhex(mac.replace(":", "")) + bytes(2)
    return _key(interface) + ether + ipaddress.ip_address(address).packed
