"""Processes that are followed by their pidfds until they end, and every child's status.

Strays' statuses are collected, too, since the daemon is their reaper. Nothing is started or signalled here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable

from netspace.supervision import process
from netspace.supervision.loop import Loop

UNREAPED = 200  # looks, a hundredth of a second apart, at a process that has ended and that its parent doesn't reap


class Children:
    """The processes that are followed, and the statuses of ended ones that nobody has asked for yet."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.statuses: dict[int, int] = {}
        self._followed: set[int] = set()

    def reap(self) -> None:
        """Collect every child that ended, ours or a stray's."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.statuses[ended[0]] = ended[1]

    def follow(self, pid: int, ended: Callable[[int | None], None], adopted: bool = False) -> int:
        """Call *ended* with wait(2)'s status (None: unknown) once *pid* has ended; return its pidfd."""
        pidfd = os.pidfd_open(pid)
        self.statuses.pop(pid, None)  # of an earlier process of that number
        self._followed.add(pid)

        patience = itertools.count()

        def readable(_: int) -> None:
            self.reap()
            status = self.statuses.pop(pid, None)
            there = process.stat(pid)
            if (
                status is None
                and not adopted
                and there is not None
                and there.state == "Z"
                and there.ppid != os.getpid()
                and next(patience) < UNREAPED
            ):
                # Its parent, a runtime's helper, is about to go: then it is ours to reap. Another may never reap it.
                self.loop.unwatch(pidfd)
                self.loop.after(0.01, lambda: self.loop.watch(pidfd, readable))
                return
            self._followed.discard(pid)
            self.loop.unwatch(pidfd)
            os.close(pidfd)
            ended(status)

        self.loop.watch(pidfd, readable)
        return pidfd

    def forget(self) -> None:
        """Forget the statuses that nobody will ask for."""
        if self.statuses:
            self.statuses = {pid: status for pid, status in self.statuses.items() if pid in self._followed}
