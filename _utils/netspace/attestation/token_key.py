"""The key of environments' tokens, as a host shows it to its verifier.

A host shows the key in its answer to a challenge, in two ways:

1. The evidence is bound to the key's thumbprint (``Context.key``). So the TPM's quote (or the signature of the software
key) proves that the host's root vouches for the token key in this boot.
2. The key itself signs the challenge. So no host can show another host's key as its own.

Pure: no file, no clock. ``netspace.attestation.host_appraisal`` has the verifier's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace import jose
from netspace.attestation.evidence import Context
from netspace.attestation.refusals import Malformed, TokenKeyUnproved

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

FIELD = "token_key"
"""The field of an answer that holds the key."""
_PREFIX = b"netspace-token-key/1\0"
"""Prefix of all data that the key signs for a verifier, so that such a signature is never valid for a token."""


@dataclass(frozen=True)
class Shown:
    """A token key that a host showed to its verifier.

    :param jwk: the public key.
    :param proof: its signature for the challenge: r and s, 32 bytes each.
    """

    jwk: Mapping[str, str]
    proof: bytes

    @property
    def thumbprint(self) -> str:
        return jose.thumbprint(self.jwk)


def shown(key: EllipticCurvePrivateKey, context: Context) -> dict[str, Any]:
    """Return the wire form of a token key, and of the key's proof for a challenge.

    :param context: the challenge; its field *key* is the key's thumbprint.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    numbers = utils.decode_dss_signature(key.sign(_PREFIX + context.qualifying(), ec.ECDSA(hashes.SHA256())))
    raw = b"".join(number.to_bytes(32, "big") for number in numbers)
    return {"jwk": jose.jwk(key.public_key()), "sig": jose.text(raw)}


def parse(data: Any) -> Shown:
    """Parse a token key that a host sent.

    :param data: the answer's field, with the members *jwk* and *sig*.
    :raises Malformed: when *data* has another form, or the key is not on P-256.
    """
    if not isinstance(data, Mapping) or set(data) != {"jwk", "sig"} or not isinstance(data["sig"], str):
        raise Malformed(f"answer: {FIELD}: expected jwk and sig")
    try:
        found = Shown(jose.parse_jwk(data["jwk"]), jose.octets(data["sig"], f"{FIELD}:sig"))
    except jose.Unreadable as err:
        raise Malformed(f"answer: {FIELD}: {err}") from err
    if len(found.proof) != 64:
        raise Malformed(f"answer: {FIELD}: sig: expected 64 bytes")
    return found


def check(one: Shown, context: Context) -> None:
    """Check that a host's token key signed the challenge.

    :param context: the challenge; its field *key* is the key's thumbprint.
    :raises TokenKeyUnproved: when another key signed, or the signature is for another challenge or host.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    x, y = (int.from_bytes(jose.octets(one.jwk[name], name), "big") for name in ("x", "y"))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    first, second = (int.from_bytes(part, "big") for part in (one.proof[:32], one.proof[32:]))
    try:
        key.verify(utils.encode_dss_signature(first, second), _PREFIX + context.qualifying(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as err:
        raise TokenKeyUnproved("the token key that the host showed did not sign this challenge") from err
