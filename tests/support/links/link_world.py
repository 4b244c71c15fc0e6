"""A host with real network namespaces, a real broker and real clients, for all tests of links."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pika

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import record
from netspace.link.broker import admission, budget, node, plugin
from netspace.link.forwarder import haproxy
from netspace.link.pki import authority, certificates, passwords
from netspace.link.reconciler import DesiredLinks, Links
from netspace.plan import Plan
from netspace.spec import hosts
from netspace.spec.types import Link, LocalBroker, host_of
from netspace.supervision.daemon.client import DaemonSupervisor
from support.waiting import until

CLONE_NEWNET = 0x40000000
RESIDENT = Link(source="resident-a", target="resident-b")
"""The link by which a host keeps its broker between two modules."""


class World:
    """One host: its links, and clients inside its environments.

    :param namespace: the host's network namespace; by default, the current one.
    """

    def __init__(self, instance: str = "netspace", namespace: str = "", broker: LocalBroker | None = None) -> None:
        self.layout = Layout(instance)
        self.namespace = namespace
        self.broker = broker or LocalBroker()
        self.supervisor = DaemonSupervisor(self.layout)
        self.messages: list[str] = []
        self.links = Links(self.layout, self.supervisor, progress=self.messages.append)
        self.netns: set[str] = set()
        self.resident = False

    def environment(self, *names: str) -> None:
        """Make the missing network namespaces of these environments, as the interface kind does."""
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
        with self.here():
            return self.links.plan(DesiredLinks(broker or self.broker, links), self.links.observe(), remove)

    def apply(self, *links: Link, only: bool = True, purge: bool = False, broker: LocalBroker | None = None) -> Plan:
        """Apply exactly these links; every step must succeed.

        :param only: whether to remove all other links. If false, links that exist already stay.
        """
        if self.resident and links:
            # The host of another module: that link goes, with its mail, once these are there.
            self.resident = False
            plan = self.apply(*links, RESIDENT, only=only, purge=purge, broker=broker)
            self.apply(*links, purge=True, broker=broker)
            self.no_environment(RESIDENT.source, RESIDENT.target)
            return plan
        remove = self.links.names() - {link.name for link in links} if only else ()
        plan = self.plan(*links, remove=remove, broker=broker)
        with self.here():
            outcomes = self.links.apply(plan.steps, purge=purge)
        errors = {outcome.error for outcome in outcomes if outcome.error}
        assert not errors, errors
        assert not plan.refusals, plan.refusals
        return plan

    def local(self, *links: Link) -> tuple[Link, ...]:
        """Return this host's part of the links that all hosts of a fleet declare."""
        return hosts.local(links, self.broker)

    def declare(self, *links: Link) -> Plan:
        """Apply exactly this host's part of a fleet's links."""
        return self.apply(*self.local(*links), purge=True)

    def no_mail(self) -> None:
        """Empty all mailboxes."""
        with self.here(), self.api() as api:
            for queue in api.get("queues", self.layout.instance, query="columns=name") or []:
                api.delete("queues", self.layout.instance, queue["name"], "contents")

    def hand_over(self) -> None:
        """Make the host ready for the next module.

        The broker keeps running, with only the link :data:`RESIDENT` and its two environments. If the host has no
        links, or has parked mail, everything is removed instead, and no broker runs.
        """
        self.resident = False
        known = record.read(self.layout)
        if known.broker is None or known.parked:
            with self.here():
                self.links.purge()
            self.no_environment(*self.netns)
            return
        self.environment(RESIDENT.source, RESIDENT.target)
        self.apply(RESIDENT, purge=True)
        self.no_mail()
        known = record.read(self.layout)
        if known.former:
            # The broker's counts are trusted now: nothing is sent to these queues any more.
            aged = tuple(msgspec.structs.replace(one, since=0.0) for one in known.former)
            record.write(self.layout, msgspec.structs.replace(known, former=aged))
            self.apply(RESIDENT, purge=True)
        self.no_environment(*self.netns - {RESIDENT.source, RESIDENT.target})
        self.messages.clear()
        self.resident = True

    def kill_broker(self) -> None:
        """End the broker at once, and wait until it is gone."""
        self.kill(node.NODE)
        until(lambda: not self._answers())

    def kill(self, service: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End a service's process at once."""
        pid = self.supervisor.observe()[service].pid
        assert pid, f"{service} doesn't run"  # 0 is whoever runs the tests
        os.kill(pid, how)

    def _answers(self) -> bool:
        try:
            with self.here(), self.api() as api:
                return api.get("overview") is not None
        except NetspaceError:
            return False

    def n(self, plain: str) -> str:
        """Return the full name of a broker's object. Tests write the name without its secret part."""
        kind, _, ends = plain.partition(".")
        host = host_of(ends.partition(".")[0]) if kind in ("link", "replies", "notices") else None
        return self.links.called.dead if plain == "dead" else self.links.called.of(plain, host=host)

    def card(self, name: str) -> dict[str, Any]:
        return self.links.cards()(name, self.links.recorded())

    def inside(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Enter an environment's network namespace (this thread only), so that new sockets belong to it."""
        return _in_namespace(self.layout.netns(name))

    def listens(self, name: str) -> bool:
        """Return whether the forwarder listens inside *name* at the port for TLS."""
        with self.inside(name):
            try:
                socket.create_connection(("127.0.0.1", 5671), timeout=5).close()
            except ConnectionRefusedError:
                return False
        return True

    def here(self) -> contextlib.AbstractContextManager[None]:
        """Enter the host's own network namespace (this thread only)."""
        return _in_namespace(Path("/run/netns", self.namespace)) if self.namespace else contextlib.nullcontext()

    def tls(self, certificate: str | Path | None = None) -> ssl.SSLContext:
        """Return the TLS context of a client.

        The client checks the broker, and shows *certificate*, unless it is None.
        """
        context = ssl.create_default_context(cadata=authority.read(self.layout).anchors.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python is by default from 3.13 on
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def connect(
        self, name: str, password: str | None = None, certificate: str | Path | None = None, to: str = "", **options
    ) -> pika.BlockingConnection:
        """Return a client inside *name*, with its card's log-in, or another environment's password or certificate."""
        card = self.card(name)
        # At its own broker, or at that of a peer on another host.
        about = next((one for one in card["peers"] if one["to"] == to), {}).get("broker") or card["broker"]
        if "tls" in about and password is None:
            login = pika.credentials.ExternalCredentials()
            options["ssl_options"] = pika.SSLOptions(
                self.tls(certificate or certificates.path(self.layout, name)), about["tls"]["server_name"]
            )
        else:
            secret = passwords.read(self.layout, name) if password is None else password
            login = pika.PlainCredentials(about["username"], secret)
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
    def client(self, name: str, to: str = "") -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        connection = self.connect(name, to=to)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            if connection.is_open:
                connection.close()

    def place(self, name: str, cards: str) -> list[str]:
        """Return a command's prefix that enters an environment's namespace, with *cards* as ``/run/netspace``."""
        script = 'mkdir -p /run/netspace && mount --bind "$0" /run/netspace && exec "$@"'
        return ["ip", "netns", "exec", self.layout.netns_name(name), "unshare", "-m", "sh", "-c", script, cards]

    def run_inside(self, name: str, code: str, *arguments: str, cards: str) -> subprocess.Popen[str]:
        """Run Python *code* in an environment's network namespace."""
        command = [*self.place(name, cards), sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def write_cards(self, name: str, folder) -> str:
        """Write to *folder* the files of an environment's ``/run/netspace``; return the folder's path."""
        folder.mkdir()
        (folder / "environment.json").write_text(json.dumps(self.card(name)))
        for file, content in self.links.handed()(name).items():
            (folder / file).write_bytes(content)
        return str(folder)

    def api(self):
        return self.links.management(self.broker)

    def remove(self) -> None:
        """Remove the host with all its objects."""
        with self.here():
            self.links.purge()
            self.supervisor.purge()
        self.no_environment(*list(self.netns))

    def evaluate(self, expression: str) -> str:
        """Run Erlang in the broker, for actions that no client may request; return the value as Erlang writes it.

        ``rabbitmqctl eval`` would start a second virtual machine of Erlang, which takes a second for each call.
        """
        cookie = (self.layout.broker / "data/.erlang.cookie").read_text()
        command = ["/usr/bin/erl_call", "-c", cookie, "-address", f"127.0.0.1:{self.broker.distribution_port}", "-e"]
        done: list[subprocess.CompletedProcess[str]] = []

        def connected() -> bool:
            text = f"{expression}\n"
            with self.here():
                done.append(
                    subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
                )
            return "failed to connect" not in done[-1].stderr

        until(connected, "the broker's node takes no connection", pause=0.1)  # a busy one may refuse the first
        value = re.fullmatch(r"\{ok, (.*)\}", done[-1].stdout, re.DOTALL)
        assert done[-1].returncode == 0 and value, done
        return value[1]

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Stop the guard's process in the broker. Requests that the guard refuses before they run are still refused."""
        self.evaluate(f"ok = application:stop({plugin.NAME}).")
        try:
            yield
        finally:
            self.evaluate(f"ok = application:start({plugin.NAME}).")

    @contextlib.contextmanager
    def unguarded(self) -> Iterator[None]:
        """Turn the guard off: over AMQP 0-9-1, only RabbitMQ itself refuses requests."""
        interceptor = f'channel_interceptor, <<"{admission.REGISTERED}">>'
        with self.unwatched():
            self.evaluate(f"ok = rabbit_registry:unregister({interceptor}).")
            try:
                yield
            finally:
                self.evaluate(f"ok = rabbit_registry:register({interceptor}, {admission.MODULE}).")

    def forgive(self) -> None:
        """Forget what accounts owe the broker, so that no further test waits for that."""
        there = f"whereis({budget.MODULE})"
        self.evaluate(
            f"Before = {there}, exit(Before, kill), Wait = fun Again() -> case {there} of "
            "New when is_pid(New), New =/= Before -> ok; _ -> timer:sleep(10), Again() end end, Wait()."
        )

    @contextlib.contextmanager
    def generous(self) -> Iterator[None]:
        """Give accounts a budget that none uses up."""
        self.evaluate(f"application:set_env({plugin.NAME}, rate, 1000000000).")
        self.forgive()
        try:
            yield
        finally:
            self.evaluate(f"application:unset_env({plugin.NAME}, rate).")
            self.forgive()

    def admits(self) -> None:
        """Make sure that the broker has netspace's interceptor, and netspace's modules for AMQP 1.0."""
        self.evaluate(
            f"[{{_, {admission.MODULE}}}] = rabbit_registry:lookup_all(channel_interceptor), "
            f"{{'EXIT', {{'v1_0.error', _, _, _}}}} = (catch amqp10_binary_parser:parse(<<16#45>>))."
        )

    def forwarder(self, command: str) -> str:
        return haproxy.ask(self.layout, command)


@contextlib.contextmanager
def _in_namespace(path: Path) -> Iterator[None]:
    libc = _libc()
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(path, os.O_RDONLY)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert libc.setns(own, CLONE_NEWNET) == 0
    finally:
        os.close(own)
        os.close(there)


def _libc():
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
