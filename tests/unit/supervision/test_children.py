"""The supervisor gets the end of each process without a look at all others."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from support.waiting import until

from netspace.supervision import process
from netspace.supervision.daemon import children
from netspace.supervision.daemon.children import Children
from netspace.supervision.daemon.loop import Loop


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls of waitpid(2) for any child: the kernel walks through all children for each."""
    found: list[int] = []
    real = os.waitpid

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        if pid == -1:
            found.append(options)
            raise ChildProcessError  # other tests' children stay theirs
        return real(pid, options)

    monkeypatch.setattr(os, "waitpid", waitpid)
    return found


def test_all_children_are_looked_at_after_a_signal(looks: list[int]) -> None:
    known = Children(Loop())
    known.reap_if_due()
    for _ in range(20):
        known.reap_if_due()
    assert len(looks) == 1  # the first: a child may have ended before
    known.signalled()
    known.reap_if_due()
    assert len(looks) == 2


def test_all_children_are_looked_at_without_a_signal(looks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "SELDOM", 0.0)
    known = Children(Loop())
    known.reap_if_due()
    known.reap_if_due()
    assert len(looks) == 2


@pytest.mark.parametrize("command, status", [(["true"], 0), (["false"], 256), (["sleep", "60"], signal.SIGKILL)])
def test_end_of_a_child_is_told_by_its_own_status(looks: list[int], command: list[str], status: int) -> None:
    loop, told = Loop(), list[int | None]()
    known = Children(loop)
    with subprocess.Popen(command) as child:
        known.follow(child.pid, told.append)
        if status == signal.SIGKILL:
            child.kill()
        end = time.monotonic() + 60
        while not told and time.monotonic() < end:
            loop.after(0.1, lambda: None)
            loop.wait()
        child.returncode = 0  # it is reaped
    assert told == [status] and not looks


def test_status_that_was_collected_before_is_told(looks: list[int]) -> None:
    loop, told = Loop(), list[int | None]()
    known = Children(loop)
    with subprocess.Popen(["true"]) as child:
        known.follow(child.pid, told.append)
        known.statuses[child.pid] = os.waitpid(child.pid, 0)[1]
        child.returncode = 0
        loop.wait()
    assert told == [0]


def test_stopped_children_and_others_are_frozen() -> None:
    """A program of an earlier daemon is no child of this one. It is looked at in /proc, and waitid(2) asked once."""
    known = Children(Loop())
    with (
        subprocess.Popen(["sleep", "1000"]) as own,
        subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell,
    ):
        assert shell.stdout is not None
        other = int(shell.stdout.readline())
        try:
            known.follow(other, lambda _: None, adopted=True)
            for pid in (own.pid, other):
                assert known.frozen([own.pid, other]) == set()
                os.kill(pid, signal.SIGSTOP)
                until(lambda pid=pid: process.letter(pid) == "T")
                assert known.frozen([own.pid, other]) == {pid}
                os.kill(pid, signal.SIGCONT)
                until(lambda pid=pid: process.letter(pid) != "T")
            assert known.frozen([own.pid, other]) == set()
        finally:
            for pid in (other, own.pid, shell.pid):
                os.kill(pid, signal.SIGKILL)
