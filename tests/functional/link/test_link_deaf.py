"""A broker that no client can reach isn't reported as running: its port is closed, or another program has it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.links.link_world import World
from support.waiting import until

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import access, first_start, listening, node, plugin
from netspace.link.pki import authority
from netspace.spec.types import Link, LocalBroker

pytestmark = pytest.mark.root

TELL = Link(source="web", target="orders")
SERVE = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def health(world: World) -> dict[str, Any]:
    with world.here():
        return world.links.health()


def listed(world: World) -> dict[str, Any]:
    with world.here():
        return world.links.list()


@contextlib.contextmanager
def squatter(world: World, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run another program that listens at *port* of the host."""
    with world.here():
        process = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stderr=subprocess.DEVNULL)
        try:
            until(lambda: listening.holder(port) is not None, "it doesn't listen")
            yield process
        finally:
            process.kill()
            process.wait()


def test_first_start_that_is_killed_begins_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is stopped while it makes its tables: RabbitMQ can't read them again. The next apply needs no help."""

    def killed(*_: object) -> None:
        raise NetspaceError("killed here")

    world.environment("web", "orders")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(node, "wait", killed)
            with pytest.raises(AssertionError, match="killed here"):
                world.apply(TELL)
        assert first_start.unfinished(world.layout)
        world.supervisor.stop([node.NODE])
        tables = first_start.data(world.layout) / f"{world.layout.instance}@localhost"
        tables.mkdir(parents=True, exist_ok=True)
        (tables / "schema.DAT").write_bytes(b"half")
        world.apply(TELL)
        assert health(world)["ok"] and not first_start.unfinished(world.layout)
    finally:
        world.apply()
        world.no_environment("web", "orders")


def test_port_that_is_taken_is_refused_before_anything_starts(world: World) -> None:
    world.environment("web", "orders")
    with squatter(world, world.broker.port) as process:
        refusals = [str(one.message) for one in world.plan(TELL).refusals]
        assert refusals and f"(process {process.pid})" in refusals[0], refusals
        with pytest.raises(AssertionError, match="is taken by"):
            world.apply(TELL)
    world.apply(TELL)
    assert health(world)["ok"], health(world)


def test_broker_without_its_port_is_told_and_started_anew(world: World) -> None:
    """Another program has the broker's port: reports say that the broker is deaf, and the next apply repairs it."""
    world.environment("web", "orders")
    world.apply(TELL)
    with world.here():
        assert listening.unanswered(world.layout, world.broker) == ""
        assert world.supervisor.stop([node.NODE]) == {}
    with squatter(world, world.broker.port):
        with world.here():
            assert world.supervisor.start([node.NODE]) == {}
        # It may go on like this, or end and be started again and again: it is never called running.
        until(lambda: any("the broker is deaf" in one and "has it" in one for one in health(world)["problems"]))
        assert listed(world)["broker"]["state"] != "running"
    world.apply(TELL)
    assert health(world)["ok"], health(world)
    assert listed(world)["broker"]["state"] == "running"


def answered_by(world: World, identity: bytes, folder: Path) -> str:
    """Return the reason why a TLS server with this certificate and key isn't the broker; empty if it is accepted."""
    path = folder / "identity.pem"
    path.write_bytes(identity)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            taken, _ = server.accept()
            with contextlib.suppress(OSError), context.wrap_socket(taken, server_side=True) as secured:
                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return listening.unanswered(world.layout, replace(world.broker, port=server.getsockname()[1]))
        finally:
            thread.join()


def test_a_listener_is_the_broker_by_a_valid_certificate_of_this_host_alone(world: World, tmp_path: Path) -> None:
    """Another instance's broker, another TLS server, and this broker with an expired certificate aren't accepted."""
    world.environment("web", "orders")
    world.apply(TELL)
    now, known = time.time(), authority.read(world.layout)
    assert known is not None
    ours = authority.Issuer(known)
    assert answered_by(world, ours.server(now), tmp_path) == ""
    assert "expired" in answered_by(world, ours.server(now - 400 * 86400, 86400.0), tmp_path)
    other = authority.Issuer(authority.ensure(Layout("elsewhere", tmp_path), LocalBroker(), now))
    assert "CERTIFICATE_VERIFY_FAILED" in answered_by(world, other.server(now), tmp_path)
    # Of this host, but an environment's.
    assert "doesn't answer as the broker" in answered_by(world, ours.environment("web", now), tmp_path)


def test_broker_that_was_only_slow_is_not_started_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that answers only at the second, longer attempt is not restarted: a restart ends all connections."""
    world.environment("web", "orders")
    world.apply(TELL)
    before = world.supervisor.observe()[node.NODE].pid
    real, late = listening.unanswered, iter(["it timed out"])

    def slow(layout: Layout, spec: LocalBroker, seconds: float = 5.0) -> str:
        return next(late, "") or real(layout, spec, seconds)

    monkeypatch.setattr(listening, "unanswered", slow)
    world.apply(TELL)
    assert next(late, None) is None
    assert world.supervisor.observe()[node.NODE].pid == before
    assert health(world)["ok"], health(world)


def test_broker_whose_guard_ended_is_told_and_gets_it_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's guard has ended: health reports it, and the next apply starts it without ending connections."""
    world.environment("web", "orders")
    world.apply(TELL)
    assert world.plan(TELL).steps == []
    monkeypatch.setattr(access, "BOOTED_SECONDS", 0.0)  # it does so for a minute; nobody waits for that here
    before = world.supervisor.observe()[node.NODE].pid
    world.evaluate(f"ok = application:stop({plugin.NAME}).")
    until(lambda: [one["code"] for one in health(world)["findings"]] == ["guard-down"], pause=0.2)
    (step,) = world.plan(TELL).steps
    assert (step.name, step.changes) == ("broker", {"guard": {"old": "ended", "new": "running"}})
    world.apply(TELL)
    assert health(world)["ok"] and world.plan(TELL).steps == []
    assert world.supervisor.observe()[node.NODE].pid == before, "no connection was ended for it"


def test_a_broker_that_is_short_of_space_is_told(world: World) -> None:
    """Health reports a broker that is short of disk space.

    Keep this test last, because it leaves the broker's alarm on: the broker checks its disk every ten seconds.
    """
    world.environment("web", "orders")
    world.apply(TELL)
    world.evaluate('rabbit_disk_monitor:set_disk_free_limit("1000TB").')
    until(lambda: any("short of disk space" in one for one in health(world)["problems"]))
