"""Appraisal of a TEE report, which must be genuine, cover this challenge, and be allowed by the policy.

The checks, in this order:

1. the evidence has a report, and netspace has a verifier for its kind;
2. the report is genuine: structure, certificate, signature, path to a root;
3. the report covers this challenge and this key;
4. the policy has rules for this kind of TEE;
5. the guest can't be debugged;
6. measurement, TCB, settings and registers are as the rules demand, and the guest's log matches the registers.

A forged or replayed report raises :class:`Refused`: the whole evidence is refused. A genuine report that the policy
does not allow gives a verdict with a code. Only :func:`weigh` decides how a verdict changes a level.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from netspace.attestation.refusals import (
    Limited,
    NoTee,
    TeeBinding,
    TeeBoot,
    TeeDebug,
    TeeLog,
    TeeMeasurement,
    TeeOldTcb,
    TeeRules,
    UnknownTee,
)
from netspace.attestation.tee import ccel, kinds

if TYPE_CHECKING:
    from netspace.attestation.evidence import Context, Evidence
    from netspace.attestation.tee.report import Genuine
    from netspace.attestation.tee.rules import Rules, Tee, Value
    from netspace.attestation.tee.x509 import Trust

OK = "ok"
# If a policy demands a TEE and there is no good report, the highest level is LEVEL_TPM with a TPM, else LEVEL_KEY.
# LEVEL_ROOTED is the level of a software key that a good TEE vouches for.
LEVEL_TPM, LEVEL_KEY, LEVEL_ROOTED = 2, 1, 3


@dataclass(frozen=True)
class Verdict:
    """Verdict of the policy on a host's TEE.

    :param code: ``ok``, or the code of the reason why the policy refuses the TEE.
    :param told: the TEE's values for the result; empty if the report is not genuine.
    """

    code: str
    reason: str = ""
    remedy: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Worth:
    """Level of evidence, and the reason why the level is not higher."""

    level: int
    code: str
    reason: str
    remedy: str


def appraise(evidence: Evidence, context: Context, section: Tee, trust: Trust, now: float) -> Verdict:
    """Appraise the TEE report in *evidence*. The caller has verified the evidence's signature for *context*.

    :param now: seconds since the epoch.
    :raises Refused: when the report is forged, or is for another challenge or key.
    """
    told: dict[str, Any] = {}
    try:
        brought = evidence.tee
        if brought is None:
            raise NoTee("the host sent no TEE report")
        found = kinds.genuine(brought.provider, brought.report, brought.certificates, trust, now)
        if not hmac.compare_digest(found.report_data, context.report_data(evidence.key)):
            raise TeeBinding("the TEE's report is for another nonce, host, verifier or key")
        told = found.told()
        rules = section.kinds.get(found.kind)
        if rules is None:
            raise UnknownTee(f"the policy has no rules for {found.kind}")
        judge(found, rules, brought.log)
    except Limited as err:
        return Verdict(err.code, str(err), err.remedy, {**told, "code": err.code} if told else {})
    return Verdict(OK, told={**told, "code": OK})


def judge(found: Genuine, rules: Rules, log: bytes | None) -> None:
    """Compare a genuine report with *rules*.

    :param log: the guest's log (CCEL), if the guest sent it. It must match the registers, even if no rule demands a
        log.
    :raises Limited: for the first rule that is not met.
    """
    if found.debug:
        raise TeeDebug(found.debug)
    if rules.measurements is not None and found.measurement not in rules.measurements:
        raise TeeMeasurement(f"the guest's measurement {found.measurement.hex()} is not in the policy")
    for part, least in rules.tcb.items():
        # A part of the TCB that this processor lacks counts as too old.
        if found.tcb.get(part, -1) < least:
            raise TeeOldTcb(f"the TCB's {part} is {found.tcb.get(part, 'absent')}; the policy asks for {least}")
    if rules.statuses is not None and found.status not in rules.statuses:
        raise TeeOldTcb(f"the maker's status of the TCB is {found.status}; the policy accepts {_names(rules.statuses)}")
    for name, values in rules.settings.items():
        if found.settings.get(name) not in values:
            raise TeeRules(f"{name} is {_shown(found.settings.get(name))}, which the policy does not allow")
    for number, values in rules.registers.items():
        if found.registers.get(number) not in values:
            value = found.registers.get(number, b"").hex()
            raise TeeMeasurement(f"RTMR {number} is {value or 'absent'}, which the policy does not allow")
    if log is not None:
        ccel.check(log, found.registers)
    elif rules.log:
        raise TeeLog("the guest sent no log (CCEL)")


def weighed(
    evidence: Evidence, context: Context, section: Tee | None, trust: Callable[[], Trust], base: Worth, now: float
) -> tuple[Worth, dict[str, Any]]:
    """Appraise the TEE of verified *evidence*; return the level, and the TEE's values for the result.

    :param section: the policy's section ``tee``; None: the policy demands no TEE, and reports are ignored.
    :param trust: reads the operator's certificates.
    :param base: level of the evidence without a TEE.
    :raises NetspaceError: when *trust* can't read the certificates; then there is no verdict.
    :raises Refused: as :func:`appraise`.
    """
    if section is None:
        return base, {}
    verdict = appraise(evidence, context, section, trust(), now)
    return weigh(evidence.kind, base, verdict, section), dict(verdict.told)


def weigh(kind: str, base: Worth, verdict: Verdict, section: Tee) -> Worth:
    """Return the level of evidence after the verdict on its TEE.

    :param kind: kind of evidence: ``tpm`` or ``software``.
    :param base: level of the evidence without a TEE.
    """
    if verdict.code != OK:
        most = LEVEL_TPM if kind == "tpm" else LEVEL_KEY
        if kind == "tpm" and base.level <= most:
            return base
        return Worth(min(base.level, most), verdict.code, verdict.reason, verdict.remedy)
    if kind == "software" and section.rooted_key and base.level == LEVEL_KEY:
        what = f"{verdict.told['kind']}, measurement {verdict.told['measurement'][:16]}..."
        reason = f"a TEE ({what}) vouches for the host's key; there is no TPM"
        return Worth(LEVEL_ROOTED, TeeBoot.code, reason, TeeBoot.remedy)
    return base


def _names(statuses: frozenset[str]) -> str:
    return ", ".join(sorted(statuses))


def _shown(value: Value | None) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
