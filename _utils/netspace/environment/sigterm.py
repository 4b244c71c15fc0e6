"""Effect of SIGTERM on an environment's program, read from ``/proc``. No signal is sent.

The kernel doesn't deliver a signal to process 1 of a pid namespace if this process has no handler for it
(pid_namespaces(7)). So a program without a handler and without an init above it is killed only after the whole
``stop_timeout``.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from netspace.environment.record import Record
from netspace.supervision import process

_BIT = 1 << signal.SIGTERM - 1


def told(record: Record, pid: int) -> str:
    """Return the effect of SIGTERM on a running environment's program, with a remedy if it has no effect.

    :param pid: the host's process id of the environment's process 1; 0: it doesn't run.
    :return: ``handled``, ``ends it``, or a text that begins with ``blocked`` or ``ignored``. The text is empty if the
        effect can't be known: nothing runs, the program just ended, or another kernel runs it.
    """
    spec = record.spec
    if not pid or spec.kernel is not None or record.runtime.module.OWN_KERNEL:
        return ""
    main = process.status(pid)
    if not _is_first(main):  # it has ended, and another process has its number
        return ""
    if not spec.init:
        return judge(main, spec.stop_timeout, first=True)
    child = process.first_child(pid)
    program = process.status(child) if child else {}
    if program.get("PPid") != str(pid):
        return ""
    return judge(program, spec.stop_timeout, first=False)


def judge(status: Mapping[str, str], stop_timeout: float, *, first: bool) -> str:
    """Return the text of :func:`told` for a process with this ``/proc/PID/status``. Pure.

    :param stop_timeout: the seconds between SIGTERM and SIGKILL, for the text.
    :param first: whether the process is process 1 of its pid namespace.
    """
    try:
        caught, blocked, ignored = (int(status[f"Sig{mask}"], 16) & _BIT for mask in ("Cgt", "Blk", "Ign"))
    except (KeyError, ValueError):
        return ""
    lasts = f"so each stop lasts all of stop_timeout ({stop_timeout:g} s) and ends it by SIGKILL"
    if caught:
        return "handled"
    if blocked:
        return f"blocked: it has an effect only if the program waits for it (sigwait, signalfd); otherwise {lasts[3:]}"
    if ignored:
        return f"ignored: the program chose that (SIG_IGN), {lasts}; have the program handle SIGTERM"
    if first:
        return (
            f"ignored: the program is process 1 and has no handler, {lasts}; "
            "set init: true, or have the program handle SIGTERM"
        )
    return "ends it"


def _is_first(status: Mapping[str, str]) -> bool:
    """Return whether a process is process 1 of a pid namespace below the caller's."""
    numbers = status.get("NSpid", "").split()
    return len(numbers) > 1 and numbers[-1] == "1"
