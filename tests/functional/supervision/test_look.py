"""States of many services by one request to the daemon: they equal those by the trace files and the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.environments.supervised import daemon_pid, shell, standing_pid
from support.waiting import until

from netspace.layout import Layout
from netspace.supervision import definitions
from netspace.supervision.daemon import client, presence, protocol
from netspace.supervision.daemon.client import DaemonSupervisor
from netspace.supervision.service import Service, Status

pytestmark = pytest.mark.root

STAY = "exec sleep 1000"
NAMES = [f"s{number}" for number in range(definitions.MANY + 4)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the traces that were read."""
    read: list[str] = []
    real = client._brief

    def brief(name: str, folder: int) -> client._Brief | None:
        read.append(name.removesuffix(".json"))
        return real(name, folder)

    monkeypatch.setattr(client, "_brief", brief)
    return read


def told(supervisor: DaemonSupervisor, read: list[str]) -> tuple[dict[str, Status], set[str]]:
    """Return the statuses, and the services about which the daemon said nothing, so that their traces were read."""
    read.clear()
    found = supervisor.observe(noticed=True)
    return found, set(read)


def test_daemon_tells_what_traces_tell(
    direct: DaemonSupervisor, layout: Layout, bundle: Callable[..., Service], asked: list[str], tmp_path: Path
) -> None:
    ended, failed, never, held, container = NAMES[:5]
    direct.define(
        [
            shell(ended, "exit 0", restart="on-failure"),
            shell(failed, "exit 3", restart="never"),
            shell(never, STAY),
            shell(held, STAY, until=(tmp_path / "comes later",)),
            bundle(container, "exec /bin/busybox sleep 1000"),
            *(shell(name, STAY) for name in NAMES[5:]),
        ]
    )
    assert direct.start([name for name in NAMES if name != never]) == {}
    until(lambda: [direct.observe()[name].state for name in (ended, failed)] == ["stopped", "failed"])
    again, frozen = NAMES[5:7]
    os.kill(direct.observe()[again].pid, signal.SIGKILL)
    until(lambda: (direct.observe()[again].restarts, direct.observe()[again].state) == (1, "running"))
    for name in (frozen, container):
        os.kill(direct.observe()[name].pid, signal.SIGSTOP)
    until(lambda: {direct.observe()[name].state for name in (frozen, container)} == {"frozen"})
    found, read = told(direct, asked)
    assert found == direct.observe()
    assert found[held].state == "starting"
    assert read == {ended, failed, held}, "the daemon tells of all that run"

    # Its successor's services are no children of it.
    until(lambda: standing_pid(layout))
    heir = standing_pid(layout)
    os.kill(daemon_pid(layout), signal.SIGKILL)
    until(
        lambda: (
            daemon_pid(layout) == presence.holder(layout) == heir and not told(direct, asked)[1] - {ended, failed, held}
        )
    )
    assert told(direct, asked)[0] == direct.observe()
    for name in (frozen, container):
        os.kill(direct.observe()[name].pid, signal.SIGCONT)
    until(lambda: {told(direct, asked)[0][name].state for name in (frozen, container)} == {"running"})

    # A stopped daemon tells nothing; the traces do, and the kernel.
    os.kill(daemon_pid(layout), signal.SIGSTOP)
    try:
        until(lambda: not presence.attended(layout))
        found, read = told(direct, asked)
        assert read == set(NAMES) - {never}
        assert found == direct.observe()
    finally:
        os.kill(daemon_pid(layout), signal.SIGCONT)


@contextlib.contextmanager
def answering(layout: Layout, answer: bytes | None) -> Iterator[None]:
    """Stand in for the daemon: give this answer to each request; None: take requests, and never answer."""
    aside = presence.socket_path(layout).with_name("aside.sock")
    presence.socket_path(layout).rename(aside)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(presence.socket_path(layout)))
        listener.listen()

        def answered() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    if answer is not None:
                        with connection:
                            while connection.recv(4096):
                                pass
                            connection.sendall(answer)

        one = threading.Thread(target=answered, daemon=True)
        one.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            one.join()
            aside.replace(presence.socket_path(layout))


def test_daemon_that_tells_nothing_usable_leaves_the_traces(
    direct: DaemonSupervisor, layout: Layout, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "GLANCE", 0.2)
    direct.define([shell(name, STAY) for name in NAMES])
    assert direct.start(NAMES[:3]) == {}
    right = direct.observe()
    wrong = protocol.render_look({"s0": (1, 1.0, 7, "", 0, False)})
    with answering(layout, wrong):
        assert told(direct, asked)[0]["s0"].restarts == 7, "this is the way that the question takes"
    # Of an earlier version, none; cut off; of a form that isn't this one's.
    for answer in (b"", wrong[:-1], b'{"version": "1", "errors": {}}', wrong.replace(b"7", b"-7"), None):
        with answering(layout, answer):
            assert told(direct, asked) == (right, set(NAMES[:3])), answer
    assert told(direct, asked) == (right, set())
