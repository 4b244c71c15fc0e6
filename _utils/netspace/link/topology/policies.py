"""Policies that bound the queues. A policy can be changed later; a queue's arguments can't. Pure."""

from __future__ import annotations

from typing import Any

from netspace.link.topology.names import TAG_PATTERN, Names
from netspace.spec import peer
from netspace.spec.types import Link

_DAY = 24 * 3600 * 1000

_MAILBOX: dict[str, Any] = {
    "max-length": 10_000,
    "max-length-bytes": 64 * 1024 * 1024,
    "overflow": "reject-publish",
    "message-ttl": 30 * _DAY,
    "delivery-limit": 20,
    # A reader may hold a message for this time. Then RabbitMQ closes its channel, and the redelivery counts towards
    # delivery-limit: a reader that hangs keeps a message (and the log after it on disk) for ten days at most. With
    # RabbitMQ's default of 30 minutes, a message that is held or worked on for ten hours would become a dead letter.
    "consumer-timeout": _DAY // 2,
}
_LANE = {key: value for key, value in _MAILBOX.items() if key != "overflow"}  # it would override the queue's argument
# A classic queue counts no deliveries.
_MEMORY = {key: value for key, value in _LANE.items() if key != "delivery-limit"}
# A shovel returns each message that the other host doesn't take. A message must survive any number of such returns.
_OUTBOX = {**_MAILBOX, "delivery-limit": 1_000_000_000}
_REPLIES: dict[str, Any] = {
    "max-length": 10_000,
    "max-length-bytes": 16 * 1024 * 1024,
    "overflow": "reject-publish",
    "message-ttl": 3600 * 1000,
}
_NOTICES: dict[str, Any] = {
    "max-length": 1000,
    "overflow": "drop-head",  # a consumer that comes and goes all the time can only displace older notices
    "message-ttl": 3600 * 1000,
}
_DEAD: dict[str, Any] = {
    "max-length": 10_000,
    "max-length-bytes": 64 * 1024 * 1024,
    # No sender can evict another's dead letters: if this queue is full, a message stays in the queue where it died.
    "overflow": "reject-publish",
    "message-ttl": 30 * _DAY,
    # Each look at a message counts as a delivery. With no limit at all, RabbitMQ would requeue it at the tail.
    "delivery-limit": 1_000_000_000,
}
ASKING = "netspace.host"
POLICIES = (
    ASKING,
    "netspace.mailbox",
    "netspace.lane",
    "netspace.memory",
    "netspace.outbox",
    "netspace.replies",
    "netspace.notices",
    "netspace.dead",
    "netspace.dead-late",
    "netspace.dead-again",
)


def policies(names: Names) -> dict[str, dict[str, Any]]:
    """Return the policies that limit all queues, by the policy's name."""
    # RabbitMQ ignores at-least-once for a queue with overflow drop-head.
    letters = {"dead-letter-exchange": names.late, "dead-letter-strategy": "at-least-once"}
    return {
        "netspace.mailbox": _policy(r"^mailbox\.", "quorum_queues", {**_MAILBOX, **letters}),
        "netspace.lane": _policy(r"^lane\.", "quorum_queues", {**_LANE, **letters}),
        # Only quorum queues hand dead letters over at least once.
        "netspace.memory": _policy(r"^lane\.", "classic_queues", {**_MEMORY, "dead-letter-exchange": names.late}),
        "netspace.outbox": _policy(r"^outbox\.", "quorum_queues", {**_OUTBOX, **letters}),
        "netspace.replies": _policy(r"^replies\.", "classic_queues", _REPLIES),
        "netspace.notices": _policy(r"^notices\.", "classic_queues", _NOTICES),
        "netspace.dead": _policy(rf"^dead(-again)?(\.{TAG_PATTERN})?$", "quorum_queues", _DEAD),
        # drop-head: any sender can produce any number of late messages.
        "netspace.dead-late": _policy(
            rf"^dead-late(\.{TAG_PATTERN})?$", "quorum_queues", {**_DEAD, "overflow": "drop-head"}
        ),
    }


def asking(names: Names) -> dict[str, Any]:
    """Return the policy for queues of requests to the host itself.

    The policy bounds such a queue by bytes: the queue has room for the greatest number of waiting requests, each of the
    greatest size. The policy exists only while such a queue does. Meanwhile no environment can be named ``host``, so
    the pattern fits no other queue.
    """
    bounds = {**_MEMORY, "max-length-bytes": peer.LENGTH * peer.SIZE, "dead-letter-exchange": names.late}
    return {**_policy(rf"^lane\.[a-z0-9_-]+\.{peer.NAME}(\.{TAG_PATTERN})?$", "classic_queues", bounds), "priority": 11}


def _policy(pattern: str, kind: str, definition: dict[str, Any]) -> dict[str, Any]:
    return {"pattern": pattern, "apply-to": kind, "priority": 10, "definition": dict(definition)}


def fullness(link: Link, messages: int, size: int) -> float:
    """Return how full the link's queue on this host is, by messages or by bytes, whichever is higher; 1 is full.

    A queue that the receiver reads has the link's own bounds; an outbox has a mailbox's bounds.

    :param messages: the number of messages in the queue.
    :param size: the bytes of these messages.
    """
    if peer.is_link(link):
        return part(messages, size, peer.LENGTH, peer.LENGTH * peer.SIZE)
    return part(messages, size, link.length if link.to_host is None else None)


def part(messages: int, size: int, length: int | None = None, most: int | None = None) -> float:
    """Return how full a queue of messages or dead letters is; 1 is full.

    :param length: the greatest number of messages in the queue; None: as many as in a mailbox.
    """
    return max(messages / (length or int(_MAILBOX["max-length"])), size / (most or int(_MAILBOX["max-length-bytes"])))
