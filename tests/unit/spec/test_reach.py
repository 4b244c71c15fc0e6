"""Reachability, compared with a model that decides single messages and packets, without edges and overlaps."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from netspace.spec import parse, reach
from netspace.spec.reach import World
from netspace.spec.types import Address, Declaration, Link

NAMES = ("a", "b", "c", "d")
INNER = {"a": "10.203.0.5", "b": "10.203.0.6", "c": "198.51.100.7", "d": "10.9.0.4"}
GATEWAY = "10.203.0.1"
OUTER = ["198.51.100.8", "198.51.100.200", "203.0.113.5", "10.203.0.77", "10.9.0.8", "2001:db8::5"]
CIDRS = [
    "0.0.0.0/0", "198.51.100.0/24", "198.51.100.7", "198.51.100.8", "203.0.113.0/24", "10.203.0.0/29", GATEWAY, "::/0",
    "10.203.0.6",
]  # fmt: skip
KEY = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="

# Each example tries all pairs of ends.
few = settings(max_examples=20, deadline=None)

rules = st.lists(
    st.fixed_dictionaries(
        {
            "direction": st.sampled_from(["in", "out"]),
            "cidr": st.sampled_from(CIDRS),
            "protocol": st.sampled_from(["tcp", "udp", "icmp"]),
        }
    ),
    max_size=3,
)


@st.composite
def interfaces(draw: st.DrawFn, name: str) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [{"kind": "none"}]
    if name in ("a", "b"):
        kinds.append({"kind": "veth", "ipv4": INNER[name]})
        kinds.append({"kind": "veth", "ipv4": INNER[name], "publish": ["443:8443"] if name == "a" else ["53:53/udp"]})
    if name == "c":
        kinds.append({"kind": "bridge", "bridge": "br0", "ipv4": f"{INNER[name]}/24"})
        kinds.append({"kind": "bridge", "bridge": "br0", "ipv4": f"{INNER[name]}/24", "gateway4": "198.51.100.1"})
        way = {"to": "203.0.113.0/24", "via": "198.51.100.1"}
        kinds.append({"kind": "bridge", "bridge": "br0", "ipv4": f"{INNER[name]}/24", "routes": [way]})
    if name == "d":
        peer = {"public_key": KEY, "allowed_ips": ["10.9.0.8/32", "203.0.113.0/24"]}
        kinds.append({"kind": "wireguard", "ipv4": f"{INNER[name]}/24", "peers": [peer]})
    chosen: dict[str, Any] = draw(st.sampled_from(kinds))
    return chosen if chosen["kind"] == "none" else {**chosen, "allow": draw(rules)}


@st.composite
def declarations(draw: st.DrawFn) -> Declaration:
    pairs = [pair for pair in itertools.permutations([*NAMES, "x@h2"], 2) if pair != ("x@h2", "x@h2")]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=5))
    one = {"image": "dir:/srv/one"}
    broker = {
        "kind": "local", "host": "h1", "trust_domain": "h1.example.org", "authority": "/etc/ca",
        "listen": "192.0.2.1:5671", "names_key": "/etc/names",
        "hosts": {"h2": {"trust_domain": "h2.example.org", "address": "192.0.2.2:5671"}},
    }  # fmt: skip
    return parse.declaration(
        {
            "broker": broker,
            "environments": {name: {**one, "interface": draw(interfaces(name))} for name in NAMES},
            "links": [
                {"from": first, "to": second, "pattern": draw(st.sampled_from(["send", "request"]))}
                for first, second in chosen
            ],
        }
    )


def world_of(declared: Declaration) -> World:
    """Return the world that an apply would record."""
    world = reach.declared(declared)
    on = [name for name in NAMES if not declared.interfaces[name].NONE]
    applied: World = replace(
        world,
        owners={ipaddress.ip_address(INNER[name]): name for name in on},
        gateways=frozenset([ipaddress.ip_address(GATEWAY)]),
        families={name: frozenset(["ipv4"]) for name in on},
    )
    return applied


# -- the model -------------------------------------------------------------------------
def routes(declared: Declaration, name: str, peer: str) -> dict[str, bool]:
    """Return, by direction, whether packets between an environment and *peer* have a route."""
    spec: Any = declared.interfaces[name]
    kind = reach_kind(spec)
    if kind == "veth":
        return {"in": True, "out": True}
    if kind == "wireguard":
        allowed = peer == "10.9.0.8" or peer.startswith("203.0.113.")
        return {"in": allowed, "out": allowed}
    near = peer.startswith("198.51.100.") or (spec.routes and peer.startswith("203.0.113."))
    return {"in": True, "out": bool(near or spec.gateway4)}


def reach_kind(spec: Any) -> str:
    return str(type(spec).__struct_config__.tag)


def begins(declared: Declaration, source: str, target: str) -> bool:
    """Return whether *source* may send a first message or packet to *target*. Both are single ends."""
    if source in (*NAMES, "x@h2") and target in (*NAMES, "x@h2"):
        return any((link.source, link.target) == (source, target) for link in declared.links)
    name, peer, way = (source, target, "out") if source in NAMES else (target, source, "in")
    spec: Any = declared.interfaces[name]
    there = {INNER[one] for one in NAMES if reach_kind(declared.interfaces[one]) != "none"}
    if reach_kind(spec) == "none" or peer in there or ":" in peer:
        return False
    for rule in spec.allow:
        covered = rule.direction == way and ipaddress.ip_address(peer) in ipaddress.ip_network(rule.cidr)
        if covered and way == "out" and peer == GATEWAY and rule.cidr != f"{GATEWAY}/32":
            continue
        if covered and routes(declared, name, peer)[way]:
            return True
    return way == "in" and bool(getattr(spec, "publish", ()))


def answers(declared: Declaration, source: str, target: str) -> bool:
    """Return whether *source* may answer a message or connection of *target*."""
    if source in (*NAMES, "x@h2") and target in (*NAMES, "x@h2"):
        return any((one.source, one.target, one.pattern) == (target, source, "request") for one in declared.links)
    return begins(declared, target, source)


ENDS = [*NAMES, "x@h2", *OUTER, *INNER.values(), GATEWAY]
ASKED = [
    pair for pair in itertools.permutations(ENDS, 2)
    if set(pair) & set(NAMES) and ("x@h2" not in pair or not set(pair) & {*OUTER, *INNER.values(), GATEWAY})
]  # fmt: skip


def differences(world: World, declared: Declaration) -> list[tuple[str, str]]:
    """Return the pairs of ends about which the library and the model differ."""
    found = []
    for source, target in ASKED:
        told = reach.answer(world, source, target)
        assert {edge.by for edge in told.edges} | set(told.why_not) == {"messages", "packets"}
        said = (told.begins, any(edge.answers for edge in told.edges))
        if said != (begins(declared, source, target), answers(declared, source, target)):
            found.append((source, target))
    return found


@few
@given(declarations())
def test_every_pair_is_answered_as_the_model_does(declared: Declaration) -> None:
    assert not differences(world_of(declared), declared)


@few
@given(declarations())
def test_a_network_is_reached_if_one_address_of_it_is(declared: Declaration) -> None:
    world, net = world_of(declared), "198.51.100.0/29"
    outer = [str(one) for one in ipaddress.ip_network(net)]
    for name in NAMES:
        found = reach.answer(world, name, net)
        assert found.begins == any(begins(declared, name, one) for one in outer)
        assert reach.answer(world, net, name).begins == any(begins(declared, one, name) for one in outer)


@few
@given(declarations())
def test_paths_are_the_closure_of_what_reaches_at_once(declared: Declaration) -> None:
    world = world_of(declared)
    ends = [*NAMES, "x@h2"]
    direct = {
        (one, other)
        for one, other in itertools.permutations([*ends, *OUTER], 2)
        if {one, other} & set(NAMES)
        and not ("x@h2" in (one, other) and {one, other} & set(OUTER))
        and (begins(declared, one, other) or answers(declared, one, other))
    }
    closed = set(direct)
    for middle in NAMES:
        closed |= {
            (one, other)
            for one, also in list(closed)
            for here, other in list(closed)
            if also == middle == here and one != other
        }
    for target in ends:
        paths = reach.paths_to(world, target)
        for path in paths:
            assert path[-1].target == target
            assert all(first.target == second.source in NAMES for first, second in itertools.pairwise(path))
        assert {path[0].source for path in paths if "/" not in path[0].source} == {
            one for one, other in closed if other == target and one in ends
        }
    for source, target in itertools.permutations([*NAMES, *OUTER], 2):
        if {source, target} & set(NAMES):
            found = reach.answer(world, source, target)
            assert bool(found.edges or found.through) == ((source, target) in closed), (source, target)


EVERYTHING: dict[str, dict[str, Any]] = {
    "a": {"kind": "veth", "ipv4": INNER["a"], "publish": ["443:8443"]},
    "b": {"kind": "veth", "ipv4": INNER["b"], "allow": [{"direction": "out", "cidr": "0.0.0.0/0"}]},
    "c": {
        "kind": "bridge", "bridge": "br0", "ipv4": f"{INNER['c']}/24",
        "allow": [{"direction": "out", "cidr": "0.0.0.0/0"}, {"direction": "in", "cidr": "198.51.100.8"}],
    },
    "d": {"kind": "none"},
}  # fmt: skip
RICH = parse.declaration(
    {
        "environments": {name: {"image": "dir:/srv/one", "interface": spec} for name, spec in EVERYTHING.items()},
        "links": [{"from": "a", "to": "b"}, {"from": "b", "to": "d", "pattern": "request"}],
    }
)
WRONG = {
    "a link less": {"links": RICH.links[:1]},
    "a link more": {"links": (*RICH.links, Link(source="d", target="a"))},
    "requests as messages": {"links": tuple(replace(link, pattern="send") for link in RICH.links)},
    "a port less": {"interfaces": {**RICH.interfaces, "a": replace(RICH.interfaces["a"], publish=())}},
    "unknown addresses": {"owners": {}},
    "unknown families": {"families": {}},
    "an unknown gateway": {"gateways": frozenset()},
    "a default route": {
        "interfaces": {**RICH.interfaces, "c": replace(RICH.interfaces["c"], gateway4=Address("198.51.100.1"))}
    },
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_from_a_wrong_world_is_noticed(wrong: str) -> None:
    world = world_of(RICH)
    assert not differences(world, RICH)
    assert differences(replace(world, **WRONG[wrong]), RICH)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("a", "b", "packets between environments of one host are always dropped"),
        ("a", "n", "n has no interface"),
        ("c", "e", "packets between environments of one host are always dropped (both are on br0)"),
        ("c", "203.0.113.5", "allow:0 covers it, but no route or peer of c's leads there"),
        ("a", INNER["b"], f"{INNER['b']} is b's: packets between environments of one host are always dropped"),
        ("c", "2001:db8::5", "no rule of c's interface covers 2001:db8::5"),
    ],
)
def test_the_reason_is_the_first_that_holds(source: str, target: str, reason: str) -> None:
    anywhere = {"direction": "out", "cidr": "0.0.0.0/0"}
    port = {"kind": "bridge", "bridge": "br0", "allow": [anywhere]}
    specs: dict[str, dict[str, Any]] = {
        "a": {"kind": "veth", "ipv4": INNER["a"], "allow": [anywhere]},
        "b": {"kind": "veth", "ipv4": INNER["b"]},
        "c": {**port, "ipv4": f"{INNER['c']}/24"},
        "e": {**port, "ipv4": "198.51.100.9/24"},
        "n": {"kind": "none"},
    }
    one = {"image": "dir:/srv/one"}
    declared = parse.declaration({"environments": {name: {**one, "interface": spec} for name, spec in specs.items()}})
    assert reach.answer(reach.declared(declared), source, target).why_not["packets"] == reason
