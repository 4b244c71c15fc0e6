"""Worlds of boots: a bad boot, a policy that a good boot satisfies, and a forger in between.

Reaching L4 is a failure in two cases: the policy has a rule against the bad entry (``bad_boots.RULES``), even if
nothing is forged; or the bad entry was measured into a PCR for which the policy demands plain values. Any other world
breaks no rule of its policy, and counts as harmless.
"""

from __future__ import annotations

import random
import re

from adversary import bad_boots, boots, claims, forger, policies
from adversary.boots import Boot
from adversary.claims import Claim, Knowledge
from adversary.policies import Unfit
from adversary.search import Move
from netspace.attestation.evidence import Evidence
from netspace.attestation.logs import events
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal
from netspace.attestation.verifier.appraisal import GoodBoot

# How far the judge came, by the code and the PCR of its refusal.
PROGRESS = (
    (("secure-boot", "dbx-old", "boot-signer", "sbat-old", "shim-insecure", "boot-event: PCR 7:"), 1),
    (("boot-event: PCR 14:",), 2),
    (("boot-application", "boot-event: PCR 4:"), 3),
    (("command-line: no", "boot-file: none"), 5),
    (("pcr-value",), 6),
)

FINGERPRINT = "the policy's"


class BootWorld:
    """A bad boot and the policy that the verifier applies to it."""

    hopeless = ("log-malformed", "log-mismatch", "policy-")

    def __init__(self, kind: str, boot: Boot, know: Knowledge, rules: policy.Boot, good: GoodBoot, name: str) -> None:
        self.good = good
        self.kind, self.name = kind, f"{boot.name}; {name}"
        self._boot, self._know, self.rules = boot, know, rules
        self._values = boots.values(boot)
        self._before = boots.values(Boot("", boot.events, (), boot.locality))
        self._words = tuple((one.pcr, one.digest) for one in boot.words)
        self.promised = promised(kind, boot, rules, know.quoted)

    def honest(self) -> Claim:
        return claims.honest(self._boot)

    def propose(self, chance: random.Random, claim: Claim) -> Move[Claim]:
        return forger.propose(chance, self._know, claim)

    def evidence(self, claim: Claim) -> Evidence:
        """Return the evidence that is sent, without the signature."""
        values = self.values(claim)
        quoted = {pcr: values[pcr] for pcr in self._know.quoted}
        return Evidence("tpm", b"", b"", b"", quoted, claim.boot_log(), claim.systemd_log())

    def values(self, claim: Claim) -> dict[int, bytes]:
        """Return the TPM's values after the boot itself and the forger's extensions."""
        if not claim.early and not claim.late:
            return self._values
        return boots.extended(self._before, (*claim.early, *self._words, *claim.late))

    def refusal(self, claim: Claim) -> str:
        """Return why the claim doesn't reach L4. The verifier remembers the good boot of the same host."""
        found = appraisal.appraise(self.evidence(claim), _whole(self.rules), None, good=self.good)
        return "" if found.level > 3 else f"{found.code}: {found.reason}"

    def progress(self, refusal: str) -> int:
        return next((far for codes, far in PROGRESS if refusal.startswith(codes)), 4)


def promised(kind: str, boot: Boot, rules: policy.Boot, quoted: tuple[int, ...]) -> bool:
    """Return whether the policy has a rule against the bad entry of *boot*, or a value for the entry's PCR."""
    if by_value(boot, rules):
        return True
    if kind == "old dbx":
        (bad,) = [one for one in boot.bad() if one.pcr == 7]
        read = events.variable(bad.data)
        lists = events.signatures(read.data) if read else None
        return bool(rules.dbx - set(lists[1] if lists else ()))
    if kind in ("command line", "boot entry") and rules.command_lines is not None:
        return not any(_matches(one.text, line) for one in rules.command_lines for line in boot.commands)
    if kind == "Secure Boot off":
        return rules.secure_boot
    if {one.pcr for one in boot.bad()} == {13} and (13 not in quoted or 13 in rules.unchecked):
        return False  # system extensions: systemd verifies them itself, so a policy may leave them out
    if kind == "old SBAT":
        (bad,) = boot.bad()
        return bad_boots.older(bad.data, rules.sbat)
    rule = getattr(rules, bad_boots.RULES[kind], None)
    return rule is not None and rule != {}


def by_value(boot: Boot, rules: policy.Boot) -> bool:
    """Return whether the policy has a value for the PCR of the bad entry, so that no forged log helps."""
    return any(one.pcr in rules.pcrs for one in boot.bad())


def _matches(pattern: str, line: str) -> bool:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    return any(re.fullmatch(expression, one, re.DOTALL) for one in (line, f"BOOT_IMAGE={line}"))


def make(
    chance: random.Random,
    kinds: tuple[str, ...] = tuple(bad_boots.KINDS),
    foreign: float = 0.5,
    without: tuple[str, ...] = (),
) -> BootWorld | str:
    """Return a random world; if the draw permits none, return the reason.

    :param foreign: share of worlds that use another machine's log, if there are such logs.
    :param without: rules that are removed from every policy.
    """
    others = boots.others() if chance.random() < foreign else ()
    good = chance.choice(others or boots.recorded())
    kind = chance.choice(kinds)
    boot = bad_boots.KINDS[kind](chance, good)
    if boot is None:
        return f"{kind}: not possible with this boot"
    try:
        name, rules, pcrs = policies.make(chance, good, without)
    except Unfit as err:
        return str(err)
    before = appraisal.appraise(policies.evidence(good, pcrs), _whole(rules), None).boot
    if before is None:
        return "the good boot is refused"
    if by_value(boot, rules) and chance.random() < 0.8:
        return "bad in a PCR that is known by value: most are passed over"
    allowed = (rules.kernels, rules.initrds, rules.files, rules.applications)
    digests = tuple(sorted({digest for one in allowed for digest in one or ()}))
    lines = {*good.commands, *(one.text for one in rules.command_lines or ())}
    return BootWorld(kind, boot, Knowledge(good, digests, tuple(sorted(lines)), pcrs), rules, before, name)


def _whole(rules: policy.Boot) -> policy.Policy:
    return policy.Policy(1, FINGERPRINT, rules, None)
