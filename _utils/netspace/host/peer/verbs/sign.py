"""``sign``: signs a digest by a key of the asking environment, which no program can read.

The host's peer process has no keys. It passes the request to the keeper (:mod:`netspace.host.keeper`).
``docs/host-peer.md`` describes the answer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from netspace.host.peer.asker import Asker, Later
from netspace.host.peer.verbs.seal import Holder

Digest = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}$(?!\n)")]
"""32 bytes in base64url."""


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments.

    :param digest: SHA-256 of what is signed, in base64url without padding.
    :param image: whether the key is one that other images don't have.
    :param boot: whether the key is one that can be used only while the host's PCRs have the same values. Only a TPM can
        enforce that; elsewhere the key is bound to no boot, and the answer tells so.
    :param at_least: the weakest holder of the key that the program accepts.
    :param key: the expected key's thumbprint (RFC 7638, SHA-256). If it is another key now, the request is refused.
    """

    digest: Digest
    image: bool = True
    boot: bool = True
    at_least: Holder = "file"
    key: Digest | None = None


class Answer(msgspec.Struct, frozen=True):
    """The signature.

    :param signature: r and s (ES256, RFC 7518), 64 bytes in base64url.
    :param key: the public key (JWK).
    :param kept_in: the holder of the key: ``tpm``, ``token`` (PKCS #11) or ``file``.
    :param boot: whether the key is bound to the host's boot.
    """

    signature: str
    key: dict[str, str]
    kept_in: Holder
    boot: bool


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Raise ``Later``, because the keeper (:mod:`netspace.host.keeper`), which has root's rights, must answer."""
    raise Later
