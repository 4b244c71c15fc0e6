"""The loaded rules have the declared effect: for each packet, the kernel decides like a model of a few lines.

Every packet is real, and sent without a socket's checks. If the table is in the environment's namespace, raw sockets
inside send the packet.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.interfaces.interface_bench import WIRE, Bench, mac_of, run, veth, within
from support.interfaces.lan_bench import FAR, address, bridged
from support.interfaces.packets import Wire, datagram, frame, kind_of, tags
from support.waiting import PATIENCE

from netspace.spec import checks, parse
from netspace.spec.types import Allow

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("one_processor")]

PEERS = {
    "ipv4": ["198.18.0.2", "198.51.100.7", "198.51.100.200", "203.0.113.5", "8.8.8.8"],
    "ipv6": ["fd00:198:18::2", "fd00:51::7", "fd00:51:0:1::7", "2001:db8::5"],
}
NETWORKS = {
    "ipv4": ["0.0.0.0/0", "198.18.0.0/15", "198.51.100.0/24", "198.51.100.0/25", "198.51.100.7", "192.0.0.0/3"],
    "ipv6": ["::/0", "fd00::/8", "fd00:51::/32", "fd00:51::/64", "fd00:51::7", "fd00:198:18::/48"],
}
PORTS = [1, 80, 443, 8000, 8099, 8100, 65535]
DIRECTIONS, PROTOCOLS = ("out", "in"), ("tcp", "udp", "icmp")
MARK_PORT = 7


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection between the environment and *peer*."""

    direction: str
    family: str
    peer: str
    protocol: str
    port: int


def passes(rules: tuple[Allow, ...], packet: Packet) -> bool:
    """Return whether the declaration lets the packet through."""
    for rule in rules:
        first, last = (checks.ports(rule.port) if rule.port is not None else None) or (0, 65535)
        if (
            rule.direction == packet.direction
            and rule.protocol == packet.protocol
            and ipaddress.ip_address(packet.peer) in rule.cidr.network
            and (rule.protocol == "icmp" or first <= packet.port <= last)
        ):
            return True
    return False


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    protocol = draw(st.sampled_from(PROTOCOLS))
    rule = {
        "direction": draw(st.sampled_from(DIRECTIONS)),
        "cidr": draw(st.sampled_from([network for networks in NETWORKS.values() for network in networks])),
        "protocol": protocol,
    }
    port = draw(st.sampled_from([None, 80, "8000-8099", "443-8000", "1-65535"]))
    return rule if protocol == "icmp" or port is None else {**rule, "port": port}


packets = st.sampled_from(["ipv4", "ipv6"]).flatmap(
    lambda family: st.builds(
        Packet,
        st.sampled_from(DIRECTIONS),
        st.just(family),
        st.sampled_from(PEERS[family]),
        st.sampled_from(PROTOCOLS),
        st.sampled_from(PORTS),
    )
)
# The last of each direction, so that one knows when all have been judged.
MARKS = [
    {"direction": direction, "cidr": "198.18.0.2", "protocol": "udp", "port": MARK_PORT} for direction in DIRECTIONS
]


class Stack:
    """The network stack of a namespace, as its programs see it: incoming packets have passed the namespace's table."""

    _PROTOCOLS = {
        socket.AF_INET: (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP),
        socket.AF_INET6: (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6),
    }

    def __init__(self, path: Path) -> None:
        def make() -> None:
            for family, protocols in self._PROTOCOLS.items():
                self._senders[family] = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
                self._receivers += [socket.socket(family, socket.SOCK_RAW, protocol) for protocol in protocols]

        self._senders: dict[int, socket.socket] = {}
        self._receivers: list[socket.socket] = []
        within(path, make)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (*self._senders.values(), *self._receivers):
            one.close()

    def send(self, data: bytes) -> None:
        """Send the packet in the frame *data*."""
        packet = data[14:]
        six = packet[0] >> 4 == 6
        family = socket.AF_INET6 if six else socket.AF_INET
        target = socket.inet_ntop(family, packet[24:40] if six else packet[16:20])
        with contextlib.suppress(PermissionError):  # dropped at once
            self._senders[family].sendto(packet, (target, 0))

    def until(self, mark: bytes) -> list[bytes]:
        """Return the packets that arrive until shortly after the packet with *mark*."""
        found: list[bytes] = []
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            while ready := select.select(self._receivers, [], [], 0.02)[0]:
                found += [one.recv(1 << 16) for one in ready]
            if any(mark in one for one in found):
                return found
        raise AssertionError(f"{mark!r} did not arrive")


class Between:
    """All frames that are sent between the environment and the outside, and those that arrive."""

    def __init__(
        self, inside: Wire | Stack, outside: Wire, addresses: dict[str, str], inner: str, outer: str, far: str
    ) -> None:
        self.inside, self.outside, self.addresses = inside, outside, addresses
        self.inner, self.outer, self.far = inner, outer, far
        self.count = 0

    def judged(self, sample: list[Packet]) -> list[bool]:
        """Return, for each packet of *sample*, whether it arrives."""
        known = []
        marks = {}
        for packet in [*sample, *(Packet(way, "ipv4", "198.18.0.2", "udp", MARK_PORT) for way in DIRECTIONS)]:
            self.count += 1
            known.append(b"sample-%08d" % self.count)
            if packet.port == MARK_PORT:
                marks[packet.direction] = known[-1]
            own = self.addresses[packet.family]
            ways = {"out": (own, packet.peer), "in": (packet.peer, own)}
            body = datagram(*ways[packet.direction], packet.protocol, packet.port, known[-1])
            if packet.direction == "out":
                self.inside.send(frame(self.inner, self.inner, kind_of(body), body))
            else:
                self.outside.send(frame(self.outer, self.far, kind_of(body), body))
        seen = {
            "out": tags(self.outside.until(marks["out"]), known),
            "in": tags(self.inside.until(marks["in"]), known),
        }
        return [tag in seen[packet.direction] for tag, packet in zip(known, sample, strict=False)]


@pytest.fixture
def world(outside: Path) -> Iterator[None]:
    """Route all addresses over the wire to the machine outside."""
    run(f"ip route add default via {WIRE['ipv4'][1]}")
    run(f"ip -6 route add default via {WIRE['ipv6'][1]}")
    yield
    run("ip route del default")
    run("ip -6 route del default")


# Not shrunk: an example takes seconds where a packet never comes.
model = settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
declarations = st.lists(rules(), min_size=3, max_size=8)
samples = st.lists(packets, min_size=60, max_size=80)


@model
@given(declarations, samples)
def test_the_hosts_table(
    bench: Bench, outside: Path, world: None, declared: list[dict[str, Any]], sample: list[Packet]
) -> None:
    allow = [*declared, *MARKS]
    bench.make(a=veth(*allow), b=veth(*declared))
    spec = parse.interface(veth(*allow))
    addresses = {family: bench.address("a", family) for family in WIRE}
    with Wire(bench.path("a"), "eth0") as inside, Wire(outside, "wire") as beyond:
        inner = mac_of(bench.path("a"), "eth0")
        between = Between(inside, beyond, addresses, inner, mac_of(None, "test-wire"), mac_of(outside, "wire"))
        kernel = between.judged(sample)
    assert kernel == [passes(spec.allow, packet) for packet in sample]  # type: ignore[attr-defined]


@model
@given(declarations, samples)
def test_a_table_inside(bench: Bench, lan: Path, declared: list[dict[str, Any]], sample: list[Packet]) -> None:
    allow = [*declared, *MARKS]
    gateways = {f"gateway{family[-1]}": one for family, one in FAR.items()}
    bench.make(a=bridged(7, *allow, **gateways), b=bridged(8, *declared))
    spec = parse.interface(bridged(7, *allow))
    path, far = bench.path("a"), mac_of(lan, "wire")
    for one in FAR.values():
        run(f"ip -n {path.name} neigh replace {one} lladdr {far} dev eth0 nud permanent")
    addresses = {family: address(7, family) for family in FAR}
    with Stack(path) as inside, Wire(lan, "wire") as beyond:
        inner = mac_of(path, "eth0")
        kernel = Between(inside, beyond, addresses, far, inner, far).judged(sample)
    assert kernel == [passes(spec.allow, packet) for packet in sample]  # type: ignore[attr-defined]
