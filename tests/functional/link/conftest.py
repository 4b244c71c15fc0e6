"""A host with real environments' namespaces, a real broker and real clients, for all tests of links."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from netspace.layout import Layout
from netspace.link import authority, credentials, forwarder, identity, seals
from netspace.link.kind import DesiredLinks, Links
from netspace.plan import Plan
from netspace.spec.types import Link, LocalBroker
from netspace.supervision.direct import Direct

CLONE_NEWNET = 0x40000000


class World:
    """One host: its links, and clients inside its environments."""

    def __init__(self) -> None:
        self.layout = Layout()
        self.supervisor = Direct(self.layout)
        self.messages: list[str] = []
        self.links = Links(self.layout, self.supervisor, progress=self.messages.append)
        self.netns: set[str] = set()

    def environment(self, *names: str) -> None:
        """Make the network namespaces of environments where they lack, as the interface kind does."""
        for name in set(names) - self.netns:
            namespace = self.layout.netns_name(name)
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
            self.netns.add(name)

    def no_environment(self, *names: str) -> None:
        for name in names:
            subprocess.run(["ip", "netns", "del", self.layout.netns_name(name)], check=True)
            self.netns.discard(name)

    def plan(self, *links: Link, remove=(), broker: LocalBroker | None = None) -> Plan:
        return self.links.plan(DesiredLinks(broker or LocalBroker(), links), self.links.observe(), remove)

    def apply(self, *links: Link, only: bool = True, purge: bool = False, broker: LocalBroker | None = None) -> Plan:
        """Have exactly these links (or these as well); every step must succeed."""
        remove = self.links.names() - {link.name for link in links} if only else ()
        plan = self.plan(*links, remove=remove, broker=broker)
        outcomes = self.links.apply(plan.steps, purge=purge)
        errors = {outcome.error for outcome in outcomes if outcome.error}
        assert not errors, errors
        assert not plan.refusals
        return plan

    def n(self, plain: str) -> str:
        """The whole name of a broker's object, which tests say without what can't be guessed."""
        return self.links.called.dead if plain == "dead" else self.links.called.of(plain)

    def card(self, name: str) -> dict[str, Any]:
        return self.links.cards()(name, self.links.recorded())

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Be in an environment's network namespace (this thread only): sockets made here are its."""
        libc = _libc()
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self.layout.netns(name), os.O_RDONLY)
        try:
            assert libc.setns(there, CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert libc.setns(own, CLONE_NEWNET) == 0
        finally:
            os.close(own)
            os.close(there)

    def tls(self, certificate: str | Path | None = None) -> ssl.SSLContext:
        """What a client checks the broker by, and what it shows (None: nothing)."""
        context = ssl.create_default_context(cadata=authority.read(self.layout).anchors.decode())
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def connect(
        self, name: str, password: str | None = None, certificate: str | Path | None = None, **options
    ) -> pika.BlockingConnection:
        """A client inside *name*, by nothing but what its card says, or with another's password or certificate."""
        about = self.card(name)["broker"]
        if "tls" in about and password is None:
            login = pika.credentials.ExternalCredentials()
            options["ssl_options"] = pika.SSLOptions(
                self.tls(certificate or identity.path(self.layout, name)), about["tls"]["server_name"]
            )
        else:
            login = pika.PlainCredentials(about["username"], password or credentials.read(self.layout, name))
            if "tls" in about:
                options["ssl_options"] = pika.SSLOptions(self.tls(certificate), about["tls"]["server_name"])
        parameters = pika.ConnectionParameters(
            about["host"],
            about["port"],
            about["vhost"],
            login,
            socket_timeout=30,
            stack_timeout=60,
            blocked_connection_timeout=30,
            **options,
        )
        with self.inside(name):
            return pika.BlockingConnection(parameters)

    @contextlib.contextmanager
    def client(self, name: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        connection = self.connect(name)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            if connection.is_open:
                connection.close()

    def place(self, name: str, cards: str) -> list[str]:
        """What runs a command in an environment's namespace, where ``/run/netspace`` is the folder *cards*."""
        script = 'mkdir -p /run/netspace && mount --bind "$0" /run/netspace && exec "$@"'
        return ["ip", "netns", "exec", self.layout.netns_name(name), "unshare", "-m", "sh", "-c", script, cards]

    def run_inside(self, name: str, code: str, *arguments: str, cards: str) -> subprocess.Popen[str]:
        """Run Python *code* there."""
        command = [*self.place(name, cards), sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def write_cards(self, name: str, folder) -> str:
        """What the host puts into an environment's ``/run/netspace``."""
        links = [link for link in self.links.recorded() if name in (link.source, link.target)]
        folder.mkdir()
        (folder / "environment.json").write_text(json.dumps(self.card(name)))
        handed = {**seals.handed(name, links, self.links.keys()), **self.links.access().files(name)}
        for file, content in handed.items():
            (folder / file).write_bytes(content)
        return str(folder)

    def api(self):
        return self.links.management(LocalBroker())

    def forwarder(self, command: str) -> str:
        return forwarder.ask(self.layout, command)


def _libc():
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.links.purge()
        made.supervisor.purge()
        made.no_environment(*list(made.netns))


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """A client that waits for an answer for ever fails its test."""

    def ring(*_: object) -> None:
        raise TimeoutError("the test takes more than three minutes")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)
