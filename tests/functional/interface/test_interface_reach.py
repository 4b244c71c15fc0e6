"""Real packets between environments and machines outside, compared with the answers to who may reach whom."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace
from support.interfaces.interface_bench import WIRE, Bench, connect, listen, veth
from support.interfaces.lan_bench import FAR, NETWORK, address, bridged
from support.sampling import todays

from netspace.errors import SpecError
from netspace.host import reach as work
from netspace.host.host import Host
from netspace.spec import parse, reach
from netspace.spec.reach import World
from netspace.spec.types import Declaration

pytestmark = pytest.mark.root

PORT, PUBLISHED = 8080, 1443
NEVER = [{"from": "a", "to": "198.51.100.7"}]


class End(NamedTuple):
    """An end, with the addresses and ports by which others try to reach it.

    :param asked: its name in a call of ``reach.answer``.
    :param own: its own address, at which its program listens.
    :param doors: the addresses and ports at which others try to reach it.
    """

    asked: str
    path: Path
    own: str
    doors: tuple[tuple[str, int], ...]


def ends(bench: Bench, outside: Path, lan: Path, family: str) -> dict[str, End]:
    known = {
        "outside": End(WIRE[family][1], outside, WIRE[family][1], ((WIRE[family][1], PORT),)),
        "far": End(FAR[family], lan, FAR[family], ((FAR[family], PORT),)),
    }
    for name in ("calls", "serves", "leads", "port", "other"):
        own = bench.address(name, family)
        more = ((WIRE[family][0], PUBLISHED),) if name == "leads" else ()
        known[name] = End(name, bench.path(name), own, ((own, PORT), *more))
    return known


def arrives(source: End, target: End) -> bool:
    """Return whether a connection from *source* to a door of *target* comes about."""
    for door in target.doors:
        with listen(target.path, target.own, PORT):
            made = connect(source.path, *door)
            if made is not None:
                made.close()
                return True
    return False


def answered(world: World, source: End, target: End) -> bool:
    return any(
        edge.by == "packets" and not edge.answers for edge in reach.answer(world, source.asked, target.asked).edges
    )


# Nothing routes between the wire and the bridge. That lies outside, so no declaration knows it.
APART = {("outside", "far"), ("far", "outside"), ("calls", "far"), ("far", "leads"), ("outside", "port")}
SURE = [("calls", "outside"), ("outside", "serves"), ("outside", "leads"), ("port", "far"), ("calls", "serves")]


@pytest.mark.parametrize("family", WIRE)
def test_packets_pass_where_the_answer_is_yes(bench: Bench, outside: Path, lan: Path, family: str) -> None:
    every, wire = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}[family], WIRE[family][1]
    out, into = {"direction": "out", "cidr": every}, {"direction": "in", "cidr": wire}
    bench.make(
        calls=veth(out),
        serves=veth(into),
        leads=veth(publish=[f"{PUBLISHED}:{PORT}"]),
        port=bridged(7, out, {**out, "direction": "in"}, isolated=False),
        other=bridged(8, {**into, "cidr": NETWORK[family]}, isolated=False),
    )
    world, known = work.applied(Host(bench.layout)), ends(bench, outside, lan, family)
    assert known["port"].own == address(7, family)
    pairs = [pair for pair in itertools.permutations(known, 2) if pair not in APART]
    chosen = [*SURE, *(pair for pair in todays(pairs, 4) if pair not in SURE)]
    kernel = {pair: arrives(known[pair[0]], known[pair[1]]) for pair in chosen}
    assert {pair: answered(world, known[pair[0]], known[pair[1]]) for pair in chosen} == kernel
    # Each of these wrong worlds gives an answer that differs from the kernel's.
    for name in ("calls", "serves", "leads"):
        silent = replace(world, interfaces={**world.interfaces, name: replace(world.interfaces["port"], allow=())})
        assert {pair: answered(silent, known[pair[0]], known[pair[1]]) for pair in chosen} != kernel


def test_interface_that_violates_an_assertion_is_refused(bench: Bench) -> None:
    host = Host(bench.layout)

    def declared(*rules: dict[str, str]) -> Declaration:
        one = {"image": "dir:/nowhere", "interface": veth(*rules)}
        whole = parse.declaration({"environments": {"a": {**one, "interface": veth()}}, "never": NEVER})
        return replace(whole, environments={"a": parse.environment("a", one)})

    assert host.converge_interfaces(declared()).ok
    with pytest.raises(SpecError, match="netspace:environments:a:interface:allow:0"):
        host.converge_interfaces(declared({"direction": "out", "cidr": "198.51.100.0/24"}))
    noted = host.converge_interfaces(declared({"direction": "out", "cidr": "198.51.100.0/24"}), test=True)
    assert any("it is reached from a to 198.51.100.7" in note for note in noted.plan.notes)
    assert host.converge_interfaces(declared({"direction": "out", "cidr": "203.0.113.0/24"})).ok
