"""``who``: those of the peers to which the asker may send already that offer a service.

It tells nothing of any other environment, not even that there is one. ``docs/host-peer.md`` describes the answer.

An asker that names the ``state`` of an earlier answer is told when there is another answer. So nobody asks again and
again.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

from netspace.host.peer.asker import Asker, Unchanged
from netspace.host.peer.health import Health
from netspace.supervision import process

Service = Annotated[str, msgspec.Meta(min_length=1, max_length=48, pattern=r"^[a-z0-9_-]*$(?!\n)")]
State = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param service: the name of a service, as in ``offers``.
    :param unless: the ``state`` of an earlier answer. The host answers once the state is another one, or after 30 s.
    """

    service: Service
    unless: State | None = None


class Offer(msgspec.Struct, frozen=True):
    """A peer that offers the service.

    :param name: the name by which the asker's program sends to it: its local name, or its own.
    :param pattern: ``send`` or ``request``.
    :param up: whether it has a process. It may be busy nevertheless.
    :param health: the last judgement of its health check; null: it has no check, or no process.
    """

    name: str
    pattern: Literal["send", "request"]
    up: bool
    health: Health | None = None


class Answer(msgspec.Struct, frozen=True):
    """The peers that offer the service, by their names in order; none: no peer of the asker does.

    :param state: 16 hexadecimal digits, which are others as soon as *peers* are others.
    """

    peers: tuple[Offer, ...]
    state: State


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Return the answer to one request."""
    found = []
    for peer in asker.own.peers:
        offered = asker.told.offering.get(peer.name)
        if offered is not None and arguments.service in offered.services:
            up = bool(process.members(offered.group))
            judged = asker.health(peer.name) if up and offered.checked else None
            found.append(Offer(peer.called, peer.pattern, up, judged))
    found.sort(key=lambda one: one.name)
    state = hashlib.sha256(msgspec.json.encode(found)).hexdigest()[:16]
    if asker.patient and arguments.unless == state:
        raise Unchanged
    return Answer(tuple(found), state)
