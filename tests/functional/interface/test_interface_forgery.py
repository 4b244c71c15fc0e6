"""A program that is root in its namespace and writes raw frames: only frames with its own addresses get through."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.interfaces.interface_bench import WIRE, WORLD, Bench, mac_of, run, veth, within
from support.interfaces.packets import (
    ARP,
    BROADCAST,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP,
    ICMP6,
    OPTIONS,
    ROUTING,
    UDP,
    VLAN,
    Wire,
    checksum,
    fragment,
    frame,
    ip,
    kind_of,
    mac,
    packed,
    tags,
    udp,
    upper,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_processor")]
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])

PORT = 5353
MARK = b"the honest last one"


class Attack:
    """A bench for forged frames: environment ``a`` may send pings, and UDP to one port of the outside.

    ``b`` is another environment.
    """

    def __init__(self, bench: Bench, outside: Path) -> None:
        rules = [{"direction": "out", "cidr": cidr, "protocol": "udp", "port": PORT} for cidr in WORLD.values()]
        rules += [{"direction": "out", "cidr": cidr, "protocol": "icmp"} for cidr in WORLD.values()]
        bench.make(a=veth(*rules), b=veth(*rules))
        self.bench = bench
        self.mac = mac_of(bench.path("a"), "eth0")
        self.wire = Wire(bench.path("a"), "eth0")
        self.outside = Wire(outside, "wire")
        self.neighbour = Wire(bench.path("b"), "eth0")

    def close(self) -> None:
        for wire in (self.wire, self.outside, self.neighbour):
            wire.close()

    def own(self, family: str, of: str = "a") -> str:
        return self.bench.address(of, family)

    def send(self, packet: bytes, *, source: str = "", target: str = "") -> None:
        self.wire.send(frame(target or self.mac, source or self.mac, kind_of(packet), packet))

    def datagram(self, family: str, data: bytes, *, source: str = "", port: int = PORT, target: str = "") -> bytes:
        one, other = source or self.own(family), target or WIRE[family][1]
        return ip(one, other, UDP, udp(one, other, port, data))

    def arrived(self, *known: bytes) -> set[bytes]:
        """Send a permitted datagram as an end mark; return the tags of *known* that arrived anywhere before it."""
        self.send(self.datagram("ipv4", MARK))
        seen = self.outside.until(MARK)
        return tags([*seen, *self.neighbour.received()], known)


@pytest.fixture
def attack(bench: Bench, outside: Path) -> Iterator[Attack]:
    made = Attack(bench, outside)
    yield made
    made.close()


@families
def test_sources_that_are_not_its_own(attack: Attack, family: str) -> None:
    gateway = attack.bench.gateway("a", family)
    forged = {
        "ipv4": [WIRE["ipv4"][0], WIRE["ipv4"][1], "10.203.77.77", "127.0.0.1", "0.0.0.0", "255.255.255.255"],
        "ipv6": [WIRE["ipv6"][0], WIRE["ipv6"][1], "fd6e:6574:7370::7777", "::1", "::", "fe80::1", "ff02::1"],
    }[family]
    known = []
    for number, source in enumerate([attack.own(family, "b"), gateway, *forged]):
        known.append(b"forged-source-%d-" % number)
        attack.send(attack.datagram(family, known[-1], source=source))
    attack.send(attack.datagram(family, b"honest-one"))
    assert attack.arrived(b"honest-one", *known) == {b"honest-one"}


@families
def test_a_mac_that_is_not_its_own(attack: Attack, family: str) -> None:
    attack.send(attack.datagram(family, b"forged-mac"), source="02:00:00:00:00:99")
    attack.send(attack.datagram(family, b"no-mac"), source="00:00:00:00:00:00")
    assert attack.arrived(b"forged-mac", b"no-mac") == set()


@families
def test_tagged_frames(attack: Attack, family: str) -> None:
    packet = attack.datagram(family, b"tagged")
    tag = struct.pack(">HH", 7, kind_of(packet))
    attack.wire.send(frame(attack.mac, attack.mac, VLAN, tag + packet))
    assert attack.arrived(b"tagged") == set()


@families
def test_another_environment_by_its_address_or_its_mac(attack: Attack, family: str) -> None:
    other = mac_of(attack.bench.path("b"), "eth0")
    attack.send(attack.datagram(family, b"by-address", target=attack.own(family, "b")))
    attack.send(attack.datagram(family, b"by-mac", target=attack.own(family, "b")), target=other)
    attack.send(attack.datagram(family, b"to-all", target=attack.own(family, "b")), target=BROADCAST)
    assert attack.arrived(b"by-address", b"by-mac", b"to-all") == set()


@families
def test_the_host_by_any_of_its_addresses(attack: Attack, family: str) -> None:
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as host:
        host.bind(("", PORT))
        host.setblocking(False)
        for target in (attack.bench.gateway("a", family), WIRE[family][0]):
            attack.send(attack.datagram(family, b"to-the-host", target=target))
        everybody = {"ipv4": "255.255.255.255", "ipv6": "ff02::1"}[family]
        attack.send(attack.datagram(family, b"to-everybody", target=everybody), target=BROADCAST)
        attack.arrived()
        with pytest.raises(BlockingIOError):
            host.recv(100)


def parts(attack: Attack, family: str, whole: bytes, cut: int, number: int, source: str = "") -> list[bytes]:
    """Return a datagram in two fragments."""
    one, other = source or attack.own(family), WIRE[family][1]
    if family == "ipv4":
        return [
            ip(one, other, UDP, whole[:cut], more=True, number=number),
            ip(one, other, UDP, whole[cut:], offset=cut, number=number),
        ]
    return [
        ip(one, other, FRAGMENT, fragment(UDP, whole[:cut], more=True, number=number)),
        ip(one, other, FRAGMENT, fragment(UDP, whole[cut:], offset=cut, number=number)),
    ]


@families
def test_fragments_are_judged_as_the_whole_they_are(attack: Attack, family: str) -> None:
    own, far = attack.own(family), WIRE[family][1]
    other = attack.own(family, "b")
    for number, (source, port, data, cut) in enumerate([
        (own, PORT, b"allowed-in-parts", 16),
        (own, 9999, b"refused-in-parts", 16),
        (own, 9999, b"refused-in-tiny-", 8),
        (other, PORT, b"forged-in-parts-", 16),
    ]):  # fmt: skip
        for part in parts(attack, family, udp(source, far, port, data), cut, 10 + number, source):
            attack.send(part)
    # The rest alone, of a datagram whose head never comes, and a head with another's rest.
    attack.send(parts(attack, family, udp(own, far, PORT, b"a-tail-without-a-head"), 16, 20)[1])
    seen = attack.arrived(b"allowed-", b"refused-", b"forged-", b"without-a-head")
    assert seen == {b"allowed-"}


def test_overlapping_fragments_do_not_change_a_port_afterwards(attack: Attack) -> None:
    own, far = attack.own("ipv4"), WIRE["ipv4"][1]
    allowed, refused = udp(own, far, PORT, b"x" * 24), udp(own, far, 9999, b"overlapping-fragment----")
    attack.send(ip(own, far, UDP, allowed[:16], more=True, number=30))
    attack.send(ip(own, far, UDP, refused[:24], more=True, number=30))
    attack.send(ip(own, far, UDP, refused[24:], offset=24, number=30))
    assert attack.arrived(b"overlapping") == set()


def test_extension_headers_hide_no_port(attack: Attack) -> None:
    own, far = attack.own("ipv6"), WIRE["ipv6"][1]
    padding = bytes([1, 4, 0, 0, 0, 0])

    def wrapped(kinds: list[int], port: int, data: bytes) -> bytes:
        body, following = udp(own, far, port, data), UDP
        for kind in reversed(kinds):
            if kind == FRAGMENT:
                body = fragment(following, body, number=40)
            elif kind == ROUTING:  # type 0, nothing left to visit
                body = bytes([following, 0, 0, 0, 0, 0, 0, 0]) + body
            else:
                body = bytes([following, 0]) + padding + body
            following = kind
        return ip(own, far, following, body)

    chains = [[OPTIONS], [HOP_BY_HOP, OPTIONS], [OPTIONS, OPTIONS, OPTIONS], [FRAGMENT], [OPTIONS, FRAGMENT, OPTIONS]]
    for number, chain in enumerate([*chains, [ROUTING], [HOP_BY_HOP, ROUTING, FRAGMENT]]):
        attack.send(wrapped(chain, 9999, b"refused-%d" % number))
    attack.send(wrapped([OPTIONS], PORT, b"allowed"))
    assert attack.arrived(b"refused-", b"allowed") == {b"allowed"}


def test_source_routes(attack: Attack) -> None:
    own, far = attack.own("ipv4"), WIRE["ipv4"][1]
    for number, kind in enumerate((131, 137)):  # loose and strict: RFC 791
        route = bytes([kind, 7, 4]) + packed(attack.own("ipv4", "b")) + b"\0"
        attack.send(ip(own, far, UDP, udp(own, far, PORT, b"routed-%d" % number), options=route))
    assert attack.arrived(b"routed-") == set()


def neighbours() -> list[str]:
    return [line for line in run("ip neigh show nud all").splitlines() if "NOARP" not in line]


def test_arp_teaches_the_host_nothing(attack: Attack) -> None:
    before = run("ip neigh show nud all")
    gateway, other = attack.bench.gateway("a", "ipv4"), attack.own("ipv4", "b")
    for operation in (1, 2):
        for claimed, asked in ((gateway, other), (other, gateway), (WIRE["ipv4"][1], WIRE["ipv4"][0])):
            body = bytes.fromhex("000108000604") + struct.pack(">H", operation)
            body += mac(attack.mac) + packed(claimed) + mac(attack.mac) + packed(asked)
            for target in (attack.mac, BROADCAST):
                attack.wire.send(frame(target, attack.mac, ARP, body))
    attack.arrived()
    new = set(neighbours()) - set(before.splitlines())
    assert not [line for line in new if attack.bench.host_end("a") in line or attack.mac in line]
    assert not [one for one in attack.wire.received() if one[12:14] == struct.pack(">H", ARP)], "nor does it answer"


def icmp6(source: str, target: str, body: bytes, hops: int = 255) -> bytes:
    return ip(source, target, ICMP6, upper(source, target, ICMP6, body, 2), hops=hops)


def test_neighbour_discovery_and_router_advertisements_teach_the_host_nothing(attack: Attack) -> None:
    before, routes = set(neighbours()), run("ip -6 route show table all")
    gateway, other, far = attack.bench.gateway("a", "ipv6"), attack.own("ipv6", "b"), WIRE["ipv6"][1]
    for source in (attack.own("ipv6"), "fe80::1", gateway):
        for claimed in (gateway, other, far, attack.own("ipv6")):
            advertised = bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + packed(claimed) + b"\2\1" + mac(attack.mac)
            asked = bytes([135, 0, 0, 0, 0, 0, 0, 0]) + packed(claimed) + b"\1\1" + mac(attack.mac)
            for target in (gateway, "ff02::1"):
                attack.send(icmp6(source, target, advertised))
                attack.send(icmp6(source, target, asked))
        router = bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8) + b"\1\1" + mac(attack.mac)
        attack.send(icmp6(source, "ff02::1", router))
    attack.arrived()
    new = set(neighbours()) - before
    assert not [line for line in new if attack.bench.host_end("a") in line]
    assert run("ip -6 route show table all") == routes


def redirects(family: str) -> int:
    """Return the number of ICMP redirects that the host's own stack has received."""
    if family == "ipv4":
        names, values = (
            line.split()
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Icmp:")
        )
        return int(values[names.index("InRedirects")])
    lines = (line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
    return next(int(value) for name, value in lines if name == "Icmp6InRedirects")


@families
def test_redirects_never_reach_the_hosts_stack(attack: Attack, family: str) -> None:
    own, near, far = attack.own(family), attack.bench.gateway("a", family), WIRE[family][1]
    before = redirects(family)
    # About a packet that really passed.
    passed = attack.datagram(family, b"that passed")
    attack.send(passed)
    for source in (own, near):
        for about in (passed, ip(WIRE[family][0], far, UDP, udp(WIRE[family][0], far, PORT, b"masqueraded"))):
            if family == "ipv4":
                body = bytes([5, 1, 0, 0]) + packed(own) + about[:28]
                body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
                attack.send(ip(source, near, ICMP, body))
            else:
                attack.send(
                    icmp6(source, near, bytes([137, 0, 0, 0, 0, 0, 0, 0]) + packed(own) + packed(far) + about[:48])
                )
    attack.arrived()
    assert redirects(family) == before


def test_an_address_borrowed_without_any_right(bench: Bench, outside: Path) -> None:
    """A program sends from another environment's IPv6 address (IPV6_FREEBIND); the packet doesn't arrive."""
    bench.make(a=veth({"direction": "out", "cidr": WORLD["ipv6"], "protocol": "udp"}), b=veth())
    forged, far = bench.address("b", "ipv6"), WIRE["ipv6"][1]

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
            sender.bind((forged, 0))
            sender.sendto(b"borrowed", (far, PORT))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.sendto(MARK, (far, PORT))

    with Wire(bench.path("a"), "eth0") as leaving, Wire(outside, "wire") as arriving:
        within(bench.path("a"), send)
        assert tags(arriving.until(MARK), [b"borrowed"]) == set()
        assert tags(leaving.sent(), [b"borrowed"]) == {b"borrowed"}, "it was tried"
