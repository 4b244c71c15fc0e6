"""Helpers of the interface tests: they enter namespaces, try connections, and drive the kind under test."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from netspace.interface import forwarding, netns
from netspace.interface.plan import DesiredInterfaces
from netspace.interface.reconciler import Interfaces
from netspace.layout import Layout
from netspace.netlink.connection import Socket
from netspace.plan import Plan
from netspace.spec import parse
from netspace.threads import in_thread
from support.rulesets import uncounted
from support.waiting import PATIENCE, until

T = TypeVar("T")

SIOCGIFFLAGS, IFF_RUNNING = 0x8913, 0x40

OUTSIDE = Path("/run/netns/test-outside")
# The host's and the outside's address on the wire between them.
WIRE = {"ipv4": ("198.18.0.1", "198.18.0.2"), "ipv6": ("fd00:198:18::1", "fd00:198:18::2")}
WORLD = {"ipv4": "198.18.0.0/15", "ipv6": "fd00:198:18::/48"}
ANY = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def within(path: Path | None, work: Callable[[], T]) -> T:
    """Run *work* in the namespace at *path*. None means the host's namespace."""

    def inside() -> T:
        if path is not None:
            netns.enter(path)
        return work()

    return in_thread(inside)


def mac_of(path: Path | None, link: str) -> str:
    where = ["-n", path.name] if path is not None else []
    return str(json.loads(run(" ".join(["ip", *where, "-j", "link", "show", link])))[0]["address"])


def listen(path: Path | None, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def make() -> socket.socket:
        server = socket.socket(family)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        server.settimeout(PATIENCE)
        return server

    return within(path, make)


def connect(
    path: Path | None, address: str, port: int, *, timeout: float = 0.25, tries: int = 3
) -> socket.socket | None:
    """Return a connection from the namespace at *path*; None if no connection could be made.

    :param timeout: seconds for each of the *tries*.
    """

    def attempt() -> socket.socket | None:
        # Right after a link is up the kernel may lose a packet, and waits a second before the next: try anew.
        for _ in range(tries):
            try:
                return socket.create_connection((address, port), timeout=timeout)
            except OSError:
                continue
        return None

    return within(path, attempt)


def connected(path: Path | None, address: str, port: int) -> socket.socket:
    """Return a connection, made in one long try, since an abandoned try would be counted or accepted later."""
    made = connect(path, address, port, timeout=PATIENCE, tries=1)
    assert made is not None, f"{address} does not answer at port {port}"
    return made


def assert_cut(client: socket.socket, accepted: socket.socket, revoke: Callable[[], object]) -> None:
    """Check that a live connection carries data before *revoke*, and carries no data in either direction afterwards."""
    with client, accepted:
        client.send(b"before")
        accepted.settimeout(30)
        assert accepted.recv(100) == b"before"
        accepted.settimeout(0.4)
        client.settimeout(0.4)
        revoke()
        client.send(b"after")
        accepted.send(b"after")
        for end in (accepted, client):
            with pytest.raises(TimeoutError):
                end.recv(100)


def reaches(
    client: Path | None, server: Path | None, address: str, port: int = 8080, *, timeout: float = 0.25
) -> str | None:
    """Try to connect to a real server; return the client's address as the server sees it.

    None if the connection fails.
    """
    with listen(server, address, port) as listening:
        connection = connect(client, address, port, timeout=timeout)
        if connection is None:
            return None
        with connection:
            accepted, peer = listening.accept()
            accepted.close()
            return str(peer[0])


def meets(client: Path | None, server: Path | None, address: str, port: int = 8080) -> str:
    """Connect like ``reaches``, but the connection must succeed; wait as long as a busy machine needs."""
    peers: list[str | None] = []

    def met() -> str | None:
        peers.append(reaches(client, server, address, port, timeout=5))
        return peers[-1]

    until(met, f"{address} does not answer at port {port}")
    return str(peers[-1])


def _running(link: str) -> bool:
    """Return whether the kernel considers a link usable (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s16x", link.encode()))
    return bool(struct.unpack_from("=H", answer, 16)[0] & IFF_RUNNING)


def settled(names: set[str]) -> None:
    """Wait until the kernel's link watcher has assigned a queue to each link that is up.

    Until then the kernel drops packets.
    """

    def all_are() -> bool:
        with Socket() as here:
            up = [link for link in here.links() if link.name in names and link.up]
        return all(link.queue != "noop" and _running(link.name) for link in up)

    until(all_are, f"of {names} not all are usable")


def snapshot() -> dict[str, Any]:
    """Return all parts of the host in which interfaces could leave something."""
    return {
        "links": {link["ifname"] for link in json.loads(run("ip -j link"))},
        "routes": run("ip route") + run("ip -6 route"),
        "rules": uncounted(run("nft list ruleset")),
        "namespaces": sorted(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else [],
        "mounts": [
            line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " net:[" in line
        ],
        "switches": [forwarding.read(name) for name in forwarding.SWITCH.values()],
        # An index notes what records say, and may lack any of them.
        "files": sorted(
            str(path)
            for path in Path("/run/netspace").rglob("*")
            if path.is_file() and path.parent != Path("/run/netspace/index")
        ),
        "records": sorted(str(path) for path in Path("/var/lib/netspace/interfaces").rglob("*")),
    }


class Bench:
    """The kind under test, with methods for the most frequent operations of tests."""

    def __init__(self) -> None:
        self.layout = Layout()
        self.kind = Interfaces(self.layout)

    def desired(self, **declared: Any) -> DesiredInterfaces:
        return DesiredInterfaces(interfaces={name: parse.interface(value) for name, value in declared.items()})

    def plan(self, desired: DesiredInterfaces | None = None, remove: Any = ()) -> Plan:
        return self.kind.plan(desired or DesiredInterfaces(), self.kind.observe(desired), remove)

    def apply(self, desired: DesiredInterfaces | None = None, remove: Any = ()) -> Plan:
        plan = self.plan(desired, remove)
        assert not plan.refusals
        failed = [outcome for outcome in self.kind.apply(plan.steps) if outcome.error]
        assert not failed, failed
        known = self.kind.list()
        settled({entry["host_end"] for entry in known.values()})
        for name, entry in known.items():
            if entry["kind"] != "none":
                within(self.path(name), lambda: settled({"eth0"}))
        return plan

    def make(self, **declared: Any) -> DesiredInterfaces:
        desired = self.desired(**declared)
        self.apply(desired)
        return desired

    def own(self, **owners: int) -> None:
        errors = self.kind.own(owners)
        assert not errors, errors

    def remove_all(self) -> None:
        self.apply(remove=self.kind.names())

    def path(self, name: str) -> Path:
        return self.layout.netns(name)

    def address(self, name: str, family: str) -> str:
        return str(self.kind.list()[name]["addresses"][family])

    def gateway(self, name: str, family: str) -> str:
        return str(self.kind.list()[name]["gateways"][family])

    def host_end(self, name: str) -> str:
        return str(self.kind.list()[name]["host_end"])


def veth(*allow: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "veth", "allow": list(allow), **more}
