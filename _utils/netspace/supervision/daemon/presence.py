"""Paths of the supervisor of a host without systemd, and a check whether the supervisor runs.

Most runs need only this check, so they don't import the supervisor's other modules.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from netspace.layout import Layout
from netspace.supervision import process


def socket_path(layout: Layout) -> Path:
    return layout.run / "supervisor.sock"


def lock_path(layout: Layout) -> Path:
    return layout.run / "supervisor.lock"


def attended(layout: Layout) -> bool:
    """Return whether a daemon holds the lock and isn't stopped by a signal."""
    return running(layout) and not process.frozen(holder(layout))


def hold(lock: int) -> None:
    """Write into the lock's file that this process holds it: its PID, and the ticks of its start.

    :param lock: a descriptor that holds the lock, open for writing.
    """
    here = process.stat(os.getpid())
    if here is not None:
        with contextlib.suppress(OSError):  # no room: then the kernel's list tells
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} {here.ticks}\n".encode(), 0)


def holder(layout: Layout) -> int:
    """Return the PID of the daemon that holds the lock; 0 if no daemon holds it or the PID is unknown.

    The kernel's list of locks (proc_locks(5)) is read only if the lock's file doesn't name the holder. The list has the
    locks of all environments, and reading a hundred thousand locks takes seconds.
    """
    return (_noted(layout) or _listed(layout)) if running(layout) else 0


def _noted(layout: Layout) -> int:
    try:
        fd = os.open(lock_path(layout), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        pid, ticks = map(int, os.read(fd, 64).split())
    except ValueError:  # an earlier version's daemon holds it
        return 0
    finally:
        os.close(fd)
    return pid if process.alive(pid, ticks) else 0


def _listed(layout: Layout) -> int:
    try:
        info = lock_path(layout).stat()
        with open("/proc/locks") as stream:
            locks = [line.split() for line in stream]
    except OSError:
        return 0
    lock = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    held = (words[4] for words in locks if len(words) > 5 and words[1::2][:3] == ["FLOCK", "WRITE", lock])
    return int(next(held, "0"))


def running(layout: Layout) -> bool:
    """Return whether a daemon holds the lock. No process is started."""
    try:
        fd = os.open(lock_path(layout), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
