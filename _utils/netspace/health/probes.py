"""Probes of an environment's health: by a program run inside, or by the readers of its mailbox.

A probe changes nothing, and never raises. An environment in which the program can't be run is not well.
A broker that doesn't answer tells nothing of the mailbox's readers, and a restart would not bring it back.
"""

from __future__ import annotations

from collections.abc import Callable

from netspace.environment import entering
from netspace.environment.records import Record
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Health
from netspace.text import printable

# Whether all is well (None: that can't be known), and what was said where it isn't.
Found = tuple[bool | None, str]


def inside(layout: Layout, name: str, record: Record, health: Health) -> Found:
    """Run the check's program inside."""
    try:
        done = entering.enter(layout, name, record, health.exec, health.timeout)
    except (NetspaceError, OSError) as err:
        return False, str(err)
    if done.timed_out:
        return False, f"no answer within {health.timeout:g} s"
    if done.retcode == 0:
        return True, ""
    said = (done.stdout + b"\n" + done.stderr).decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    text = printable(last, instead="?")
    return False, f"exit {done.retcode}{': ' + text if text else ''}"


def mailbox(name: str, readers: Callable[[str], int]) -> Found:
    """Check whether somebody reads the environment's mailbox.

    :param readers: returns the number of its readers, or raises.
    """
    try:
        count = readers(name)
    except (NetspaceError, OSError) as err:
        return None, str(err)
    return (True, "") if count else (False, "nobody reads its mailbox")
