"""A row on one setting of a host, and texts that several rows share. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from netspace.host.weaknesses.readings import Reading
from netspace.text import printable

Outcome = Literal["good", "weak", "unknown"]
Matters = Literal["environments", "local users", "host"]

_SHOWN = 200  # characters of a value
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class Row(NamedTuple):
    """One setting of a host.

    :param outcome: ``good``, ``weak`` or ``unknown``.
    :param found: the value, or why it can't be read.
    :param expected: the good values, in words.
    :param matters: for whom the setting matters: programs in environments, whatever their profile; other users of this
        host; or the host itself, once an attacker is root or controls a service.
    :param why: the harm that a bad value can do.
    :param remedy: the steps to take; empty if there are none.
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

    :param remedy: the remedy against a weakness.
    :param unseen: the remedy if the value is unknown.
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
    """Return the beginning of *text*, with characters that could harm a terminal replaced."""
    return printable(text)[:_SHOWN]


def said(reading: Reading) -> str:
    """Return the text of a file; if it can't be read, a sentence that says why."""
    return f"can't be read: {reading.error}" if reading.error else reading.text


def number(reading: Reading) -> int | None:
    """Return the number in a file; None if the file can't be read or doesn't hold a number."""
    return int(reading.text) if not reading.error and _NUMBER.fullmatch(reading.text) else None


def setting(name: str, value: int | str) -> str:
    """Return a remedy: how to set a sysctl, now and for later boots (sysctl.d(5))."""
    return f"`sysctl -w {name}={value}`, and the line `{name} = {value}` in a file in /etc/sysctl.d/"


def unseen(path: str) -> str:
    """Return a remedy for a file that can't be read."""
    return f"read {path} as root; where it is missing, the kernel lacks this part or has no switch for it"


def refused(calls: Sequence[str]) -> str:
    """Return a sentence that says that programs inside can't make *calls*."""
    return (
        f"The profiles strict and standard refuse {', '.join(calls)}: for environments it matters only with a profile "
        "of your own that doesn't."
    )
