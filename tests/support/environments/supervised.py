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
    """Return the supervisor's lock as ``/proc/locks`` names it (proc_locks(5))."""
    info = presence.lock_path(layout).stat()
    return f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"


def daemon_pid(layout: Layout) -> int:
    """Return the PID of who holds the supervisor's lock, 0 if nobody."""
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
    """Return the PID of who waits for that lock, to be the next supervisor; 0 if nobody does."""
    return next(iter(_waiting(layout)), 0)


def reap() -> None:
    """Collect orphans that became ours: in the sandbox the tests are PID 1."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill_daemon(layout: Layout, heir: int = 0) -> None:
    """Kill the supervisor and its stand-by; only *heir*, which waits to supervise as well, is left alive."""
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
