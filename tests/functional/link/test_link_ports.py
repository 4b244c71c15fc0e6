"""A program takes the forwarder's port in its environment: only that environment's connection fails."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pika.exceptions import AMQPError
from support.waiting import until

from netspace.link.forwarder import ports
from netspace.link.forwarder import process as forwarder
from netspace.link.plan import FORWARDER
from netspace.link.reconciler import DesiredLinks
from netspace.spec.types import Link

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders")
TELL = Link(source="orders", target="audit")
LINKS = (ASK, TELL)
NOBODY = 65534
# It is another user than root, as each environment's is, and takes the port whenever it is free.
SQUATTER = f"""
import os, socket, time
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
print("begins", flush=True)
while True:
    one = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        one.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        one.bind(("127.0.0.1", 5671))
        one.listen()
        print("has it", flush=True)
        time.sleep(3600)
    except OSError:
        one.close()
        time.sleep(0.001)
"""


@contextlib.contextmanager
def squatter(host, name: str) -> Iterator[subprocess.Popen[str]]:
    command = ["ip", "netns", "exec", host.layout.netns_name(name), sys.executable, "-c", SQUATTER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begins\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def host(world):
    """A host whose forwarder doesn't run, with the network namespaces of three environments, without links or mail."""
    world.environment("web", "orders", "audit")
    yield world
    world.hand_over()
    assert world.supervisor.stop([forwarder.NAME]) == {}


def errors(host, *links: Link) -> dict[str, str]:
    """Apply *links* even if steps fail; return the errors by step."""
    desired = DesiredLinks(host.broker, links)
    plan = host.links.plan(desired, host.links.observe(), host.links.names() - {link.name for link in links})
    assert plan.steps
    return {one.step.name: one.error for one in host.links.apply(plan.steps) if one.error}


def is_well(host) -> bool:
    """Return whether a message from web reaches orders."""
    try:
        with host.client("web") as channel:
            channel.basic_publish(host.n("link.web.orders"), "", b"x", mandatory=True)
        with host.client("orders") as channel:
            return channel.basic_get(host.n("mailbox.orders"), auto_ack=True)[0] is not None
    except AMQPError:
        return False


def test_who_takes_its_own_port_is_left_out_alone(host):
    with squatter(host, "audit") as process:
        assert process.stdout is not None and process.stdout.readline() == "has it\n"
        why = errors(host, *LINKS)
        assert list(why) == [FORWARDER]
        assert "audit: a program in it has taken 127.0.0.1:5671" in why[FORWARDER]
        assert is_well(host)
        assert any("leaves out audit: a program in it" in one for one in host.links.health()["problems"])
        (step,) = host.plan(*LINKS).steps
        assert (step.name, step.changes["environments"]["new"]) == (FORWARDER, ["audit"])
        assert list(errors(host, *LINKS)) == [FORWARDER], "nothing else is to be done, and it is said again"
        assert is_well(host)
    host.apply(*LINKS)
    assert host.plan(*LINKS).steps == []
    assert host.listens("audit")
    assert not any("leaves out" in one for one in host.links.health()["problems"])


def test_when_all_are_left_out_the_forwarder_runs(host):
    with squatter(host, "web"), squatter(host, "orders"):
        until(lambda: not ports.Held(_both(host)).refused.keys() ^ {"web", "orders"}, "both have theirs")
        assert list(errors(host, ASK)) == [FORWARDER]
        assert forwarder.served(forwarder.current(host.layout)) == []
        assert host.supervisor.observe()[forwarder.NAME].state == "running"
    host.apply(ASK)
    assert is_well(host)


def _both(host):
    return {name: (host.layout.netns(name), 5671) for name in ("web", "orders")}


@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_keeps_the_forwarder_from_starting(host, ended):
    """A program takes a restarting forwarder's port in one environment; the forwarder starts and serves the others."""
    host.apply(*LINKS)
    for _ in range(3):
        with squatter(host, "audit"):
            before = host.supervisor.observe()[forwarder.NAME].pid
            host.kill(forwarder.NAME, ended)
            until(lambda: host.supervisor.observe()[forwarder.NAME].pid not in (None, 0, before))  # noqa: B023
            until(lambda: is_well(host), "the others are served")
    until(lambda: not host.plan(*LINKS).steps or host.apply(*LINKS))
    assert host.listens("audit")


# Each way to share a port that socket(7) knows: tried as another user, who says how far each came.
SHARER = f"""
import itertools, os, socket
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
options = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)
for chosen in itertools.chain.from_iterable(itertools.combinations(options, count) for count in range(3)):
    one = socket.socket()
    for option in chosen:
        one.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        one.bind(("127.0.0.1", 5671))
    except OSError as err:
        print(err.strerror)
    else:
        print("bound with", chosen)
    one.close()
"""


def tried(host, name: str) -> set[str]:
    """Try to take the port in several ways, as a program of the environment; return the steps that succeeded."""
    command = ["ip", "netns", "exec", host.layout.netns_name(name), sys.executable, "-c", SHARER]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def test_a_held_port_is_nobody_elses(host):
    assert tried(host, "audit") != {"Address already in use"}, "without it, a program can"
    wanted = {"audit": (host.layout.netns("audit"), 5671), "gone": (host.layout.netns("gone"), 5671)}
    with ports.Held(wanted) as held:
        assert list(held.refused) == ["gone"]
        assert tried(host, "audit") == {"Address already in use"}
        with host.inside("audit"), socket.socket() as one:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                one.setsockopt(socket.SOL_SOCKET, option, 1)
            one.bind(("127.0.0.1", 5671))  # as haproxy does
            one.listen()
            held.__exit__(None, None, None)
            assert tried(host, "audit") == {"Address already in use"}
            with socket.create_connection(("127.0.0.1", 5671), timeout=5) as client:
                accepted = one.accept()[0]
                accepted.close()  # the first to close: its end stays in TIME-WAIT
                assert client.recv(1) == b""
        with ports.Held(wanted) as again:
            assert list(again.refused) == ["gone"], "what is left of a connection of root's is in nobody's way"
            assert tried(host, "audit") == {"Address already in use"}


def test_connections_of_the_forwarder_s_own_are_in_nobody_s_way(host):
    """An open connection of the forwarder doesn't prevent netspace from holding the forwarder's port.

    The connection's socket belongs to another user. The kernel takes this into account if a program listens at another
    address of the port.
    """
    host.apply(*LINKS)
    beside = (
        "import socket, time; one = socket.create_server(('127.0.0.2', 5671)); print(1, flush=True); time.sleep(99)"
    )
    command = ["ip", "netns", "exec", host.layout.netns_name("audit"), sys.executable, "-c", beside]
    with host.client("audit") as channel, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "1\n"
            with ports.Held({"audit": (host.layout.netns("audit"), 5671)}) as held:
                assert held.refused == {}
            host.apply(ASK, TELL, Link(source="web", target="audit"))
            assert channel.is_open and host.listens("audit")
        finally:
            process.kill()


def test_a_port_that_a_program_has_is_not_held(host):
    with squatter(host, "audit") as process:
        assert process.stdout is not None and process.stdout.readline() == "has it\n"
        with ports.Held({"audit": (host.layout.netns("audit"), 5671)}) as held:
            assert "a program in it has taken 127.0.0.1:5671" in held.refused["audit"]
