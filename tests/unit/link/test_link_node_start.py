"""The wait for a node that starts: patient as long as the node's log grows, and no longer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link.broker import log, node
from netspace.link.broker.management import UnreachableError
from netspace.spec.types import LocalBroker
from netspace.supervision.service import Status


class Starting:
    """A node that never gets ready, and its supervisor.

    :param writes: whether the node writes a line to its log each time that its management API is asked.
    """

    def __init__(self, layout: Layout, *, writes: bool, state: str = "running") -> None:
        self.asked = 0
        self.state = state
        self._writes = writes
        self._log = layout.broker / "log/broker.log"
        self._log.parent.mkdir(parents=True)

    def get(self, *_: str, query: str = "") -> object:
        self.asked += 1
        if self._writes:
            with self._log.open("a") as stream:
                print(f"step {self.asked}", file=stream)
        raise UnreachableError("127.0.0.1:15672: no answer")

    def observe(self, names: Collection[str]) -> dict[str, Status]:
        return {name: Status(self.state, 7, 0.0, 0, "exit 1" if self.state == "failed" else "") for name in names}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(instance="shop", root=tmp_path)


def waits(layout: Layout, starting: Starting, monkeypatch: pytest.MonkeyPatch, quiet: float, longest: float) -> str:
    """Return the error with which the wait for *starting* ends."""

    @contextlib.contextmanager
    def management(*_: object, timeout: float) -> Iterator[Starting]:
        yield starting

    monkeypatch.setattr(node, "management", management)
    monkeypatch.setattr(node, "time", SimpleNamespace(monotonic=node.time.monotonic, sleep=lambda _: None))
    with pytest.raises(NetspaceError) as refused:
        node.wait(layout, LocalBroker(), starting, lambda _: None, quiet, longest)
    return str(refused.value)


def test_node_that_writes_nothing_is_given_up(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = Starting(layout, writes=False)
    assert "isn't ready after 0 s (127.0.0.1:15672: no answer)" in waits(layout, starting, monkeypatch, 0.0, 3600.0)
    assert starting.asked == 1


def test_node_that_goes_on_writing_is_waited_for(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = Starting(layout, writes=True)
    said = waits(layout, starting, monkeypatch, 0.0, 0.2)
    assert starting.asked > 1
    assert f"the end of its log:\n{log.tail(layout)}" in said and f"step {starting.asked}" in said


def test_node_that_failed_is_told_at_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    starting = Starting(layout, writes=True, state="failed")
    said = waits(layout, starting, monkeypatch, 3600.0, 3600.0)
    assert "the broker ended while starting (exit 1); the end of its log:\nstep 1" in said
