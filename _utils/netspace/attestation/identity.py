"""Signatures with a minion's Salt key: they prove which minion enrolled a TPM, or answered a challenge or a call.

Salt's event bus does not prove the sender of a message. A minion can send an event under another minion's tag
(``_minion_event``), and a return in another minion's name (``_syndic_return``; from Salt 3008 on also ``resource_id``).
So each minion signs its enrolments and answers with its own Salt key (``pki/minion/minion.pem``), which the master
accepted. This signature is needed if no other signature proves the sender: at enrolment, for a new software key, for
refused evidence, and for calls of functions (``fleet.own_answers``).

The signature is RSASSA-PSS with SHA-256 (RFC 8017, 8.1). Salt itself signs only with PKCS #1 v1.5. So a signature by
Salt is never valid here, and a signature made here is never valid for Salt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace.attestation.evidence import Context, from_hex
from netspace.attestation.refusals import Malformed, WrongSaltKey
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import PSS

# The field of an answer that holds the signature.
FIELD = "salt"
ENROLMENT, ACTIVATION, ANSWER, CALL = "enrolment", "activation", "answer", "call"
_PREFIX = b"netspace, by a minion's Salt key, 1\0"
_MOST = 1024  # bytes of the longest signature: RSA with 8192 bits

# Returns the Salt key (PEM) that this master accepted for a minion; None for a minion below another master (a syndic).
Keys = Callable[[str], "bytes | None"]


@dataclass(frozen=True)
class Identities:
    """Verifier of minions' signatures, by the Salt keys that the master accepted.

    :param master: fingerprint of the master's key.
    """

    master: str
    keys: Keys

    def enrolment(self, minion: str, shown: Any) -> dict[str, Any]:
        """Check the signature of an enrolment, and return the enrolment without its signature.

        If this master does not have the minion's Salt key, the signature is not checked.

        :raises Refused: when *minion*'s Salt key did not sign the enrolment.
        """
        return self._checked(ENROLMENT, minion, shown, {})

    def activation(self, context: Context, opened: Any) -> dict[str, Any]:
        """Check the signature of an answer to a credential, and return the answer without its signature.

        If this master does not have the minion's Salt key, the signature is not checked.
        """
        return self._checked(ACTIVATION, context.host, opened, exchange(context.session, context.nonce))

    def answer(self, minion: str, asked: Mapping[str, str], answer: Any) -> bool:
        """Check the signature of an answer to a challenge; return False if this master lacks the minion's Salt key.

        :param asked: :func:`exchange` of the challenge.
        :raises Refused: when *minion*'s Salt key did not sign the answer.
        """
        pem = self.keys(minion)
        if pem is None:
            return False
        if not isinstance(answer, Mapping):
            raise Malformed("answer: expected a mapping")
        check(pem, statement(ANSWER, self.master, minion, {**digest(answer), **asked}), answer.get(FIELD))
        return True

    def call(self, minion: str, asked: Mapping[str, Any], told: Any) -> None:
        """Check that a minion itself answered a call of a function.

        If this master lacks the minion's Salt key, this method refuses the answer, since nothing else proves such an
        answer. The other methods don't refuse in this case.

        :param asked: the call: its function, arguments and nonce.
        :param told: the minion's signed answer.
        :raises Refused: when *minion*'s Salt key did not sign this answer to this call.
        """
        if not isinstance(told, Mapping):
            raise Malformed("call: expected a mapping")
        pem = self.keys(minion)
        if pem is None:
            raise WrongSaltKey(f"this master has no Salt key of {minion}, which is a minion of another master")
        check(pem, called(self.master, minion, asked, told), told.get(FIELD))

    def _checked(self, kind: str, minion: str, data: Any, more: Mapping[str, str]) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise Malformed(f"{kind}: expected a mapping")
        shown = {key: value for key, value in data.items() if key != FIELD}
        pem = self.keys(minion)
        if pem is not None:
            check(pem, statement(kind, self.master, minion, {**shown, **more}), data.get(FIELD))
        return shown


def exchange(session: str, nonce: bytes) -> dict[str, str]:
    """Return the fields that identify one exchange.

    Each signed statement includes these fields, so it can't be replayed in another exchange.
    """
    return {"session": session, "nonce": nonce.hex()}


def digest(answer: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of an answer without its signature; the minion signs this digest.

    :raises Malformed: when JSON cannot represent the answer.
    """
    whole = {key: value for key, value in answer.items() if key != FIELD}
    return {"sha256": hashlib.sha256(_canonical(ANSWER, whole)).hexdigest()}


def statement(kind: str, master: str, minion: str, data: Mapping[str, Any]) -> bytes:
    """Return the bytes that a minion signs.

    :param kind: ``ENROLMENT``, ``ACTIVATION``, ``ANSWER`` or ``CALL``.
    :raises Malformed: when JSON cannot represent *data*.
    """
    return _PREFIX + _canonical(kind, [kind, master, minion, dict(data)])


def called(master: str, minion: str, asked: Mapping[str, Any], told: Mapping[str, Any]) -> bytes:
    """Return the bytes that a minion signs in answer to a call of a function.

    :param told: the answer; its signature is left out.
    :raises Malformed: when JSON cannot represent the call or the answer.
    """
    return statement(CALL, master, minion, {"asked": dict(asked), **digest(told)})


def _canonical(kind: str, data: Any) -> bytes:
    try:
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as err:
        raise Malformed(f"{kind}: {type(err).__name__}") from err


def sign(pem: bytes, message: bytes) -> str:
    """Sign *message* with a Salt key, and return the signature in hex.

    :param pem: the private key.
    :raises NetspaceError: when *pem* is not an RSA key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        # Salt made this key, and only root can change the file, so its primes need no check. The check would take
        # 70 ms of processor time for each answer, 40 times as long as the signature.
        key = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise NetspaceError(f"the minion's Salt key can't be read: {err}") from err
    if not isinstance(key, rsa.RSAPrivateKey):
        raise NetspaceError("the minion's Salt key is not an RSA key")
    return key.sign(message, _padding(), hashes.SHA256()).hex()


def check(pem: bytes, message: bytes, signature: Any) -> None:
    """Check a signature that :func:`sign` made.

    :param pem: the public key.
    :raises WrongSaltKey: when the signature is missing, or another key made it.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if signature is None:
        raise WrongSaltKey(
            "the message has no signature by the minion's Salt key; install the same netspace on master and minion"
        )
    raw = None
    if isinstance(signature, str) and len(signature) <= 2 * _MOST:
        raw = from_hex(signature, len(signature) // 2)
    try:
        key = load_pem_public_key(pem.strip() + b"\n")
    except (ValueError, UnsupportedAlgorithm) as err:
        raise WrongSaltKey(f"the Salt key that the master accepted can't be read: {err}") from err
    if raw is None or not isinstance(key, rsa.RSAPublicKey):
        raise WrongSaltKey("not a signature by an RSA key")
    try:
        key.verify(raw, message, _padding(), hashes.SHA256())
    except InvalidSignature as err:
        raise WrongSaltKey("the Salt key that the master accepted for this minion did not sign this") from err


def _padding() -> PSS:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    return padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
