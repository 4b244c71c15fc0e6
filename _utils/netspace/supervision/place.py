"""Paths of the supervisor of a host without systemd, and a check whether it runs.

They are apart from the supervisor itself: most runs only ask, and need none of its modules.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from netspace.layout import Layout


def socket_path(layout: Layout) -> Path:
    return layout.run / "supervisor.sock"


def lock_path(layout: Layout) -> Path:
    return layout.run / "supervisor.lock"


def running(layout: Layout) -> bool:
    """Return whether a daemon holds the lock; forks nothing and starts nothing."""
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
