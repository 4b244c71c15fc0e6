"""Verifier of evidence: it makes every check, in the one legal order, and nothing else.

No file, no network, no TPM, no clock: the time is an argument. Rules:

1. ``challenge`` checks four things: each endorsement key has the properties of one; the first one's certificate, if
   any, is for this key; the key is the pinned one, if one is pinned; the attestation key is restricted, only signs, and
   can't leave its TPM. A certificate that chains to a root gives L3; without one, the level is L2. A certificate that
   its maker revoked is refused.
2. ``Challenge.redeem`` accepts one answer, within 60 s. Only the TPM with both keys can give it. Nothing else makes
   a :class:`Bound`. ``certified`` accepts a key that was bound before, by its certificate from the Privacy CA.
3. ``verify_quote`` checks, in this order: the evidence's key; size; magic; type; structure; the signature's scheme,
   which must be the key's, with SHA-256 or better; signature; qualifying data; that the key is a primary key of the
   endorsement hierarchy, because a TPM obfuscates counters and firmware version for keys of other hierarchies; exactly
   the requested PCRs, of one bank; digest of the values; clock; no reset of the TPM within one boot. If there is a
   quote of PCR 10, the same checks follow for it, and that both quotes are of one boot. If the certificate gave L3,
   ``netspace.attestation.verifier.appraisal`` then decides on L4 and L5.
4. ``verify_software`` checks a software key's evidence: structure, key, signature, qualifying data. It gives L1.

Each refusal is an exception of its own with a stable code (``netspace.attestation.refusals``).
Only this module can make a :class:`Verified`. A complete use::

    challenge = verifier.challenge(enrolment, context, roots=roots, pinned=None, now=now)
    answer = ...                      # the host, with challenge.blob and challenge.encrypted
    bound = challenge.redeem(answer, now)
    verified = verifier.verify_quote(evidence, bound, Expected(context, pcrs))
    verified.level                    # 2 to 5
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from netspace.attestation.endorsement import ek_certificates
from netspace.attestation.evidence import BANK_ID, SOFTWARE_PREFIX, Context, Enrolment, Evidence, Measurements
from netspace.attestation.logs import ima
from netspace.attestation.refusals import (
    ChallengeExpired,
    ClockRolledBack,
    EndorsementKeyChanged,
    Malformed,
    NoChain,
    OtherBoot,
    ResetWithinBoot,
    RevokedAttestationCertificate,
    UnknownAttestationKey,
    WrongActivation,
    WrongAttestationKey,
    WrongDigest,
    WrongEndorsementCertificate,
    WrongHierarchy,
    WrongQualifyingData,
    WrongScheme,
    WrongSelection,
    WrongSignature,
)
from netspace.attestation.tpm import credential, structures
from netspace.attestation.tpm.structures import Clock, Public, Quote, Signature
from netspace.attestation.verifier import ak_certificate, appraisal
from netspace.attestation.verifier.appraisal import References

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509 import Certificate

    from netspace.attestation.policy.policy import Policy
    from netspace.attestation.tpm.structures import PublicKey

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
    """An attestation key that was proved to be in the TPM of an endorsement key.

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
    """An attestation key whose certificate shows that it was bound before; see :func:`certified`.

    :param level: as in :class:`Bound`. *reason* likewise.
    """

    key: Public
    level: int
    reason: str
    pseudonym: str
    _seal: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("only verifier.certified makes a Certified")


@dataclass(frozen=True)
class Verified:
    """Level of verified evidence. The caller keeps *clock*, *ima* and *boot* for the next verification.

    :param level: 1 to 5.
    :param reason: why this level and not the next.
    :param remedy: how to reach the next level.
    :param key: fingerprint of the key that signed the evidence.
    :param clock: the TPM's clock and counters; None for a software key.
    :param pcrs: the quoted values.
    :param code: code of the reason; ``ok`` at the highest level.
    :param ima: how far the measurement list was judged.
    :param firmware: the TPM's firmware version from the quote; None for a software key.
    :param boot: the boot, if a policy found it good.
    """

    level: int
    reason: str
    remedy: str
    key: str
    clock: Clock | None
    pcrs: Mapping[int, bytes]
    _seal: object = field(repr=False)
    code: str = ""
    ima: ima.State | None = None
    firmware: int | None = None
    boot: appraisal.GoodBoot | None = None

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("only verification makes a Verified")


@dataclass(frozen=True)
class Expected:
    """Requirements for a quote.

    :param pcrs: the PCRs that must be quoted, of the SHA-256 bank.
    :param previous: the TPM's clock at the last quote, if any.
    :param references: acceptable values of PCRs.
    :param policy: rules for the boot and for programs. Without policy and references, the level is at most 3.
    :param ima: how far this host's measurement list was judged, if at all.
    :param previous_boot: id of the boot (``Context.binding``) in which *previous* was seen; empty if unknown.
    :param good_boot: the boot that was last judged good, if any.
    """

    context: Context
    pcrs: Collection[int]
    previous: Clock | None = None
    references: References | None = None
    policy: Policy | None = None
    ima: ima.State | None = None
    previous_boot: bytes = b""
    good_boot: appraisal.GoodBoot | None = None


class Challenge:
    """A credential for one enrolment; see :func:`challenge`.

    ``blob`` and ``encrypted`` are sent to the host. ``others`` has such a pair for each of its other endorsement keys.
    The answer depends on the secrets of all pairs, in this order.
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
        """Check the host's answer. Can be called once.

        :raises ChallengeExpired: when it is called too late, or a second time.
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
    """Check an enrolment's keys, and make the credential that binds them.

    :param roots: DER certificates of trusted makers of TPMs.
    :param pinned: fingerprint of the endorsement key that this host had before; None at first use.
    :param lists: the makers' revocation lists, DER.
    :param unreadable: the operator's certificates that can't be read; the reason names them if no root is found.
    :raises Refused: see the module's rules.
    """
    endorsement = structures.endorsement(enrolment.endorsement)
    untrusted = _endorsed(enrolment, endorsement, roots, lists, now)
    if untrusted and unreadable:
        untrusted += f"; among the roots can't be read: {', '.join(unreadable)}"[:500]
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
    """Return why no trusted maker certified the endorsement key; empty if one did.

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

    :param level: level of the enrolment, with its *reason*.
    :param trusted: intermediates of the Privacy CA.
    :param revoked: whether the registrar has the certificate as revoked.
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


def verify_quote(evidence: Evidence, bound: Bound | Certified, expected: Expected) -> Verified:
    """Verify a quote by the attestation key of *bound*.

    :raises Refused: the first check that fails; see the module's rules.
    """
    context, wanted = expected.context, frozenset(expected.pcrs)
    quote = own_quote(evidence, bound.key, context)
    _check_covers(quote, bound.key, wanted)
    if evidence.pcrs.keys() != wanted:
        raise WrongSelection(f"values of PCRs {shown(evidence.pcrs)} came with a quote of {shown(wanted)}")
    if not _is_digest(quote, b"".join(evidence.pcrs[pcr] for pcr in sorted(wanted)), bound.key):
        raise WrongDigest("the PCR values are not those that were quoted")
    _check_clock(quote.clock, expected.previous)
    _check_boot(quote.clock, expected)
    if evidence.ima is not None:
        _check_measurements(evidence.ima, bound.key, context, quote.clock)
    if bound.level < 3:
        found = appraisal.Appraisal(2, NoChain.code, bound.reason, NoChain.remedy)
    else:
        boot = (quote.clock.reset_count, quote.clock.restart_count)
        found = appraisal.appraise(
            evidence,
            expected.policy,
            expected.references,
            boot=boot,
            start=expected.ima,
            good=expected.good_boot,
        )
    return Verified(
        found.level,
        found.reason,
        found.remedy,
        bound.key.fingerprint,
        quote.clock,
        dict(evidence.pcrs),
        _SEAL,
        found.code,
        found.ima,
        quote.firmware,
        found.boot,
    )


def own_quote(evidence: Evidence, key: Public, context: Context) -> Quote:
    """Check that *key* signed the quote for this challenge, which proves whose evidence it is; return the quote.

    :func:`verify_quote` makes all other checks.

    :raises Refused: when *key* did not sign it, or it is for another challenge.
    """
    if evidence.kind != "tpm":
        raise UnknownAttestationKey(f"evidence by a {evidence.kind} key, where a TPM's is expected")
    if evidence.key != key.raw:
        raise UnknownAttestationKey("evidence by another key than the one bound to this TPM")
    return _signed(evidence.attest, evidence.signature, key, context)


def check_signature(raw: bytes, attest: bytes, key: PublicKey, scheme: tuple[int, int] | None) -> Signature:
    """Check that *raw* (TPMT_SIGNATURE) is a signature by *key* over *attest*, and return it.

    :param scheme: (scheme, hash) that the key is restricted to; None if unknown.
    :raises Refused: with code `malformed`, `scheme` or `signature`, checked in this order.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    signature = structures.signature(raw)
    if scheme is not None and (signature.scheme, signature.hash) != scheme:
        raise WrongScheme(f"signed by {signature.scheme:04x}/{signature.hash:04x}, the key is for another scheme")
    if signature.hash not in structures.HASHES:
        raise WrongScheme(f"hash {signature.hash:04x}; SHA-256 or better is required")
    curve = isinstance(key, ec.EllipticCurvePublicKey)
    if curve != (signature.scheme == structures.ECDSA):
        raise WrongScheme(f"a signature by {signature.scheme:04x}, which this kind of key can't make")
    algorithm = structures.hash_algorithm(signature.hash)
    try:
        if curve:
            cast("ec.EllipticCurvePublicKey", key).verify(signature.value, attest, ec.ECDSA(algorithm))
        else:
            block: Any = padding.PKCS1v15()
            if signature.scheme == structures.RSAPSS:
                block = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            cast("rsa.RSAPublicKey", key).verify(signature.value, attest, block, algorithm)
    except InvalidSignature as err:
        raise WrongSignature("the attestation key did not sign this") from err
    return signature


def check_attestation_key(key: Public) -> None:
    """Check that *key* signs only data that its TPM made, and can't leave the TPM.

    :raises WrongAttestationKey: when its attributes allow more.
    """
    if key.attributes & _AK_REQUIRED != _AK_REQUIRED or key.attributes & _AK_FORBIDDEN:
        raise WrongAttestationKey(
            f"attributes {key.attributes:08x}: it must be restricted, for signing alone, and fixed to its TPM"
        )
    if key.scheme is None or key.symmetric is not None:
        raise WrongAttestationKey("the attestation key is not restricted to one signature scheme")


def _check_clock(clock: Clock, previous: Clock | None) -> None:
    """Check that the TPM's counters did not fall.

    resetCount never falls. The others are compared only if resetCount is equal, because a reboot lowers restartCount.

    :raises ClockRolledBack: when a counter fell.
    """
    if previous is None:
        return
    fallen = clock.reset_count < previous.reset_count or (
        clock.reset_count == previous.reset_count
        and (clock.restart_count < previous.restart_count or clock.clock < previous.clock)
    )
    if fallen:
        raise ClockRolledBack(
            f"the TPM's counters (reset {clock.reset_count}, restart {clock.restart_count}, clock {clock.clock}) are "
            f"behind the last ones ({previous.reset_count}, {previous.restart_count}, {previous.clock})"
        )


def _check_boot(clock: Clock, expected: Expected) -> None:
    """Check that the TPM was not reset within one boot.

    resetCount grows when the TPM is reset (Part 1, 36.2). Only a restart of the host should reset it.

    :raises ResetWithinBoot: when it grew within one boot.
    """
    previous = expected.previous
    same = expected.previous_boot and expected.previous_boot == expected.context.binding
    if previous is not None and same and clock.reset_count > previous.reset_count:
        raise ResetWithinBoot(
            f"the TPM was reset (reset {previous.reset_count}, then {clock.reset_count}) within one boot of the host"
        )


def _signed(attest: bytes, signature: bytes, key: Public, context: Context, at: str = "") -> Quote:
    """Parse a quote, and check that *key* signed it for *context*.

    :param at: prefix of the message about a wrong context.
    :raises Refused: when structure, signature or qualifying data are wrong.
    """
    quote = structures.quote(attest)
    check_signature(signature, attest, key.key(), key.scheme)
    if not hmac.compare_digest(quote.extra, context.qualifying()):
        raise WrongQualifyingData(f"{at}signed for another nonce, session, host or verifier")
    return quote


def _check_covers(quote: Quote, key: Public, pcrs: frozenset[int], at: str = "") -> None:
    """Check that a quote has the TPM's real counters, and covers exactly *pcrs*.

    :param at: prefix of error messages.
    :raises Refused: when the key is of another hierarchy, or the quote covers other PCRs.
    """
    if not hmac.compare_digest(quote.signer, key.qualified_name):
        # In other hierarchies, a TPM obfuscates its counters and its firmware version (Part 1, 36.7).
        raise WrongHierarchy(f"{at}the attestation key is no primary key of the TPM's endorsement hierarchy")
    if quote.selections != ((BANK_ID, pcrs),):
        raise WrongSelection(f"{at}the quote covers {_selected(quote.selections)}, not exactly sha256:{shown(pcrs)}")


def _is_digest(quote: Quote, values: bytes, key: Public) -> bool:
    """Return whether the quote's digest is that of *values*, by the hash of the key's scheme (Part 3, TPM2_Quote).

    :func:`check_signature` has checked this hash.
    """
    scheme = cast("tuple[int, int]", key.scheme)
    return hmac.compare_digest(hashlib.new(structures.HASHES[scheme[1]], values).digest(), quote.digest)


def _check_measurements(made: Measurements, key: Public, context: Context, clock: Clock) -> None:
    """Make the checks of the main quote for the quote of PCR 10, and check that both are of one boot."""
    quote = _signed(made.attest, made.signature, key, context, "IMA: ")
    _check_covers(quote, key, frozenset((ima.PCR,)), "IMA: ")
    if not _is_digest(quote, made.value, key):
        raise WrongDigest(f"IMA: the value of PCR {ima.PCR} is not the one that was quoted")
    if (quote.clock.reset_count, quote.clock.restart_count) != (clock.reset_count, clock.restart_count):
        raise OtherBoot(f"IMA: the quote of PCR {ima.PCR} is from another boot")


def verify_software(evidence: Evidence, key: bytes, context: Context) -> Verified:
    """Verify the evidence of a software key.

    :param key: the host's recorded Ed25519 public key.
    :raises Refused: the first check that fails.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if evidence.kind != "software" or evidence.key != key:
        raise UnknownAttestationKey("evidence by another key than this host's")
    logs = evidence.boot_log, evidence.known_log, evidence.systemd_log, evidence.ima
    if len(key) != 32 or evidence.pcrs or any(one is not None for one in logs):
        raise Malformed("a software key's evidence claims nothing about PCRs, the boot or what ran after it")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(evidence.signature, evidence.attest)
    except InvalidSignature as err:
        raise WrongSignature("the software key did not sign this") from err
    if not hmac.compare_digest(evidence.attest, SOFTWARE_PREFIX + context.qualifying()):
        raise WrongQualifyingData("signed for another nonce, session, host or verifier")
    return Verified(
        1,
        "a software key signs for this host, no TPM",
        "name the host's TPM in attestation:tpm",
        hashlib.sha256(key).hexdigest(),
        None,
        {},
        _SEAL,
        "software-key",
    )


def references(data: Any) -> References:
    """Parse references: ``{"sha256": {"<pcr>": ["<hex>", ...]}}``.

    :raises Malformed: for anything else.
    """
    if not isinstance(data, Mapping) or set(data) != {"sha256"} or not isinstance(data["sha256"], Mapping):
        raise Malformed('references: expected {"sha256": {"<pcr>": ["<hex>", ...]}}')
    found: dict[int, frozenset[bytes]] = {}
    for pcr, values in data["sha256"].items():
        try:
            number = int(pcr) if str(pcr).isascii() else -1
            accepted = frozenset(bytes.fromhex(value) for value in values)
        except (TypeError, ValueError) as err:
            raise Malformed(f"references: PCR {pcr!r:.20}: {err}") from err
        if not 0 <= number <= 23 or any(len(value) != 32 for value in accepted):
            raise Malformed(f"references: PCR {pcr!r:.20}: a number in 0..23 with values of 32 bytes is expected")
        found[number] = accepted
    return found


def shown(pcrs: Collection[int]) -> str:
    """Return PCR numbers as text for people."""
    return ",".join(str(pcr) for pcr in sorted(pcrs)) or "none"


def _selected(selections: Sequence[tuple[int, frozenset[int]]]) -> str:
    return " + ".join(f"{structures.HASHES.get(bank, f'{bank:04x}')}:{shown(pcrs)}" for bank, pcrs in selections)
