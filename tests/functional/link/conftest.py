"""One host for all tests of a module, programs on several, and a bound on how long a test waits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_world import World
from programs import Program, tell


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def program(linked, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start programs with netspace-client on the linked hosts of a module: ``program(host, environment)``."""
    started: list[Program] = []

    def start(world: World, name: str, **options: Any) -> Program:
        started.append(Program(world, name, tell(world, name, tmp_path / name), **options))
        return started[-1]

    yield start
    for one in started:
        one.leave()


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
