"""Draining queues: queues under an old name, which are read until they are empty. Nothing publishes to them. Pure.

A mailbox gets a new name when its host gets its first name key or another one. A dedicated queue gets a new name when
the bounds of its link change. New messages go to the new queue, and messages in the old queue are not moved: none can
get lost or change its sender. The environment reads both queues; each outbox has its own shovel.

The exchange of a delivery identifies its sender. So the record of a draining queue keeps the link of each exchange that
was bound to the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from netspace.link.topology.found_objects import Found
from netspace.link.topology.names import Names, carrier, environments_of, is_dead
from netspace.link.topology.objects import Objects
from netspace.link.topology.objects import carried as carries
from netspace.spec.types import Link

SETTLED = 15.0
"""Seconds after which the broker's count of a queue's messages includes all that were sent to it."""


class DrainingQueue(msgspec.Struct, frozen=True):
    """A draining queue.

    :param queue: its name.
    :param environment: the environment that reads it; for an outbox ``@<host>``; empty: it holds dead letters, which
        the operator reads.
    :param senders: for each exchange that was bound to it, the link to which the exchange belonged.
    :param since: the latest time at which the queue may have got a message, in seconds since 1970.
    """

    queue: str
    environment: str
    senders: Mapping[str, str] = msgspec.field(default_factory=dict)
    since: float = 0.0


def find(
    there: Found, wanted: Objects, links: Mapping[str, Link], known: Collection[DrainingQueue], now: float
) -> list[DrainingQueue]:
    """Return the draining queues on the broker.

    :param there: netspace's objects on the broker, before anything is revoked.
    :param wanted: the desired objects.
    :param links: the desired links.
    :param known: the recorded draining queues.
    :param now: seconds since 1970.
    """
    members = {end for link in links.values() for end in (link.source, link.target)}
    if members and there.whole:
        members.add("")  # the reader of dead letters is the operator, see :class:`DrainingQueue`
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
        # While an exchange is bound to the queue, the queue may get messages.
        since = before.since if before and key[1] not in senders else now
        found.append(DrainingQueue(key[1], reader, ways, since))
    return sorted(found, key=lambda one: one.queue)


def _reader(queue: str, members: Collection[str], links: Mapping[str, Link]) -> str | None:
    """Return the reader of a *queue* that isn't desired, in the form of ``DrainingQueue.environment``.

    The result is None if nobody reads the queue, or if the queue isn't netspace's.
    """
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
    """Return the link of the outbox *queue*; None if *queue* is no outbox, or if its link is no longer buffered."""
    outbox = environments_of(queue, "outbox")
    link = None if outbox is None else links.get(".".join(outbox))
    return link if link is not None and carries(link) else None


def outboxes(there: Found, wanted: Objects, links: Mapping[str, Link]) -> dict[str, Link]:
    """Return the draining outboxes, each with its link."""
    found = {key[1]: _carried(key[1], links) for key in there.objects if key[0] == "queue" and key not in wanted}
    return {queue: link for queue, link in found.items() if link is not None}


def of(
    environment: str, known: Collection[DrainingQueue], names: Names, links: Collection[Link]
) -> tuple[list[str], Any]:
    """Return the draining queues of *environment*, and a mapping from exchanges to the links that delivered to them.

    Exchanges that *links* still use are left out.
    """
    today = {names.exchange(link) for link in links}
    own = [one for one in known if one.environment == environment]
    senders = {exchange: link for one in own for exchange, link in one.senders.items() if exchange not in today}
    return [one.queue for one in own], senders


def decode(value: Mapping[str, Any]) -> DrainingQueue:
    """Decode a recorded draining queue; raise KeyError, TypeError or ValueError if the record is damaged."""
    return DrainingQueue(value["queue"], value["environment"], dict(value["senders"]), float(value["since"]))


def encode(one: DrainingQueue) -> dict[str, Any]:
    return {
        "queue": one.queue,
        "environment": one.environment,
        "senders": dict(sorted(one.senders.items())),
        "since": one.since,
    }
