"""When something is started again, and after how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.supervision import policy


@given(st.integers(min_value=1, max_value=10**9))
def test_the_delay_grows_and_is_bounded(failures: int) -> None:
    assert policy.FIRST_DELAY <= policy.delay(failures) <= policy.delay(failures + 1) <= policy.LAST_DELAY


def test_the_delay_starts_small_and_reaches_its_bound() -> None:
    assert [policy.delay(number) for number in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert policy.delay(100) == policy.LAST_DELAY


@pytest.mark.parametrize(
    ("restart", "end", "again"),
    [
        ("always", "exit 0", True),
        ("always", "signal 9", True),
        ("on-failure", "exit 0", False),
        ("on-failure", "exit 1", True),
        ("on-failure", "unknown", True),
        ("never", "exit 1", False),
    ],
)
def test_policies(restart: str, end: str, again: bool) -> None:
    assert policy.again(restart, end) is again


def test_ends_in_words() -> None:
    assert [policy.end_of(status) for status in (0, 3 << 8, 9, None)] == ["exit 0", "exit 3", "signal 9", "unknown"]


def test_one_that_does_not_come_to_rest_is_flapping() -> None:
    often, now = policy.FLAPS, 1000.0
    assert policy.flapping("starting", often, now - 1, now)
    assert policy.flapping("running", often, now - 1, now)
    assert not policy.flapping("running", often - 1, now - 1, now)
    assert not policy.flapping("running", often, now - policy.FLAPPING, now), "it runs, for a while now"
    assert not policy.flapping("failed", often, now - 1, now), "it is not started again"
