"""A thread for work that changes whoever does it (its namespace, its user), and nothing else of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> T:
    """Run *work* in a thread of its own, which ends with it; return what it returns, raise what it raises."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as err:  # for whoever waits
            failure.append(err)

    thread = threading.Thread(target=body, name="netspace-apart")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
