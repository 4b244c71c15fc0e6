"""A compromised forwarder can neither delay netspace nor fill its memory."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.forwarder import haproxy

Answer = Callable[[socket.socket], None]


@contextlib.contextmanager
def forwarder(layout: Layout, answer: Answer) -> Iterator[None]:
    """A stand-in that answers one command on the forwarder's master socket."""
    path = haproxy.socket_path(layout)
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            stream, _ = listener.accept()
            with stream, contextlib.suppress(OSError):
                answer(stream)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(30)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path)


def test_an_answer_is_read_whole(layout: Layout) -> None:
    def answer(stream: socket.socket) -> None:
        assert stream.recv(100) == b"show info\n"
        for part in (b"Pid: 7\n", b"x" * 200_000):
            stream.sendall(part)

    with forwarder(layout, answer):
        assert haproxy.ask(layout, "show info", 20) == "Pid: 7\n" + "x" * 200_000


def test_an_answer_byte_by_byte_ends_with_the_time_for_all_of_it(layout: Layout) -> None:
    def drip(stream: socket.socket) -> None:
        for _ in range(200):
            stream.sendall(b"x")
            time.sleep(0.05)

    with forwarder(layout, drip), pytest.raises(NetspaceError, match="doesn't answer"):
        haproxy.ask(layout, "show info", 0.5)


def test_an_endless_answer_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy, "MOST", 100_000)

    def flood(stream: socket.socket) -> None:
        while True:
            stream.sendall(b"x" * 65536)

    with forwarder(layout, flood), pytest.raises(NetspaceError, match="more than 100000 bytes"):
        haproxy.ask(layout, "show info", 20)
