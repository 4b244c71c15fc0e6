"""Queues that bear a former name: still read until they are empty, and written by nobody. Pure.

A mailbox is named anew when its host gets a key of names, or another one; a lane, when the bounds
of its link change. No message is moved, so none can be lost or come from elsewhere. The new
queue takes what is sent from now on; the former one has no way in any more. The reader
reads both; outboxes are read by a shovel each. The exchange that a delivery came from still
tells its sender: the link that each exchange was of is kept here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from netspace.link.model import Found, Objects
from netspace.link.model import carried as carries
from netspace.link.names import Names, carrier, environments_of, is_dead
from netspace.spec.types import Link

SETTLED = 15.0
"""Seconds after which the broker's count of a queue's messages tells of all that was sent there."""


class Former(msgspec.Struct, frozen=True):
    """A queue with a former name.

    :param environment: its reader, for an outbox ``@<host>``; empty: it has dead letters, which the operator reads.
    :param senders: exchange -> the link that it was of.
    :param since: the latest time at which it may have got a message, in seconds since 1970.
    """

    queue: str
    environment: str
    senders: Mapping[str, str] = msgspec.field(default_factory=dict)
    since: float = 0.0


def find(
    there: Found, wanted: Objects, links: Mapping[str, Link], known: Collection[Former], now: float
) -> list[Former]:
    """Return the queues on the broker that are read under a former name.

    :param there: what the broker has of ours, before anything is revoked.
    :param links: those that shall be.
    :param known: the recorded ones.
    """
    members = {end for link in links.values() for end in (link.source, link.target)}
    if members and there.whole:
        members.add("")  # dead letters have no reader of their own, but belong to all
    recorded = {one.queue: one for one in known}
    senders: dict[str, dict[str, str]] = {}
    for key in there.objects:
        if key[0] == "binding" and key[2] == "queue":
            ends = environments_of(key[1], "link")
            if ends is not None:
                senders.setdefault(key[3], {})[key[1]] = ".".join(ends)
    found = []
    for key in there.objects:
        if key[0] != "queue" or key in wanted:
            continue
        reader = _reader(key[1], members, links)
        if reader is None:
            continue
        before = recorded.get(key[1])
        ways = {**(before.senders if before else {}), **senders.get(key[1], {})}
        # Bound to whatever, it may have got mail up to now.
        since = before.since if before and key[1] not in senders else now
        found.append(Former(key[1], reader, ways, since))
    return sorted(found, key=lambda one: one.queue)


def _reader(queue: str, members: Collection[str], links: Mapping[str, Link]) -> str | None:
    """Return the reader of a former *queue* (``Former.environment``); None: nobody reads it, or it isn't ours."""
    if is_dead(queue):
        return "" if "" in members else None
    mailbox = environments_of(queue, "mailbox")
    if mailbox is not None:
        return mailbox[0] if mailbox[0] in members else None
    lane = environments_of(queue, "lane")
    if lane is not None:
        return lane[1] if ".".join(lane) in links else None
    carried = _carried(queue, links)
    return None if carried is None else carrier(str(carried.to_host))


def _carried(queue: str, links: Mapping[str, Link]) -> Link | None:
    """Return the link whose mail is in an outbox; None: *queue* is no outbox, or its link isn't carried over."""
    outbox = environments_of(queue, "outbox")
    link = None if outbox is None else links.get(".".join(outbox))
    return link if link is not None and carries(link) else None


def outboxes(there: Found, wanted: Objects, links: Mapping[str, Link]) -> dict[str, Link]:
    """Return the outboxes with a former name, each with the link whose mail it holds."""
    found = {key[1]: _carried(key[1], links) for key in there.objects if key[0] == "queue" and key not in wanted}
    return {queue: link for queue, link in found.items() if link is not None}


def of(environment: str, known: Collection[Former], names: Names, links: Collection[Link]) -> tuple[list[str], Any]:
    """Return *environment*'s former queues, and by exchange the links that led into them.

    Exchanges that *links* have today are left out.
    """
    today = {names.exchange(link) for link in links}
    own = [one for one in known if one.environment == environment]
    senders = {exchange: link for one in own for exchange, link in one.senders.items() if exchange not in today}
    return [one.queue for one in own], senders


def decode(value: Mapping[str, Any]) -> Former:
    """Decode a former queue of a record; raise KeyError, TypeError or ValueError where it is damaged."""
    return Former(value["queue"], value["environment"], dict(value["senders"]), float(value["since"]))


def encode(one: Former) -> dict[str, Any]:
    return {
        "queue": one.queue,
        "environment": one.environment,
        "senders": dict(sorted(one.senders.items())),
        "since": one.since,
    }
