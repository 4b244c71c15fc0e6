"""``who``: those of the peers to which the asker may send already that offer a service.

It tells nothing of any other environment, not even that there is one. ``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from netspace.host.peer.asker import Asker
from netspace.supervision import process

Service = Annotated[str, msgspec.Meta(min_length=1, max_length=48, pattern=r"^[a-z0-9_-]*$(?!\n)")]


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param service: the name of a service, as in ``offers``.
    """

    service: Service


class Offer(msgspec.Struct, frozen=True):
    """A peer that offers the service.

    :param name: the name by which the asker's program sends to it: its local name, or its own.
    :param pattern: ``send`` or ``request``.
    :param up: whether it has a process. It may be busy or ill nevertheless.
    """

    name: str
    pattern: Literal["send", "request"]
    up: bool


class Answer(msgspec.Struct, frozen=True):
    """The peers that offer the service, by their names in order; none: no peer of the asker does."""

    peers: tuple[Offer, ...]


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Return the answer to one request."""
    found = []
    for peer in asker.own.peers:
        offered = asker.told.offering.get(peer.name)
        if offered is not None and arguments.service in offered.services:
            found.append(Offer(peer.called, peer.pattern, bool(process.members(offered.group))))
    return Answer(tuple(sorted(found, key=lambda one: one.name)))
