"""``spawn``: starts a child of the asking environment, by a template of its declaration.

The host's peer process may not start anything. It passes the request to the keeper of children, which checks everything
again. ``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from netspace.host.peer.asker import Asker, Later

Name = Annotated[str, msgspec.Meta(max_length=48, pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?$(?!\n)")]


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param template: the name of a template in the asker's declaration.
    :param name: the name by which the asker calls the child; no other child of the asker may have it.
    :param values: values for the child, in place of those of the template.
    """

    template: Name
    name: Name
    values: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True):
    """The child, whose program runs.

    :param name: the name by which the asker calls it.
    :param environment: its name as an environment, by which messages reach it.
    :param until: the end of its lifetime, in seconds since 1970.
    """

    name: str
    environment: str
    until: float


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
