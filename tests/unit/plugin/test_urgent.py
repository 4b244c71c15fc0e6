"""Urgent work on a busy processor: it gets several times the time that it would get otherwise, and only it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest

from netspace.plugin.urgent import NICE, urgent

HOGS = 4
SECONDS = 0.8


def share() -> float:
    """Return the part of a busy processor's time that this thread gets."""
    began, used = time.monotonic(), time.thread_time()
    while time.monotonic() - began < SECONDS:
        pass
    return (time.thread_time() - used) / (time.monotonic() - began)


@pytest.mark.root
def test_urgent_work_gets_several_times_as_much_time() -> None:
    usual, cpu = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})  # inherited
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(HOGS)]
    try:
        plain = share()
        with urgent():
            assert os.getpriority(os.PRIO_PROCESS, 0) == NICE
            more = share()
    finally:
        os.sched_setaffinity(0, usual)
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert more > 2 * plain, (plain, more)
    print(f"{plain:.2f} and {more:.2f} of a processor beside {HOGS} busy programs")


def test_priority_is_given_back_also_after_an_error() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(ZeroDivisionError), urgent():
        raise ZeroDivisionError
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_without_the_right_the_work_is_done_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refused)
    done = False
    with urgent():
        done = True
    assert done
