"""Judge IMA's measurement list: it is of this boot, begun by its kernel, and the policy allows each line.

``netspace.attestation.judge`` calls it for L5, after the boot gave L4. Pure.

What proves that the kernel measured, and from the beginning:

1. PCR 10 begins at zero, and every user of the TPM can extend it. So a list that leads to the quoted value has all
   measurements of PCR 10 in order; it does not prove who made them.
2. The kernel extends PCR 10 first, before it starts process 1: with ``boot_aggregate``, the digest of PCRs 0 to 9. So
   in line 0, and nowhere else, that name means the PCRs at the kernel's start. The digest must be that of the values
   that the logs give for the kernel's start. This binds the list to the judged boot, and shows that nobody extended
   PCRs 0 to 9 later to feign another kernel or command line. Where it can't be compared (a PCR is not quoted, or the
   kernel took it of another bank) nothing is proved, and there is no L5. It is compared where a list begins, so a list
   is remembered only if the whole boot was good enough by then; later extensions add nothing.
3. Without IMA in the kernel, root can type the whole list by hand, line 0 too. Only the rules of the boot exclude
   that: they demand a kernel that has IMA, and a command line that turns it on.
4. A kernel that was started by kexec continues the list and adds another ``boot_aggregate``. Nothing measures its
   command line, so it is refused (``ima-kexec``) unless the policy has ``kexec: allow``.

Attacks that remain open to root on a host that keeps L5 (docs/attestation-policy.md has the remedies):

==============================================  =======================================================
root can                                        because
==============================================  =======================================================
run a program on tmpfs, before Linux 6.14       ima_policy=tcb measures nothing there
run code that is no file of its own             shells and interpreters are allowed programs; a script
                                                from a pipe, or on tmpfs, is not measured
write to another process's memory, or exploit   IMA measures files when they are opened or mapped
the kernel
load an IMA policy that measures less           the kernel measures a policy that is loaded by path; only
                                                the newest kernels measure one that is written directly
put files behind excluded names                 any mount can have any name (mount namespaces)
start a listed kernel by kexec, that has no     a file that may be read may be started as a kernel
IMA
resume a changed image from hibernation         it brings its own kernel memory
run a file while writing to it, where           the list does not show the file's content
``violations: ignore``
==============================================  =======================================================

Lines into other PCRs (``pcr=`` in the kernel's IMA policy) are compared with the policy like the others. No quote
proves them, so they can lower the level, and never raise it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

from netspace.attestation import extensions, ima
from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.ima import BOOT_AGGREGATE, Entry, File, State
from netspace.attestation.policy import Ima
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

Values = Mapping[int, bytes]
# PCRs of which the kernel takes the boot aggregate, other than in the SHA-1 bank (Linux 5.8: ima_crypto.c).
AGGREGATED = range(10)


def judged(evidence: Evidence, policy: Ima, fingerprint: str, boot: tuple[int, int], start: State | None) -> State:
    """Judge the measurement list's new lines, and return how far it was judged.

    :param fingerprint: of the whole policy.
    :param boot: (resetCount, restartCount) that were quoted.
    :param start: the number of lines of this host's list that were judged before.
    :raises Refused: when the list is not of this boot, or does not continue the last one.
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
    entries = entries[: ima.match(entries, before.value, brought.value)]
    # Once, however many lines name it: the logs may be large, and root makes lines at will.
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
    """Return the remedy of the refusal with this *code*; a :class:`State` keeps such codes."""
    kinds: tuple[type[Limited], ...] = (Violation, UnknownFileRun, StartedByKexec)
    return next(kind.remedy for kind in kinds if kind.code == code)


def _check_aggregate(entries: Sequence[Entry], evidence: Evidence, at_start: Callable[[], Values]) -> None:
    """Check that the list begins with the PCRs' values at this kernel's start.

    :raises WrongAggregate: for other values.
    :raises UnprovedAggregate: when they can't be compared.
    :raises NothingMeasured: for an empty list.
    """
    if not entries:
        raise NothingMeasured("nothing was measured into PCR 10: the kernel has no IMA")
    digest = ima.boot_aggregate(entries)
    if digest is None:
        raise WrongAggregate("the list does not begin with the PCRs' values at boot")
    algorithm, _, value = digest.partition(b":\0")
    if not value.strip(b"\0"):
        raise WrongAggregate("IMA found no TPM when it started")
    if algorithm != BANK.encode():
        said = algorithm.decode("ascii", "replace")[:20]
        raise UnprovedAggregate(f"the list begins with PCRs of the bank {said}, and those of {BANK} are quoted")
    missing = [pcr for pcr in AGGREGATED if pcr not in evidence.pcrs]
    if missing:
        raise UnprovedAggregate(f"the list begins with the values of PCRs 0 to 9, and PCR {missing[0]} is not quoted")
    if value != _digest(at_start()):
        raise WrongAggregate("the list begins with the PCR values of another boot, or one was extended since")


def _digest(values: Values) -> bytes:
    """Return the boot aggregate of PCR *values*."""
    return hashlib.sha256(b"".join(values[pcr] for pcr in AGGREGATED)).digest()


def _at_start(evidence: Evidence) -> Values:
    """Return the PCR values that the kernel found when it started.

    They are the quoted values without systemd's words at the end of a PCR: only these may come after that moment. The
    two logs are one sequence here, because the sender chooses in which of them an extension stands. L4 has shown that
    the sequence leads to the quoted value.
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
    """Return the digests that a kernel which kexec started finds: of the PCRs at the first kernel's start, and now."""
    if any(pcr not in evidence.pcrs for pcr in AGGREGATED):
        return ()
    return [BANK.encode() + b":\0" + _digest(values) for values in (at_start(), evidence.pcrs)]


def _first_refused(
    entries: Sequence[Entry], first: int, policy: Ima, known: Callable[[], Collection[bytes]]
) -> tuple[str, str] | None:
    """Return code and reason of the first line that the policy refuses.

    :param first: number of the first of *entries*.
    :param known: returns the boot aggregates of this boot.
    """
    listed = policy.listed
    for number, entry in enumerate(entries, first):
        if entry[0] == ima.VIOLATION:
            # What it says of a file is not measured, so no path can excuse it.
            if not policy.ignore_violations:
                return Violation.code, f"line {number}: a file was written while it was measured"
            continue
        if listed(entry):
            continue
        file = ima.file(entry)
        if file is None:
            if ima.measured(entry) in policy.entries:
                continue
            return UnknownFileRun.code, f"line {number}: of an unknown template, is not allowed"
        if file.path == BOOT_AGGREGATE:
            # No listed file, signature or pattern counts for this name, which a file may have, too.
            if number and (found := _started_by_kexec(file, number, policy, known())) is not None:
                return found
        elif not policy.allows(file):
            said = repr(file.path.decode("utf-8", "replace")[:200])
            return UnknownFileRun.code, f"line {number}: {said} is not allowed"
    return None


def _started_by_kexec(file: File, number: int, policy: Ima, known: Collection[bytes]) -> tuple[str, str] | None:
    """Judge a later ``boot_aggregate``: of a kernel that kexec started, if it matches the PCRs; else of a file."""
    if file.digest not in known:
        return UnknownFileRun.code, f"line {number}: 'boot_aggregate' is not of the PCRs, so it is a file"
    if policy.kexec:
        return None
    return StartedByKexec.code, f"line {number}: another kernel was started by kexec, by an unknown command line"
