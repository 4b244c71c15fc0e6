"""Helpers for tests of supervised services: find and kill the supervisor, make small services."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from netspace.layout import Layout
from netspace.supervision.daemon import presence
from netspace.supervision.service import Service
from support.waiting import until


def _lock(layout: Layout) -> str:
    """Return the name of the supervisor's lock in ``/proc/locks`` (proc_locks(5))."""
    info = presence.lock_path(layout).stat()
    return f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"


def daemon_pid(layout: Layout) -> int:
    """Return the PID of the process that holds the supervisor's lock; 0 if no process holds it."""
    lock = _lock(layout)
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[3] == "WRITE" and words[5] == lock:
            return int(words[4])
    return 0


def _waiting(layout: Layout) -> list[int]:
    lock = _lock(layout)
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(words[5]) for words in lines if words[1:3] == ["->", "FLOCK"] and words[6] == lock]


def standing_pid(layout: Layout) -> int:
    """Return the PID of the stand-by process, which waits for the supervisor's lock; 0 if there is no such process."""
    return next(iter(_waiting(layout)), 0)


def reap() -> None:
    """Collect orphans. In the sandbox the tests are PID 1, so orphans become their children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill_daemon(layout: Layout, heir: int = 0) -> None:
    """Kill the supervisor and its stand-by process. *heir*, another process that waits to supervise, survives."""
    pid = daemon_pid(layout)
    assert pid

    def others() -> list[int]:
        return [one for one in _waiting(layout) if one != heir]

    until(others, "somebody stands by")
    os.kill(pid, signal.SIGSTOP)
    for one in (*others(), pid):
        os.kill(one, signal.SIGKILL)
    # The heir may have it before anybody sees that nobody had.
    until(lambda: not presence.running(layout) or daemon_pid(layout) == heir)
    reap()


def shell(name: str, script: str, **options: object) -> Service:
    return Service(name, ("/bin/sh", "-c", script), **options)  # type: ignore[arg-type]
