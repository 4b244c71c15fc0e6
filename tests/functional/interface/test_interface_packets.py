"""Real packets: none passes unless an ``allow`` rule permits it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from support.interfaces.interface_bench import (
    ANY,
    WIRE,
    WORLD,
    Bench,
    assert_cut,
    connected,
    listen,
    meets,
    reaches,
    run,
    veth,
    within,
)

pytestmark = pytest.mark.root
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])


@families
def test_nothing_passes_by_default(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth(), b=veth())
    a, address = bench.path("a"), bench.address("a", family)
    assert reaches(a, outside, WIRE[family][1]) is None
    assert reaches(outside, a, address) is None
    assert reaches(a, None, bench.gateway("a", family)) is None
    assert reaches(a, None, WIRE[family][0]) is None
    assert reaches(None, a, address) is None
    assert reaches(a, bench.path("b"), bench.address("b", family)) is None
    assert meets(a, a, address) == address, "it can't even talk to itself"


@families
def test_out_rule_opens_its_port_and_masquerades(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth({"direction": "out", "cidr": WORLD[family], "port": 8080}))
    near, far = WIRE[family]
    assert meets(bench.path("a"), outside, far) == near, "the outside must see the host's address"
    assert reaches(bench.path("a"), outside, far, 8081) is None
    assert reaches(outside, bench.path("a"), bench.address("a", family)) is None


@families
def test_out_rule_ends_at_its_network(bench: Bench, outside: Path, family: str) -> None:
    elsewhere = {"ipv4": "198.51.100.0/24", "ipv6": "fd00:51::/48"}[family]
    bench.make(a=veth({"direction": "out", "cidr": elsewhere, "port": 8080}))
    assert reaches(bench.path("a"), outside, WIRE[family][1]) is None


@families
def test_port_ranges_and_whole_protocols(bench: Bench, outside: Path, family: str) -> None:
    far = WIRE[family][1]
    bench.make(
        a=veth({"direction": "out", "cidr": far, "port": "8000-8100"}),
        b=veth({"direction": "out", "cidr": far}),
        c=veth({"direction": "out", "cidr": far, "protocol": "udp"}),
    )
    assert meets(bench.path("a"), outside, far, 8100)
    assert reaches(bench.path("a"), outside, far, 8101) is None
    assert meets(bench.path("b"), outside, far, 9999)
    assert reaches(bench.path("c"), outside, far, 9999) is None


@families
def test_in_rule_opens_its_port_to_its_network(bench: Bench, outside: Path, family: str) -> None:
    bench.make(
        a=veth({"direction": "in", "cidr": WORLD[family], "port": 80}),
        b=veth({"direction": "in", "cidr": {"ipv4": "198.51.100.0/24", "ipv6": "fd00:51::/48"}[family], "port": 80}),
    )
    far = WIRE[family][1]
    assert meets(outside, bench.path("a"), bench.address("a", family), 80) == far
    assert reaches(outside, bench.path("a"), bench.address("a", family), 81) is None
    assert reaches(outside, bench.path("b"), bench.address("b", family), 80) is None


@families
def test_no_rule_opens_another_environment(bench: Bench, outside: Path, family: str) -> None:
    everything = [
        {"direction": direction, "cidr": ANY[family], "protocol": protocol}
        for direction in ("in", "out")
        for protocol in ("tcp", "udp", "icmp")
    ]
    bench.make(a=veth(*everything), b=veth(*everything))
    assert meets(bench.path("a"), outside, WIRE[family][1]), "the rules do open the outside"
    assert reaches(bench.path("a"), bench.path("b"), bench.address("b", family)) is None
    assert reaches(bench.path("b"), bench.path("a"), bench.address("a", family)) is None


@families
def test_host_is_opened_by_its_single_address_only(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth({"direction": "out", "cidr": ANY[family], "port": 8080}))
    gateway = bench.gateway("a", family)
    assert reaches(bench.path("a"), None, gateway) is None
    assert reaches(bench.path("a"), None, WIRE[family][0]) is None
    bench.make(a=veth({"direction": "out", "cidr": gateway, "port": 8080}))
    assert meets(bench.path("a"), None, gateway) == bench.address("a", family)
    assert reaches(bench.path("a"), None, gateway, 8081) is None
    assert reaches(bench.path("a"), None, WIRE[family][0]) is None


@families
def test_in_rule_of_the_gateway_opens_to_the_host_alone(bench: Bench, outside: Path, family: str) -> None:
    network = bench.desired().network
    gateway = str(getattr(network, family).network[1])
    bench.make(a=veth({"direction": "in", "cidr": gateway, "port": 80}))
    assert meets(None, bench.path("a"), bench.address("a", family), 80) == gateway
    assert reaches(outside, bench.path("a"), bench.address("a", family), 80) is None
    switch = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}[family]
    assert run(f"sysctl -n {switch}").strip() == "0", "nothing needed forwarding"


@families
def test_forged_source_is_dropped(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth({"direction": "out", "cidr": WORLD[family], "protocol": "udp"}), b=veth())
    kind = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}[family]
    far = WIRE[family][1]

    def receiver() -> socket.socket:
        made = socket.socket(kind, socket.SOCK_DGRAM)
        made.bind((far, 5353))
        made.settimeout(0.3)
        return made

    def send(source: str, text: bytes) -> None:
        with socket.socket(kind, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(text, (far, 5353))

    forged = bench.address("b", family)
    bits = {"ipv4": "32", "ipv6": "128 nodad"}[family]
    run(f"ip -n {bench.path('a').name} addr add {forged}/{bits} dev eth0")
    with within(outside, receiver) as listening:
        arrived = []
        for _ in range(30):  # as in connect(): right after a link is up the kernel may lose a packet
            within(bench.path("a"), lambda: send(forged, b"forged"))
            within(bench.path("a"), lambda: send(bench.address("a", family), b"honest"))
            with contextlib.suppress(TimeoutError):
                arrived.append(listening.recv(100))
                break
        within(bench.path("a"), lambda: send(forged, b"forged"))
        with contextlib.suppress(TimeoutError):
            while True:
                arrived.append(listening.recv(100))
        assert set(arrived) == {b"honest"}


@pytest.mark.revocation
@families
def test_revoked_rule_cuts_a_live_connection(bench: Bench, outside: Path, family: str) -> None:
    rule = {"direction": "out", "cidr": WORLD[family], "port": 8080}
    bench.make(a=veth(rule), b=veth(rule))
    with listen(outside, WIRE[family][1], 8080) as server:
        client = connected(bench.path("a"), WIRE[family][1], 8080)
        accepted, _ = server.accept()
        assert_cut(client, accepted, lambda: bench.make(a=veth()))


@families
def test_ping_where_it_is_allowed(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth({"direction": "out", "cidr": WORLD[family], "protocol": "icmp"}), b=veth())
    kind, protocol, request = {
        "ipv4": (socket.AF_INET, socket.IPPROTO_ICMP, b"\x08\0\xf7\xff\0\0\0\0"),
        "ipv6": (socket.AF_INET6, socket.IPPROTO_ICMPV6, b"\x80\0\0\0\0\0\0\0"),
    }[family]

    def ping() -> bool:
        with socket.socket(kind, socket.SOCK_RAW, protocol) as raw:
            raw.settimeout(0.3)
            raw.sendto(request, (WIRE[family][1], 0))
            try:
                return bool(raw.recv(100))
            except TimeoutError:
                return False

    # As in connect(): right after a link is up the kernel may lose a packet.
    assert any(within(bench.path("a"), ping) for _ in range(30))
    assert not within(bench.path("b"), ping)


def test_other_interfaces_are_untouched(bench: Bench, outside: Path) -> None:
    run("nft add table inet foreign")
    run("nft add chain inet foreign c { type filter hook forward priority 0 ; }")
    try:
        before = run("nft list table inet foreign"), run("ip -d link show test-wire"), run("ip addr show test-wire")
        bench.make(a=veth({"direction": "out", "cidr": "0.0.0.0/0"}))
        assert meets(outside, None, WIRE["ipv4"][0]) == WIRE["ipv4"][1]
        assert meets(None, outside, WIRE["ipv6"][1]) == WIRE["ipv6"][0]
        bench.remove_all()
        after = run("nft list table inet foreign"), run("ip -d link show test-wire"), run("ip addr show test-wire")
        assert after == before
    finally:
        run("nft delete table inet foreign")
