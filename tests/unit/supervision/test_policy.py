"""The restart policy: whether a service is started again, and after which delay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.supervision import restart_policy


@given(st.integers(min_value=1, max_value=10**9))
def test_the_delay_grows_and_is_bounded(failures: int) -> None:
    assert (
        restart_policy.FIRST_DELAY
        <= restart_policy.delay(failures)
        <= restart_policy.delay(failures + 1)
        <= restart_policy.LAST_DELAY
    )


def test_the_delay_starts_small_and_reaches_its_bound() -> None:
    assert [restart_policy.delay(number) for number in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert restart_policy.delay(100) == restart_policy.LAST_DELAY


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
    assert restart_policy.again(restart, end) is again


def test_ends_in_words() -> None:
    assert [restart_policy.end_of(status) for status in (0, 3 << 8, 9, None)] == [
        "exit 0",
        "exit 3",
        "signal 9",
        "unknown",
    ]


def test_one_that_does_not_come_to_rest_is_flapping() -> None:
    often, now = restart_policy.FLAPS, 1000.0
    assert restart_policy.flapping("starting", often, now - 1, now)
    assert restart_policy.flapping("running", often, now - 1, now)
    assert not restart_policy.flapping("running", often - 1, now - 1, now)
    assert not restart_policy.flapping("running", often, now - restart_policy.FLAPPING, now), "it runs, for a while now"
    assert not restart_policy.flapping("failed", often, now - 1, now), "it is not started again"
