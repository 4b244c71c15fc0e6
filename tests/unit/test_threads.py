"""Background work is done exactly once, begun early or not, and the caller of its result gets its exception."""

from __future__ import annotations

import threading

import pytest

from netspace.threads import BackgroundTask, in_thread


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_done_meanwhile_is_done_once(*, begun: bool) -> None:
    done: list[int] = []
    work = BackgroundTask(lambda: done.append(threading.get_ident()) or "result")
    if begun:
        work.begin()
        work.end()
        assert len(done) == 1
    work.end()
    assert work.result() == "result"
    assert len(done) == 1
    assert (done[0] != threading.get_ident()) is begun


@pytest.mark.parametrize("begun", [True, False])
def test_what_it_raises_is_raised_where_it_is_asked_for(*, begun: bool) -> None:
    work = BackgroundTask(lambda: 1 // 0)
    if begun:
        work.begin()
    work.end()
    with pytest.raises(ZeroDivisionError):
        work.result()


def test_a_thread_apart_returns_and_raises() -> None:
    assert in_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0)
