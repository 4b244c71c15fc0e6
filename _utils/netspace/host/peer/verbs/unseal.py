"""``unseal``: opens a value that ``seal`` made for the asking environment.

The host's peer process has no keys. It passes the request to the keeper (:mod:`netspace.host.keeper`).
``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from netspace.host.peer.asker import Asker, Later
from netspace.host.peer.verbs.seal import Holder


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param sealed: the sealed value, as ``seal`` returned it.
    """

    sealed: Annotated[str, msgspec.Meta(max_length=8192, pattern=r"^[A-Za-z0-9_-]*$(?!\n)")]


class Answer(msgspec.Struct, frozen=True):
    """The value.

    :param value: the value, in base64url without padding.
    :param kept_in: the holder of the key with which it was sealed.
    :param boot: whether it is bound to the host's boot.
    """

    value: str
    kept_in: Holder
    boot: bool


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
