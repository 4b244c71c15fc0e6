"""Local users of a host reach no port of the broker, and can't answer in its place."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from support.waiting import until

from netspace import files
from netspace.errors import NetspaceError
from netspace.link.broker import listening, loopback, node
from netspace.spec.types import PORTS, Link

pytestmark = pytest.mark.root

LINK = Link(source="web", target="orders")
NOBODY = 65534
TRUSTED = (loopback.NODE, loopback.FORWARDER)


@pytest.fixture
def host(standing):
    standing.environment("web", "orders")
    standing.apply(LINK)
    return standing


def as_user(user: int, do: Callable[[], object]) -> int:
    """Call *do* as *user* in a child process, which exits with 0 if *do* succeeds; return the child's PID."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(user, user, user)
            do()
            code = 0
        except TimeoutError:
            code = 2
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def connects(user: int, port: int) -> bool:
    code = ended(as_user(user, lambda: socket.create_connection(("127.0.0.1", port), timeout=0.8).close()))
    assert code in (0, 2), "it is neither admitted nor left without an answer"
    return code == 0


def tables() -> str:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


def delete(host) -> None:
    subprocess.run(["nft", "delete", "table", "inet", loopback.table(host.layout)], check=True)


@pytest.mark.parametrize("key", PORTS)
def test_no_local_user_reaches_a_port_of_the_broker(host, key):
    port = getattr(host.broker, key)
    assert not connects(NOBODY, port)
    assert all(connects(user, port) for user in (0, *(pwd.getpwnam(one).pw_uid for one in TRUSTED)))


def test_whoever_takes_a_port_of_the_broker_cannot_answer(host):
    """A local user listens at the stopped broker's management port; root's connection doesn't reach that program.

    Otherwise the program would get the password of the management account.
    """
    port = host.broker.management_port
    assert host.supervisor.stop([node.NODE]) == {}
    squatter = as_user(NOBODY, lambda: socket.create_server(("127.0.0.1", port)).accept())
    try:
        until(lambda: listening.holder(port) is not None)
        assert not connects(0, port)
    finally:
        os.kill(squatter, signal.SIGKILL)
        assert ended(squatter) == -signal.SIGKILL, "nobody came to it"
    host.apply(LINK)


def test_a_missing_table_is_told_and_loaded_without_a_restart(host):
    pid = host.supervisor.observe()[node.NODE].pid
    delete(host)
    assert connects(NOBODY, host.broker.port)
    assert "any user of the host reaches the broker's ports" in str(host.links.health()["problems"])
    (step,) = host.plan(LINK).steps
    assert (step.name, list(step.changes)) == ("broker", ["ports"])
    host.apply(LINK)
    assert not connects(NOBODY, host.broker.port)
    assert host.plan(LINK).steps == []
    assert host.supervisor.observe()[node.NODE].pid == pid


def test_table_of_a_broker_that_may_still_run_is_told_as_changed(host):
    """The broker gets other ports: old ports stay closed, the table counts as changed, and an apply completes it."""
    loopback.ensure(host.layout, host.broker, replace(host.broker, port=host.broker.port + 1000))
    assert not connects(NOBODY, host.broker.port)
    assert loopback.state(host.layout, host.broker) == "changed"
    host.apply(LINK)
    assert loopback.state(host.layout, host.broker) == "intact"


def test_a_restoration_loads_the_table(host):
    delete(host)
    assert host.links.restore() == {}
    assert loopback.state(host.layout, host.broker) == "intact"


def killed(host, *, loaded: bool) -> None:
    """Kill a run that loads the table, before or after nftables has the table."""
    delete(host)
    files.remove(host.layout.records("link") / "loopback.json")
    child = os.fork()
    if not child:
        try:
            name = "confirmed" if loaded else "load"
            setattr(loopback.Ruleset, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            loopback.ensure(host.layout, host.broker)
        finally:
            os._exit(1)
    assert ended(child) == -signal.SIGKILL
    assert (loopback.table(host.layout) in tables()) == loaded


@pytest.mark.parametrize("loaded", [True, False])
def test_loopback_filter_of_a_killed_run_can_be_removed(host, loaded):
    killed(host, loaded=loaded)
    loopback.remove(host.layout)
    assert loopback.table(host.layout) not in tables()
    assert not (host.layout.records("link") / "loopback.json").exists()
    host.apply(LINK)


@pytest.mark.parametrize("loaded", [True, False])
def test_loopback_filter_of_a_killed_run_is_finished(host, loaded):
    killed(host, loaded=loaded)
    host.apply(LINK)
    assert loopback.state(host.layout, host.broker) == "intact"
    assert not connects(NOBODY, host.broker.port)


def test_a_table_of_another_stays(host):
    delete(host)
    files.remove(host.layout.records("link") / "loopback.json")
    subprocess.run(["nft", "add", "table", "inet", loopback.table(host.layout)], check=True)
    with pytest.raises(NetspaceError, match="it isn't netspace's"):
        loopback.ensure(host.layout, host.broker)
    loopback.remove(host.layout)
    assert loopback.table(host.layout) in tables()
    delete(host)
    host.apply(LINK)


def test_the_table_goes_with_the_broker(host):
    assert loopback.table(host.layout) in tables()
    host.links.purge()
    assert loopback.table(host.layout) not in tables()
