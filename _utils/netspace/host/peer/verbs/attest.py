"""``attest``: gives the asking environment a signed token, with which it proves to others on which host it runs.

``docs/host-peer.md`` describes the answer, and ``netspace.attestation.environment_token`` the token.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from netspace import jose
from netspace.attestation import environment_token
from netspace.host.peer import signing, told
from netspace.host.peer.asker import Asker
from netspace.host.peer.requests import Refused

Nonce = Annotated[str, msgspec.Meta(pattern=rf"^{environment_token.NONCE.pattern}$(?!\n)")]
Thumbprint = Annotated[str, msgspec.Meta(pattern=rf"^{environment_token.BOUND.pattern}$(?!\n)")]


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``attest``.

    :param nonce: the nonce of the third party that wants the proof: 16 to 88 characters of base64url.
    :param key: thumbprint (RFC 7638, SHA-256) of a key that the asking program has. The token contains it.
    """

    nonce: Nonce
    key: Thumbprint | None = None


class Answer(msgspec.Struct, frozen=True):
    """The proof.

    :param evidence: a collection (CMW), as JSON text. It contains the token, the host's statement about the token key
        and, if there is one, the host appraisal by the fleet's verifier. The program passes it on unchanged.
    """

    evidence: str


def answer(asker: Asker, arguments: Arguments) -> Answer:
    """Return the token for one request, with the statements of the host and of the fleet's verifier about its key.

    :raises Refused: the host has no signed statement.
    """
    vouched = asker.told.vouched
    if vouched is None or not vouched.message:
        raise Refused("not-available", "the host makes no tokens yet" if vouched is None else vouched.problem)
    about = {
        "sub": asker.name,
        "netspace_host": vouched.host,
        "netspace_boot": vouched.boot,
        "netspace_image": asker.own.image,
        "netspace_configuration": asker.own.configuration,
        "netspace_started": asker.started(),
    }
    claims = environment_token.claims(about, arguments.nonce, asker.now, arguments.key)
    unsigned = environment_token.unsigned(vouched.kid, claims)
    token = f"{unsigned.decode()}.{jose.text(signing.es256(told.key(), unsigned))}"
    return Answer(environment_token.collected(token, vouched.message, told.appraisal(vouched, asker.now)))
