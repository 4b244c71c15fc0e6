"""A state's return value for a plan and its outcomes."""

from __future__ import annotations

import os
from typing import Any

import pytest
import salt.config
import salt.output
from salt.utils.state import gen_tag
from support.hosts.whole_host import unfolded

from netspace.errors import NetspaceError
from netspace.plan import Outcome, Plan, Refusal, Result, Step
from netspace.plugin import arguments, state_return

MEMORY = Step("environment", "web", "restart", {"limits:memory": {"old": 1, "new": 2}})
WATCH = Step("service", "netspace-supervisor", "start", {"state": {"old": "down", "new": "running"}})
NEW = Step("environment", "new", "create", {"image": {"old": None, "new": "tar:/x"}})


def test_nothing_to_do_is_true_without_changes():
    returned = state_return.state("all", Result(Plan()), test=False)
    assert returned == {"name": "all", "result": True, "changes": {}, "comment": "Everything is as declared."}


def test_a_test_run_is_none_with_what_would_change():
    returned = state_return.state("all", Result(Plan([MEMORY, NEW])), test=True)
    assert returned["result"] is None
    assert returned["changes"]["web"] == {"limits:memory": {"old": 1, "new": 2}}
    assert "restart environment web (limits:memory)" in returned["comment"]
    assert "would be made" in returned["comment"]


def test_what_failed_is_no_change_and_says_why():
    result = Result(Plan([MEMORY, NEW]), [Outcome(MEMORY, "no memory"), Outcome(NEW)])
    returned = state_return.state("all", result, test=False)
    assert returned["result"] is False
    assert list(returned["changes"]) == ["new"]
    assert "restart environment web (limits:memory): no memory" in returned["comment"]


def test_what_trust_withholds_fails_even_without_a_step():
    result = Result(Plan(refusals=[Refusal("environment", "vault", "needs L3")]))
    for test in (True, False):
        returned = state_return.state("all", result, test=test)
        assert returned["result"] is False
        assert "environment vault: needs L3" in returned["comment"]


def test_a_state_about_one_thing_leaves_out_those_with_a_state_of_their_own():
    result = Result(Plan([MEMORY, NEW]), [Outcome(MEMORY, "no memory"), Outcome(NEW)])
    returned = state_return.state("new", result, test=False, only="new", others={"web"})
    assert returned["result"] is True
    assert returned["changes"] == {"image": {"old": None, "new": "tar:/x"}}


def test_what_else_failed_for_the_one_thing_fails_its_state():
    firewall = Step("interface", "host:firewall", "change", {"table": {"old": "absent", "new": "1"}})
    result = Result(Plan([firewall, NEW]), [Outcome(firewall, "nft is missing"), Outcome(NEW)])
    returned = state_return.state("new", result, test=False, only="new")
    assert returned["result"] is False
    assert "nft is missing" in returned["comment"]
    done = state_return.state("new", Result(Plan([firewall]), [Outcome(firewall)]), test=False, only="new")
    assert done["changes"] == {"host:firewall": {"table": {"old": "absent", "new": "1"}}}


def rows(result: Result, most: int = 100, test: bool = False) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the result of a state about web, new and idle, and the rows of that result by their names."""
    whole = state_return.rows("all", result, "environment", ["web", "new", "idle"], test=test, most=most)
    return whole, {row["low"]["name"]: row for row in whole.pop("sub_state_run", ())}


def test_each_thing_has_a_row_with_its_changes_told_once() -> None:
    result = Result(Plan([WATCH, MEMORY, NEW]), [Outcome(WATCH), Outcome(MEMORY, "no memory"), Outcome(NEW)])
    whole, found = rows(result)
    assert whole["changes"] == {"netspace-supervisor": "start", "new": "create"}
    assert {name: row["result"] for name, row in found.items()} == {
        "idle": True, "new": True, "web": False, "service netspace-supervisor": True,
    }  # fmt: skip
    assert found["new"]["changes"] == {"image": {"old": None, "new": "tar:/x"}}
    assert found["web"]["changes"] == found["idle"]["changes"] == {}
    assert found["web"]["comment"] == "restart environment web (limits:memory): no memory"
    assert found["idle"]["comment"] == "idle is as declared."
    assert found["service netspace-supervisor"]["changes"] == {"state": {"old": "down", "new": "running"}}


def test_rows_of_a_test_are_none_where_something_would_change() -> None:
    gone = Step("environment", "old", "remove")
    refusal = Refusal("environment", "idle", "needs L3")
    whole, found = rows(Result(Plan([NEW, gone], [refusal])), test=True)
    assert whole["result"] is False
    assert {name: row["result"] for name, row in found.items()} == {
        "web": True, "new": None, "old": None, "idle": False,
    }  # fmt: skip
    assert found["new"]["comment"] == "would create environment new"
    assert (found["old"]["low"]["fun"], found["new"]["low"]["fun"]) == ("absent", "present")
    assert rows(Result(Plan([NEW])), test=True)[0]["result"] is None


def test_fewer_rows_show_failures_and_changes_first() -> None:
    result = Result(Plan([MEMORY, NEW]), [Outcome(MEMORY, "no memory"), Outcome(NEW)])
    whole, found = rows(result, most=2)
    assert list(found) == ["web", "new"]
    assert "1 of 3 things have no row (netspace.rows: 2)" in whole["comment"]
    whole, found = rows(result, most=1)
    assert list(found) == ["web"] and whole["changes"] == {"new": {"image": {"old": None, "new": "tar:/x"}}}
    whole, found = rows(result, most=0)
    assert found == {} and whole["changes"] == state_return.state("all", result, test=False)["changes"]


def test_thing_with_the_states_name_does_not_hide_it() -> None:
    whole = state_return.rows("web", Result(Plan()), "environment", ["web"], test=False, most=9)
    (row,) = whole["sub_state_run"]
    assert gen_tag(row["low"]) != gen_tag(
        {"state": "netspace_environment", "__id__": "web", "name": "web", "fun": "managed"}
    )


BROKEN = "the broker ended while starting; the end of its log:\neaddrinuse\nkilled"


def test_problem_of_many_things_is_told_whole_once() -> None:
    steps = [Step("link", f"web.orders{number}", "create", {}) for number in range(9)]
    result = Result(Plan(steps), [Outcome(step, BROKEN) for step in steps])
    returned = state_return.rows("links", result, "link", (), test=False, most=100)
    assert returned["comment"].count("eaddrinuse") == 1
    assert "create link web.orders4 and 4 more: the broker ended" in unfolded(returned["comment"])
    for number, row in enumerate(returned["sub_state_run"]):
        assert unfolded(row["comment"]) == f"create link web.orders{number}: {BROKEN.splitlines()[0]}"
        assert row["result"] is False


def test_problem_of_one_thing_alone_is_told_whole_in_its_row() -> None:
    result = Result(Plan([MEMORY, NEW]), [Outcome(MEMORY, BROKEN), Outcome(NEW)])
    rows = state_return.rows("all", result, "environment", (), test=False, most=9)["sub_state_run"]
    assert any(row["name"] == "web" and BROKEN in unfolded(row["comment"]) for row in rows)


def test_problem_of_several_states_is_told_whole_by_the_first() -> None:
    tag = "netspace_attestation_|-trust_|-trust_|-required"
    first = {"trust": {**state_return.failure("trust", "netspace:links: wrong", {}), "__id__": "trust"}}
    assert first["trust"]["comment"] == "netspace:links: wrong"
    again = state_return.failure("all", "netspace:links: wrong", {tag: first["trust"]})
    assert again["result"] is False
    assert unfolded(again["comment"]) == "Nothing done: first solve the problem that the state 'trust' reports."
    for earlier in ({tag: {**first["trust"], "result": True}}, {"file_|-a_|-a_|-managed": first["trust"]}):
        assert state_return.failure("all", "netspace:links: wrong", earlier)["comment"] == "netspace:links: wrong"
    assert state_return.failure("all", "another", {tag: first["trust"]})["comment"] == "another"


@pytest.mark.parametrize("most", [-1, True, "100", None])
def test_number_of_rows_is_a_number(most: object) -> None:
    assert arguments.rows({}) == arguments.ROWS
    with pytest.raises(NetspaceError, match=r"netspace\.rows"):
        arguments.rows({"netspace.rows": most})


def test_comment_is_no_wider_than_a_terminal_shows_it() -> None:
    """States with long problems are rendered by Salt's own output, which indents comments; no line is too wide."""
    path = "/srv/" + "x" * 90
    opts = {**salt.config.minion_config(os.devnull), "color": False}
    long = Outcome(NEW, "no room " * 40 + path)
    refused = Plan([MEMORY, NEW], [Refusal("environment", "vault", "needs trust " * 20)], ["a note of it " * 20])
    result = Result(refused, [Outcome(MEMORY), long])
    returned = [
        state_return.state("all", result, test=False),
        state_return.rows("all", result, "environment", ["web"], test=False, most=9),
        state_return.failure("all", "netspace:environments: unknown; known here: " + "some, " * 40, {}),
    ]
    returned += returned[1].pop("sub_state_run")
    for number, one in enumerate(returned):
        state = {"__run_num__": number, "start_time": "", "duration": 1.0, **one}
        shown = salt.output.out_format({"local": {"netspace_environment_|-a_|-a_|-managed": state}}, "highstate", opts)
        wide = [line for line in shown.splitlines() if len(line) > 80]
        assert all(path in line for line in wide) and "Comment" in shown, wide
    assert unfolded(returned[0]["comment"]).splitlines()[1] == "environment vault: " + ("needs trust " * 20).strip()
