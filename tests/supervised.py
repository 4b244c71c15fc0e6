"""What tests of supervised services share: finding and killing the supervisor, small services."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from waiting import until

from netspace.layout import Layout
from netspace.supervision import Service, place


def daemon_pid(layout: Layout) -> int:
    """Return the PID of who holds the supervisor's lock, 0 if nobody."""
    inode = place.lock_path(layout).stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[3] == "WRITE" and int(words[5].rsplit(":", 1)[1]) == inode:
            return int(words[4])
    return 0


def standing_pid(layout: Layout) -> int:
    """Return the PID of who waits for that lock, to be the next supervisor; 0 if nobody does."""
    inode = place.lock_path(layout).stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1:3] == ["->", "FLOCK"] and int(words[6].rsplit(":", 1)[1]) == inode:
            return int(words[5])
    return 0


def reap() -> None:
    """Collect orphans that became ours: in the sandbox the tests are PID 1."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill_daemon(layout: Layout) -> None:
    """Kill the supervisor, and who stands by for it: nobody is left."""
    pid = daemon_pid(layout)
    assert pid
    until(lambda: standing_pid(layout), "somebody stands by")
    os.kill(pid, signal.SIGSTOP)
    for one in (standing_pid(layout), pid):
        os.kill(one, signal.SIGKILL)
    until(lambda: not place.running(layout))
    reap()


def shell(name: str, script: str, **options: object) -> Service:
    return Service(name, ("/bin/sh", "-c", script), **options)  # type: ignore[arg-type]
