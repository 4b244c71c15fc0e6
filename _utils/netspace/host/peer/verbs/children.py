"""``children``: the children of the asking environment that run.

The host's peer process passes the request to the keeper of children. ``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

import msgspec

from netspace.host.peer.asker import Asker, Later, Nothing

Arguments = Nothing


class Child(msgspec.Struct, frozen=True):
    """A child that runs.

    :param name: the name by which the asker calls it.
    :param environment: its name as an environment, by which messages reach it.
    :param template: the name of its template.
    :param until: the end of its lifetime, in seconds since 1970.
    """

    name: str
    environment: str
    template: str
    until: float


class Answer(msgspec.Struct, frozen=True):
    """The asking environment's children, sorted by name."""

    children: tuple[Child, ...]


def answer(asker: Asker, arguments: Nothing) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
