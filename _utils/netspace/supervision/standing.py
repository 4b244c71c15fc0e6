"""The process that stands by to be the next supervisor, should this one be killed.

It is a fork of the supervisor that sleeps in the kernel until it gets the lock that the supervisor
holds, which is when the supervisor has ended in whatever way. Then it becomes the supervisor, and
has another process stand by. If it is killed itself, the supervisor replaces it. It costs its own
pages (most are shared with the supervisor), and no processor time. It starts, signals and watches
nothing.
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
from netspace.supervision.children import Children
from netspace.supervision.loop import Loop
from netspace.supervision.place import lock_path

# Seconds between two of a kind: what ends as soon as it begins must not take all of a processor.
PAUSE = 1.0


class Standing:
    """The stand-by process of one supervisor."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._pid = 0

    def begin(self, loop: Loop, children: Children) -> None:
        """Keep a stand-by process from now on."""

        def again() -> None:
            try:
                self._pid = _fork(self.layout)
                children.follow(self._pid, ended)
            except OSError as err:  # no process, or no descriptor: later, maybe
                sys.stderr.write(f"nobody can stand by: {err}\n")
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
    """Wait for the lock, with nothing of the supervisor's open, and become the next one. Never returns."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    began = time.monotonic()
    lock = os.open(lock_path(layout), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    fcntl.flock(lock, fcntl.LOCK_EX)
    time.sleep(max(0.0, began + PAUSE - time.monotonic()))
    sys.stderr.write("the supervisor has ended; the one that stood by takes over\n")
    become_anew(lock)


def become_anew(lock: int) -> NoReturn:
    """Become a supervisor of the library's present version, in this process: its children stay its children.

    :param lock: the descriptor that holds the lock, and keeps holding it.
    """
    os.set_inheritable(lock, True)
    arguments = sys.orig_argv[1:]
    if "--lock" in arguments:
        where = arguments.index("--lock")
        del arguments[where : where + 2]
    os.execv(sys.executable, [sys.executable, *arguments, "--lock", str(lock)])  # noqa: S606
