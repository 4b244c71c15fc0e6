"""``revoke``: takes back a right that the asking environment delegated, and all rights that derive from it.

The host's peer process passes the request to the keeper of children. ``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

import msgspec

from netspace.host.peer.asker import Asker, Later
from netspace.host.peer.verbs.spawn import Name


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments, as in the request ``delegate``.

    :param link: the receiver of the messages, as the asker calls it.
    :param to: the peer that has the right, as the asker calls it.
    """

    link: Name
    to: Name


class Answer(msgspec.Struct, frozen=True):
    """The right that was revoked."""

    link: str
    to: str


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
