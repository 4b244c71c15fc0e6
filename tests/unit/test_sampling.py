"""Daily shares of enumerated cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import sampling


@given(st.lists(st.integers(), unique=True), st.integers(1, 7), st.integers(0, 30_000))
def test_days_in_a_row_try_each_value_once(values: list[int], days: int, first: int) -> None:
    tried = [value for day in range(first, first + days) for value in sampling.todays(values, days, day)]
    assert sorted(tried) == sorted(values)


@given(st.lists(st.integers(), unique=True), st.integers(1, 7), st.integers(1, 4), st.integers(0, 30_000))
def test_test_that_runs_by_turns_tries_each_value_once(values: list[int], days: int, every: int, first: int) -> None:
    turns = range(first, first + days * every, every)
    tried = [value for day in turns for value in sampling.todays(values, days, day, every=every)]
    assert sorted(tried) == sorted(values)


@pytest.mark.parametrize("asked", ["all", "kinds"])
def test_all_values_are_tried_on_request(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(sampling, "FAULTS", asked)
    assert sampling.todays([1, 2, 3], 3) == [1, 2, 3]
