"""Verifier of evidence: makes every check in the only allowed order, and does nothing else.

No file, no network, no TPM, no clock. Rules:

1. ``attestation_keys.challenge`` checks four things: each endorsement key has the properties of an endorsement key; the
  certificate of the first endorsement key, if any, is for this key; the first endorsement key is the pinned key, if a
  key is pinned; the attestation key is restricted, only signs, and can't leave its TPM. A certificate that chains to a
  root gives L3; without such a certificate, the level is L2. A certificate that its maker revoked is refused.
2. ``Challenge.redeem`` accepts one answer, within 60 s. Only the TPM with both keys can make this answer. Only
  ``redeem`` makes a ``Bound``. For a key that was bound before, ``attestation_keys.certified`` accepts the certificate
  of the Privacy CA.
3. ``verify_quote`` makes these checks, in this order: the evidence's key, size, magic, type, structure, the signature's
  scheme, signature, qualifying data, the key's hierarchy, PCRs, digest of the values, clock, no reset of the TPM within
  one boot. The scheme must be the key's, with SHA-256 or better. The hierarchy must be the endorsement hierarchy,
  because a TPM obfuscates counters and firmware version for keys of other hierarchies. The PCRs must be exactly the
  requested ones, of one bank. If there is a quote of PCR 10, the same checks follow for this quote, and both quotes
  must be of one boot. If the certificate gave L3, ``netspace.attestation.verifier.appraisal`` then decides on L4 and
  L5.
4. ``verify_software`` checks a software key's evidence (structure, key, signature, qualifying data), and gives L1.

Each kind of refusal is a separate exception with a stable code (``netspace.attestation.refusals``). Only this module
can make a :class:`Verified`. A complete use::

    challenge = attestation_keys.challenge(enrolment, context, roots=roots, pinned=None, now=now)
    answer = ...                      # the host, with challenge.blob and challenge.encrypted
    bound = challenge.redeem(answer, now)
    verified = verifier.verify_quote(evidence, bound, Expected(context, pcrs))
    verified.level                    # 2 to 5
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netspace.attestation.evidence import SOFTWARE_PREFIX, Context, Evidence
from netspace.attestation.logs import ima
from netspace.attestation.refusals import (
    ClockRolledBack,
    Malformed,
    NoChain,
    ResetWithinBoot,
    UnknownAttestationKey,
    WrongDigest,
    WrongQualifyingData,
    WrongSelection,
    WrongSignature,
)
from netspace.attestation.tpm.structures import Clock
from netspace.attestation.verifier import appraisal, quote_checks
from netspace.attestation.verifier.references import References

if TYPE_CHECKING:
    from netspace.attestation.policy.policy import Policy
    from netspace.attestation.verifier.attestation_keys import Bound, Certified

_SEAL = object()


@dataclass(frozen=True)
class Verified:
    """Level of verified evidence. The caller keeps *clock*, *ima* and *boot* for the next verification.

    :param level: 1 to 5.
    :param reason: why the level is not higher.
    :param remedy: how to reach the next level.
    :param key: fingerprint of the key that signed the evidence.
    :param clock: the TPM's clock and counters; None for a software key.
    :param pcrs: the quoted values.
    :param code: code of the reason; ``ok`` at the highest level.
    :param ima: the judged part of the measurement list.
    :param firmware: the TPM's firmware version from the quote; None for a software key.
    :param boot: the boot, if a policy judged it good.
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
    """Expected values for a quote.

    :param pcrs: the PCRs that must be quoted, of the SHA-256 bank.
    :param previous: the TPM's clock at the last quote, if any.
    :param references: acceptable values of PCRs, if any.
    :param policy: rules for the boot and for programs. Without policy and references, the level is at most 3.
    :param ima: the part of this host's measurement list that was judged earlier, if any.
    :param previous_boot: id of the boot (``Context.binding``) in which *previous* was read; empty if unknown.
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


def verify_quote(evidence: Evidence, bound: Bound | Certified, expected: Expected) -> Verified:
    """Verify a quote by the attestation key of *bound*.

    :raises Refused: the first check that fails; see the module's rules.
    """
    context, wanted = expected.context, frozenset(expected.pcrs)
    quote = quote_checks.own_quote(evidence, bound.key, context)
    quote_checks.check_covers(quote, bound.key, wanted)
    if evidence.pcrs.keys() != wanted:
        raise WrongSelection(
            f"values of PCRs {quote_checks.shown(evidence.pcrs)} came with a quote of {quote_checks.shown(wanted)}"
        )
    if not quote_checks.is_digest(quote, b"".join(evidence.pcrs[pcr] for pcr in sorted(wanted)), bound.key):
        raise WrongDigest("the PCR values are not those that were quoted")
    _check_clock(quote.clock, expected.previous)
    _check_boot(quote.clock, expected)
    if evidence.ima is not None:
        quote_checks.check_measurements(evidence.ima, bound.key, context, quote.clock)
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


def _check_clock(clock: Clock, previous: Clock | None) -> None:
    """Check that the TPM's counters did not decrease.

    In a genuine TPM, resetCount never decreases. The other counters are compared only if resetCount is equal, because a
    reboot sets restartCount to zero.

    :raises ClockRolledBack: when a counter decreased.
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

    Each reset of the TPM increments resetCount (TPM 2.0 Library, Part 1, 36.2). Only a restart of the host should reset
    the TPM.

    :raises ResetWithinBoot: when resetCount increased within one boot.
    """
    previous = expected.previous
    same = expected.previous_boot and expected.previous_boot == expected.context.binding
    if previous is not None and same and clock.reset_count > previous.reset_count:
        raise ResetWithinBoot(
            f"the TPM was reset (reset {previous.reset_count}, then {clock.reset_count}) within one boot of the host"
        )


def verify_software(evidence: Evidence, key: bytes, context: Context) -> Verified:
    """Verify the evidence of a software key.

    :param key: the host's recorded Ed25519 public key.
    :raises Refused: the first check that fails.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if evidence.kind != "software" or evidence.key != key:
        raise UnknownAttestationKey("the key that signed the evidence is not this host's key")
    logs = evidence.boot_log, evidence.known_log, evidence.systemd_log, evidence.ima
    if len(key) != 32 or evidence.pcrs or any(one is not None for one in logs):
        raise Malformed("a software key's evidence must have neither PCR values nor logs")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(evidence.signature, evidence.attest)
    except InvalidSignature as err:
        raise WrongSignature("the software key did not sign this") from err
    if not hmac.compare_digest(evidence.attest, SOFTWARE_PREFIX + context.qualifying()):
        raise WrongQualifyingData("signed for another nonce, session, host or verifier")
    return Verified(
        1,
        "a software key signs for this host, not a TPM",
        "name the host's TPM in attestation:tpm",
        hashlib.sha256(key).hexdigest(),
        None,
        {},
        _SEAL,
        "software-key",
    )
