"""Followed processes: the daemon watches them by pidfd until they end, and collects the exit status of children.

The daemon is a subreaper, so it collects the statuses of orphans, too. This module doesn't start or signal processes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable

from netspace import files
from netspace.supervision import process
from netspace.supervision.daemon.loop import Loop

SELDOM = 5.0  # seconds after which children are looked at, though no signal said that one has ended
UNREAPED = 200  # checks, 10 ms apart, of an ended process that its parent hasn't reaped yet


class Children:
    """The followed processes, and the exit statuses of ended children that no caller has asked for yet."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.statuses: dict[int, int] = {}
        self._followed: set[int] = set()
        self._due = 0.0  # the monotonic time at which all children are looked at, even without a signal
        self._foreign: set[int] = set()  # followed processes that were found not to be children

    def signalled(self) -> None:
        """Note that a child may have ended (SIGCHLD)."""
        self._due = 0.0

    def reap_if_due(self) -> None:
        """Collect the statuses of ended children after a signal, and every few seconds.

        Each look makes the kernel walk through all children, and a host may have thousands.
        """
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + SELDOM
            self.reap()

    def reap(self) -> None:
        """Collect the status of every ended child, including adopted orphans."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.statuses[ended[0]] = ended[1]

    def follow(self, pid: int, ended: Callable[[int | None], None], adopted: bool = False) -> int:
        """Call *ended* with the status of wait(2) once *pid* has ended (None: unknown); return the pidfd of *pid*."""
        pidfd = os.pidfd_open(pid)
        self.statuses.pop(pid, None)  # the status of an earlier process with this PID
        self._followed.add(pid)
        self._foreign.discard(pid)

        patience = itertools.count()

        def readable(_: int) -> None:
            status = self._status(pid)
            there = process.stat(pid)
            if (
                status is None
                and not adopted
                and there is not None
                and there.state == "Z"
                and there.ppid != os.getpid()
                and next(patience) < UNREAPED
            ):
                # Its parent, a runtime's helper, is about to end; then this process can reap it. Another kind of
                # parent may never reap it, so the wait is bounded.
                self.loop.unwatch(pidfd)
                self.loop.after(0.01, lambda: self.loop.watch(pidfd, readable))
                return
            self._followed.discard(pid)
            self._foreign.discard(pid)
            self.loop.unwatch(pidfd)
            os.close(pidfd)
            ended(status)

        self.loop.watch(pidfd, readable)
        return pidfd

    def frozen(self, pids: Iterable[int]) -> set[int]:
        """Return those of *pids* that a signal (SIGSTOP) has stopped. Takes no status from wait(2).

        For a child of the daemon, waitid(2) takes a tenth of the time that a look into ``/proc`` takes. A process that
        an earlier daemon started is no child of this one. To ask wait(2) about it each time would cost half as much as
        the look.
        """
        found = set()
        with files.folder("/proc") as processes:
            for pid in pids:
                try:
                    if pid not in self._foreign:
                        if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None:
                            found.add(pid)
                        continue
                except ChildProcessError:
                    if pid in self._followed:
                        self._foreign.add(pid)
                if process.letter(pid, processes) == "T":
                    found.add(pid)
        return found

    def _status(self, pid: int) -> int | None:
        """Return the status of a child that has ended, and reap it; None if it isn't this process's child."""
        if pid not in self.statuses:
            with contextlib.suppress(ChildProcessError):
                ended, status = os.waitpid(pid, os.WNOHANG)
                return status if ended else None
        return self.statuses.pop(pid, None)

    def forget(self) -> None:
        """Delete the statuses of processes that no caller follows."""
        if self.statuses:
            self.statuses = {pid: status for pid, status in self.statuses.items() if pid in self._followed}
