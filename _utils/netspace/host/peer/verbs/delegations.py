"""``delegations``: the rights that the asking environment has delegated and that are still in force.

The host's peer process passes the request to the keeper of children. ``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

import msgspec

from netspace.host.peer.asker import Asker, Later, Nothing
from netspace.host.peer.verbs import delegate

Arguments = Nothing


class Answer(msgspec.Struct, frozen=True):
    """The rights that the asking environment has given, sorted by receiver and peer."""

    delegations: tuple[delegate.Answer, ...]


def answer(asker: Asker, arguments: Nothing) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
