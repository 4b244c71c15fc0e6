"""Programs that are asleep: all their threads wait for something, and none has run since the last check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from support.waiting import until

from netspace.supervision import process

NOWHERE = "/there/is/none"  # a cgroup
THREAD = "import threading; threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()"


def state(pid: int) -> str:
    there = process.stat(pid)
    return "" if there is None else there.state


def test_waiting_program_is_asleep_until_it_runs() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        until(lambda: process.asleep(child.pid, NOWHERE) is not None)
        until(lambda: process.asleep(child.pid, NOWHERE) == process.asleep(child.pid, NOWHERE))
        first = process.asleep(child.pid, NOWHERE)
        child.send_signal(signal.SIGSTOP)
        until(lambda: process.frozen(child.pid))
        assert process.asleep(child.pid, NOWHERE) is None
        child.send_signal(signal.SIGCONT)
        until(lambda: process.asleep(child.pid, NOWHERE) not in (None, first))
        child.kill()
    assert process.asleep(child.pid, NOWHERE) is None


def test_busy_program_is_not_asleep() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        until(lambda: state(child.pid) == "R")
        assert process.asleep(child.pid, NOWHERE) is None
        child.kill()


def test_program_with_one_busy_thread_is_not_asleep() -> None:
    with subprocess.Popen([sys.executable, "-c", THREAD]) as child:
        until(lambda: len(os.listdir(f"/proc/{child.pid}/task")) == 2 and state(child.pid) == "S")
        assert process.asleep(child.pid, NOWHERE) is None
        child.kill()


def test_program_with_many_threads_is_not_looked_at() -> None:
    code = "import threading, time\nfor _ in range(300): threading.Thread(target=time.sleep, args=[1000]).start()"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        until(lambda: len(os.listdir(f"/proc/{child.pid}/task")) == 301)
        assert not any(process.asleep(child.pid, NOWHERE) for _ in range(20))
        child.kill()
