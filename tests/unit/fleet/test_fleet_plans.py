"""Plans of a fleet, made from any set of hosts' plans: grouping, the id, and the differences between two plans."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.fleet.planning import plans
from netspace.fleet.planning.plans import HostPlan
from netspace.plan import Outcome, Plan, Refusal, Result, Step

VALUES = st.one_of(st.none(), st.integers(0, 3), st.sampled_from(("9f", "3c")), st.lists(st.integers(0, 2), max_size=2))
CHANGES = st.dictionaries(
    st.sampled_from(("image", "env", "limits")), st.fixed_dictionaries({"old": VALUES, "new": VALUES}), max_size=2
)
STEPS = st.builds(
    Step,
    st.sampled_from(("environment", "link")),
    st.sampled_from(("web", "orders", "log")),
    st.sampled_from(("create", "restart", "remove")),
    CHANGES,
    st.sampled_from(("", "it is stopped")),
)
REFUSALS = st.builds(Refusal, st.just("link"), st.sampled_from(("web.log", "a.b")), st.sampled_from(("no", "never")))
PLANS = st.builds(Plan, st.lists(STEPS, max_size=5), st.lists(REFUSALS, max_size=2))
FLEETS = st.dictionaries(st.sampled_from([f"h{number}" for number in range(6)]), PLANS, max_size=6)


def made(fleet: dict[str, Plan], declared: Any = None) -> dict[str, HostPlan]:
    return {host: plans.host_plan(host, declared, plan) for host, plan in fleet.items()}


def keys(plan: HostPlan) -> set[bytes]:
    return {plans.encoded(step) for step in plan.steps}


@given(FLEETS)
def test_folded_plans_have_every_step_of_each_host(fleet: dict[str, Plan]) -> None:
    folded = plans.fold(found := made(fleet))
    unfolded: dict[str, list[bytes]] = {host: [] for host in fleet}
    for entry in folded:
        for place in entry.places:
            for name in place.names:
                step = plans.Change(entry.kind, name, entry.action, dict(entry.changes), entry.reason)
                for host in place.hosts:
                    unfolded[host].append(plans.encoded(step))
    assert {host: set(steps) for host, steps in unfolded.items()} == {host: keys(one) for host, one in found.items()}
    assert all(len(steps) == len(set(steps)) for steps in unfolded.values()), "each once"
    kinds = [plans.encoded((one.kind, one.action, one.changes, one.reason)) for one in folded]
    assert len(kinds) == len(set(kinds)), "equal changes are one entry"


@given(FLEETS, FLEETS)
def test_the_id_differs_exactly_if_a_plan_does(one: dict[str, Plan], other: dict[str, Plan]) -> None:
    def content(fleet: dict[str, Plan]) -> dict[str, tuple[bytes, bytes]]:
        return {host: (plans.encoded(plan.steps), plans.encoded(plan.refusals)) for host, plan in fleet.items()}

    assert (plans.identity(made(one)) == plans.identity(made(other))) == (content(one) == content(other))
    assert plans.identity(made(one)) == plans.identity(dict(reversed(made(one).items())))


@pytest.mark.parametrize(
    "other",
    [
        Plan([Step("environment", "web", "restart", {"image": {"old": "9f", "new": "3d"}})]),
        Plan([Step("environment", "web", "restart", {"image": {"old": "9e", "new": "3c"}})]),
        Plan([Step("environment", "web", "restart", {"image": {"old": "9f", "new": "3c"}}, "why")]),
        Plan([Step("environment", "web", "restart", {"image": {"old": "9f", "new": "3c"}})], [Refusal("a", "b", "c")]),
        Plan(),
    ],
)
def test_the_id_covers_each_part_of_a_plan(other: Plan) -> None:
    plan = Plan([Step("environment", "web", "restart", {"image": {"old": "9f", "new": "3c"}})])
    assert plans.identity(made({"h1": plan})) != plans.identity(made({"h1": other}))
    assert plans.identity(made({"h1": plan})) != plans.identity(made({"h2": plan}))


def test_a_hidden_value_of_the_declaration_counts() -> None:
    plan = {"h1": Plan([Step("environment", "web", "restart", {"env": {"old": "(hidden)", "new": "(hidden)"}})])}
    one, other = ({"environments": {"web": {"env": {"PASSWORD": word}}}} for word in ("a", "b"))
    assert plans.identity(made(plan, one)) != plans.identity(made(plan, other))
    assert plans.identity(made(plan, one)) == plans.identity(made(plan, {**one}))


@given(FLEETS, FLEETS)
def test_a_comparison_has_what_each_does_alone(first: dict[str, Plan], second: dict[str, Plan]) -> None:
    one, other = made(first), made(second)
    found = plans.compare(one, other)

    def pairs(entries: list[plans.Entry]) -> set[tuple[str, bytes]]:
        return {
            (host, plans.encoded(plans.Change(entry.kind, name, entry.action, dict(entry.changes), entry.reason)))
            for entry in entries
            for place in entry.places
            for name in place.names
            for host in place.hosts
        }

    mine, others = ({(host, key) for host, plan in fleet.items() for key in keys(plan)} for fleet in (one, other))
    assert pairs(found.dropped) == mine - others and pairs(found.added) == others - mine
    assert set(found.without) == set(first) - set(second) and set(found.with_plan) == set(second) - set(first)


def test_a_plan_passes_the_bus_as_it_is() -> None:
    step = Step("environment", "web", "restart", {"ports": {"old": (1, 2), "new": {3}}}, data=object())
    found = plans.host_plan("h1", {}, Plan([step], [Refusal("link", "a.b", "no")]))
    assert plans.received(msgspec.json.decode(msgspec.json.encode(plans.plain(found)))) == found
    assert found.steps[0].changes == {"ports": {"old": [1, 2], "new": [3]}}


def test_a_long_plan_passes_without_its_changes() -> None:
    steps = [Step("environment", f"e{number}", "create", {"env": {"new": "x" * 3000}}) for number in range(200)]
    found = plans.host_plan("h1", {}, Plan(steps))
    assert found.brief and len(found.steps) == 200 and not any(one.changes for one in found.steps)
    assert found.digest != plans.host_plan("h1", {}, Plan(steps[:-1])).digest
    assert len(msgspec.json.encode(found)) < plans.MAX_ANSWER


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "h1",
        {"digest": "a" * 64},
        {"digest": "a" * 63, "declared": "a" * 64},
        {"digest": "A" * 64, "declared": "a" * 64},
        {"digest": "a" * 64, "declared": "a" * 64, "steps": [{"kind": 1, "name": "a", "action": "b"}]},
        {"digest": "a" * 64, "declared": "a" * 64, "steps": [{"kind": "x" * 5000, "name": "a", "action": "b"}]},
        {"digest": "a" * 64, "declared": "a" * 64, "steps": [{"kind": "x", "name": "a", "action": "b", "changes": 1}]},
        {"digest": "a" * 64, "declared": "a" * 64, "messages": {"web": -1}},
        {"digest": "a" * 64, "declared": "a" * 64, "messages": {"web": 10**4300 - 1}},  # no sum of two can be printed
    ],
)
def test_an_answer_that_is_no_plan_is_refused(answer: Any) -> None:
    with pytest.raises(NetspaceError, match="its answer is not a plan"):
        plans.received(answer)


def test_an_answer_without_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(NetspaceError, match="its answer is not a plan"):
        plans.received({"digest": "a" * 64, "declared": "a" * 64, "steps": [
            {"kind": "x", "name": "a", "action": "b", "changes": deep}]})  # fmt: skip


def test_an_outcome_tells_what_failed_and_what_was_left_out() -> None:
    step = Step("environment", "web", "start")
    result = Result(Plan([step], [Refusal("link", "a.b", "no trust")]), [Outcome(step, "no memory")])
    found = plans.told_outcome(plans.outcome(result))
    assert found == plans.Applied(False, 1, 0, "start environment web: no memory; link a.b: no trust")
    with pytest.raises(NetspaceError, match="isn't an apply's result"):
        plans.told_outcome({"applied": "yes"})


def test_plan_does_not_depend_on_when_levels_of_other_hosts_end() -> None:
    def planned(*refusals: Refusal, **attestation: Any) -> str:
        return plans.host_plan("h1", {"links": [], **attestation}, Plan([], list(refusals))).digest

    told = [{"appraised": {"h2": {"level": level, "until": until}}} for level, until in (("L3", 1.0), ("L2", 2.0))]
    assert len({planned(attestation=one) for one in told} | {planned()}) == 1
    judged = [{"verifier": "master", **one} for one in ({}, *told)]
    assert len({planned(attestation=one) for one in judged}) == 1
    assert planned(attestation=judged[0]) != planned()
    assert planned(Refusal("link", "a@h2.b", "h2 has L2"), attestation=told[1]) != planned(attestation=told[1])


def test_plan_does_not_depend_on_how_a_secret_is_encrypted() -> None:
    def planned(**secret: Any) -> str:
        environments = {"web": {"image": "tar:/a.tar", "secrets": {"db": secret, "k": "sdb://v/k"}}}
        return plans.host_plan("h1", {"environments": environments}, Plan([])).digest

    assert len({planned(minimum="L1", sealed=text) for text in ("{1}", "{2}")}) == 1
    assert planned(minimum="L1", sealed="{1}") == planned(minimum="L1", unread=True) == planned(minimum="L1")
    assert planned(minimum="L1") != planned(minimum="L2")
