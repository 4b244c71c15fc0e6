"""The order of probes: a check that never answers keeps the others waiting for a second, not for its own timeout."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from netspace.environment.health import watcher
from netspace.environment.health.watcher import PROBES, Places
from netspace.supervision.daemon.loop import Loop


@pytest.fixture
def begun() -> list:
    return []


@pytest.fixture
def places(begun) -> Places:
    return Places(Loop(), begun.append)


def probes(number: int) -> list:
    return [partial(int, number) for number in range(number)]


def test_probe_that_ended_makes_room_for_the_next(places, begun):
    asked = probes(PROBES + 2)
    for probe in asked:
        places.ask(probe)
    assert begun == asked[:PROBES]
    places.free(asked[3])
    assert begun == asked[: PROBES + 1]
    places.free(asked[3])  # it has no place any more
    assert begun == asked[: PROBES + 1]
    places.free(asked[PROBES])
    assert begun == asked


def test_probe_that_takes_long_makes_room_for_the_next(begun, monkeypatch):
    monkeypatch.setattr(watcher, "LONG", 0.0)
    loop = Loop()
    places = Places(loop, begun.append)
    asked = probes(3 * PROBES)
    for probe in asked:
        places.ask(probe)
    assert begun == asked[:PROBES]
    for share in (2, 3):
        time.sleep(0.001)
        loop.due()
        assert begun == asked[: share * PROBES]
    for probe in asked:
        places.free(probe)  # late, and without effect
    assert begun == asked


def test_checks_that_never_answer_do_not_stop_the_others(monkeypatch):
    monkeypatch.setattr(watcher, "LONG", 0.01)
    loop, over, done = Loop(), threading.Event(), threading.Event()
    with ThreadPoolExecutor(watcher.THREADS) as pool:
        places = Places(loop, pool.submit)
        try:
            for _ in range(4 * PROBES):
                places.ask(lambda: (over.wait(60), None)[1])
            places.ask(done.set)
            deadline = time.monotonic() + 60
            while not done.is_set() and time.monotonic() < deadline:
                loop.due()
                time.sleep(0.001)
            assert done.is_set(), "the last one was asked"
        finally:
            over.set()
