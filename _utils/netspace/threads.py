"""Threads for work that changes its thread's namespace or user, and for work that mostly waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


def in_thread(work: Callable[[], T]) -> T:
    """Run *work* in a new thread, and wait for its end; return its result, or raise its exception."""
    apart = BackgroundTask(work)
    apart.begin()
    return apart.result()


def enter_network(path: Path) -> None:
    """Move the calling thread into the network namespace that is mounted at *path* (setns(2)).

    Call this only in a thread that :func:`in_thread` started.

    :raises OSError: there is no namespace at *path*, or the caller lacks permission.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(fd)


class BackgroundTask(Generic[T]):
    """Work that may run concurrently: :meth:`begin` starts it in a thread; otherwise :meth:`result` runs it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._outcome: list[T] = []
        self._failure: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def begin(self, *, daemon: bool = False) -> None:
        """Start the work in a thread.

        :param daemon: whether the process may end before the work.
        """
        thread = threading.Thread(target=self._do, name="netspace-apart", daemon=daemon)
        thread.start()
        self._thread = thread

    def end(self, seconds: float | None = None) -> bool:
        """Wait for the thread's end, if it was started; return whether it has ended.

        :param seconds: the longest wait; None: without end.
        """
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """Return the work's result, or raise its exception."""
        if self._thread is None:
            return self._work()
        self.end()
        if self._failure:
            raise self._failure[0]
        return self._outcome[0]

    def _do(self) -> None:
        try:
            self._outcome.append(self._work())
        except BaseException as err:  # result() raises the exception
            self._failure.append(err)
