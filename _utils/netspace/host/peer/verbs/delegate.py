"""``delegate``: gives a peer, for some time, the right to send to a receiver of one of the asking environment's links.

The host's peer process may not make links. It passes the request to the keeper of children, which checks everything
again. ``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from netspace.host.peer.asker import Asker, Later
from netspace.host.peer.verbs.spawn import Name


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param link: the receiver of the asker's link, by the name by which the asker sends to it.
    :param to: the peer that gets the right, by the name by which the asker sends to it.
    :param rate: the most messages per second; null: as declared.
    :param size: the most bytes of a message's body; null: as declared.
    :param until: when the right ends, in seconds since 1970 by the host's clock; null: after the declared lifetime.
    """

    link: Name
    to: Name
    rate: Annotated[float, msgspec.Meta(ge=0.001, le=100_000)] | None = None
    size: Annotated[int, msgspec.Meta(ge=1, le=2**40)] | None = None
    until: Annotated[float, msgspec.Meta(ge=0, le=2**40)] | None = None


class Answer(msgspec.Struct, frozen=True):
    """The right that the peer has now.

    :param link: the receiver of the messages, as the asker calls it.
    :param to: the peer that has the right, as the asker calls it.
    :param environment: the peer's name as an environment.
    :param rate: the most messages per second; null: no limit.
    :param size: the most bytes of a message's body; null: no limit.
    :param until: when the right ends, in seconds since 1970.
    """

    link: str
    to: str
    environment: str
    rate: float | None
    size: int | None
    until: float


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
