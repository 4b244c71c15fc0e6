"""Broker objects of a set of links. Pure: no broker or disk is accessed, and no secret is used.

All links are in one vhost. An environment with at least one link has an account and a mailbox; each link has its own
exchange. ``names`` makes the names, which nobody can guess:

===========  ==================  ===================================================
account      ``env.<e>``         no tags, few connections and channels, no configure
mailbox      ``mailbox.<e>``     quorum queue, bounded by a policy; only <e> reads it
link         ``link.<a>.<b>``    fanout exchange bound to ``mailbox.<b>``; only <a>
                                 writes, so the exchange of a delivery is its sender
dedicated    ``lane.<a>.<b>``    quorum queue that replaces the mailbox for a link with
queue                            its own bounds, or for a link with ``monitor`` from
                                 another host; only <b> reads it. For a link that is not
                                 durable it is a classic queue, which keeps in memory
                                 what its sender doesn't call persistent
replies      ``replies.<a>``     queue for answers, where <a> has a request link
answers      ``reply.<b>``       direct exchange to which <b> publishes answers; each <a>
                                 binds its replies queue to it under a random key
notices      ``notices.<a>``     queue for notices about the peers that <a> may monitor
watch        ``watch.<a>.<b>``   headers exchange that passes to ``notices.<a>`` only the broker's events about
                                 consumers of ``mailbox.<b>`` (or of the dedicated queue)
dead         ``dead``            exchange and queue for messages that the reader rejected, or that reached the
                                 delivery limit
late         ``dead-late``       headers exchange and queue for messages that expired or were dropped from a full
                                 queue; all other dead letters pass through this exchange to ``dead``
outbox       ``outbox.<a>.<b>``  quorum queue that replaces the mailbox for a buffered link to another host
shovel       ``outbox.<a>.<b>``  moves the messages of the outbox to the other host's broker
===========  ==================  ===================================================

A link from another host (``<a>`` is then ``<environment>@<host>``) has the same objects as a local one. Its sender has
an account on this host's broker, but no mailbox. The publisher of a buffered link from another host is that host's
broker, so only that broker has an account on this one. A direct link to another host has its objects on that host's
broker alone.

On a broker that hosts share (``Names.fleet``), the receiver's host makes the objects of a link. The sender's host makes
the sender's account and replies queue. Each host changes only objects whose name ends with the name of one of its own
environments.

Limits of a mailbox are policies, because arguments of a queue can't be changed later. If the limits of a dedicated
queue change, a new queue is made, and the old one is read until it is empty. Each link has its own exchange: if links
shared an exchange with routing keys, a CC header could reach undeclared receivers. Environment names contain no dot, so
names of objects can't clash.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from netspace.link.topology.names import TAG_PATTERN, Names, account, carrier
from netspace.link.topology.policies import ASKING, asking, policies
from netspace.spec import peer
from netspace.spec.types import Link, host_of

Key = tuple[str, ...]
"""Kind and name of a broker object: ``("queue", "mailbox.web")``, ``("binding", source, type, target, key)``."""

Objects = dict[Key, dict[str, Any]]
"""Broker objects in the form of RabbitMQ's definitions, without vhost and secrets."""

ANSWERS = 1000
"""The most bindings of an asker's replies queue to answers."""

CONNECTIONS = 8
CHANNELS = 64
EVENTS = "amq.rabbitmq.event"
"""RabbitMQ's own exchange for events of the broker; only RabbitMQ publishes into it."""


def members(links: Iterable[Link]) -> set[str]:
    """Return the environments of this host with at least one link. Each has an account and a mailbox."""
    return {end for link in links for end in link.here}


def entered(links: Iterable[Link]) -> set[str]:
    """Return the members whose programs run in a network namespace, where the forwarder listens.

    These are all members except the host itself.
    """
    return {end for link in links for end in link.here if not (end == peer.NAME and peer.is_link(link))}


def writer(link: Link) -> str:
    """Return the publisher into a link's exchange, on the broker that has the exchange.

    The publisher is the link's sender. But into a buffered link from another host, that host's broker publishes.
    """
    if link.via == "buffered" and link.from_host is not None:
        return carrier(link.from_host)
    return link.source


def accounts(links: Collection[Link], names: Names) -> set[str]:
    """Return the owners of the accounts that this host makes.

    The owners are its environments, and the publishers of links from other hosts. On a broker that hosts share, each
    host makes only the accounts of its own environments.
    """
    others = () if names.fleet else (writer(link) for link in links if link.from_host is not None)
    return members(links).union(others)


def elsewhere(link: Link) -> bool:
    """Return whether the link is direct and leads to another host, so that all its broker objects are on that host."""
    return link.to_host is not None and link.via == "direct"


def carried(link: Link) -> bool:
    """Return whether the link is buffered and leads to another host, so that this host has its outbox and shovel."""
    return link.to_host is not None and link.via == "buffered"


def objects(links: Collection[Link], names: Names, shovels: Mapping[str, Mapping[str, Any]] | None = None) -> Objects:
    """Return all broker objects of *links*. Accounts have no passwords.

    :param shovels: the settings of the shovels of buffered links, by outbox (``peers.shovels``).
    """
    made: Objects = {}
    environments = members(links)
    if not environments:
        return made
    here = [link for link in links if not elsewhere(link)]
    answered: dict[str, set[str]] = {}  # asker -> exchanges of the answers to it
    asked: dict[str, set[str]] = {}  # responder -> exchanges to which it publishes answers
    sends: set[str] = set()
    watches: set[str] = set()
    brought: dict[str, int] = {}  # another host's broker -> the number of its buffered links to here
    # On a shared broker the receiver's host makes the link; the sender's host makes its account and replies queue.
    for link in links if names.fleet else here:
        sends.add(writer(link))
        if writer(link) != link.source:
            brought[writer(link)] = brought.get(writer(link), 0) + 1
        if link.monitor:
            watches.add(link.source)
        if link.pattern == "request":
            through = names.reply(link.target, link.from_host)
            answered.setdefault(link.source, set()).add(through)
            asked.setdefault(link.target, set()).add(through)

    made.update(shared(names))
    if any(map(peer.is_link, here)):
        made["policy", ASKING] = asking(names)
    for environment in environments | accounts(here, names):
        # Each shovel of another host's broker has one connection here, and may open a new one before the old one ends.
        times = 2 * brought.get(environment, 0) / CONNECTIONS + 1
        made["user", account(environment)] = {
            "tags": [],
            "limits": {"max-connections": round(CONNECTIONS * times), "max-channels": round(CHANNELS * times)},
        }
        made["permission", account(environment)] = _permission(
            names,
            environment,
            sends=environment in sends,
            asks=answered.get(environment, set()),
            answers=asked.get(environment, set()),
            watches=environment in watches,
        )
        if environment in environments:
            _queue(made, names.mailbox(environment), "quorum")
        if environment in answered:
            _queue(made, names.replies(environment), "classic")
        for exchange in sorted(asked.get(environment, ())):
            _exchange(made, exchange, "direct")
        if environment in watches:
            _queue(made, names.notices(environment), "classic")
    for link in here:
        queue = way(link, names)
        if link.to_host is not None:
            _queue(made, queue, "quorum")
            made["shovel", queue] = {"value": dict((shovels or {}).get(queue, {}))}
        elif names.has_lane(link):
            _queue(made, queue, "quorum" if link.durable else "classic", _bounds(link))
        _exchange(made, names.exchange(link), "fanout")
        _binding(made, names.exchange(link), queue)
        if link.monitor:
            watch = names.watch(link)
            _exchange(made, watch, "headers")
            made["binding", EVENTS, "exchange", watch, "consumer.*"] = {"arguments": {}}
            about = {"x-match": "all", "queue": names.watched(link)}
            made["binding", watch, "queue", names.notices(link.source), ""] = {"arguments": about}
    return made


def way(link: Link, names: Names) -> str:
    """Return the queue on this host's broker to which a link delivers. For a link to another host it is the outbox."""
    return names.queue(link) if link.to_host is None else names.outbox(link)


def shared(names: Names) -> Objects:
    """Return the objects that all links of a vhost share.

    They stay when links are revoked, because other hosts may use them, too.
    """
    made: Objects = {("policy", name): policy for name, policy in policies(names).items()}
    _exchange(made, names.dead, "fanout")
    _queue(made, names.dead, "quorum")
    _binding(made, names.dead, names.dead)
    _exchange(made, names.late, "headers", {"alternate-exchange": names.dead})
    _queue(made, names.late, "quorum")
    for reason in ("expired", "maxlen"):
        wanted = {"x-match": "all-with-x", "x-first-death-reason": reason}
        made["binding", names.late, "queue", names.late, reason] = {"arguments": wanted}
    return made


def of_link(link: Link, names: Names) -> list[Key]:
    """Return the keys of the objects that belong to this link alone, and are on this host's broker."""
    if elsewhere(link):
        return []
    name, queue = names.exchange(link), way(link, names)
    lane: list[Key] = [("queue", queue)] if names.has_lane(link) or link.to_host else []
    if link.to_host:
        lane.append(("shovel", queue))
    return [("exchange", name), ("binding", name, "queue", queue, ""), *lane, *_of_watch(link, names)]


def _of_watch(link: Link, names: Names) -> list[Key]:
    if not link.monitor:
        return []
    watch = names.watch(link)
    notices = names.notices(link.source)
    heard: list[Key] = [("binding", EVENTS, "exchange", watch, "consumer.*"), ("binding", watch, "queue", notices, "")]
    return [("exchange", watch), *heard]


def _bounds(link: Link) -> dict[str, Any]:
    """Return a dedicated queue's arguments with its limits.

    The policy has limits, too; of two limits the lower one applies.
    """
    bounds: dict[str, Any] = {"x-overflow": "drop-head" if link.full == "drop-head" else "reject-publish"}
    if link.length is not None:
        bounds["x-max-length"] = link.length
    if link.ttl is not None:
        bounds["x-message-ttl"] = round(link.ttl * 1000)
    return bounds


def _permission(
    names: Names, environment: str, *, sends: bool, asks: set[str], answers: set[str], watches: bool
) -> dict[str, Any]:
    tag = rf"\.{TAG_PATTERN}" if names.key else ""
    write = []
    if sends:
        sender = f"[a-z0-9_-]+{environment}" if environment.startswith("@") else environment
        write.append(rf"link\.{sender}\.[a-z0-9_@-]+{tag}")
    if asks:  # binding a queue needs permission to write to it, and to read the exchange
        write.append(literal(names.replies(environment)))
    write.extend(literal(exchange) for exchange in sorted(answers))
    # The tag is left open: the environment also reads its draining queues (an older tag) until they are empty.
    read = [rf"mailbox\.{environment}(\.{TAG_PATTERN})?", rf"lane\.[a-z0-9_@-]+\.{environment}(\.{TAG_PATTERN})?"]
    if host_of(environment) is not None:  # its mailbox is on the other host
        read = []
    if watches:
        read.append(literal(names.notices(environment)))
    if asks:
        read.append(literal(names.replies(environment)))
        read.extend(literal(exchange) for exchange in sorted(asks))
    return {"configure": "^$", "write": _any_of(write), "read": _any_of(read)}


def reading(permission: Mapping[str, Any], queues: Iterable[str]) -> dict[str, Any]:
    """Return an account's permission, with the right to read *queues* added."""
    there = permission["read"]
    more = "|".join(literal(queue) for queue in sorted(queues))
    return {**permission, "read": f"^({there[2:-2]}|{more})$" if there != "^$" else f"^({more})$"}


def literal(name: str) -> str:
    """Return a pattern for a permission that matches only *name*."""
    return name.replace(".", r"\.")


def _any_of(patterns: list[str]) -> str:
    return f"^({'|'.join(patterns)})$" if patterns else "^$"


def _exchange(made: Objects, name: str, kind: str, arguments: Mapping[str, Any] | None = None) -> None:
    made["exchange", name] = {
        "type": kind,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": dict(arguments or {}),
    }


def _queue(made: Objects, name: str, kind: str, arguments: Mapping[str, Any] | None = None) -> None:
    made["queue", name] = {
        "durable": True,
        "auto_delete": False,
        "arguments": {"x-queue-type": kind, **(arguments or {})},
    }


def _binding(made: Objects, source: str, target: str) -> None:
    made["binding", source, "queue", target, ""] = {"arguments": {}}
