"""Refusals in the broker's form: parsed strictly, whatever names an account chose."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.link.broker import refusals

TIMES = {"times": 2, "first": 10, "last": 20}
HEAD = "operation basic.publish caused a channel exception"


@pytest.mark.parametrize(
    ("text", "what", "exchange"),
    [
        (
            f"{HEAD} access_refused: write access to exchange 'link.a.b' in vhost 'v' refused for user 'env.a'",
            "basic.publish: write access to exchange 'link.a.b' (access_refused)",
            "link.a.b",
        ),
        (f"{HEAD} not_found: no exchange 'x' in vhost 'v'", "basic.publish: no exchange 'x' (not_found)", "x"),
        (
            f"{HEAD} access_refused: netspace: basic.publish is not for 'amq.topic'",
            "basic.publish: basic.publish is not for 'amq.topic' (access_refused)",
            "",
        ),
        (
            "operation basic.consume caused a channel exception not_found: no exchange 'x' in vhost 'v'",
            "basic.consume: no exchange 'x' (not_found)",
            "",
        ),
        ("others", "others: too many different ones", ""),
    ],
)
def test_refusal_has_method_name_and_reason(text: str, what: str, exchange: str) -> None:
    assert refusals.decoded({"value": {text: TIMES}}) == [refusals.Refusal(what, exchange, 2, 10.0, 20.0)]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, -(10**400)])
VALUES = st.recursive(LEAVES, lambda some: st.lists(some) | st.dictionaries(st.text(), some), max_leaves=20)
ENTRIES = st.fixed_dictionaries({}, optional={name: VALUES | st.just(7) for name in TIMES})
TEXTS = st.text() | st.text().map(lambda name: f"{HEAD} not_found: no exchange '{name}' in vhost 'v'")


def checked(value: object) -> list[refusals.Refusal]:
    found = refusals.decoded(value)
    for one in found:
        assert (one.what + one.exchange).isprintable()
        assert len(one.what) <= 300
        assert 0 <= one.times <= 2**40
        for moment in (one.first, one.last):
            datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    return found


@given(VALUES | st.fixed_dictionaries({"value": VALUES}))
def test_no_report_raises_anything(value: object) -> None:
    checked(value)


@given(st.dictionaries(TEXTS, ENTRIES | VALUES))
def test_odd_entry_costs_itself_alone(entries: dict[str, object]) -> None:
    found = checked({"value": {**entries, "good": TIMES}})
    assert refusals.Refusal("good", "", 2, 10.0, 20.0) in found
    assert found == checked({"value": {text: one for text, one in [*entries.items(), ("good", TIMES)] if odd(one) < 1}})


def odd(one: object) -> int:
    """Count the invalid numbers in an entry."""
    if not isinstance(one, dict):
        return 3
    most = {"times": 2**40, "first": 2**37, "last": 2**37}
    return sum(type(one.get(name)) not in (int, float) or not 0 <= one[name] <= most[name] for name in TIMES)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 10**400, -1, 2**41, True, "7", None, []])
@pytest.mark.parametrize("which", TIMES)
def test_number_that_is_none_costs_its_entry(which: str, bad: object) -> None:
    found = refusals.decoded({"value": {"bad": {**TIMES, which: bad}, "good": TIMES}})
    assert [one.what for one in found] == ["good"]


def test_no_report_is_no_refusal() -> None:
    assert refusals.decoded(None) == refusals.decoded({}) == []


def test_total_counts_what_has_its_form() -> None:
    bad = ({**TIMES, "times": "9"}, {**TIMES, "times": -1}, {**TIMES, "times": 2**60}, [], None)
    assert refusals.total({"value": {"a": TIMES, "b": TIMES, **{str(at): one for at, one in enumerate(bad)}}}) == 4
    assert [refusals.total(other) for other in (None, {}, {"value": []}, "")] == [0, 0, 0, 0]
