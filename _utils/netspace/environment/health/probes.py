"""Probes of an environment's health: a program run inside, or the number of its mailbox's consumers.

A probe changes nothing, and never raises. It fails if the program can't be run inside. If the broker doesn't answer,
the probe has no result, because the number of consumers is unknown and a restart of the environment would not help.
"""

from __future__ import annotations

from collections.abc import Callable

from netspace.environment import execute
from netspace.environment.record import Record
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Health
from netspace.text import printable

# Whether the probe passed (None: no result), and the text of one that didn't.
Found = tuple[bool | None, str]


def inside(layout: Layout, name: str, record: Record, health: Health) -> Found:
    """Run the check's program inside the environment."""
    try:
        done = execute.enter(layout, name, record, health.exec, health.timeout)
    except (NetspaceError, OSError) as err:
        return False, str(err)
    return judged(done, health.timeout)


def judged(done: execute.Done, timeout: float) -> Found:
    """Return whether the check's program succeeded, and a text for a failure: the program's last line. Pure."""
    if done.timed_out:
        return False, f"no answer within {timeout:g} s"
    if done.retcode == 0:
        return True, ""
    said = (done.stdout + b"\n" + done.stderr).decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    text = printable(last, instead="?")
    return False, f"exit {done.retcode}{': ' + text if text else ''}"


def mailbox(name: str, readers: Callable[[str], int]) -> Found:
    """Check whether the environment's mailbox has a consumer.

    :param readers: returns the number of the mailbox's consumers, or raises.
    """
    try:
        count = readers(name)
    except (NetspaceError, OSError) as err:
        return None, str(err)
    return (True, "") if count else (False, "nobody reads its mailbox")
