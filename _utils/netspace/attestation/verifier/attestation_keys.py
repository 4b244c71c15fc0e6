"""Attestation keys with a proof that they are in a TPM: a credential at enrolment, and later a certificate.

No file, no network, no TPM, no clock: the time is an argument. ``netspace.attestation.verifier.verifier`` has the
rules. Only :meth:`Challenge.redeem` makes a :class:`Bound`, and only :func:`certified` makes a :class:`Certified`. This
module does not handle quotes.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netspace.attestation.endorsement import ek_certificates
from netspace.attestation.evidence import Context, Enrolment
from netspace.attestation.refusals import (
    ChallengeExpired,
    EndorsementKeyChanged,
    Malformed,
    RevokedAttestationCertificate,
    WrongActivation,
    WrongAttestationKey,
    WrongEndorsementCertificate,
)
from netspace.attestation.tpm import credential, structures
from netspace.attestation.tpm.structures import Public
from netspace.attestation.verifier import ak_certificate

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CHALLENGE_SECONDS = 60.0
_SEAL = object()

_AK_REQUIRED = (
    structures.FIXED_TPM
    | structures.FIXED_PARENT
    | structures.SENSITIVE_DATA_ORIGIN
    | structures.RESTRICTED
    | structures.SIGN
)
_AK_FORBIDDEN = structures.DECRYPT | structures.ENCRYPTED_DUPLICATION


@dataclass(frozen=True)
class Bound:
    """An attestation key with proof that it is in the TPM of an endorsement key.

    :param level: 3 if the endorsement certificate chains to a root, else 2.
    :param reason: why the level is not 3.
    :param others: further endorsement keys of the same TPM.
    """

    key: Public
    endorsement: Public
    template: str
    level: int
    reason: str
    _seal: object = field(repr=False)
    others: tuple[Public, ...] = ()

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("only Challenge.redeem makes a Bound")


@dataclass(frozen=True)
class Certified:
    """An attestation key whose certificate shows that the key was bound to a TPM at enrolment; see :func:`certified`.

    :param level: as in :class:`Bound`.
    :param reason: as in :class:`Bound`.
    """

    key: Public
    level: int
    reason: str
    pseudonym: str
    _seal: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("only certified() makes a Certified")


class Challenge:
    """A credential for one enrolment; see :func:`challenge`.

    The master sends ``blob`` and ``encrypted`` to the host. ``others`` has such a pair for each of the TPM's other
    endorsement keys. The answer depends on the secrets of all pairs, in the order of these fields.
    """

    def __init__(
        self, key: Public, endorsements: Sequence[Public], template: str, trusted: str, context: Context, expires: float
    ) -> None:
        self._key = key
        self._endorsement, *others = endorsements
        self._others = tuple(others)
        self._template = template
        self._untrusted = trusted
        self._expires = expires
        shared = [secrets.token_bytes(32) for _ in endorsements]
        self._answer: bytes | None = context.activation(b"".join(shared), key.name)
        made = [credential.make(one, key.name, secret) for one, secret in zip(endorsements, shared, strict=True)]
        (self.blob, self.encrypted), *rest = made
        self.others = tuple(rest)

    def redeem(self, answer: bytes, now: float) -> Bound:
        """Check the host's answer. Each challenge can be redeemed only once.

        :raises ChallengeExpired: when the call comes too late, or is the second call.
        :raises WrongActivation: when the answer is wrong.
        """
        expected, self._answer = self._answer, None
        if expected is None or now > self._expires:
            raise ChallengeExpired(f"a credential is answered once, within {CHALLENGE_SECONDS:g} s")
        if not hmac.compare_digest(expected, answer):
            raise WrongActivation("the attestation key is not proved to be in the TPM of this endorsement key")
        return Bound(
            self._key,
            self._endorsement,
            self._template,
            2 if self._untrusted else 3,
            self._untrusted,
            _SEAL,
            self._others,
        )


def challenge(
    enrolment: Enrolment,
    context: Context,
    *,
    roots: Sequence[bytes],
    pinned: str | None,
    now: float,
    lists: Sequence[bytes] = (),
    unreadable: Sequence[str] = (),
) -> Challenge:
    """Check an enrolment's keys, and make the challenge that proves that all of them are in one TPM.

    :param roots: DER certificates of trusted makers of TPMs.
    :param pinned: fingerprint of the endorsement key to which this host was bound before; None at first use.
    :param lists: the makers' revocation lists, DER.
    :param unreadable: the operator's certificates that can't be read. If no root is found, the reason names them.
    :raises Refused: see the module's rules.
    """
    endorsement = structures.endorsement(enrolment.endorsement)
    untrusted = _endorsed(enrolment, endorsement, roots, lists, now)
    if untrusted and unreadable:
        untrusted += f"; these files of roots can't be read: {', '.join(unreadable)}"[:500]
    if pinned is not None and not hmac.compare_digest(pinned, endorsement.fingerprint):
        raise EndorsementKeyChanged(
            f"this host had the TPM {pinned[:16]}..., now it is {endorsement.fingerprint[:16]}..."
        )
    key = structures.public(enrolment.attestation)
    check_attestation_key(key)
    all_of_it = [endorsement, *(structures.endorsement(public) for _, public in enrolment.others)]
    return Challenge(key, all_of_it, enrolment.template, untrusted, context, now + CHALLENGE_SECONDS)


def _endorsed(
    enrolment: Enrolment, endorsement: Public, roots: Sequence[bytes], lists: Sequence[bytes], now: float
) -> str:
    """Return why no trusted maker certified the endorsement key; empty if a maker certified the key.

    :raises Refused: when the certificate is for another key, or was revoked.
    """
    if enrolment.certificate is None:
        return "the TPM has no endorsement certificate"
    try:
        leaf = ek_certificates.der(enrolment.certificate)
        certified = ek_certificates.public_key(leaf)
        if certified != endorsement.key():
            raise WrongEndorsementCertificate("the endorsement certificate is for another key")
        ek_certificates.check(leaf, enrolment.chain, roots, now, lists)
    except ek_certificates.Untrusted as err:
        return str(err)
    return ""


def certified(
    attestation: bytes,
    certificate: bytes,
    level: int,
    reason: str,
    *,
    trusted: Sequence[Certificate],
    revoked: bool,
    now: float,
) -> Certified:
    """Check the certificate of an attestation key that the registrar recorded, and return the key.

    :param level: level that the enrolment gave.
    :param reason: why the level is not 3.
    :param trusted: intermediates of the Privacy CA.
    :param revoked: whether the registrar has recorded the certificate as revoked.
    :raises Refused: when the certificate is not valid, or is for another key.
    """
    key = structures.public(attestation)
    check_attestation_key(key)
    pseudonym = ak_certificate.check(certificate, key.key(), trusted, None, now)
    if revoked:
        raise RevokedAttestationCertificate("the certificate of this host's attestation key was revoked")
    if level not in (2, 3):
        raise Malformed(f"an enrolment gives L2 or L3, not {level!r:.20}")
    return Certified(key, level, reason, pseudonym, _SEAL)


def check_attestation_key(key: Public) -> None:
    """Check that *key* signs only data that its TPM made, and can't leave the TPM.

    :raises WrongAttestationKey: when the key's attributes allow another use.
    """
    if key.attributes & _AK_REQUIRED != _AK_REQUIRED or key.attributes & _AK_FORBIDDEN:
        raise WrongAttestationKey(
            f"attributes {key.attributes:08x}: expected a key that is restricted, only signs, and is fixed to its TPM"
        )
    if key.scheme is None or key.symmetric is not None:
        raise WrongAttestationKey("the attestation key is not restricted to one signature scheme")
