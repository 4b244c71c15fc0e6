"""A host, and a machine outside of it: a namespace at the other end of a veth pair."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.interfaces.interface_bench import OUTSIDE, WIRE, Bench, run, settled, within
from support.interfaces.lan_bench import BITS, FAR, LAN

# Both ends of the wire: where, and their names there.
ENDS = (("", "test-wire"), ("-n test-outside", "wire"))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.remove_all()


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Use only one processor. Each has its own backlog, and packets keep their order only within a backlog."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice(sorted(before))})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def outside() -> Iterator[Path]:
    run("ip netns add test-outside")
    run("ip link add test-wire type veth peer name wire netns test-outside")
    for family in WIRE:
        bits = "24" if family == "ipv4" else "64 nodad"
        near, far = (f"{address}/{bits}" for address in WIRE[family])
        run(f"ip addr add {near} dev test-wire")
        run(f"ip -n test-outside addr add {far} dev wire")
    run("ip link set test-wire up")
    run("ip -n test-outside link set wire up")
    run("ip -n test-outside link set lo up")
    for family, option in (("ipv4", "-4"), ("ipv6", "-6")):
        run(f"ip -n test-outside {option} route add default via {WIRE[family][0]}")
    settled({"test-wire"})
    within(OUTSIDE, lambda: settled({"wire"}))
    # Known to each other: no test's first packet waits for an answer.
    macs = [json.loads(run(f"ip {where} -j link show {link}"))[0]["address"] for where, link in ENDS]
    for family in WIRE:
        for number, (where, link) in enumerate(ENDS):
            other = 1 - number
            run(f"ip {where} neigh replace {WIRE[family][other]} lladdr {macs[other]} dev {link} nud permanent")
    yield OUTSIDE
    run("ip link del test-wire")
    run("ip netns del test-outside")


@pytest.fixture
def lan() -> Iterator[Path]:
    """A bridge of the host, and a machine connected to it."""
    run("ip netns add test-lan")
    try:
        run("ip link add test-br type bridge")
        run("ip link set test-br up")
        run("ip link add test-port type veth peer name wire netns test-lan")
        run("ip link set test-port master test-br up")
        for family, one in FAR.items():
            nodad = " nodad" if family == "ipv6" else ""
            run(f"ip -n test-lan addr add {one}/{BITS[family]}{nodad} dev wire")
        run("ip -n test-lan link set lo up")
        run("ip -n test-lan link set wire up")
        settled({"test-br", "test-port"})
        within(LAN, lambda: settled({"wire"}))
        yield LAN
    finally:
        run("ip link del test-port")
        run("ip link del test-br")
        run("ip netns del test-lan")
