"""Helpers of the interface tests: namespaces to enter, connections to try, the kind under test."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from netspace.interface import namespaces
from netspace.interface.kind import DesiredInterfaces, Interfaces
from netspace.layout import Layout
from netspace.plan import Plan
from netspace.spec import parse

T = TypeVar("T")

SIOCGIFFLAGS, IFF_RUNNING = 0x8913, 0x40  # netdevice(7)

OUTSIDE = Path("/run/netns/test-outside")
# The host's and the outside's address on the wire between them.
WIRE = {"ipv4": ("198.18.0.1", "198.18.0.2"), "ipv6": ("fd00:198:18::1", "fd00:198:18::2")}
WORLD = {"ipv4": "198.18.0.0/15", "ipv6": "fd00:198:18::/48"}
ANY = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def within(path: Path | None, work: Callable[[], T]) -> T:
    """Run *work* in the namespace kept at *path* (None: the host's)."""

    def inside() -> T:
        if path is not None:
            namespaces.enter(path)
        return work()

    return namespaces.in_thread(inside)


def listen(path: Path | None, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def make() -> socket.socket:
        server = socket.socket(family)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        server.settimeout(5)
        return server

    return within(path, make)


def connect(path: Path | None, address: str, port: int, *, timeout: float = 0.5) -> socket.socket | None:
    """A connection from the namespace at *path*, or None where none comes about."""

    def attempt() -> socket.socket | None:
        try:
            return socket.create_connection((address, port), timeout=timeout)
        except OSError:
            return None

    return within(path, attempt)


def reaches(client: Path | None, server: Path | None, address: str, port: int = 8080) -> str | None:
    """Try a connection to a server that really listens; return the peer as it sees it, or None."""
    with listen(server, address, port) as listening:
        connection = connect(client, address, port)
        if connection is None:
            return None
        with connection:
            accepted, peer = listening.accept()
            accepted.close()
            return str(peer[0])


def _running(link: str) -> None:
    """Wait until the kernel's link watcher has seen that both ends are up: till then it drops what is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _ in range(500):
            try:
                answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s16x", link.encode()))
            except OSError:
                return
            if struct.unpack_from("=H", answer, 16)[0] & IFF_RUNNING:
                return
            time.sleep(0.01)


class Bench:
    """The kind under test, with what tests do most often."""

    def __init__(self) -> None:
        self.layout = Layout()
        self.kind = Interfaces(self.layout)

    def desired(self, **declared: Any) -> DesiredInterfaces:
        return DesiredInterfaces(interfaces={name: parse.interface(value) for name, value in declared.items()})

    def plan(self, desired: DesiredInterfaces | None = None, remove: Any = ()) -> Plan:
        return self.kind.plan(desired or DesiredInterfaces(), self.kind.observe(), remove)

    def apply(self, desired: DesiredInterfaces | None = None, remove: Any = ()) -> Plan:
        plan = self.plan(desired, remove)
        assert not plan.refusals
        failed = [outcome for outcome in self.kind.apply(plan.steps) if outcome.error]
        assert not failed, failed
        for name, entry in self.kind.list().items():
            if entry["host_end"]:
                within(self.path(name), lambda: _running("eth0"))
        return plan

    def make(self, **declared: Any) -> DesiredInterfaces:
        desired = self.desired(**declared)
        self.apply(desired)
        return desired

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
