"""One host for all tests of a module, and a bound on how long a test waits."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from link_world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """A client that waits for an answer for ever fails its test."""

    def ring(*_: object) -> None:
        raise TimeoutError("the test takes more than three minutes")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)
