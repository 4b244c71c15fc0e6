"""Published ports: whoever reaches the host reaches the environment by them, and no environment reaches another."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from interface_bench import ANY, WIRE, Bench, run, veth, within
from lan_bench import bridged
from waiting import until

pytestmark = pytest.mark.root
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])
SERVED = ["443:8443", "53:5353/udp"]
ON_BRIDGE = {"ipv4": "198.18.6.1", "ipv6": "fd00:198:6::1"}
_KIND = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


def asked(client: Path | None, address: str, port: int, protocol: str) -> str | None:
    """Ask the echo of a server (see :func:`serving`); return the asker as the server saw it, None without an answer."""
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]

    def ask() -> str | None:
        with socket.socket(_KIND["ipv6" if ":" in address else "ipv4"], kind) as one:
            one.settimeout(0.25)
            try:
                one.connect((address, port))
                one.send(b"?")
                return one.recv(100).decode() or None
            except OSError:
                return None

    return within(client, ask)


def answered(client: Path | None, address: str, port: int, protocol: str) -> str:
    """Like ``asked``, where an answer must come, with the patience that a busy machine needs."""
    found: list[str | None] = []

    def met() -> str | None:
        found.append(asked(client, address, port, protocol))
        return found[-1]

    until(met, f"{address} does not answer at {port}/{protocol}")
    return str(found[-1])


@contextlib.contextmanager
def serving(path: Path | None, ports: dict[str, int]) -> Iterator[None]:
    """Answer at each of *ports*, by protocol and in both families, with the asker's address."""
    program = f"""
import select, socket
tcp, udp = [], []
for family in (socket.AF_INET, socket.AF_INET6):
    for protocol, port in {ports!r}.items():
        one = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(("", port))
        (tcp if protocol == "tcp" else udp).append(one)
        if protocol == "tcp":
            one.listen(64)
print("ready", flush=True)
while True:
    for one in select.select([*tcp, *udp], [], [])[0]:
        if one in udp:
            data, peer = one.recvfrom(100)
            one.sendto(peer[0].encode(), peer)
        else:
            made, peer = one.accept()
            made.send(peer[0].encode())
            made.close()
"""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)

    server = within(path, start)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.kill()
        server.communicate()


INSIDE = {"tcp": 8443, "udp": 5353}
OUTER = {"tcp": 443, "udp": 53}


@families
def test_who_reaches_the_host_reaches_the_environment_and_nothing_else_of_it(
    bench: Bench, outside: Path, family: str
) -> None:
    bench.make(a=veth(publish=SERVED))
    near, far = WIRE[family]
    own = bench.address("a", family)
    with serving(bench.path("a"), INSIDE):
        for protocol, inside in INSIDE.items():
            assert answered(outside, near, OUTER[protocol], protocol) == far, "the environment sees who asks"
            assert asked(outside, own, inside, protocol) is None, "straight to it nothing passes"
            assert asked(outside, own, OUTER[protocol], protocol) is None
            assert asked(outside, near, inside, protocol) is None
            other = {"tcp": "udp", "udp": "tcp"}[protocol]
            assert asked(outside, near, OUTER[protocol], other) is None
            assert asked(outside, bench.gateway("a", family), OUTER[protocol], protocol) == far, "as any other address"


@families
def test_host_reaches_it_by_any_address_but_loopback(bench: Bench, outside: Path, family: str) -> None:
    bench.make(a=veth(publish=SERVED))
    with serving(bench.path("a"), INSIDE):
        for protocol, port in OUTER.items():
            for address in (WIRE[family][0], bench.gateway("a", family)):
                assert answered(None, address, port, protocol) == address
            assert asked(None, {"ipv4": "127.0.0.1", "ipv6": "::1"}[family], port, protocol) is None
            assert asked(None, bench.address("a", family), INSIDE[protocol], protocol) is None


@families
def test_no_environment_reaches_another_by_its_published_port(
    bench: Bench, outside: Path, lan: Path, family: str
) -> None:
    for address in ON_BRIDGE.values():
        run(f"ip addr add {address}/{'64 nodad' if ':' in address else '24'} dev test-br")
    hosts = [WIRE[family][0], ON_BRIDGE[family], str(getattr(bench.desired().network, family).network[1])]
    everything = [
        {"direction": way, "cidr": cidr, "protocol": protocol}
        for way in ("out", "in")
        for protocol in ("tcp", "udp")
        for cidr in (ANY[family], *hosts)
    ]
    port = bridged(7, *everything, isolated=False)
    bench.make(a=veth(publish=SERVED), routed=veth(*everything), neighbour=port)
    with serving(bench.path("a"), INSIDE):
        for protocol, number in OUTER.items():
            assert answered(lan, ON_BRIDGE[family], number, protocol), "who is no environment is served"
            for address in hosts:
                for name in ("routed", "neighbour", "a"):
                    assert asked(bench.path(name), address, number, protocol) is None, (name, address)
    # What keeps them out is that rule, not that they reach nothing of the host.
    with serving(None, {"tcp": 444}):
        for name in ("routed", "neighbour"):
            assert answered(bench.path(name), ON_BRIDGE[family], 444, "tcp")
