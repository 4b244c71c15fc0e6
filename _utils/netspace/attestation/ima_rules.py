"""Judge IMA's measurement list: does it belong to this boot, and does the policy allow each of its lines.

Pure, like ``netspace.attestation.judge``, which asks it for L5 after the boot was found good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from netspace.attestation import ima
from netspace.attestation.evidence import Evidence
from netspace.attestation.ima import State
from netspace.attestation.policy import Ima
from netspace.attestation.refusals import (
    Limited,
    ListGap,
    NoList,
    NothingMeasured,
    UnknownFileRun,
    Violation,
    WrongAggregate,
)


def judged(evidence: Evidence, policy: Ima, fingerprint: str, boot: tuple[int, int], start: State | None) -> State:
    """Judge the measurement list's new lines, and return how far it was judged.

    :raises Refused: when it is no list of this boot, or does not continue the last one.
    """
    brought = evidence.ima
    if brought is None:
        raise NoList("the evidence has no quote of PCR 10")
    before = State()
    if brought.first and start is not None and (start.boot, start.policy) == (boot, fingerprint):
        before = start
    if brought.first != before.lines:
        raise ListGap(f"the list begins with line {brought.first}, and was judged up to line {before.lines}")
    entries = ima.parse(brought.lines)
    count = ima.match(entries, before.value, brought.value)
    refused = before.refused
    if before.lines == 0:
        _aggregate(entries, evidence.pcrs)
        if not ima.measures_programs(entries[:count]):
            raise NothingMeasured("the list has no process 1: the kernel does not measure which programs run")
    if refused is None:
        refused = _first_refused(entries, count, before.lines, policy)
    return State(before.lines + count, brought.value, boot, fingerprint, refused)


def _aggregate(entries: list[ima.Entry], quoted: Mapping[int, bytes]) -> None:
    """The first line's digest is of PCRs 0 to 9; checked where all of them were quoted."""
    found = ima.boot_aggregate(entries)
    if found is None:
        raise WrongAggregate("the list does not begin with the PCRs' values at boot")
    algorithm, _, digest = found.partition(b":\0")
    if not digest.strip(b"\0"):
        raise WrongAggregate("IMA found no TPM when it started")
    if algorithm == b"sha256" and all(pcr in quoted for pcr in range(10)):
        expected = hashlib.sha256(b"".join(quoted[pcr] for pcr in range(10))).digest()
        if digest != expected:
            raise WrongAggregate("the list begins with the PCR values of another boot")


def _first_refused(entries: list[ima.Entry], count: int, first: int, policy: Ima) -> tuple[str, str] | None:
    listed = policy.listed
    for number in range(count):
        entry = entries[number]
        violation = entry.violation
        if not violation and listed(entry):
            continue
        if violation:
            # What it says of a file is not measured, so no path can excuse it.
            if not policy.ignore_violations:
                return Violation.code, f"line {first + number}: a file was written while it was measured"
            continue
        file = ima.file(entry)
        if file is not None and (policy.allows(file) or file.path == b"boot_aggregate"):
            continue
        if file is None and ima.measured(entry) in policy.entries:
            continue
        said = "of an unknown template" if file is None else repr(file.path.decode("utf-8", "replace")[:200])
        return UnknownFileRun.code, f"line {first + number}: {said} is not allowed"
    return None


def remedy(code: str) -> str:
    """Return the remedy of the refusal with this *code*, one of those that a :class:`State` keeps."""
    kinds: tuple[type[Limited], ...] = (Violation, UnknownFileRun)
    return next(kind.remedy for kind in kinds if kind.code == code)
