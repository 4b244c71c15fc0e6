"""The stand-by process, which becomes the next supervisor if the present one is killed.

The stand-by process is a fork of the supervisor that sleeps in the kernel until it gets the supervisor's lock. The
kernel releases the lock when the supervisor ends for any reason. The stand-by process then becomes the supervisor, and
starts another stand-by process. If the stand-by process is killed, the supervisor replaces it. A stand-by process costs
its own pages (most are shared with the supervisor), and no processor time. It starts, signals and watches nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import NoReturn

from netspace.layout import Layout
from netspace.supervision.daemon.children import Children
from netspace.supervision.daemon.loop import Loop
from netspace.supervision.daemon.presence import hold, lock_path

# Seconds between two starts of a stand-by process or supervisor: if it ends at once, it must not use up a processor.
PAUSE = 1.0


class Standby:
    """The stand-by process of one supervisor."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._pid = 0

    def begin(self, loop: Loop, children: Children) -> None:
        """Keep a stand-by process running from now on."""

        def again() -> None:
            try:
                self._pid = _fork(self.layout)
                children.follow(self._pid, ended)
            except OSError as err:  # no process or descriptor is free: try again later
                sys.stderr.write(f"the supervisor can't start a stand-by process: {err}\n")
                loop.after(PAUSE, again)

        def ended(_: int | None) -> None:
            self._pid = 0
            loop.after(PAUSE, again)

        again()

    def end(self) -> None:
        """End the stand-by process, before the lock is released."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)


def _fork(layout: Layout) -> int:
    pid = os.fork()
    if not pid:
        try:
            _stand_by(layout)
        finally:
            os._exit(1)
    return pid


def _stand_by(layout: Layout) -> NoReturn:
    """Close the supervisor's descriptors, wait for the lock, and become the next supervisor. Never returns."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    began = time.monotonic()
    lock = os.open(lock_path(layout), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    fcntl.flock(lock, fcntl.LOCK_EX)
    hold(lock)
    time.sleep(max(0.0, began + PAUSE - time.monotonic()))
    sys.stderr.write("the supervisor has ended; the stand-by process takes over\n")
    become_anew(lock)


def become_anew(lock: int) -> NoReturn:
    """Replace the program of this process by the installed version of the supervisor. The process keeps its children.

    :param lock: the descriptor that holds the lock; it stays open.
    """
    os.set_inheritable(lock, True)
    arguments = sys.orig_argv[1:]
    if "--lock" in arguments:
        where = arguments.index("--lock")
        del arguments[where : where + 2]
    os.execv(sys.executable, [sys.executable, *arguments, "--lock", str(lock)])  # noqa: S606
