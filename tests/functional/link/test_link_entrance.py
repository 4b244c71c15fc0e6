"""The connection from environments to the broker: reports name the cause of an interruption, and blame no program.

The forwarder's process may run although it forwards nothing, or doesn't serve some environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from support.links.link_world import World
from support.waiting import until

from netspace.errors import NetspaceError
from netspace.link import status
from netspace.link.broker import node
from netspace.link.forwarder import haproxy, process
from netspace.link.pki import renewer
from netspace.spec.types import Link

pytestmark = pytest.mark.root
TELL = Link(source="web", target="orders")


@pytest.fixture(autouse=True)
def linked(world: World) -> None:
    world.environment("web", "orders")
    world.apply(TELL)
    says(world)


def says(world: World, *, health: str = "", why: str = "", unplanned: bool = True) -> None:
    """Check the reports: no problem; or *health* among the problems, and *why* as the reason at the link."""
    told, listed = world.links.health(), world.links.list()["links"][TELL.name]
    assert told["ok"] == (not health), told
    assert any(health in one for one in told["problems"]) or not health, told
    assert (listed["state"], why in listed.get("why", "")) == ("stalled" if why else "active", True), listed
    assert (world.plan(TELL).steps == []) == unplanned
    if health:
        # Nobody reads the mailbox, and that is not its program's fault.
        with pytest.raises(NetspaceError, match="nobody can read the mailbox"):
            status.readers(world.layout, "web")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_forwarder_that_is_frozen_is_told_and_restarted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(haproxy, "DEAD_SECONDS", 1.0)
    (worker,) = map(int, haproxy.workers(world.layout, 5.0))
    with frozen(worker):
        assert world.supervisor.observe()[process.NAME].state == "running"
        carries = "the forwarder doesn't do its work"
        says(world, health=carries, why=carries, unplanned=False)
        (step,) = world.apply(TELL).steps
        assert step.name == "forwarder" and step.changes["state"]["old"].startswith("silent: "), step
    says(world)
    with world.client("web"):
        pass


@pytest.mark.parametrize(
    ("service", "problem"),
    [(node.NODE, "the broker is stopped: its process {} is stopped by a signal"), (renewer.NAME, "the renewer of")],
)
def test_a_service_that_is_frozen_is_told_and_goes_on_with_the_next_apply(
    world: World, service: str, problem: str
) -> None:
    pid = world.supervisor.observe()[service].pid
    with frozen(pid):
        until(lambda: world.supervisor.observe()[service].state == "frozen")
        problems = world.links.health()["problems"]
        assert any(one.startswith(problem.format(pid)) for one in problems), problems
        assert world.apply(TELL).steps
    assert world.supervisor.observe()[service].pid == pid
    says(world)


def test_an_environment_beside_what_the_forwarder_serves_is_told(world: World) -> None:
    world.no_environment("web")
    world.environment("web")
    says(world, health="web can't reach the broker", why="its network namespace is not the one", unplanned=False)
    world.apply(TELL)
    says(world)
    netns = world.layout.netns_name("web")
    subprocess.run(["ip", "-n", netns, "link", "set", "lo", "down"], check=True)
    says(world, health=f"its loopback is down; ip -n {netns} link set lo up", why="its loopback is down")
    subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
    says(world)


def test_a_forwarder_that_lost_an_entrance_is_told(world: World) -> None:
    """The forwarder was reconfigured and no longer serves an environment; health and the link's state report it."""
    config = process.config_file(world.layout)
    before = config.read_text()
    config.write_text(before.replace("127.0.0.1:5671 namespace netspace-web", "127.0.0.1:5999 namespace netspace-web"))
    assert config.read_text() != before
    assert haproxy.ask(world.layout, "reload").startswith("Success=1")
    says(world, health="no process of the host listens at its 127.0.0.1:5671", why="no process of the host listens")
    config.write_text(before)
    assert haproxy.ask(world.layout, "reload").startswith("Success=1")
    says(world)
