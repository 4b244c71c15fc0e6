"""``seal``: encrypts a value for the asking environment, so that only the same environment on this host opens it again.

The host's peer process has no keys. It passes the request to the keeper (:mod:`netspace.host.keeper`).
``docs/host-peer.md`` describes the answer, and :mod:`netspace.attestation.bound_value` the form.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from netspace.host.peer.asker import Asker, Later

Holder = Literal["file", "token", "tpm"]
Value = Annotated[str, msgspec.Meta(max_length=5462, pattern=r"^[A-Za-z0-9_-]*$(?!\n)")]
"""A value of at most 4096 bytes, in base64url."""


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param value: the value: at most 4096 bytes, in base64url without padding.
    :param image: whether only the same image may open it.
    :param boot: whether it may be opened only while the host's PCRs have the same values. Only a TPM can enforce that;
        elsewhere the value is bound to no boot, and the answer tells so.
    :param at_least: the weakest holder of the key that the program accepts.
    """

    value: Value
    image: bool = True
    boot: bool = True
    at_least: Holder = "file"


class Answer(msgspec.Struct, frozen=True):
    """The sealed value.

    :param sealed: the sealed value, for ``unseal``.
    :param kept_in: the holder of the key: ``tpm``, ``token`` (PKCS #11) or ``file``.
    :param boot: whether the value is bound to the host's boot.
    """

    sealed: str
    kept_in: Holder
    boot: bool


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
