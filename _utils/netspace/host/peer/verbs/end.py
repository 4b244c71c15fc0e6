"""``end``: ends a child of the asking environment.

The host's peer process passes the request to the keeper of children. ``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

import msgspec

from netspace.host.peer.asker import Asker, Later
from netspace.host.peer.verbs.spawn import Name


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param name: the name by which the asker calls the child.
    """

    name: Name


class Answer(msgspec.Struct, frozen=True):
    """The child, which has ended.

    :param name: the name by which the asker called it.
    """

    name: str


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
