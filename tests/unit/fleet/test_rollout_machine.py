"""A rollout that is killed at any point: at most ``max_fail`` hosts are bad, and no host is repeated."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet.simulated import Killer, Simulated, rolled_out

from netspace.errors import NetspaceError
from netspace.fleet.hosts import Outcome
from netspace.fleet.policy import Pace
from netspace.fleet.rollout import machine, progress, records
from netspace.fleet.rollout.journal import ASKED, Asked, Journal
from netspace.fleet.rollout.machine import Edges, Event
from netspace.fleet.rollout.records import Group, Started
from netspace.fleet.rollout.state import BAD, Rollout, Status

CALLS = ("prepare", "apply", "healthy", "take_back", "healthy_again", "silent")
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
Fails = dict[str, frozenset[str]]
Drawn = tuple[Started, Fails]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out fsync: a killed process loses nothing that it has written."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def started(batches: list[list[str]], max_fail: int, canaries: int = 1, **before: tuple[str, ...]) -> Started:
    groups = tuple(Group(hosts=tuple(hosts), canary=place < canaries) for place, hosts in enumerate(batches))
    pace = Pace(step=max_fail, max_fail=max_fail, settle=2.0, gate=("health", "trust"))
    return Started(plan="9f", pace=pace, batches=groups, before=before, at=0.0)


def failing(**calls: str) -> Fails:
    return {host: frozenset(words.split()) for host, words in calls.items()}


@st.composite
def rollouts(draw: st.DrawFn) -> Drawn:
    hosts = [f"h{number}" for number in range(draw(st.integers(1, 9)))]
    max_fail = draw(st.integers(1, 4))
    batches, left = list[list[str]](), list(hosts)
    while left:
        size = draw(st.integers(1, max_fail))
        batches.append(left[:size])
        left = left[size:]
    earlier = [(one, other) for place, one in enumerate(hosts) for other in hosts[:place]]
    waits = draw(st.lists(st.sampled_from(earlier), max_size=5)) if earlier else []
    before = {host: tuple({other for one, other in waits if one == host}) for host, _ in waits}
    calls = st.frozensets(st.sampled_from(CALLS), min_size=1)
    fails = draw(st.dictionaries(st.sampled_from(hosts), calls))
    return started(batches, max_fail, draw(st.integers(0, 2)), **before), fails


KILLS = st.sets(st.integers(0, 150), max_size=5)
ASKS = st.dictionaries(st.integers(0, 100), st.sampled_from(ASKED), max_size=3)


def carried_out(drawn: Drawn, kills: set[int], asks: Mapping[int, Asked] | None = None) -> tuple[Rollout, Simulated]:
    hosts = Simulated(drawn[1], drawn[0].pace.max_fail, Killer(kills))
    with tempfile.TemporaryDirectory() as folder:
        return rolled_out(Path(folder), drawn[0], hosts, asks), hosts


def statuses(rollout: Rollout) -> dict[str, str]:
    return {host: status.value for host, status in rollout.hosts.items()}


@EXAMPLES
@given(drawn=rollouts(), kills=KILLS, asks=ASKS)
def test_no_more_than_max_fail_hosts_are_ever_bad(drawn: Drawn, kills: set[int], asks: Mapping[int, Asked]) -> None:
    rollout, hosts = carried_out(drawn, kills, asks)
    assert hosts.worst <= hosts.max_fail
    assert {host for host, status in rollout.hosts.items() if status in BAD} == hosts.bad


@EXAMPLES
@given(drawn=rollouts(), kills=KILLS)
def test_a_killed_rollout_ends_like_one_that_is_not(drawn: Drawn, kills: set[int]) -> None:
    assert statuses(carried_out(drawn, kills)[0]) == statuses(carried_out(drawn, set())[0])


SIX = started([["a", "b"], ["c", "d"], ["e", "f"]], 2, 0)
"""Three batches of two. If ``a`` fails, only one of the others may be bad at a time."""
ONE_BAD = failing(a="healthy", e="apply silent")


def every_kill() -> list[tuple[Rollout, Simulated]]:
    """Return the rollout's end for each point at which it can be killed once."""
    points = carried_out((SIX, ONE_BAD), set())[1].killer.passed
    assert points > 60
    return [carried_out((SIX, ONE_BAD), {number}) for number in range(points)]


def test_killed_once_at_every_point_it_bounds_bad_hosts() -> None:
    for rollout, hosts in every_kill():
        assert hosts.worst == 2 and hosts.bad <= {"a", "e"}
        assert statuses(rollout) == statuses(carried_out((SIX, ONE_BAD), set())[0])


def test_without_the_bound_of_a_batch_too_many_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rollout, "budget", 1000)
    assert max(hosts.worst for _, hosts in every_kill()) == 3


def test_without_the_note_before_a_call_hosts_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    written = machine._Machine._write

    def later(self: machine._Machine, record: records.Entry) -> None:
        if isinstance(record, records.Sent):
            self._edges.hosts.apply(record.hosts)
        written(self, record)

    monkeypatch.setattr(machine._Machine, "_write", later)
    with pytest.raises(AssertionError, match="the journal knows of each bad host"):
        every_kill()


def test_a_canary_that_fails_is_taken_back_alone() -> None:
    drawn = started([["a"], ["b", "c"]], 2), failing(a="healthy")
    rollout, hosts = carried_out(drawn, set())
    assert statuses(rollout) == {"a": "taken back", "b": "waiting", "c": "waiting"} and hosts.applied == ["a"]
    assert rollout.stopping == "the canary a failed: healthy failed"


def test_too_many_failures_take_the_last_batch_back() -> None:
    drawn = started([["a", "b"], ["c", "d"], ["e", "f"]], 2, 0), failing(a="apply", c="healthy")
    rollout, hosts = carried_out(drawn, set())
    assert statuses(rollout) == dict.fromkeys("ac", "taken back") | {"b": "good"} | dict.fromkeys("def", "waiting")
    drawn = started([["a", "b"], ["c", "d"], ["e", "f"]], 2, 0), failing(c="healthy", d="apply healthy_again")
    rollout, hosts = carried_out(drawn, set())
    assert statuses(rollout)["d"] == "taken back, and bad" and hosts.bad == {"d"}
    assert rollout.reasons["d"] == "healthy_again failed"


def test_a_host_of_the_last_batch_that_is_good_goes_back_too() -> None:
    drawn = started([["a", "b", "c"], ["d"]], 3, 0), failing(a="apply", b="healthy take_back silent")
    assert carried_out(drawn, set())[0].ended, "two failures of three allowed: it goes on"
    drawn = started([["a", "b"]], 2), failing(a="apply")
    assert statuses(carried_out(drawn, set())[0]) == {"a": "taken back", "b": "taken back"}


def test_hosts_wait_for_ever_behind_one_that_failed() -> None:
    drawn = started([["a"], ["b"], ["c"], ["d"]], 2, 0, b=("a",), c=("b",)), failing(a="healthy")
    rollout, _ = carried_out(drawn, set())
    assert statuses(rollout) == {"a": "failed", "b": "waiting", "c": "waiting", "d": "good"}
    assert rollout.held() == {"b": "a", "c": "b"}


def test_unprepared_hosts_are_left_out_or_stop_it_unchanged() -> None:
    drawn = started([["a"], ["b"], ["c"]], 1), failing(b="prepare")
    assert statuses(carried_out(drawn, set())[0]) == {"a": "good", "b": "refused", "c": "good"}
    drawn = started([["a"], ["b"], ["c"]], 1, 0), failing(b="prepare silent", c="prepare")
    rollout, hosts = carried_out(drawn, set())
    assert rollout.stopping == "2 can't be prepared, and max_fail is 1: b: no answer"
    assert not hosts.applied and not hosts.bad
    drawn = started([["a"], ["b"]], 1), failing(a="prepare")
    assert not carried_out(drawn, set())[1].applied, "without its canary it doesn't begin"


def test_pause_waits_for_the_verdict_of_a_batch(tmp_path: Path) -> None:
    hosts = Simulated({}, 1, Killer())
    journal, told = Journal(tmp_path), list[Event]()
    rollout = journal.begin(started([["a"], ["b"]], 1))

    def tell(event: Event) -> None:
        told.append(event)
        if event == Event("a", "applied"):
            journal.ask("pause")

    edges = Edges(hosts, tell, lambda seconds: None)
    machine.run(journal, rollout, edges)
    assert rollout.paused and statuses(rollout) == {"a": "good", "b": "waiting"} and journal.asked() is None
    assert [event.what for event in told] == [
        *("begins: 2 hosts", "prepared", "prepared", "a apply (0 of 2 hosts are good)", "applied", "good", "paused")
    ]
    again = journal.read()
    assert again is not None and again.paused and statuses(again) == statuses(rollout)


@pytest.mark.parametrize(("asked", "a"), [("stop", "good"), ("stop-and-take-back", "taken back")])
def test_a_stopped_rollout_takes_back_what_it_is_asked(tmp_path: Path, asked: Asked, a: str) -> None:
    hosts, journal = Simulated({}, 2, Killer()), Journal(tmp_path)
    rollout = journal.begin(started([["a"], ["b"]], 2))
    edges = Edges(hosts, lambda event: journal.ask(asked) if event == Event("a", "good") else None, lambda _: None)
    machine.run(journal, rollout, edges)
    assert statuses(rollout) == {"a": a, "b": "waiting"} and rollout.stopping == machine.OPERATOR


def test_a_stop_while_hosts_settle_takes_them_back(tmp_path: Path) -> None:
    hosts, journal = Simulated({}, 2, Killer()), Journal(tmp_path)
    rollout = journal.begin(started([["a"], ["b"]], 2))
    machine.run(journal, rollout, Edges(hosts, wait=lambda seconds: journal.ask("stop")))
    assert statuses(rollout) == {"a": "taken back", "b": "waiting"} and not hosts.bad


@pytest.mark.parametrize(("looks", "a"), [(2, "good"), (4, "taken back, and bad")])
def test_a_host_may_become_good_until_the_deadline(tmp_path: Path, looks: int, a: str) -> None:
    hosts, journal = Simulated({}, 1, Killer()), Journal(tmp_path)
    waited = list[float]()

    def healthy(asked: Sequence[str]) -> Mapping[str, Outcome]:
        return dict.fromkeys(asked, Outcome(sum(waited) >= looks * machine.AGAIN, "it starts"))

    hosts.healthy = healthy  # type: ignore[method-assign, assignment]
    begin = started([["a"]], 1)
    pace = Pace(step=1, max_fail=1, settle=0.0, gate=("health",), deadline=2 * machine.AGAIN)
    rollout = journal.begin(Started(begin.plan, pace, begin.batches, {}, 0.0))
    machine.run(
        journal, rollout, Edges(hosts, wait=lambda seconds: waited.append(seconds) if len(waited) < 9 else None)
    )
    assert statuses(rollout) == {"a": a}


def test_a_stop_while_hosts_may_still_become_good(tmp_path: Path) -> None:
    hosts, journal = Simulated(failing(a="healthy"), 1, Killer()), Journal(tmp_path)
    begin = started([["a"]], 1)
    pace = Pace(step=1, max_fail=1, settle=0.0, gate=("health",), deadline=1e6)
    rollout = journal.begin(Started(begin.plan, pace, begin.batches, {}, 0.0))
    machine.run(journal, rollout, Edges(hosts, wait=lambda seconds: journal.ask("stop")))
    assert statuses(rollout) == {"a": "taken back"}


def test_a_master_that_is_down_fails_no_host(tmp_path: Path) -> None:
    hosts, journal = Simulated({}, 1, Killer()), Journal(tmp_path)

    def down(asked: object) -> Mapping[str, Outcome]:
        raise NetspaceError("the master can't be reached")

    rollout = journal.begin(started([["a"], ["b"]], 1))
    apply, hosts.apply = hosts.apply, down  # type: ignore[method-assign, assignment]
    with pytest.raises(NetspaceError):
        machine.run(journal, rollout, Edges(hosts, wait=lambda _: None))
    kept = journal.read()
    assert kept is not None and kept.hosts["a"] is Status.SENT and kept.ended is None
    hosts.apply = apply  # type: ignore[method-assign]
    machine.run(journal, kept, Edges(hosts, wait=lambda _: None))
    assert statuses(kept) == {"a": "good", "b": "good"}


def test_without_a_gate_what_applied_is_good(tmp_path: Path) -> None:
    hosts, journal = Simulated(failing(a="healthy"), 1, Killer()), Journal(tmp_path)
    begin = started([["a"]], 1)
    pace = Pace(step=1, max_fail=1, settle=0.0, gate=())
    rollout = journal.begin(Started(begin.plan, pace, begin.batches, {}, 0.0))
    machine.run(journal, rollout, Edges(hosts, wait=lambda _: None))
    assert statuses(rollout) == {"a": "good"}


def test_progress_is_a_line_and_an_event_without_more() -> None:
    event = Event("h1", "FAILED", "no answer")
    assert progress.line(event) == "h1: FAILED: no answer" and progress.line(Event("", "paused")) == "rollout: paused"
    tag, data = progress.message("9f", event)
    assert tag == "netspace/fleet/rollout/9f/h1"
    assert data == {"plan": "9f", "host": "h1", "what": "FAILED", "reason": "no answer", "ok": False}
    assert progress.message("9f", Event("", "paused"))[0] == "netspace/fleet/rollout/9f"
    assert len(str(progress.message("9f", Event("h1", "FAILED", "x" * 10_000)))) < 600
