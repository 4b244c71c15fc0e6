"""A pass over ``/proc`` finds the processes that a service leaves behind, or reports that it may have missed some."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netspace import files
from netspace.supervision import process

MARK = "test/left"


@pytest.fixture
def restless(tmp_path: Path) -> Iterator[int]:
    """Run a process that executes itself repeatedly, since during execve(2) a process has no environment."""
    script = tmp_path / "restless"
    script.write_text('#!/bin/sh\nexec "$0"\n')
    script.chmod(0o755)
    running = subprocess.Popen([script], env={process.MARK: MARK})
    yield running.pid
    running.kill()
    running.wait()


def test_a_process_in_execve_is_found_or_the_pass_is_incomplete(restless: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda _: [str(restless)])
    passes = [process.left_over([MARK], []) for _ in range(5000)]
    assert any(restless in one.found for one in passes)
    assert [one for one in passes if not one.found and one.complete] == []


def test_who_ended_since_the_listing_may_have_forked_another(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(os, "listdir", lambda _: [str(ended.pid)])
    assert process.left_over([MARK], []) == ({}, False), "a zombie that this process is about to collect"
    ended.wait()
    assert process.left_over([MARK], []) == ({}, False)


def test_processes_of_others_make_no_pass_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_thread, bare = "2", subprocess.Popen(["/bin/sleep", "100"], env={})
    try:
        monkeypatch.setattr(os, "listdir", lambda _: ["1", kernel_thread, str(bare.pid), "self"])
        while not Path(f"/proc/{bare.pid}/cmdline").read_text().startswith("/bin/sleep"):
            pass
        assert process.left_over([MARK], []) == ({}, True)
    finally:
        bare.kill()
        bare.wait()


def test_state_is_that_of_the_whole_look() -> None:
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    try:
        sleeper.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
        whole = process.stat(sleeper.pid)
        assert whole is not None
        with files.folder("/proc") as processes:
            for folder in (None, processes):
                assert process.state(sleeper.pid, folder) == (whole.state, whole.ticks) == ("T", whole.ticks)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert process.state(sleeper.pid) == ("", 0)
