"""A state's return value for a plan and its outcomes."""

from __future__ import annotations

from netspace.plan import Outcome, Plan, Refusal, Result, Step
from netspace.plugin import state_return

MEMORY = Step("environment", "web", "restart", {"limits:memory": {"old": 1, "new": 2}})
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
