"""Paths of the supervisor of a host without systemd, and a check whether it runs.

Most runs need only this check, so they don't import the supervisor's other modules.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from netspace import files
from netspace.layout import Layout
from netspace.supervision import process


def socket_path(layout: Layout) -> Path:
    return layout.run / "supervisor.sock"


def lock_path(layout: Layout) -> Path:
    return layout.run / "supervisor.lock"


def attended(layout: Layout) -> bool:
    """Return whether a daemon holds the lock and isn't stopped by a signal."""
    return running(layout) and not process.frozen(holder(layout))


def holder(layout: Layout) -> int:
    """Return the PID of the daemon, as the daemon wrote it into the lock file; 0 if the file holds none.

    The list of all locks (proc_locks(5)) would tell it too. But an environment can hold any number of locks, and the
    kernel then takes seconds to write that list.
    """
    try:
        written = files.read(lock_path(layout), 16).strip()
    except OSError:
        return 0
    return int(written) if written.isdigit() else 0


def hold(lock: int) -> None:
    """Write this process's PID into the lock file.

    :param lock: the descriptor that holds the lock.
    """
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)


def running(layout: Layout) -> bool:
    """Return whether a daemon holds the lock. Starts no process."""
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
