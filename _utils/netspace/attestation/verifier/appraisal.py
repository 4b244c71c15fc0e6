"""Appraise genuine evidence: boot log, references, boot policy and IMA, in the only allowed order.

Pure: no file, no network, no clock. This module checks no signature: ``verifier.verify_quote`` calls it after it has
checked every signature, and other callers pass evidence that was verified before. It decides on L4 and L5:

1. The boot matches the references or the boot policy (:mod:`netspace.attestation.verifier.boot_rules`). **L4**
2. There is an IMA policy, and a measurement list that continues where the last list ended.
3. Replaying the list gives the quoted value of PCR 10. Lines after this value wait for the next appraisal.
4. The list begins with this boot's PCR values and has process 1, and the policy allows each line
   (:mod:`netspace.attestation.verifier.ima_rules`).
5. The boot policy covers every PCR on which the list rests (:func:`boot_policy.ima_gaps`). **L5**
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from netspace.attestation.evidence import Evidence
from netspace.attestation.logs.ima import State
from netspace.attestation.policy import boot as boot_policy
from netspace.attestation.policy.policy import Policy
from netspace.attestation.refusals import ImaUnfounded, NoImaPolicy, Refused
from netspace.attestation.verifier import ima_rules, tcb_rules
from netspace.attestation.verifier.boot_rules import GoodBoot as GoodBoot
from netspace.attestation.verifier.boot_rules import identity
from netspace.attestation.verifier.boot_rules import judged_boot as judged_boot
from netspace.attestation.verifier.references import References


class Appraisal(NamedTuple):
    """Level that the evidence reaches, and the reason why it does not reach a higher level.

    :param level: 3, 4 or 5.
    :param code: code of the refusal that prevents the next level (``ok`` at L5).
    :param ima: the judged part of the measurement list; None if the list was not judged.
    :param boot: the boot, if a policy without references judged it good; the caller keeps this value for the next
        appraisal.
    """

    level: int
    code: str
    reason: str
    remedy: str
    ima: State | None = None
    boot: GoodBoot | None = None


def appraise(
    evidence: Evidence,
    policy: Policy | None,
    references: References | None,
    *,
    boot: tuple[int, int] = (0, 0),
    start: State | None = None,
    good: GoodBoot | None = None,
) -> Appraisal:
    """Appraise genuine *evidence*.

    :param boot: the quoted (resetCount, restartCount).
    :param start: the part of this host's measurement list that was judged earlier.
    :param good: the last boot that was judged good. If the boot and the policy are the same, the boot is not judged
        again.
    """
    now = None if policy is None or references is not None else identity(evidence, policy.fingerprint)
    if good is None or good.identity != now:
        try:
            proved = judged_boot(evidence, policy.boot if policy else None, references)
        except Refused as err:
            return Appraisal(3, err.code, str(err), err.remedy)
        good = None if now is None else GoodBoot(now, proved)
    else:
        proved = good.proved
    found = _programs(evidence, policy, references, boot, start, proved)
    if found.level < 5 and policy is not None and policy.boot is not None:
        try:
            tcb_rules.check_spoken(policy.boot)
        except Refused as err:
            found = Appraisal(3, err.code, f"{err}; {found.reason}", err.remedy, found.ima)
    return found._replace(boot=good)


def _programs(
    evidence: Evidence,
    policy: Policy | None,
    references: References | None,
    boot: tuple[int, int],
    start: State | None,
    proved: Collection[int],
) -> Appraisal:
    """Appraise the measurement list of a good boot."""
    try:
        if policy is None or policy.ima is None:
            raise NoImaPolicy("the policy has no rules for the programs that run after the boot (IMA)")
        state = ima_rules.judged(evidence, policy.ima, policy.fingerprint, boot, start)
    except Refused as err:
        return Appraisal(4, err.code, str(err), err.remedy)
    if state.refused is not None:
        code, reason = state.refused
        return Appraisal(4, code, f"{reason} [{code}]", ima_rules.remedy(code), state)
    unfounded = _unfounded(policy, evidence, references, proved)
    if unfounded is not None:
        # No state is kept, so the next list starts at line 0 and its boot aggregate is compared again. Otherwise root
        # could extend PCR 8 or 9 by the missing command line: only the boot aggregate shows such a late extension.
        return Appraisal(4, unfounded.code, str(unfounded), unfounded.remedy)
    return Appraisal(5, "ok", "boot and programs are as the policy says", "", state)


def ask_from(policy: Policy, start: State | None) -> int:
    """Return the line number at which the measurement list of the next evidence must begin."""
    return start.lines if start is not None and start.policy == policy.fingerprint else 0


def _unfounded(
    policy: Policy, evidence: Evidence, references: References | None, proved: Collection[int]
) -> ImaUnfounded | None:
    """Return why the rules for the boot do not suffice to trust a measurement list; None if they suffice.

    :param proved: PCRs that prove the kernel's command line, because root can't have added it to them later.
    """
    quoted = evidence.pcrs.keys() | set(range(10))  # the list's boot aggregate covers PCRs 0 to 9
    found = boot_policy.ima_gaps(policy.boot, quoted, references or {})
    if found:
        return ImaUnfounded(found[0])
    boot = policy.boot
    if boot is None or proved or (boot.command_lines is None and boot_policy.valued_lines(boot, references or {})):
        return None
    if boot.command_lines is None:
        return ImaUnfounded("no command line is proved; give command_lines with ima_policy=tcb")
    return ImaUnfounded("only PCR 11 or 12 proves the command line, and root can extend these after the boot")
