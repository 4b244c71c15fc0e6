"""Packets are counted by rule, and by the reason why they are dropped. The counts have no effect on packets."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from support.interfaces.interface_bench import WIRE, Bench, connected, listen, meets, reaches, run, veth, within
from support.interfaces.lan_bench import FAR, address, bridged
from support.waiting import until

from netspace.interface import claims, counts
from netspace.interface.firewall import counting
from netspace.nftables import ruleset

pytestmark = pytest.mark.root
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])
NOTHING = dict.fromkeys(counting.REASONS, 0)


def counted(bench: Bench, name: str = "a") -> dict[tuple[str, str], int]:
    """Return the packets of each rule and reason."""
    its = counts.read(bench.layout, claims.index(bench.layout).read(sealed=True))[name]
    return {(one.direction, one.what): its.packets.get(one.key, 0) for one in (*its.rules, *counts.REASONS)}


def grows(bench: Bench, what: tuple[str, str], path: Path | None, to: str, port: int, source: str = "") -> None:
    """Send datagrams until the count of *what* (a rule or reason) grows; check that no other count grows.

    More than one datagram may be needed, because a link that has just come up may lose some.
    """
    before = counted(bench)

    def send() -> None:
        with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as one:
            if source:
                one.bind((source, 0))
            with contextlib.suppress(PermissionError):
                one.sendto(b"x", (to, port))

    def more() -> bool:
        within(path, send)
        time.sleep(0.02)
        return counted(bench)[what] > before[what]

    until(more, f"{what} isn't counted", pause=0.2)
    assert {key for key, packets in counted(bench).items() if packets != before[key]} == {what}


@families
def test_packets_are_counted_by_rule_and_reason(bench: Bench, outside: Path, family: str) -> None:
    far, udp = WIRE[family][1], {"protocol": "udp"}
    out, into = {"direction": "out", "cidr": far, "port": 53, **udp}, {"direction": "in", "cidr": far, **udp}
    bench.make(a=veth(out, into), b=veth())
    a, own = bench.path("a"), bench.address("a", family)
    bits = "32" if family == "ipv4" else "128"
    texts = ("out", f"udp {far}/{bits} 53"), ("in", f"udp {far}/{bits}")
    assert counted(bench) == dict.fromkeys(texts, 0) | NOTHING
    grows(bench, texts[0], a, far, 53)
    grows(bench, ("out", "none"), a, far, 54)
    grows(bench, ("out", "none"), a, bench.gateway("a", family), 55)
    grows(bench, ("out", "neighbour"), a, bench.address("b", family), 56)
    grows(bench, texts[1], outside, own, 57)
    foreign = {"ipv4": "198.51.100.1", "ipv6": "fd00:51::1"}[family]
    run(f"ip -n {a.name} addr add {foreign}/{bits} dev lo")
    grows(bench, ("out", "forged"), a, far, 58, source=foreign)
    assert counted(bench, "b") == NOTHING, "only the sender's counts have it"


@families
def test_host_that_forwards_nothing_counts_too(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth())
    grows(bench, ("out", "none"), bench.path("a"), WIRE[family][1], 53)
    grows(bench, ("in", "none"), None, bench.address("a", family), 53)


def test_too_many_connections_are_counted(bench: Bench, outside: Path) -> None:
    far = WIRE["ipv4"][1]
    bench.make(a=veth({"direction": "out", "cidr": far, "port": 8080}, connections=1))
    with listen(outside, far, 8080), connected(bench.path("a"), far, 8080):
        grows_by_connection(bench, far)
    assert counted(bench)["out", f"tcp {far}/32 8080"] >= 3, "each packet of the connection, and of what was too much"


def grows_by_connection(bench: Bench, far: str) -> None:
    """Try to connect until the packet filter has counted an attempt as a connection above the limit."""

    def attempt() -> None:
        with socket.socket() as one:
            one.settimeout(0.2)
            one.connect_ex((far, 8080))

    within(bench.path("a"), attempt)
    until(lambda: counted(bench)["out", "connections"] >= 1, "it isn't counted")


def test_counts_outlive_a_change_of_other_rules(bench: Bench, outside: Path) -> None:
    far = WIRE["ipv4"][1]
    rule = {"direction": "out", "cidr": far, "port": 53, "protocol": "udp"}
    desired = bench.make(a=veth(rule))
    what = ("out", f"udp {far}/32 53")
    grows(bench, what, bench.path("a"), far, 53)
    before = counted(bench)[what]
    assert not bench.plan(desired).steps, "counts are no change"
    bench.make(a=veth({**rule, "port": 54}, rule), b=veth({**rule, "port": 55}))
    bench.apply(remove={"b"})
    assert counted(bench)[what] == before
    # Also if the kernel's table has to be compared, since others changed the ruleset.
    run("nft add table inet tests")
    run("nft delete table inet tests")
    assert not bench.plan(bench.desired(a=veth({**rule, "port": 54}, rule))).steps


def test_full_set_changes_nothing_for_packets(bench: Bench, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = WIRE["ipv4"][1]
    monkeypatch.setattr(counting, "MOST", 1)
    bench.make(a=veth({"direction": "out", "cidr": far, "port": 8080}, {"direction": "out", "cidr": far, "port": 81}))
    assert meets(bench.path("a"), outside, far, 8080)
    assert meets(bench.path("a"), outside, far, 81)
    assert reaches(bench.path("a"), outside, far, 82) is None
    assert sum(counted(bench).values()) > 0 and list(counted(bench).values()).count(0) == len(counted(bench)) - 1


@families
def test_filter_inside_counts_too(bench: Bench, lan: Path, family: str) -> None:
    far, udp = FAR[family], {"protocol": "udp"}
    out, into = {"direction": "out", "cidr": far, "port": 53, **udp}, {"direction": "in", "cidr": far, **udp}
    every = {"direction": "out", "cidr": {"ipv4": "198.18.6.0/24", "ipv6": "fd00:198:6::/64"}[family], "port": 9, **udp}
    bench.make(a=bridged(10, out, into, every), b=bridged(11))
    bits = "32" if family == "ipv4" else "128"
    a = bench.path("a")
    grows(bench, ("out", f"udp {far}/{bits} 53"), a, far, 53)
    grows(bench, ("out", "none"), a, far, 54)
    grows(bench, ("out", "neighbour"), a, address(11, family), 9)
    grows(bench, ("in", f"udp {far}/{bits}"), lan, address(10, family), 57)
    assert counted(bench, "b") == NOTHING


def test_counts_of_any_form_are_read(bench: Bench, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = WIRE["ipv4"][1]
    bench.make(a=veth({"direction": "out", "cidr": far, "port": 53, "protocol": "udp"}))
    grows(bench, ("out", f"udp {far}/32 53"), bench.path("a"), far, 53)
    grows(bench, ("out", "none"), bench.path("a"), far, 54)
    before = counted(bench)
    monkeypatch.setattr(ruleset, "_alike", lambda elements: None)
    assert counted(bench) == before
