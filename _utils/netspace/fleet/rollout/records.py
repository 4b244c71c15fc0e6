"""Records of a rollout's journal. Pure.

A journal begins with :class:`Started`. Each later record is about one step. ``Sent`` and ``Stopping`` are written
before their step, all others after it. So after a kill of the master, the journal shows which step was under way.

``outcomes`` has a text for each host: why the step failed; empty if it succeeded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from netspace.fleet.hosts import Outcome
from netspace.fleet.policy import Pace
from netspace.text import REPLACEMENT, printable

MAX_REASON = 300
"""Characters of a reason that are kept."""
MAX_HOSTS = 100_000


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="step"):
    """Base class of all records in a rollout's journal."""


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A batch as it was planned before the rollout began: hosts that change at once; see :class:`order.Batch`."""

    hosts: tuple[str, ...]
    canary: bool = False


class Started(Record, frozen=True, tag="started"):
    """Record: the rollout began.

    :param plan: the plan's id.
    :param before: for each host, the hosts that must be good before it changes.
    :param at: seconds since 1970.
    """

    plan: str
    pace: Pace
    batches: tuple[Group, ...]
    before: dict[str, tuple[str, ...]]
    at: float
    version: Literal[1] = 1


class Prepared(Record, frozen=True, tag="prepared"):
    """Record: hosts were attested and fetched their images, or failed to."""

    outcomes: dict[str, str]


class Sent(Record, frozen=True, tag="sent"):
    """Record: hosts are about to get the command to apply."""

    hosts: tuple[str, ...]


class Applied(Record, frozen=True, tag="applied"):
    """Record: hosts applied their plans, or failed to."""

    outcomes: dict[str, str]


class Judged(Record, frozen=True, tag="judged"):
    """Record: the gate judged hosts that had applied."""

    outcomes: dict[str, str]


class Stopping(Record, frozen=True, tag="stopping"):
    """Record: the rollout stops, and *hosts* are about to get their previous slices again."""

    why: str
    hosts: tuple[str, ...]


class TakenBack(Record, frozen=True, tag="taken-back"):
    """Record: hosts got their previous slices again and applied them, or failed to."""

    outcomes: dict[str, str]


class Checked(Record, frozen=True, tag="checked"):
    """Record: hosts returned to their previous slices, and the gate has judged these hosts."""

    outcomes: dict[str, str]


class Paused(Record, frozen=True, tag="paused"):
    """Record: the operator paused the rollout."""


class Resumed(Record, frozen=True, tag="resumed"):
    """Record: the operator resumed the rollout."""


class Ended(Record, frozen=True, tag="ended"):
    """Record: the rollout has ended.

    :param at: seconds since 1970.
    """

    at: float


Told = Prepared | Applied | Judged | TakenBack | Checked
Entry = Started | Sent | Stopping | Paused | Resumed | Ended | Told


def outcomes(hosts: Collection[str], told: Mapping[str, Outcome]) -> dict[str, str]:
    """Return, for exactly these hosts, the texts that a record stores: why the step failed; empty if it succeeded.

    :param told: the outcomes by host; a missing host counts as failed.
    """
    found = {}
    for host in hosts:
        one = told.get(host, Outcome(False, "no answer"))
        reason = printable(one.reason[:MAX_REASON], instead=REPLACEMENT)
        found[host] = "" if one.ok else reason or "it failed, and gave no reason"
    return found


def decode(line: bytes) -> Entry:
    """Return the record in a line of a journal.

    :raises ValueError: the line is no record.
    """
    found: Entry = msgspec.json.decode(line, type=Entry)
    return found
