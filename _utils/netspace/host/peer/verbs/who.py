"""``who``: the peers that offer a service, among those to which the asking environment may already send.

The answer reveals no other environment, not even that it exists. ``docs/host-peer.md`` describes the answer.
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
    """Arguments of ``who``.

    :param service: the name of a service, as in ``offers``.
    :param unless: the ``state`` in an earlier answer. If it is given, the host waits until its answer differs from that
        one, for half a minute at most.
    """

    service: Service
    unless: State | None = None


class Offer(msgspec.Struct, frozen=True):
    """A peer that offers the service.

    :param name: the name by which the asking program sends to it: its local name, or else its own name.
    :param pattern: ``send`` or ``request``.
    :param up: whether it has a process. Even so, it may be busy or unhealthy.
    """

    name: str
    pattern: Literal["send", "request"]
    up: bool
    health: Health | None = None


class Answer(msgspec.Struct, frozen=True):
    """The peers that offer the service.

    :param peers: sorted by name; empty if no peer offers the service.
    :param state: a digest of *peers*, which changes when they change.
    """

    peers: tuple[Offer, ...]
    state: State


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Return the peers of the asking environment that offer a service.

    :raises Unchanged: the answer has the state that the asker has already, and the host may hold the answer back.
    """
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
