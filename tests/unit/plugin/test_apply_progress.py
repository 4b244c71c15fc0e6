"""Progress of an apply: lines on a terminal and events on a bus, limited in size and escaped for display."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import salt.utils.event
from support import checkout

from netspace.plan import Outcome, Step
from netspace.plugin import apply_progress
from netspace.plugin.apply_progress import BURST, TOGETHER, Telling

Sent = list[tuple[str, dict[str, Any]]]


def outcomes(number: int, error: str = "") -> list[Outcome]:
    return [Outcome(Step("environment", f"e{index}", "create"), error) for index in range(number)]


def test_each_change_is_sent_in_events_of_bounded_size() -> None:
    sent: Sent = []
    said: list[str] = []
    telling = Telling("h1", said.append, lambda *event: sent.append(event))
    telling.done(outcomes(TOGETHER + 1) + outcomes(1, "no room " * 1000))
    assert [tag for tag, _ in sent] == ["netspace/apply/h1/changed"] * 2
    rows = [row for _, data in sent for row in data["changes"]]
    assert len(rows) == TOGETHER + 2 and rows[0] == {
        "kind": "environment",
        "name": "e0",
        "action": "create",
        "error": "",
    }
    assert len(str(sent)) < 60_000
    assert said == [f"netspace: environment: {TOGETHER + 1} changes made", "netspace: 1 failed"]


def test_texts_of_progress_are_sent_at_a_bounded_rate() -> None:
    sent: Sent = []
    now = [0.0]
    telling = Telling("h1", None, lambda *event: sent.append(event), lambda: now[0])
    for _ in range(3 * BURST):
        telling.doing("starting web")
    assert sent == [("netspace/apply/h1/doing", {"doing": "starting web"})] * BURST
    now[0] = 2.5
    for _ in range(BURST):
        telling.doing("x" * 5000)
    assert len(sent) == BURST + 2 and len(sent[-1][1]["doing"]) == apply_progress.LONGEST


@pytest.mark.parametrize("answer", [OSError("no bus"), False])
def test_bus_that_fails_is_asked_once_and_stops_no_apply(answer: Exception | bool) -> None:
    asked: list[str] = []

    def fails(tag: str, data: dict[str, Any]) -> bool:
        asked.append(tag)
        if isinstance(answer, Exception):
            raise answer
        return answer

    said: list[str] = []
    telling = Telling("h1", said.append, fails)
    telling.doing("starting web")
    telling.done(outcomes(1))
    assert said == ["netspace: starting web", "netspace: environment: 1 change made"]
    assert asked == ["netspace/apply/h1/doing"]


def test_terminal_that_is_closed_stops_no_apply() -> None:
    shown: list[str] = []
    sent: Sent = []

    def closed(line: str) -> None:
        shown.append(line)
        raise OSError(5, "Input/output error")

    telling = Telling("h1", closed, lambda *event: sent.append(event))
    telling.doing("starting web")
    telling.done(outcomes(1))
    assert shown == ["netspace: starting web"] and len(sent) == 2, "events are sent all the same"


@pytest.mark.parametrize(
    ("opts", "sends"),
    [
        ({"id": "h1"}, True),
        ({"id": "h1", "file_client": "local"}, False),
        ({"id": "h1", "local": True}, False),
        ({"id": "h1", "file_client": "local", "use_master_when_local": True}, True),
        ({"id": "h1", "netspace.minion": "h0"}, True),
    ],
)
def test_hooks_send_only_where_there_is_a_master(opts: dict[str, Any], sends: bool) -> None:
    sent: list[str] = []
    hooks = apply_progress.hooks(opts, {"event.fire_master": lambda data, tag: sent.append(tag)})
    hooks["progress"]("starting web")
    hooks["applied"]([])
    assert sent == [f"netspace/apply/{opts.get('netspace.minion', 'h1')}/doing"] * sends


@pytest.mark.parametrize(
    ("cli", "terminal", "shows"), [("salt-call", True, True), ("salt-call", False, False), ("salt-minion", True, False)]
)
def test_progress_is_shown_only_to_who_waits_for_it(
    cli: str, terminal: bool, shows: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    apply_progress.hooks({"id": "h1", "local": True, "__cli": cli}, {})["progress"]("starting web")
    assert capsys.readouterr().err == "netspace: starting web\n" * shows


def changed(minion: object = "h1", **row: object) -> dict[str, Any]:
    return {
        "id": minion,
        "data": {"changes": [{"kind": "link", "name": "a.b", "action": "create", "error": "", **row}]},
    }


def shown(tag: str, event: dict[str, Any]) -> list[str]:
    return list(apply_progress.told(f"netspace/apply/{tag}", event))


def test_event_is_shown_as_lines_no_wider_than_a_terminal() -> None:
    assert shown("h1/doing", {"id": "h1", "data": {"doing": "starting web"}}) == ["h1: starting web"]
    assert shown("h1/changed", changed()) == ["h1: create link a.b"]
    lines = shown("h1/changed", changed(error="no route " * 100))
    assert lines[0].startswith("h1: FAILED to create link a.b: no route")
    assert len(lines) > 1 and all(len(line) <= 80 for line in lines)
    assert apply_progress.verdicts("netspace/apply/h1/changed", changed(error="x")) == [False]
    hostile = shown("h1/changed", changed(name="\x1b[2J\u202eevil", action=["a"]))
    assert all(line.isprintable() for line in hostile)


@pytest.mark.parametrize(
    ("tag", "event"),
    [
        ("h2/changed", changed("h1")),
        ("h2/doing", {"id": "h1", "data": {"doing": "lies"}}),
        ("h1/other", changed()),
        ("None/changed", changed(None)),
        ("h1/changed", {"id": "h1", "data": {"changes": "all"}}),
        ("h1/changed", {"id": "h1", "data": {"changes": ["all"]}}),
        ("h1/doing", {"id": "h1", "data": ["doing"]}),
    ],
)
def test_event_of_another_form_or_minion_is_not_shown(tag: str, event: dict[str, Any]) -> None:
    assert shown(tag, event) == []
    assert apply_progress.verdicts(f"netspace/apply/{tag}", event) == []


def test_watch_says_first_that_its_lines_can_be_forged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("fleet_runner", checkout.ROOT / "_runners/netspace_fleet.py")
    assert spec is not None and spec.loader is not None
    runner: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    runner.__opts__ = {}

    @contextlib.contextmanager
    def bus(*_: Any, **__: Any) -> Iterator[Any]:
        class Events:
            def get_event(self, **_: Any) -> dict[str, Any]:
                runner.time = stopped
                return {"tag": "netspace/apply/h1/changed", "data": changed()}

        yield Events()

    class stopped:
        @staticmethod
        def monotonic() -> float:
            return float("inf")

    monkeypatch.setattr(salt.utils.event, "get_event", bus)
    assert runner.watch(timeout=60) == {"changes": 1, "failures": 0}
    *notice, change = capsys.readouterr().err.splitlines()
    assert change == "h1: create link a.b" and notice == list(apply_progress.lines("netspace", apply_progress.UNPROVED))
    assert "any minion can forge these lines" in notice[0]
