"""A row of what was looked at on a host, and the words that rows share. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from netspace.text import printable
from netspace.weaknesses.readings import Reading

Outcome = Literal["good", "weak", "unknown"]
Matters = Literal["environments", "local users", "host"]

_SHOWN = 200  # characters of a value
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class Row(NamedTuple):
    """One thing that was looked at.

    :param found: the value, or why it can't be read.
    :param matters: for whom it does: programs in environments, whatever their profile; other users of this host; or the
        host itself, should somebody have become root or taken over a service.
    :param remedy: what to do; empty where nothing is to be done.
    """

    name: str
    outcome: Outcome
    found: str
    expected: str
    matters: Matters
    why: str
    remedy: str


def row(
    name: str, outcome: Outcome, found: str, *, expected: str, matters: Matters, why: str, remedy: str, unseen: str
) -> Row:
    """Return a row with the remedy that fits its outcome.

    :param remedy: against a weakness.
    :param unseen: for a value that is not known.
    """
    return Row(
        name=shown(name),
        outcome=outcome,
        found=shown(found),
        expected=expected,
        matters=matters,
        why=why,
        remedy={"good": "", "weak": remedy, "unknown": unseen}[outcome],
    )


def shown(text: str) -> str:
    """Return the beginning of *text*, fit for a terminal."""
    return printable(text)[:_SHOWN]


def said(reading: Reading) -> str:
    """Return what a file holds, or that it can't be read and why."""
    return f"can't be read: {reading.error}" if reading.error else reading.text


def number(reading: Reading) -> int | None:
    """Return the number that a file holds; None where it can't be read or holds none."""
    return int(reading.text) if not reading.error and _NUMBER.fullmatch(reading.text) else None


def setting(name: str, value: int | str) -> str:
    """Return the remedy that sets a sysctl, now and at the next boot (sysctl.d(5))."""
    return f"`sysctl -w {name}={value}`, and the line `{name} = {value}` in a file in /etc/sysctl.d/"


def unseen(path: str) -> str:
    """Return the remedy for a file that can't be read."""
    return f"read {path} as root; where it is missing, the kernel lacks this part or has no switch for it"


def refused(calls: Sequence[str]) -> str:
    """Return the sentence that says of *calls* that no program inside can make them."""
    return (
        f"The profiles strict and standard refuse {', '.join(calls)}: for environments it matters only with a profile "
        "of your own that doesn't."
    )
