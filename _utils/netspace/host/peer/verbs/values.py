"""``values``: the values that the asking environment's declaration gives to it, as they were applied last.

``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from netspace.host.peer.asker import Asker, Nothing

Arguments = Nothing


class Answer(msgspec.Struct, frozen=True):
    """The asking environment's values.

    :param values: by their names; each is a text, a number, true or false, a list, or a mapping of names to values.
    """

    values: dict[str, Any]


def answer(asker: Asker, _: Nothing) -> Answer:
    """Return the values of the asking environment."""
    return Answer(asker.own.values)
