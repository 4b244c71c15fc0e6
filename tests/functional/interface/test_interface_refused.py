"""Packets that an interface with ``audit: true`` refuses are recorded. ``audit`` doesn't change which packets pass."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from support.interfaces.interface_bench import WIRE, Bench, meets, reaches, run, veth, within
from support.interfaces.lan_bench import FAR, address, bridged
from support.rulesets import uncounted
from support.waiting import PATIENCE, until

from netspace.interface import refusals
from netspace.interface.firewall import recording

pytestmark = pytest.mark.root
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])


def told(bench: Bench, name: str = "a") -> set[tuple[str, ...]]:
    """Return the recorded refusals, without counts and times."""
    found = refusals.refusals(bench.layout, name)
    assert found.unseen == ""
    return {(one.why, one.direction, *map(str, one.what), one.neighbour) for one in found.found}


def total(bench: Bench) -> int:
    """Return the number of recorded packets."""
    return sum(one.times for one in refusals.refusals(bench.layout, "a").found)


def becomes(bench: Bench, expected: set[tuple[str, ...]], name: str = "a") -> None:
    """Check that exactly *expected* is recorded, once enough refusals have been recorded."""
    until(lambda: len(told(bench, name)) >= len(expected), "no more refusals are recorded")
    assert told(bench, name) == expected


def send(path: Path | None, to: str, *ports: int, source: str = "") -> None:
    """Send a datagram to each port. A filter may refuse it at once."""

    def work() -> None:
        with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as one:
            if source:
                one.bind((source, 0))
            for port in ports:
                with contextlib.suppress(PermissionError):
                    one.sendto(b"x", (to, port))

    within(path, work)


def refused(bench: Bench, to: str, port: int, name: str = "a") -> None:
    """Send datagrams until one is recorded as refused. The kernel may lose some just after a link comes up."""

    def recorded() -> bool:
        send(bench.path(name), to, port)
        return any(one.what.port == port for one in refusals.refusals(bench.layout, name).found)

    until(recorded, "nothing is recorded", pause=0.2)


def ping(path: Path, to: str, type_: int) -> None:
    """Send an ICMP message of this type."""

    def work() -> None:
        six = ":" in to
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, protocol) as one:
            checksum = b"\0\0" if six else (0xFFFF - (type_ << 8) - 2).to_bytes(2, "big")
            with contextlib.suppress(PermissionError):
                one.sendto(bytes([type_, 0]) + checksum + bytes([0, 1, 0, 1]), (to, 0))

    within(path, work)


@families
def test_refused_packets_are_recorded(bench: Bench, outside: Path, family: str) -> None:
    far, request, other = WIRE[family][1], {"ipv4": 8, "ipv6": 128}[family], {"ipv4": 13, "ipv6": 139}[family]
    bench.make(a=veth({"direction": "out", "cidr": far, "port": 8080}, audit=True), b=veth())
    a, b, host = bench.path("a"), bench.address("b", family), bench.gateway("a", family)
    assert meets(a, outside, far, 8080)
    before = time.time()
    assert reaches(a, outside, far, 8081) is None
    assert reaches(a, bench.path("b"), b, 80) is None
    assert reaches(a, None, host, 81) is None
    assert reaches(outside, a, bench.address("a", family), 90) is None
    send(a, far, 53, 53)
    ping(a, far, request)
    ping(a, far, other)  # a rule for icmp would let it pass, but it asks for no echo: not worth a rule
    becomes(
        bench,
        {
            ("rule", "out", "tcp", far, "8081", ""),
            ("rule", "out", "tcp", b, "80", "b"),
            ("rule", "out", "tcp", host, "81", ""),
            ("rule", "in", "tcp", far, "90", ""),
            ("rule", "out", "udp", far, "53", ""),
            ("rule", "out", "icmp", far, "None", ""),
            ("rest", "out", "icmp", "", "None", ""),
        },
    )
    after = time.time()
    for one in refusals.refusals(bench.layout, "a").found:
        assert before - 1 < one.first <= one.last < after + 1
        assert one.times == 2 if one.what.protocol == "udp" else one.times >= 1
    assert refusals.refusals(bench.layout, "b").unseen == "audit isn't true"


@families
def test_refused_without_any_rule_is_recorded(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth(audit=True))
    assert reaches(bench.path("a"), outside, WIRE[family][1]) is None
    becomes(bench, {("rule", "out", "tcp", WIRE[family][1], "8080", "")})


def test_answer_is_no_attempt(bench: Bench, outside: Path) -> None:
    """Answers over a connection whose rule was removed are not recorded as attempts that need a rule."""
    far = WIRE["ipv4"][1]
    entered = {"direction": "in", "cidr": far, "protocol": "udp", "port": 7}
    bench.make(a=veth(entered, audit=True))
    with within(bench.path("a"), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one:
        one.bind((bench.address("a", "ipv4"), 7))
        one.settimeout(PATIENCE)
        with within(outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asker:
            asker.sendto(b"x", (bench.address("a", "ipv4"), 7))
            peer = one.recvfrom(10)[1]
            bench.make(a=veth({**entered, "port": 8}, audit=True))
            one.sendto(b"y", peer)
    becomes(bench, {("rest", "out", "udp", "", "None", "")})


def test_forged_source_is_counted_apart(bench: Bench) -> None:
    bench.make(a=veth(audit=True))
    run(f"ip -n {bench.path('a').name} addr add 198.51.100.1/32 dev lo")
    gateway = bench.gateway("a", "ipv4")
    refused(bench, gateway, 53)
    send(bench.path("a"), gateway, 53, source="198.51.100.1")
    becomes(bench, {("rule", "out", "udp", gateway, "53", ""), ("forged", "out", "udp", "", "None", "")})


def test_scan_fills_its_own_record_alone(bench: Bench, outside: Path) -> None:
    far = WIRE["ipv4"][1]
    bench.make(a=veth(audit=True), b=veth(audit=True))
    refused(bench, far, 1)
    refused(bench, far, 53, "b")
    before = total(bench)
    for first in range(1, 2001, 100):  # the kernel drops what comes faster than it is judged
        send(bench.path("a"), far, *range(first, first + 100))
        until(lambda last=first + 99: total(bench) == before + last, "not all packets are counted")
    found = refusals.refusals(bench.layout, "a").found
    ports = {one.what.port for one in found if one.why == "rule"}
    assert ports == set(range(1, recording.MOST + 1))
    assert any(one.why == "rest" for one in found), "what the full set can't take is counted by protocol"
    # Also not what it sends to the other one: that would fill the other's record.
    send(bench.path("a"), bench.address("b", "ipv4"), *range(1, 50))
    until(lambda: any(one.neighbour == "b" or one.why == "rest" for one in refusals.refusals(bench.layout, "a").found))
    becomes(bench, {("rule", "out", "udp", far, "53", "")}, "b")


def test_reading_changes_nothing_and_apply_neither(bench: Bench, outside: Path) -> None:
    desired = bench.make(a=veth(audit=True))
    refused(bench, WIRE["ipv4"][1], 53)
    becomes(bench, {("rule", "out", "udp", WIRE["ipv4"][1], "53", "")})
    becomes(bench, {("rule", "out", "udp", WIRE["ipv4"][1], "53", "")})
    assert not bench.plan(desired).steps


def test_change_of_others_keeps_the_record(bench: Bench, outside: Path) -> None:
    far = WIRE["ipv4"][1]
    bench.make(a=veth(audit=True))
    refused(bench, far, 53)
    bench.make(b=veth({"direction": "out", "cidr": far}, audit=True))
    bench.apply(remove={"b"})
    becomes(bench, {("rule", "out", "udp", far, "53", "")})


def test_audit_switched_off_removes_all(bench: Bench, outside: Path) -> None:
    plain = bench.make(a=veth(), b=veth({"direction": "out", "cidr": WIRE["ipv4"][1]}))
    before = uncounted(run("nft list ruleset"))
    plan = bench.plan(bench.desired(a=veth(audit=True)))
    assert {step.name: dict(step.changes) for step in plan.steps if step.name == "a"} == {
        "a": {"audit": {"old": False, "new": True}}
    }
    bench.make(a=veth(audit=True))
    assert "refused.a.out" in run("nft list ruleset")
    bench.apply(plain)
    assert uncounted(run("nft list ruleset")) == before


@families
def test_filter_inside_records_too(bench: Bench, lan: Path, family: str) -> None:
    far, own, other = FAR[family], address(10, family), address(11, family)
    bench.make(a=bridged(10, audit=True), b=bridged(11))
    a = bench.path("a")
    refused(bench, other, 54)
    assert reaches(lan, a, own, 90) is None
    becomes(bench, {("rule", "out", "udp", other, "54", "b"), ("rule", "in", "tcp", far, "90", "")})
    send(a, far, *range(1, 301))
    until(lambda: len(told(bench)) == recording.MOST + 2, "the set isn't full, or what it can't take isn't counted")


def test_neighbour_inside_is_named(bench: Bench, lan: Path) -> None:
    network = {"direction": "out", "cidr": "198.18.6.0/24"}
    bench.make(a=bridged(10, network, audit=True), b=bridged(11))
    assert reaches(bench.path("a"), bench.path("b"), address(11, "ipv4"), 80) is None
    becomes(bench, {("rule", "out", "tcp", address(11, "ipv4"), "80", "b")})
