"""The events that follow from two observations of environments."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.environment.health import alarms

WELL = {"state": "running", "health": "healthy", "exit": "", "restarts": 0, "flapping": False}
WELL |= {"supervised": True, "oom_kills": 0}


def row(**changes: Any) -> dict[str, dict[str, Any]]:
    return {"web": {**WELL, **changes}}


def told(*looks: dict[str, dict[str, Any]]) -> list[list[str]]:
    before, found = None, []
    for now in looks:
        found.append([event["event"] for event in alarms.news(before, now)])
        before = now
    return found


def test_what_lasts_is_told_once_until_it_is_over() -> None:
    bad = row(health="unhealthy")
    assert told(row(), bad, bad, row(), bad) == [[], ["unhealthy"], [], [], ["unhealthy"]]
    flaps = row(flapping=True, restarts=3, exit="exit 3")
    assert told(flaps, flaps) == [["flapping"], []], "also at the first look"


def test_each_crash_is_told_and_several_in_one_look_as_one() -> None:
    crash = {"exit": "exit 3", "health": "starting"}
    looks = [row(), row(restarts=1, **crash), row(restarts=1, **crash), row(restarts=5, **crash)]
    assert told(*looks) == [[], ["crashed"], [], ["crashed"]]
    assert told(row(restarts=4), row(restarts=1, exit="exit 3")) == [[], ["crashed"]], "it was asked to start between"
    assert told(row(restarts=4), row(restarts=0)) == [[], []]
    dead = row(state="failed", exit="signal 9")
    assert told(row(), dead, dead) == [[], ["crashed"], []]


def test_a_kill_for_want_of_memory_is_no_mere_crash() -> None:
    assert told(row(), row(restarts=1, exit="oom")) == [[], ["oom"]]
    assert told(row(state="failed", exit="oom")) == [["oom"]]
    # One of its processes: it lives on, or ends by that.
    assert told(row(oom_kills=1), row(oom_kills=1), row(oom_kills=2)) == [[], [], ["oom"]]
    assert told(row(), row(oom_kills=1, restarts=1, exit="exit 5")) == [[], ["oom"]]
    assert told(row(), row(oom_kills=1, state="failed", exit="exit 5")) == [[], ["oom"]]
    assert told(row(oom_kills=3, restarts=2), row(oom_kills=1)) == [[], ["oom"]], "it was asked to start between"


def test_that_nobody_supervises_is_told_once_for_all_environments() -> None:
    both = {"web": {**WELL, "supervised": False}, "orders": {**WELL, "supervised": False}}
    well = {"web": WELL, "orders": WELL}
    assert told(both, both, well, both) == [["unsupervised"], [], [], ["unsupervised"]]
    (event,) = alarms.news(well, both)
    assert event == {"tag": "unsupervised", "event": "unsupervised", "environments": ["orders", "web"]}
    assert alarms.news(well, both, ["crashed"]) == []


def test_what_an_event_says() -> None:
    (event,) = alarms.news(row(), row(restarts=1, exit="oom", health="starting"))
    assert event == {
        "tag": "web/oom",
        "environment": "web",
        "event": "oom",
        "state": "running",
        "health": "starting",
        "exit": "oom",
        "restarts": 1,
        "oom_kills": 0,
    }
    assert alarms.news(row(), row(restarts=1, exit="oom"), ["unhealthy"]) == []


ROWS = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["running", "starting", "stopped", "failed"]),
        "health": st.sampled_from(["", "healthy", "starting", "unhealthy"]),
        "exit": st.sampled_from(["", "exit 3", "signal 9", "oom"]),
        "restarts": st.integers(0, 5),
        "oom_kills": st.integers(0, 5),
        "flapping": st.booleans(),
        "supervised": st.booleans(),
    }
)


@given(ROWS, ROWS)
def test_the_same_look_twice_is_no_news(first: dict[str, Any], second: dict[str, Any]) -> None:
    alarms.news(None, {"web": first})
    assert alarms.news({"web": first}, {"web": first}) == []
    events = alarms.news({"web": first}, {"web": second})
    assert len({event["event"] for event in events}) == len(events)
    assert not {event["event"] for event in events} >= {"oom", "crashed"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "expected a list"),
        ([["events"]], "expected a list"),
        ([{"event": ["crashed"]}], "event: unknown; did you mean events?"),
        ([{"x": 1}], "x: unknown; known: environments, events"),
        ([{"events": ["crash"]}], "events: 'crash' is not an event; choose from crashed, oom"),
        ([{"events": []}], "events: expected a list of names"),
        ([{"environments": "web"}], "environments: expected a list of names"),
    ],
)
def test_a_configuration_that_can_not_be(config: Any, message: str) -> None:
    assert alarms.problem(config).startswith(message)


def test_one_that_can() -> None:
    assert alarms.problem([]) == ""
    assert alarms.problem([{"events": ["oom"]}, {"environments": ["web"]}, {"interval": 5}, {"enabled": True}]) == ""
