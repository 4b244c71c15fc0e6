"""Draining queues: queues under an old name, which are read until they are empty. Nothing publishes to them. Pure.

A mailbox gets a new name when its host gets its first name key or another one. A dedicated queue gets a new name when
the bounds of its link change. New messages go to the new queue, and messages in the old queue are not moved: none can
get lost or change its sender. The environment reads both queues; each outbox has its own shovel. The same holds for the
queues of an environment that was renamed (:mod:`netspace.link.topology.renaming`).

The exchange of a delivery identifies its sender. So the record of a draining queue keeps the link of each exchange that
was bound to the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from netspace.link.topology import renaming
from netspace.link.topology.found_objects import Found
from netspace.link.topology.names import Names, carrier, environments_of, is_dead
from netspace.link.topology.objects import Objects
from netspace.link.topology.objects import carried as carries
from netspace.link.topology.renaming import Renamed
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
    renamed = renaming.of(links)
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
        before = recorded.get(key[1])
        reader = _reader(key[1], before, members, links, renamed)
        if reader is None:
            continue
        ways = _merged(senders.get(key[1], {}), before.senders if before else {}, links, renamed)
        # While an exchange is bound to the queue, the queue may get messages.
        since = before.since if before and key[1] not in senders else now
        found.append(DrainingQueue(key[1], reader, ways, since))
    return sorted(found, key=lambda one: one.queue)


def _now(name: str, links: Collection[str], renamed: Renamed) -> str:
    """Return the present name of a link."""
    return name if name in links else renamed.links.get(name, name)


def _merged(
    seen: Mapping[str, str], known: Mapping[str, str], links: Collection[str], renamed: Renamed
) -> dict[str, str]:
    """Return the present name of the link of each exchange.

    :param seen: the links by the exchanges' names.
    :param known: the recorded links. A record knows of renames that the declaration no longer tells.
    """
    found = {}
    for exchange in (*known, *(one for one in seen if one not in known)):
        names = [_now(one[exchange], links, renamed) for one in (seen, known) if exchange in one]
        found[exchange] = next((name for name in names if name in links), names[0])
    return found


def _reader(
    queue: str, known: DrainingQueue | None, members: Collection[str], links: Mapping[str, Link], renamed: Renamed
) -> str | None:
    """Return the reader of a *queue* that isn't desired, in the form of ``DrainingQueue.environment``.

    The result is None if nobody reads the queue, or if the queue isn't netspace's.

    :param known: the record of the queue; None: there is none.
    """
    if is_dead(queue):
        return "" if "" in members else None
    mailbox = environments_of(queue, "mailbox")
    if mailbox is not None:
        names = (mailbox[0], *([known.environment] if known else []))
        return next((one for name in names for one in _ends(name, renamed) if one in members), None)
    lane = environments_of(queue, "lane")
    if lane is not None:
        link = links.get(_link(queue, lane, known, links, renamed))
        return None if link is None else link.target
    carried = _carried(queue, links, renamed, known)
    return None if carried is None else carrier(str(carried.to_host))


def _ends(name: str, renamed: Renamed) -> tuple[str, ...]:
    return (name, renamed.environments[name]) if name in renamed.environments else (name,)


def _link(
    queue: str, ends: Collection[str], known: DrainingQueue | None, links: Collection[str], renamed: Renamed
) -> str:
    """Return the present name of the link to which a dedicated queue or an outbox belongs.

    The record tells it even if the declaration no longer names the former ends.
    """
    names = (".".join(ends), *(known.senders.values() if known else ()))
    return next((now for name in names if (now := _now(name, links, renamed)) in links), "")


def _carried(queue: str, links: Mapping[str, Link], renamed: Renamed, known: DrainingQueue | None) -> Link | None:
    """Return the link of the outbox *queue*; None if *queue* is no outbox, or if its link is no longer buffered."""
    outbox = environments_of(queue, "outbox")
    link = None if outbox is None else links.get(_link(queue, outbox, known, links, renamed))
    return link if link is not None and carries(link) else None


def passed(there: Found, wanted: Objects, links: Mapping[str, Link], known: Mapping[str, str]) -> dict[str, str]:
    """Return exchanges that go although messages sent through them wait in queues that stay, each with its link.

    A sender that was renamed has another exchange, while its receiver has the same mailbox as before.

    :param there: netspace's objects on the broker.
    :param known: the result of the last run, from the record.
    """
    renamed = renaming.of(links)
    seen: dict[str, str] = {}
    for key in there.objects:
        if key[0] == "binding" and key[2] == "queue" and key not in wanted and ("queue", key[3]) in wanted:
            ends = environments_of(key[1], "link")
            if ends is not None:
                seen[key[1]] = ".".join(ends)
    found = _merged(seen, known, links, renamed)
    return {
        exchange: link for exchange, link in found.items() if link in links and ("exchange", exchange) not in wanted
    }


def outboxes(
    there: Found, wanted: Objects, links: Mapping[str, Link], known: Collection[DrainingQueue]
) -> dict[str, Link]:
    """Return the draining outboxes, each with its link.

    :param there: netspace's objects on the broker.
    :param known: the recorded draining queues.
    """
    renamed, recorded = renaming.of(links), {one.queue: one for one in known}
    queues = (key[1] for key in there.objects if key[0] == "queue" and key not in wanted)
    found = {queue: _carried(queue, links, renamed, recorded.get(queue)) for queue in queues}
    return {queue: link for queue, link in found.items() if link is not None}


def unread(parked: Collection[str], known: Collection[DrainingQueue], empty: Collection[str]) -> dict[str, str]:
    """Return the names under which mail from before waits, with words for it. A new environment of this name gets it.

    :param parked: the owners of parked mail.
    :param known: the recorded draining queues.
    :param empty: those of them that are empty.
    """
    found = {owner.rpartition(".")[2]: "with the mail that is parked there" for owner in parked}
    for one in known:
        ends = environments_of(one.queue, "mailbox", "lane")
        if ends is not None and ends[-1] != one.environment and one.queue not in empty:
            found[ends[-1]] = f"with the mail there that {one.environment} has not read yet"
    return found


def renamed_links(
    links: Mapping[str, Link], known: Collection[DrainingQueue], passed: Mapping[str, str]
) -> dict[str, str]:
    """Return the present name of each renamed link, by its former name. A name that a link has now is left out.

    The records tell it even if the declaration no longer names the former ends.

    :param links: the recorded links.
    :param known: the recorded draining queues.
    :param passed: the recorded exchanges of renamed senders.
    """
    found = dict(renaming.of(links).links)
    for exchange, link in (*passed.items(), *(pair for one in known for pair in one.senders.items())):
        former = ".".join(environments_of(exchange, "link") or ())
        if former and former not in links and link in links:
            found.setdefault(former, link)
    return found


def read_under_former_names(formers: Collection[DrainingQueue]) -> dict[str, list[str]]:
    """Return, by reader, the draining queues (mailboxes and lanes) that have a former name of their reader."""
    found: dict[str, list[str]] = {}
    for one in formers:
        ends = environments_of(one.queue, "mailbox", "lane")
        if ends is not None and ends[-1] != one.environment:
            found.setdefault(one.environment, []).append(one.queue)
    return found


def of(
    environment: str,
    known: Collection[DrainingQueue],
    names: Names,
    links: Collection[Link],
    passed: Mapping[str, str] | None = None,
) -> tuple[list[str], Any]:
    """Return the draining queues of *environment*, and a mapping from exchanges to the links that delivered to them.

    Exchanges that *links* still use are left out.

    :param passed: the result of :func:`passed` for all environments.
    """
    today = {names.exchange(link) for link in links}
    own = [one for one in known if one.environment == environment]
    senders = {exchange: link for one in own for exchange, link in one.senders.items()}
    senders |= {exchange: link for exchange, link in (passed or {}).items() if link.split(".")[1] == environment}
    return [one.queue for one in own], {name: link for name, link in senders.items() if name not in today}


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
