"""The packet filter of one interface whose packets don't pass the host's network stack. Pure.

The tables are in the environment's namespace. This namespace belongs to the host's user namespace, so no capability of
an environment suffices to change the tables. They are loaded before the interface is up. Rules, in the order in which a
packet meets them:

1. A packet that leaves must have the environment's own MAC and address as its source, and so must its ARP and neighbour
  discovery data. Other protocols, tagged frames, router advertisements and redirects are dropped.
2. No packet passes to or from another environment of this host, whatever ``allow`` says.
3. A packet that arrives must be for the environment's own address.
4. A connection passes if an ``allow`` rule covers it. Each of its packets is checked, in both directions. At most
  ``connections`` are open at once.
5. ICMP errors about an allowed connection pass. All other packets are dropped.
6. Before rules 2 and 5 drop a packet of an audited environment, the packet is recorded: see
  ``netspace.interface.firewall.recording``.

These rules mean the same as those of the host's table (``netspace.interface.firewall.host_rules``), which filters the
other kinds of interface. A test checks both against one model.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import msgspec

from netspace.interface import match
from netspace.interface.firewall import counting, host_rules, recording
from netspace.interface.match import FAMILIES
from netspace.nftables.table import Base, Chain, Collection, Rule, Table
from netspace.nftables.words import at, longer
from netspace.spec.types import Allow, Direction

_LOOPBACK = 1  # the index of lo
_SOLICITATION, _ADVERTISEMENT, _QUERY, _REPORT = 135, 136, 130, 143
_REPORTS_TO = ipaddress.IPv6Address("ff02::16")  # RFC 3810 section 5.2.14


class NetnsFiltered(msgspec.Struct, frozen=True):
    """The facts about one interface that its table depends on.

    :param link: the network device's name.
    :param mac: the only MAC from which it may send; empty for a kind without its own MAC.
    :param arp: whether it resolves neighbours.
    :param addresses: the only address from which it may send, by family.
    :param allow: its rules, each for one family (``Allow.each``).
    :param connections: the most connections that may be open at once.
    :param local: its IPv6 link-local address, if it has one; used only for messages to neighbours.
    :param others: the addresses of other environments that ``allow`` covers, by family.
    :param audit: whether its refused packets are recorded.
    """

    link: str
    mac: str
    arp: bool
    addresses: Mapping[str, str]
    allow: tuple[Allow, ...] = ()
    connections: int = 1024
    local: str = ""
    others: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)
    audit: bool = False


def covered(allow: Sequence[Allow], addresses: Sequence[tuple[int, int]]) -> dict[str, list[str]]:
    """Return those of *addresses* that at least one rule covers, by family.

    :param addresses: pairs of version and number, sorted.
    """
    from bisect import bisect_left, bisect_right

    found: dict[str, set[str]] = {}
    for rule in allow:
        assert rule.cidr is not None
        network = rule.cidr.network
        first, last = (network.version, int(network[0])), (network.version, int(network[-1]))
        for _, number in addresses[bisect_left(addresses, first) : bisect_right(addresses, last)]:
            address = ipaddress.IPv4Address(number) if network.version == 4 else ipaddress.IPv6Address(number)
            found.setdefault(f"ipv{network.version}", set()).add(str(address))
    return {family: sorted(ones) for family, ones in found.items()}


def render(guarded: NetnsFiltered) -> tuple[Table, ...]:
    """Return the tables (families ``inet`` and ``netdev``) that filter this interface."""
    # A set is there even if it is empty: a later environment then only adds an element.
    sets = {
        f"others_{name}": Collection(
            (FAMILIES[name].type,),
            dict.fromkeys(ipaddress.ip_address(other).packed for other in guarded.others.get(name, ())),
        )
        for name in guarded.addresses
    }
    sets.update(host_rules.name_sets(rule for rule in guarded.allow if match.family(rule) in guarded.addresses))
    sets[counting.SET] = counting.collection(counting.ALONE)
    ends: tuple[tuple[Direction, str], ...] = (("out", "oif != 0"), ("in", "iif != 0"))
    full = [f"{end} {counting.count(way, 'connections', alone=True)}" for way, end in ends]
    chains = {
        "opened": Chain(["ct state != new accept", f"ct count over {guarded.connections} goto full", "accept"]),
        "full": Chain([*full, "drop"]),
        "output": Chain(_judged(guarded, outwards=True), Base("filter", "output", policy="drop")),
        "input": Chain(_judged(guarded, outwards=False), Base("filter", "input", policy="drop")),
        "forward": Chain([], Base("filter", "forward", policy="drop")),
    }
    for way in recording.DIRECTIONS:
        chains[f"dropped.{way}"] = counting.dropped(way, alone=True)
    for rule in guarded.allow:
        if match.family(rule) in guarded.addresses:
            what = counting.text(rule)
            counted = [counting.count(rule.direction, what, alone=True), "goto opened"]
            chains[counting.chain(rule.direction, what)] = Chain(counted)
    if guarded.audit:
        sets.update(recording.sets(""))
        for way in recording.DIRECTIONS:
            chains[recording.chain("", way)] = Chain(recording.rules("", way, tracked=True))
    leaving = Chain(_pinned(guarded), Base("filter", "egress", policy="drop", device=guarded.link))
    return Table(chains, sets), Table({"leaving": leaving}, family="netdev")


def _judged(guarded: NetnsFiltered, *, outwards: bool) -> list[Rule]:
    """Return the rules for packets that the environment sends (*outwards*), or for packets that it receives."""
    recorded = [f"jump {recording.chain('', 'out' if outwards else 'in')}"] if guarded.audit else []
    rules = [f"{'oif' if outwards else 'iif'} {_LOOPBACK} accept"]
    # Hop limit 255: neighbour discovery never comes from beyond the link (RFC 4861 section 7.1).
    rules += [f"icmpv6 type {type_} ip6 hoplimit 255 accept" for type_ in (_SOLICITATION, _ADVERTISEMENT)]
    if outwards:
        rules.append(f"icmpv6 type {_REPORT} ip6 daddr {_REPORTS_TO} accept")
    else:
        rules.append(f"icmpv6 type {_QUERY} ip6 hoplimit 1 accept")
    for name, family in FAMILIES.items():
        if name not in guarded.addresses:
            rules.append(f"meta nfproto {name} drop")
            continue
        own = ipaddress.ip_address(guarded.addresses[name])
        mine, theirs = ("saddr", "daddr") if outwards else ("daddr", "saddr")
        counted = (counting.count("out", "forged", alone=True), counting.count("out", "neighbour", alone=True))
        rules += [f"{family.word} {mine} != {own} {one}" for one in (*([counted[0]] if outwards else ()), "drop")]
        others = f"{family.word} {theirs} @others_{name}"
        # Only the sender's record has what another environment sends: else a neighbour could fill the receiver's.
        rules += [f"{others} {one}" for one in (*([*recorded, counted[1]] if outwards else ()), "drop")]
        for direction in ("out", "in"):
            original = (direction == "out") == outwards
            way, port = ("original", "dport") if original else ("reply", "sport")
            rules += [
                f"ct direction {way} {match.covers(rule, theirs, port)} {_then(rule) if original else 'accept'}"
                for rule in guarded.allow
                if rule.direction == direction and match.family(rule) == name
            ]
        rules += [f"ct state related {one} accept" for one in match.errors(family)]
    return [*rules, *recorded, f"jump dropped.{'out' if outwards else 'in'}"]


def _then(rule: Allow) -> str:
    return f"goto {counting.chain(rule.direction, counting.text(rule))}"


def _pinned(guarded: NetnsFiltered) -> list[Rule]:
    """Return the rules that let frames leave only with the environment's own MAC and addresses."""
    rules = []
    mac = bytes.fromhex(guarded.mac.replace(":", ""))
    if mac:
        rules.append(f"{at('link', 6, mac, negate=True)} drop")
    for name, address in sorted(guarded.addresses.items()):
        family = FAMILIES[name]
        own = ipaddress.ip_address(address).packed
        if name == "ipv6":
            rules += _neighbourly(mac, [own, *([ipaddress.ip_address(guarded.local).packed] if guarded.local else [])])
        rules.append(f"meta protocol {family.word} {at('network', family.address['saddr'], own)} accept")
        if name == "ipv4" and guarded.arp:
            # The sender's MAC and address in the ARP packet (RFC 826).
            about = at("network", 8, mac + own) if mac else at("network", 14, own)
            rules.append(f"meta protocol arp {about} accept")
    return rules


def _neighbourly(mac: bytes, own: Sequence[bytes]) -> list[Rule]:
    """Return the rules on messages to IPv6 neighbours: neighbour discovery (RFC 4861), group reports (RFC 3810)."""
    six, discovery = "meta protocol ip6", at("network", 6, b"\x3a")
    rules = []
    for type_, option in ((_ADVERTISEMENT, b"\x02\x01"), (_SOLICITATION, b"\x01\x01")):
        about = f"{six} {discovery} {at('network', 40, bytes([type_]))}"
        if type_ == _ADVERTISEMENT:  # about itself only
            others = " ".join(at("network", 48, address, negate=True) for address in own)
            rules.append(f"{about} {others} drop")
        # Both messages have exactly one option, with a MAC.
        rules.append(f"{about} {longer('network', 4, 2, 32)} drop")
        if mac:
            rules.append(f"{about} {at('network', 64, option + mac, negate=True)} drop")
    # Allow group reports from the unspecified address, and all these messages from the link-local address.
    report = f"{at('network', 24, _REPORTS_TO.packed)} {at('network', 6, bytes(1))} accept"
    rules.append(f"{six} {at('network', 8, bytes(16))} {report}")
    for address in own[1:]:
        sent = f"{six} {at('network', 8, address)}"
        rules.append(f"{sent} {report}")
        rules += [
            f"{sent} {discovery} {at('network', 40, bytes([type_]))} accept"
            for type_ in (_ADVERTISEMENT, _SOLICITATION)
        ]
    return rules
