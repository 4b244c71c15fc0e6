"""Real packets between environments and machines outside, compared with the answers of ``reach``."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace
from support.interfaces.interface_bench import WIRE, Bench, connect, listen, veth, within
from support.interfaces.lan_bench import FAR, NETWORK, address, bridged
from support.sampling import todays
from support.waiting import until

from netspace.errors import SpecError
from netspace.host import reach as work
from netspace.host.host import Host
from netspace.spec import parse, reach
from netspace.spec.reach import World
from netspace.spec.types import Declaration

pytestmark = pytest.mark.root

PORT, PUBLISHED = 8080, 1443
MANY, SEED = 30, 17  # environments, and the seed of their rules
NEVER = [{"from": "a", "to": "198.51.100.7"}]


class End(NamedTuple):
    """An end of a connection, with the addresses and ports at which others try to reach it.

    :param asked: the end's name in a call of ``reach.answer``.
    :param own: the end's own address, at which its program listens.
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
    """Return whether a connection from *source* to a door of *target* succeeds."""
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


def test_every_pair_of_many_ends_is_answered_as_packets_pass(bench: Bench, outside: Path) -> None:
    """Each of 30 environments and one machine outside sends datagrams to each of the others.

    Exactly the datagrams arrive that ``reach.answer`` predicts.
    """
    far, chosen = WIRE["ipv4"][1], random.Random(SEED)
    udp = {"protocol": "udp", "port": PORT}
    ways = [{"direction": "out", "cidr": far, **udp}, {"direction": "in", "cidr": far, **udp}]
    every = {"direction": "out", "cidr": "0.0.0.0/0", "protocol": "udp"}
    choices = ([], [ways[0]], [ways[1]], ways, [every], [{**ways[0], "cidr": "198.51.100.7"}])
    names = [f"e{number}" for number in range(MANY)]
    bench.make(**{name: veth(*chosen.choice(choices)) for name in names})
    listed = bench.kind.list()
    own = {"outside": far, **{name: str(listed[name]["addresses"]["ipv4"]) for name in names}}
    world = work.applied(Host(bench.layout))
    asked = {"outside": far, **{name: name for name in names}}
    pairs = set(itertools.permutations(own, 2))

    def told(source: str, target: str) -> bool:
        edges = reach.answer(world, asked[source], asked[target]).edges
        return any(edge.by == "packets" and not edge.answers for edge in edges)

    expected = {pair for pair in pairs if told(*pair)}
    assert {"outside"} < {end for pair in expected for end in pair}, "some pass"
    arrived: set[tuple[str, str]] = set()
    with contextlib.ExitStack() as after:
        receiving: dict[str, socket.socket] = {}
        sending: dict[str, socket.socket] = {}
        for name in own:
            path = outside if name == "outside" else bench.path(name)
            for kept in (receiving, sending):
                kept[name] = after.enter_context(within(path, lambda: socket.socket(type=socket.SOCK_DGRAM)))
            receiving[name].bind((own[name], PORT))
            receiving[name].setblocking(False)

        def rounds() -> bool:
            for source, one in sending.items():
                for target, address in own.items():
                    if target != source:
                        with contextlib.suppress(OSError):  # a filter refuses it at once
                            one.sendto(source.encode(), (address, PORT))
                time.sleep(0.005)  # the kernel drops what comes faster than it is judged
                for target, there in receiving.items():
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            arrived.add((there.recv(100).decode(), target))
            return arrived >= expected

        until(rounds, "not all arrive whose way is open", pause=0.2)
        rounds()
    assert arrived == expected


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
    assert any("a path leads from a to 198.51.100.7" in note for note in noted.plan.notes)
    assert host.converge_interfaces(declared({"direction": "out", "cidr": "203.0.113.0/24"})).ok
