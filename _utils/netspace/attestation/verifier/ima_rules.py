"""Judge IMA's measurement list: this boot's kernel began it, and the policy allows each line.

``netspace.attestation.verifier.appraisal`` calls this module for L5, after the boot reached L4. Pure.

These facts prove that the kernel has measured all files since its start:

1. PCR 10 begins at zero, and every user of the TPM can extend it. So a list that leads to the quoted value has all
   measurements of PCR 10 in order. The list does not prove who made them.
2. The kernel's first extension of PCR 10 is ``boot_aggregate``, the digest of PCRs 0 to 9. It is measured before
   process 1 starts. So only in line 0 does the name ``boot_aggregate`` prove the PCRs at the kernel's start. The digest
   must match the PCR values that the logs give for the kernel's start. This binds the list to the judged boot, and
   shows that nobody extended PCRs 0 to 9 later to feign another kernel or command line. Without this comparison there
   is no L5. The comparison is impossible if one of these PCRs is not quoted, or if the kernel used another bank. It is
   possible only at the beginning of a list. So the verifier remembers a list for later appraisals only if the boot
   passed every rule when the list began.
3. If the kernel doesn't use IMA, root can forge the whole list, including line 0. Only the rules for the boot prevent
   this: they demand a kernel with IMA, and a command line that turns IMA on.
4. A kernel that was started by kexec continues the list and adds another ``boot_aggregate``. Nothing measures the
   command line of this kernel, so the list is refused (``ima-kexec``) unless the policy has ``kexec: allow``.

Root can still do the following on a host that keeps L5 (docs/attestation-policy.md has the remedies):

==============================================  =======================================================
root can                                        because
==============================================  =======================================================
run a program on tmpfs, before Linux 6.14       ima_policy=tcb measures nothing there
run code without a program file of its own      shells and interpreters are allowed programs; a script
                                                from a pipe, or on tmpfs, is not measured
write to another process's memory, or exploit   IMA measures files when they are opened or mapped
the kernel
load an IMA policy that measures less           the kernel measures a policy that is loaded by path; only
                                                the newest kernels measure one that is written directly
put files behind excluded names                 any mount can have any name (mount namespaces)
start a listed kernel without IMA by kexec      a file that may be read may be started as a kernel
resume a changed image from hibernation         the image replaces the kernel's memory
run a file while writing to it, where           the list does not show the file's content
``violations: ignore``
==============================================  =======================================================

The policy judges lines in other PCRs (``pcr=`` in the kernel's IMA policy) like the lines in PCR 10. No quote proves
these lines, so they can lower the level but never raise it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.logs import ima
from netspace.attestation.logs.ima import BOOT_AGGREGATE, Entry, File, State
from netspace.attestation.policy.policy import Ima
from netspace.attestation.refusals import (
    Limited,
    ListGap,
    NoList,
    NothingMeasured,
    StartedByKexec,
    UnknownFileRun,
    UnprovedAggregate,
    Violation,
    WrongAggregate,
)
from netspace.attestation.verifier import extensions

Values = Mapping[int, bytes]
# PCRs in the boot aggregate of every bank but SHA-1, which has fewer (Linux 5.8: ima_crypto.c).
AGGREGATED = range(10)


def judged(evidence: Evidence, policy: Ima, fingerprint: str, boot: tuple[int, int], start: State | None) -> State:
    """Judge the measurement list's new lines, and return the new state.

    :param fingerprint: fingerprint of the whole policy.
    :param boot: the quoted (resetCount, restartCount).
    :param start: the state after the lines that were judged before; None if no line was judged before.
    :raises Refused: when the list belongs to another boot, or does not continue from *start*.
    """
    brought = evidence.ima
    if brought is None:
        raise NoList("the evidence has no quote of PCR 10")
    before = State()
    if brought.first and start is not None and (start.boot, start.policy) == (boot, fingerprint):
        before = start
    if brought.first != before.lines:
        raise ListGap(f"the list begins with line {brought.first}, but the next line to judge is {before.lines}")
    entries = ima.parse(brought.lines)
    entries = entries[: ima.match(entries, before.value, brought.value)]
    # Computed once: the logs may be large, and root can add many lines that need this value.
    at_start = functools.cache(lambda: _at_start(evidence))
    if before.lines == 0:
        _check_aggregate(entries, evidence, at_start)
        if not ima.measures_programs(entries):
            raise NothingMeasured("the list has no process 1: the kernel does not measure which programs run")
    refused = before.refused
    if refused is None:
        known = functools.cache(lambda: _aggregates(evidence, at_start))
        refused = _first_refused(entries, before.lines, policy, known)
    return State(before.lines + len(entries), brought.value, boot, fingerprint, refused)


def remedy(code: str) -> str:
    """Return the remedy for a refusal with the reason code *code*, as in a :class:`State`."""
    kinds: tuple[type[Limited], ...] = (Violation, UnknownFileRun, StartedByKexec)
    return next(kind.remedy for kind in kinds if kind.code == code)


def _check_aggregate(entries: Sequence[Entry], evidence: Evidence, at_start: Callable[[], Values]) -> None:
    """Check that the list begins with the digest of the PCR values at this kernel's start.

    :raises WrongAggregate: when the digest is missing, or has other values.
    :raises UnprovedAggregate: when the values can't be compared.
    :raises NothingMeasured: for an empty list.
    """
    if not entries:
        raise NothingMeasured("nothing was measured into PCR 10: the kernel has no IMA")
    digest = ima.boot_aggregate(entries)
    if digest is None:
        raise WrongAggregate("the list does not begin with a digest of PCR values (boot_aggregate)")
    algorithm, _, value = digest.partition(b":\0")
    if not value.strip(b"\0"):
        raise WrongAggregate("IMA found no TPM when it started")
    if algorithm != BANK.encode():
        said = algorithm.decode("ascii", "replace")[:20]
        raise UnprovedAggregate(f"the list begins with PCR values of the bank {said}, but the quote is of {BANK}")
    missing = [pcr for pcr in AGGREGATED if pcr not in evidence.pcrs]
    if missing:
        raise UnprovedAggregate(f"the list begins with the values of PCRs 0 to 9, but PCR {missing[0]} is not quoted")
    if value != _digest(at_start()):
        raise WrongAggregate("the list begins with the PCR values of another boot, or a PCR was extended since")


def _digest(values: Values) -> bytes:
    """Return the boot aggregate of PCR *values*."""
    return hashlib.sha256(b"".join(values[pcr] for pcr in AGGREGATED)).digest()


def _at_start(evidence: Evidence) -> Values:
    """Return the PCR values at the kernel's start.

    These are the quoted values without systemd's strings (``measured.WORDS``) at the end of a PCR's sequence. No other
    extension may come after the kernel's start. The two logs are read as one sequence, because the sender chooses the
    log for each extension. The check for L4 has shown that replaying the sequence gives the quoted values.
    """
    values = dict(evidence.pcrs)
    if evidence.boot_log is None or evidence.systemd_log is None:
        return values
    logs = extensions.read(evidence)
    for pcr, found in logs.of(AGGREGATED).items():
        last = len(found)
        while last and extensions.is_word(pcr, found[last - 1]):
            last -= 1
        if last < len(found):
            values[pcr] = logs.boot.extended(pcr, BANK, (one.digest for one in found[:last]))
    return values


def _aggregates(evidence: Evidence, at_start: Callable[[], Values]) -> Collection[bytes]:
    """Return the two boot aggregates that a kernel started by kexec may record.

    The first is the digest of the PCRs at the first kernel's start, the second that of the quoted PCRs.
    """
    if any(pcr not in evidence.pcrs for pcr in AGGREGATED):
        return ()
    return [BANK.encode() + b":\0" + _digest(values) for values in (at_start(), evidence.pcrs)]


def _first_refused(
    entries: Sequence[Entry], first: int, policy: Ima, known: Callable[[], Collection[bytes]]
) -> tuple[str, str] | None:
    """Return the reason code and the reason for the first line that the policy refuses; None if it allows all lines.

    :param first: line number of the first entry.
    :param known: a function that returns the boot aggregates of this boot.
    """
    for number, entry in policy.unlisted(entries, first):
        if entry.violation:
            # The file's path in the line is not measured, so an exclusion by path does not count.
            if not policy.ignore_violations:
                return Violation.code, f"line {number}: a file was written while it was measured"
            continue
        file = ima.file(entry)
        if file is None:
            if ima.measured(entry) in policy.entries:
                continue
            return UnknownFileRun.code, f"line {number}: of an unknown template, is not allowed"
        if file.path == BOOT_AGGREGATE:
            # A file can also have this name. So no listed file, signature or pattern allows it.
            if number and (found := _started_by_kexec(file, number, policy, known())) is not None:
                return found
        elif not policy.allows(file):
            said = repr(file.path.decode("utf-8", "replace")[:200])
            return UnknownFileRun.code, f"line {number}: {said} is not allowed"
    return None


def _started_by_kexec(file: File, number: int, policy: Ima, known: Collection[bytes]) -> tuple[str, str] | None:
    """Return the code and the reason for refusing a ``boot_aggregate`` after line 0; None if the policy allows it.

    If the digest is one of this boot's aggregates, the line shows a kexec. If not, it is a file of this name.
    """
    if file.digest not in known:
        return UnknownFileRun.code, f"line {number}: 'boot_aggregate' is not of the PCRs, so it is a file"
    if policy.kexec:
        return None
    return StartedByKexec.code, f"line {number}: another kernel was started by kexec, by an unknown command line"
