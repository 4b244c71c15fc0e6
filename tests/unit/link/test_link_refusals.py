"""Refusals as the broker tells of them: parsed strictly, whatever an account chose as a name."""

from __future__ import annotations

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
        ("others", "others: too many to be told apart", ""),
    ],
)
def test_refusal_has_method_name_and_reason(text: str, what: str, exchange: str) -> None:
    assert refusals.decoded({"value": {text: TIMES}}) == [refusals.Refusal(what, exchange, 2, 10.0, 20.0)]


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.text(), st.dictionaries(st.text(), st.integers()))))
def test_odd_report_raises_nothing(value: dict[str, object]) -> None:
    assert refusals.decoded({"value": value}) == [] or value


def test_no_report_is_no_refusal() -> None:
    assert refusals.decoded(None) == refusals.decoded({}) == []
