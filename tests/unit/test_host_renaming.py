"""The result of an apply that renames an environment: one step, with the errors of both halves."""

from __future__ import annotations

import pytest

from netspace.host import planned, renaming
from netspace.plan import Outcome, Plan, Result, Step, renamed
from netspace.spec import parse

GONE, MADE = (
    Step("environment", "www", "remove"),
    Step("environment", "web", "create", {"image": {"old": None, "new": 1}}),
)
OTHER = Step("environment", "log", "restart")
FORMER = {"web": "www", "shop": "till"}
NAME = {"name": {"old": "www", "new": "web"}}


def joined(result: Result) -> Result:
    return renaming.joined(result, FORMER, lambda name: {"user": {"old": 1, "new": 2}}, lambda name: "renamed from www")


def test_the_two_halves_are_one_step() -> None:
    found = joined(Result(Plan([GONE, OTHER, MADE], notes=["a note"])))
    (other, step) = found.plan.steps
    assert other == OTHER and (step.kind, step.name, step.action) == ("environment", "web", "rename")
    assert step.changes == {**NAME, "user": {"old": 1, "new": 2}} and step.reason == "renamed from www"
    assert renamed(found.plan.steps) == {"web": "www"} and found.plan.notes == ["a note"]


def test_an_apply_of_a_planned_rename_may_take_both_halves() -> None:
    check = planned._only(joined(Result(Plan([GONE, OTHER, MADE]))).plan)
    check(Plan([GONE, MADE, OTHER]))
    for kind, name, action in (
        ("environment", "till", "remove"),
        ("environment", "www", "create"),
        ("environment", "web", "remove"),
        ("interface", "www", "remove"),
        ("interface", "web", "create"),
    ):
        with pytest.raises(planned.PlanChanged, match=f"{action} {kind} {name} isn't in the plan"):
            check(Plan([GONE, MADE, Step(kind, name, action)]))


@pytest.mark.parametrize("half", [GONE, MADE])
def test_one_half_alone_stays_what_it_is(half: Step) -> None:
    """A killed run had done one half of a renaming, so the result has only the other half.

    It is reported as what it is: a creation or a removal.
    """
    assert joined(Result(Plan([half, OTHER]))).plan.steps == [half, OTHER]


@pytest.mark.parametrize(("gone", "made", "told"), [("", "", ""), ("a", "", "a"), ("", "b", "b"), ("a", "b", "b")])
def test_an_error_of_either_half_is_the_steps(gone: str, made: str, told: str) -> None:
    outcomes = [Outcome(GONE, gone), Outcome(OTHER), Outcome(MADE, made)]
    found = joined(Result(Plan([GONE, OTHER, MADE]), outcomes))
    assert [(one.step.action, one.error) for one in found.outcomes] == [("restart", ""), ("rename", told)]


def test_the_reason_promises_a_mailbox_only_where_one_is() -> None:
    assert renaming.reason("www", True) == "renamed from www; its mailbox is kept"
    assert renaming.reason("www", False) == "renamed from www"


def test_interfaces_are_compared_without_the_name() -> None:
    old, new = (parse.interface({"kind": "veth", **more}) for more in ({}, {"ipv4": "10.203.0.9"}))
    assert renaming.differing(old, old) == {}
    assert renaming.differing(old, new) == {"ipv4": {"old": None, "new": "10.203.0.9"}}


def test_an_unreadable_record_has_the_step_show_all_keys() -> None:
    """A plan must not look as if nothing but the name changed when that can't be known."""
    new = parse.environment("web", {"image": "tar:/srv/web.tar"})
    assert renaming.differences(None, new) is None
    found = renaming.joined(Result(Plan([GONE, MADE])), FORMER, lambda _: None, lambda _: "renamed from www")
    (step,) = found.plan.steps
    assert step.changes == {**NAME, **MADE.changes}
    assert step.reason == "renamed from www; the record of www can't be read, so all keys are shown"
