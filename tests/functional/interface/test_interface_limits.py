"""Limits on one environment's traffic: the bits that it sends per second, and its open connections."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.interfaces.interface_bench import WIRE, WORLD, Bench, connect, connected, listen, meets, run, veth, within
from support.waiting import until

pytestmark = pytest.mark.root
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])

DATAGRAMS, SIZE = 200, 1400
SINK = {"direction": "out", "cidr": WORLD["ipv4"], "protocol": "udp", "port": 9}
TCP = {"direction": "out", "cidr": WORLD["ipv4"], "port": 8080}


def sent(bench: Bench, name: str) -> int:
    shown = json.loads(run(f"ip -n {bench.path(name).name} -j -s link show eth0"))
    return int(shown[0]["stats64"]["tx"]["bytes"])


def flood(bench: Bench, name: str) -> int:
    """Send many datagrams as fast as possible; return the number of bytes that left the interface."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for _ in range(DATAGRAMS):
                try:
                    sender.sendto(bytes(SIZE), (WIRE["ipv4"][1], 9))
                except BlockingIOError:
                    return  # as much waits as a socket may have waiting

    before = sent(bench, name)
    within(bench.path(name), send)
    return sent(bench, name) - before


def queue(bench: Bench) -> str:
    return run(f"ip netns exec {bench.path('a').name} tc qdisc show dev eth0")


def test_rate_bounds_what_is_sent_and_changes_in_place(bench: Bench, outside: Path) -> None:
    bench.make(a=veth(SINK, TCP, rate="64K"), b=veth(SINK, TCP))
    # 8,000 bytes a second, and some 6,000 at once: half of it all would take 17 seconds.
    assert 0 < flood(bench, "a") < DATAGRAMS * SIZE / 2
    assert flood(bench, "b") >= DATAGRAMS * SIZE, "nobody else is slowed down"
    index = run(f"ip netns exec {bench.path('a').name} cat /sys/class/net/eth0/ifindex")
    with listen(outside, WIRE["ipv4"][1], 8080) as server:
        client = connected(bench.path("a"), WIRE["ipv4"][1], 8080)
        accepted, _ = server.accept()
        with client, accepted:
            steps = bench.plan(bench.desired(a=veth(SINK, TCP, rate="10G"), b=veth(SINK, TCP))).steps
            assert {step.name: dict(step.changes) for step in steps} == {"a": {"rate": {"old": "64K", "new": "10G"}}}
            bench.make(a=veth(SINK, TCP, rate="10G"), b=veth(SINK, TCP))
            client.send(b"still there")
            accepted.settimeout(20)
            assert accepted.recv(100) == b"still there"
    assert flood(bench, "a") >= DATAGRAMS * SIZE
    assert run(f"ip netns exec {bench.path('a').name} cat /sys/class/net/eth0/ifindex") == index
    bench.make(a=veth(SINK), b=veth(SINK))
    assert "tbf" not in queue(bench)


@pytest.mark.parametrize(
    "command", ["tc qdisc del dev eth0 root", "tc qdisc replace dev eth0 root tbf rate 1gbit burst 1m latency 1s"]
)
def test_a_changed_rate_is_seen_and_repaired(bench: Bench, outside: Path, command: str) -> None:
    desired = bench.make(a=veth(SINK, rate="64K"))
    before = queue(bench)
    run(f"ip netns exec {bench.path('a').name} {command}")
    (step,) = bench.plan(desired).steps
    assert step.changes["inside:rate"]["new"] == 64_000
    bench.apply(desired)
    assert queue(bench) == before
    assert not bench.plan(desired).steps


@families
def test_connections_have_a_limit_of_their_own(bench: Bench, outside: Path, family: str) -> None:
    out = {"direction": "out", "cidr": WORLD[family], "port": 8080}
    into = {"direction": "in", "cidr": WORLD[family], "port": 80}
    bench.make(a=veth(out, into, connections=3), b=veth(out, connections=3), c=veth(out))
    far, own = WIRE[family][1], bench.address("a", family)
    with ExitStack() as stack:
        server = stack.enter_context(listen(outside, far, 8080))
        inner = stack.enter_context(listen(bench.path("a"), own, 80))

        def take(name: str = "a") -> socket.socket:
            return stack.enter_context(connected(bench.path(name), far, 8080))

        first, _ = take(), take()
        stack.enter_context(connected(outside, own, 80))  # the third
        assert connect(bench.path("a"), far, 8080) is None
        assert connect(outside, own, 80) is None
        for other in ("b", "c"):
            take(other)  # another's limit is another's
        desired = bench.desired(a=veth(out, into, connections=3), b=veth(out, connections=3), c=veth(out))
        run("nft add table inet foreign")
        run("nft delete table inet foreign")
        assert not bench.plan(desired).steps, "what is counted is no drift"
        first.close()
        server.accept()[0].close()
        take()  # one closed makes room
        del inner


def test_connections_stay_counted_while_other_environments_come_change_and_go(bench: Bench, outside: Path) -> None:
    out = {"direction": "out", "cidr": WORLD["ipv4"], "port": 8080}
    far = WIRE["ipv4"][1]
    own = veth(out, connections=2)
    bench.make(a=own, b=veth(out, connections=7))
    with listen(outside, far, 8080) as server, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connected(bench.path("a"), far, 8080))
        for others in (
            {"b": veth(out, connections=7), "c": own},
            {"b": veth({**out, "port": 80}, connections=9)},
            {"b": {"kind": "none"}},
        ):
            bench.make(a=own, **others)
            assert connect(bench.path("a"), far, 8080) is None
        bench.apply(remove={"b", "c"})
        assert connect(bench.path("a"), far, 8080) is None
        # Its own other rules don't change what it has open, either.
        bench.make(a=veth(out, {**out, "port": 80}, connections=2))
        assert connect(bench.path("a"), far, 8080) is None
        bench.make(a=veth(out, connections=3))
        stack.enter_context(connected(bench.path("a"), far, 8080))
        del server


def test_who_has_nothing_open_any_more_is_forgotten(bench: Bench, outside: Path) -> None:
    """A removed environment's name leaves the set of counted environments, which would otherwise fill up."""
    out = {"direction": "out", "cidr": WORLD["ipv4"], "port": 8080}
    bench.make(a=veth(out), b=veth(out))
    assert meets(bench.path("a"), outside, WIRE["ipv4"][1], 8080)
    name = bench.host_end("a")
    assert name in run("nft list set inet netspace open.1024")
    bench.apply(remove={"a"})
    until(lambda: name not in run("nft list set inet netspace open.1024"), f"{name} is still there", pause=0.05)


@families
def test_what_is_closed_leaves_the_table_of_connections(bench: Bench, outside: Path, family: str) -> None:
    """A closed connection leaves the host's table within seconds, so that an environment can't fill the table."""
    bench.make(a=veth({"direction": "out", "cidr": WORLD[family], "port": 8080}))
    far = WIRE[family][1]

    def tracked() -> list[list[str]]:
        lines = Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
        return [line.split() for line in lines if "dport=8080" in line]

    with listen(outside, far, 8080) as server:
        client = connected(bench.path("a"), far, 8080)
        accepted, _ = server.accept()
        assert "ESTABLISHED" in {fields[5] for fields in tracked()}
        client.close()
        assert accepted.recv(1) == b""
        accepted.close()

    until(lambda: all(fields[5] in ("TIME_WAIT", "CLOSE") for fields in tracked()), "it is closed", pause=0.05)
    assert all(int(fields[4]) <= 2 for fields in tracked()), tracked()


def test_no_helper_reads_along(bench: Bench, outside: Path) -> None:
    bench.make(a=veth({"direction": "out", "cidr": WORLD["ipv4"], "port": 21}))
    assert meets(bench.path("a"), outside, WIRE["ipv4"][1], 21)
    assert "helper" not in Path("/proc/thread-self/net/nf_conntrack").read_text()
    assert "helper" not in run("nft list table inet netspace")
