"""A broker that no client reaches is never reported as running: another program has its port, or nobody has it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from link_world import World
from waiting import until

from netspace.layout import Layout
from netspace.link import broker as node
from netspace.link import listening
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
    """Another program at *port* of the host."""
    with world.here():
        process = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stderr=subprocess.DEVNULL)
        try:
            until(lambda: listening.holder(port) is not None, "it doesn't listen")
            yield process
        finally:
            process.kill()
            process.wait()


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
    """RabbitMQ goes on without a listener whose port was taken; every report then called it running."""
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


def test_broker_that_was_only_slow_is_not_started_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It restarts all who are connected, so it is looked at once more, and for longer, before that."""
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
