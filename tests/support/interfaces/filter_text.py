"""The packet filter as text for nft(8), which must list as what ``firewall.host_rules`` builds."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from netspace.interface.firewall.host_rules import WAYS, Guarded, chain_name, forwarded, of_way, single
from netspace.interface.firewall.published import lead_name
from netspace.interface.match import FAMILIES, family
from netspace.spec import checks
from netspace.spec.publish import Publication
from netspace.spec.types import Allow

# From an environment, to it, to it by a published port: by which name it is found, and which set counts it.
_COUNTED = {"from": ("iifname", "open"), "to": ("oifname", "open"), "led": ("oifname", "led")}
_WORD = {"ipv4": "ip", "ipv6": "ip6"}
_TYPE = {"ipv4": "ipv4_addr", "ipv6": "ipv6_addr"}
_ICMP = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
_CLOSED = "time_wait : 2, close : 1"
_ERRORS = {
    "icmp": ("destination-unreachable", "time-exceeded", "parameter-problem"),
    "icmpv6": ("destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"),
}


def render(table: str, guarded: Sequence[Guarded], elsewhere: Sequence[str] = ()) -> str:
    """Return the transaction that puts the table (family ``inet``) in place of an older one, or removes it."""
    text = [f"add table inet {table}", f"delete table inet {table}"]
    if not guarded:
        return "\n".join(text) + "\n"
    ordered = sorted(guarded, key=lambda one: one.environment)
    ruled = any(one.allow or one.publish for one in ordered)
    text.append(f"table inet {table} {{")
    text += _collection("set ends", "ifname", (f'"{one.interface}"' for one in ordered))
    for fam in FAMILIES:
        sources = (f'"{one.interface}" . {one.mac} . {one.addresses[fam]}' for one in ordered if fam in one.addresses)
        text += _collection(f"set sources_{fam}", f"ifname . ether_addr . {_TYPE[fam]}", sources)
    if ruled:
        text += _limits([one for one in ordered if one.allow or one.publish])
        text += _chains(ordered)
        text += _chain("errors", [*(f"{word} type {one} accept" for word in _ERRORS for one in _ERRORS[word]), "drop"])
    text += _base("spoofed", "filter", "prerouting", "raw", [
        "iifname != @ends accept",
        *(f"iifname . ether saddr . {_WORD[fam]} saddr @sources_{fam} accept" for fam in FAMILIES),
        "drop",
    ])  # fmt: skip
    text += _chain("beyond", _judged(ruled, "iifname", "out", "in.reply"))
    text += _chain("to_host", _judged(ruled, "iifname", "host", "in.reply"))
    text += _chain("towards", _judged(ruled, "oifname", "in", "out.reply"))
    others = _by_family(elsewhere) if ruled else {}
    for fam, own in others.items():
        text += _collection(f"set elsewhere_{fam}", _TYPE[fam], own)
    text += _base("forward", "filter", "forward", "filter", [
        *(f"iifname @ends {_WORD[fam]} daddr @elsewhere_{fam} drop" for fam in others),
        *(f"oifname @ends {_WORD[fam]} saddr @elsewhere_{fam} drop" for fam in others),
        "iifname @ends oifname @ends drop",
        "iifname @ends goto beyond",
        "oifname @ends goto towards",
    ])  # fmt: skip
    text += _base("input", "filter", "input", "filter", ["iifname @ends goto to_host"])
    text += _base("output", "filter", "output", "filter", ["oifname @ends goto towards"])
    if any(rule.direction == "out" and forwarded([rule], one.gateways) for one in ordered for rule in one.allow):
        text += _base("outward", "nat", "postrouting", "srcnat", [
            *(f"iifname @ends meta l4proto {one} masquerade to :32768-60999" for one in ("tcp", "udp")),
            "iifname @ends masquerade",
        ])  # fmt: skip
    if any(one.publish for one in ordered):
        text += _published(ordered, elsewhere)
    text.append("}")
    return "\n".join(text) + "\n"


def _published(ordered: Sequence[Guarded], elsewhere: Sequence[str]) -> list[str]:
    """Return the chains and maps that lead published ports on."""
    text: list[str] = []
    lead: list[str] = []
    reserved: list[str] = []
    for fam in FAMILIES:
        word, type_ = _WORD[fam], _TYPE[fam]
        ways: dict[str, list[str]] = {"": [], "_at": []}
        for one in ordered:
            for led in one.publish:
                if fam not in led.families or fam not in one.addresses:
                    continue
                protocol, address = led.host.protocol, one.addresses[fam]
                name = lead_name(led, address)
                target = f"[{address}]" if fam == "ipv6" else address
                rule = f"meta nfproto {fam} meta l4proto {protocol} dnat {word} to {target}:{led.inside}"
                if f"\tchain {name} {{" not in text:
                    text += _chain(name, [rule])
                at = f" . {led.host.address}" if led.host.address else ""
                ways["_at" if at else ""].append(f"{protocol} . {led.host.port}{at} : goto {name}")
        for at, of in (("", "inet_proto . inet_service"), ("_at", f"inet_proto . inet_service . {type_}")):
            text += _collection(f"map published{at}_{fam}", f"{of} : verdict", ways[at])
            text += _collection(f"set reserved{at}_{fam}", of, (one.partition(" : ")[0] for one in ways[at]))
        begun = f"ct direction original meta nfproto {fam} meta l4proto . th sport"
        dropped = "fib saddr type local drop"
        reserved += [f"{begun} . {word} saddr @reserved_at_{fam} {dropped}", f"{begun} @reserved_{fam} {dropped}"]
        key = f"meta nfproto {fam} meta l4proto . th dport"
        lead += [f"{key} . {word} daddr vmap @published_at_{fam}", f"{key} vmap @published_{fam}"]
    text += _chain("lead", lead)
    text += _base("published", "nat", "prerouting", "dstnat", [
        "iifname @ends accept",
        *(f"{_WORD[fam]} saddr @elsewhere_{fam} accept" for fam in _by_family(elsewhere)),
        "fib daddr type local goto lead",
    ])  # fmt: skip
    text += _base("published_here", "nat", "output", "-100", [
        "ip daddr 127.0.0.0/8 accept",
        "ip6 daddr ::1 accept",
        "fib daddr type local goto lead",
    ])  # fmt: skip
    text += _base("reserved", "filter", "postrouting", "300", [
        "ip saddr 127.0.0.0/8 accept",
        "ip6 saddr ::1 accept",
        *reserved,
    ])  # fmt: skip
    text += _base("led", "filter", "postrouting", "filter", ["oifname @ends ct status dnat iif 0 goto towards"])
    return text


def _by_family(addresses: Sequence[str]) -> dict[str, list[str]]:
    found = {fam: [one for one in addresses if (":" in one) == (fam == "ipv6")] for fam in FAMILIES}
    return {fam: own for fam, own in found.items() if own}


def _let_in(led: Publication, port: str) -> str:
    words = f"ct status dnat meta l4proto {led.host.protocol} {led.host.protocol} {port} {led.inside}"
    words += f" ct original proto-dst {led.host.port}"
    if led.host.address:
        fam = led.families[0]
        words += f" meta nfproto {fam} ct original {_WORD[fam]} daddr {led.host.address}"
    return words


def _judged(ruled: bool, end: str, original: str, reply: str) -> list[str]:
    if not ruled:
        return ["drop"]
    return [
        f"ct direction original {end} vmap @{original}",
        f"ct direction reply {end} vmap @{reply}",
        "ct state related goto errors",
        "drop",
    ]


def _chains(ordered: Sequence[Guarded]) -> list[str]:
    """Chains of rules, one for all interfaces with the same rules, and the maps that lead there."""
    chains: dict[str, list[str]] = {}
    ways: dict[str, list[str]] = {way: [] for way in WAYS}
    for one in ordered:
        for way, (direction, peer, port, then) in WAYS.items():
            rules, led = of_way(way, one.allow), one.publish if direction == "in" else ()
            if rules or led:
                name = chain_name(way, rules, led)
                verdict = f"goto {then}" if then else "accept"
                counted = "goto opened.led" if then else "accept"
                matches = [f"{_let_in(one, port)} {counted}" for one in led]
                matches += [f"{_matches(rule, peer, port)} {verdict}" for rule in rules]
                chains.setdefault(name, _chain(name, matches))
                ways[way].append(f'"{one.interface}" : jump {name}')
    text = [line for name in sorted(chains) for line in chains[name]]
    for way, elements in ways.items():
        text += _collection(f"map {way}", "ifname : verdict", elements)
    return text


def _limits(ruled: Sequence[Guarded]) -> list[str]:
    """Return the chains for the first packet of an allowed connection: they count connections by interface."""
    text = []
    ways = {way: how for way, how in _COUNTED.items() if way != "led" or any(one.publish for one in ruled)}
    for fam in FAMILIES:
        text += _block(f"ct timeout brief_{fam}", "protocol tcp", f"l3proto {_WORD[fam]}", f"policy = {{ {_CLOSED} }}")
    for most in sorted({one.connections for one in ruled}):
        for counter in sorted({counter for _, counter in ways.values()}):
            text += _block(f"set {counter}.{most}", "type ifname", "size 65536", "flags dynamic")
        for way, (end, counter) in ways.items():
            text += _chain(f"most.{most}.{way}", [
                *(f'meta nfproto {fam} meta l4proto tcp ct timeout set "brief_{fam}"' for fam in FAMILIES),
                f"add @{counter}.{most} {{ {end} ct count over {most} }} drop",
                "accept",
            ])  # fmt: skip
    for way, (end, _) in ways.items():
        elements = (f'"{one.interface}" : goto most.{one.connections}.{way}' for one in ruled)
        text += _collection(f"map connections.{way}", "ifname : verdict", elements)
        text += _chain(f"opened.{way}", ["ct state != new accept", f"{end} vmap @connections.{way}", "drop"])
    return text


def _matches(rule: Allow, peer: str, port: str) -> str:
    fam = family(rule)
    network = rule.cidr.network
    if network.prefixlen == 0:
        words = [f"meta nfproto {fam}"]
    else:
        address: ipaddress.IPv4Network | ipaddress.IPv6Network | str = network
        if single(rule):
            address = str(network.network_address)
        words = [f"{_WORD[fam]} {peer} {address}"]
    if rule.protocol == "icmp":
        words.append(f"meta l4proto {_ICMP[fam]}")
    elif rule.port is None:
        words.append(f"meta l4proto {rule.protocol}")
    else:
        bounds = checks.ports(rule.port)
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
