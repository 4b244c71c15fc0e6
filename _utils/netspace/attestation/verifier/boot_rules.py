"""Judge a boot: each digest in every PCR that a rule depends on has to be allowed.

A digest is allowed in three cases: the policy lists it; it is the digest of a constant that a specification fixes
(:mod:`netspace.attestation.logs.measured`); or its preimage is known and has a form that only harmless data has: a
variable, a command line that a pattern allows, a word that systemd measures. An event's type, and the log that contains
the event, do not count. The checks, in order:

1. the logs lead to the quoted values of all PCRs except ``unchecked`` ones;
2. each quoted PCR is covered, and every PCR that a rule depends on is judged (:func:`boot_policy.gaps`);
3. PCR 7 (Secure Boot, dbx, signers, SBAT), PCR 14 (shim), PCR 4 (programs);
4. PCRs 8, 12, 9, 11, 13: commands, command lines, loaded files;
5. PCRs for which the policy lists plain values.

What each PCR proves, and what it does not (docs/attestation-policy.md says more):

=========  ================================  ==================================  ==================================
PCR        extended by, and when             proved by                           remains unproved
=========  ================================  ==================================  ==================================
0 1 3 5 6  firmware; later anybody           plain values                        everything, if it is unchecked
2          firmware, before it runs a        plain values
           driver
4          firmware, shim and loaders,       each digest listed, a separator or  the order of programs without
           before they start a program       a UEFI action; ``started_by``       ``started_by``
7          up to the separator, firmware     known variables, once each, whose
           alone                             data was measured
7          then firmware and shim, before    listed certificates and programs;   programs of a shim that measures
           they start a program; later       shim's variables in a safe state    nothing (``dbx`` or PCR 4 excludes
           anybody                                                               such a shim)
8          GRUB before each command; later   listed commands, allowed lines
           anybody
9          GRUB for files, Linux for line    listed digests, allowed lines,      whether an older kernel had a line
           and initrd; later anybody         systemd's words                     at all
10         the kernel (IMA); anybody         the list (``ima_rules``)            who extended it
11         systemd's stub, then its phases;  listed digests, sections' names,    what comes after the first phase
           later anybody                     allowed lines, phases
12         systemd-boot and the stub; later  listed digests, allowed lines       a line that root adds, if the boot
           anybody                                                               entry has none
13         the stub, for extensions          listed digests, if it is quoted     extensions, if it is not quoted
14         shim, for its keys and switches;  listed keys, empty lists, switches
           later anybody                     that are off
15         systemd; later anybody            plain values
=========  ================================  ==================================  ==================================

A boot that was judged good is not judged again while its logs, PCR values and policy stay the same (:class:`GoodBoot`).

Pure: no file, no network, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.logs import events, measured
from netspace.attestation.policy import boot
from netspace.attestation.policy.boot import FIRMWARE, Boot
from netspace.attestation.refusals import (
    LogMismatch,
    NoPolicy,
    Uncovered,
    UnexpectedEvent,
    UnknownApplication,
    UnknownCommandLine,
    UnknownFile,
    UnknownValue,
)
from netspace.attestation.verifier import extensions, platform_rules, tcb_rules
from netspace.attestation.verifier.extensions import Extension
from netspace.attestation.verifier.references import References

_UNTOUCHED = bytes(32)
# PCRs whose log has a command line's text come first. Then the line's digest is recognised in the later PCRs.
_ORDER = (8, 12, 9, 11, 13)


@dataclass(frozen=True)
class GoodBoot:
    """Record of a boot that was judged good; a verifier keeps it.

    :param identity: digest of everything that was judged, in hex: see :func:`identity`.
    :param proved: the PCRs that :func:`judged_boot` returned.
    """

    identity: str
    proved: frozenset[int]


def identity(evidence: Evidence, fingerprint: str) -> str:
    """Return a digest over the input of :func:`judged_boot`, except references: both logs, PCR values and policy.

    :param fingerprint: the policy's fingerprint.
    """
    logs = (evidence.boot_log, evidence.systemd_log)
    parts = [b"netspace: judged boot", fingerprint.encode()]
    parts += [b"" if log is None else hashlib.sha256(log).hexdigest().encode() for log in logs]
    parts += [b"%d:%d:%b" % (pcr, len(value), value) for pcr, value in sorted(evidence.pcrs.items())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def judged_boot(evidence: Evidence, policy: Boot | None, references: References | None) -> frozenset[int]:
    """Check the boot, and return the PCRs that prove the kernel's command line. The IMA rules need them.

    A PCR is returned only if root can't have added the command line after the boot:

    - PCRs 8 and 9: IMA's list begins with a digest over their values, recorded before root could extend them.
    - PCRs 11 and 12: the policy lists their value, or one of systemd's own words comes after the command line.

    Without ``command_lines``, a listed section ``.cmdline`` of a unified kernel image proves the command line.

    :raises Refused: for the first thing that the policy does not allow.
    """
    if policy is None and references is None:
        raise NoPolicy("there are no references for the PCRs")
    logs = extensions.read(evidence)
    quoted, given, replayed = evidence.pcrs, references or {}, logs.replayed()
    unchecked = policy.unchecked if policy else frozenset[int]()
    logs.boot.check({pcr: value for pcr, value in quoted.items() if pcr not in unchecked}, BANK, replayed)
    if policy is None:
        _values(quoted, given, quoted.keys())
        return frozenset()
    _covered(quoted, policy, given)
    touched = (policy.judged | policy.needs.keys()) & quoted.keys()
    for pcr in sorted(touched - replayed.keys()):
        if quoted[pcr] != _UNTOUCHED:
            raise LogMismatch(f"PCR {pcr} was extended, but no log has an event for it")
    extended = logs.of(touched)
    if policy.tcb is not None:
        tcb_rules.check(extended, policy.tcb)
    if policy.secure_boot or policy.dbx or policy.sbat or policy.signers is not None:
        platform_rules.check(extended[7], policy)
    if 14 in policy.judged:
        platform_rules.check_shim(extended[14], policy)
    if policy.applications is not None:
        _applications(extended[4], policy.applications, policy.started_by)
    proved = _loaded(extended, policy)
    by_value = quoted.keys() - (policy.judged | policy.unchecked) | policy.pcrs.keys()
    _values(quoted, {pcr: (*policy.pcrs.get(pcr, ()), *given.get(pcr, ())) for pcr in by_value}, by_value)
    tcb_rules.check_told(policy, proved)
    return proved


def _covered(quoted: Mapping[int, bytes], policy: Boot, references: References) -> None:
    for gap in boot.gaps(policy, quoted, references):
        raise Uncovered(gap)
    covered = policy.judged | policy.unchecked | policy.pcrs.keys() | references.keys()
    open_pcrs = sorted(quoted.keys() - covered)
    if open_pcrs:
        raise Uncovered(f"PCRs {', '.join(map(str, open_pcrs))} are quoted, and no rule or value judges them")
    missing = sorted(policy.pcrs.keys() - quoted.keys())
    if missing:
        raise Uncovered(f"pcrs: PCR {missing[0]} is not quoted")


def _values(quoted: Mapping[int, bytes], references: References, pcrs: Collection[int]) -> None:
    for pcr in sorted(pcrs):
        if quoted[pcr] not in references.get(pcr, ()):
            raise UnknownValue(f"PCR {pcr} has a value that is not among the references: {quoted[pcr].hex()}")


def _applications(
    extended: Sequence[Extension], allowed: frozenset[bytes], started_by: Mapping[bytes, frozenset[bytes]]
) -> None:
    """Judge PCR 4: every digest must be listed, or be a constant of the specification.

    :param started_by: for each program, the programs that may run directly before it. After the boot, root can only
        append digests, so what stands before a digest of the boot is what ran before it.
    """
    seen, last = 0, FIRMWARE
    for one in extended:
        if one.digest in allowed:
            seen += 1
            starters = started_by.get(one.digest)
            if starters is not None and last not in starters:
                by = last.hex() or "the firmware"
                raise UnknownApplication(
                    f"program {one.digest.hex()} ({one.claimed}) was started by {by}, which 'started_by' does not list"
                )
            last = one.digest
        elif one.digest in measured.CALLS:
            last = FIRMWARE
        elif one.digest in measured.SEPARATORS or one.digest in measured.ACTIONS or one.digest in measured.WORDS[4]:
            continue
        elif one.kind == events.APPLICATION:
            raise UnknownApplication(f"program {one.digest.hex()} ({one.claimed}) was run")
        else:
            raise UnexpectedEvent(f"PCR 4: {one.digest.hex()}, which the log calls {one.claimed}, is not allowed there")
    if not seen:
        raise UnknownApplication("no UEFI program was run")


@dataclass
class _Found:
    """Findings in PCRs 8 to 13: whether a kernel was loaded, the texts of command lines, the PCRs that prove a line.

    :ivar open: PCRs without systemd's words. Root may have added the command line in such a PCR after the boot.
    """

    kernel: bool = False
    lines: list[str] = field(default_factory=list)
    proved: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)


def _loaded(extended: Mapping[int, Sequence[Extension]], policy: Boot) -> frozenset[int]:
    """Judge the files, commands and command lines that were measured; return the PCRs that prove the kernel's line.

    Extensions by root after the boot are judged by the same rules. When systemd starts, it measures a fixed text;
    measurements after this text prove nothing about the boot.
    """
    found = _Found()
    for pcr in _ORDER:
        if pcr not in extended:
            continue
        if pcr in policy.judged:
            _judge_loaded(pcr, extended[pcr], policy, found)
        elif policy.command_lines is not None:  # the PCR is known by its value, so only its line matters
            told = [line for one in extended[pcr] if (line := _line(pcr, one, policy)) is not None]
            found.lines += told
            if told or any(one.digest in policy.lines[pcr] for one in extended[pcr]):
                found.proved.add(pcr)
    if policy.kernels is not None and not found.kernel:
        raise UnknownFile("none of the policy's kernels was loaded")
    if policy.command_lines is not None and not found.proved:
        raise UnknownCommandLine("no quoted PCR proves the kernel's command line")
    return frozenset(found.proved - found.open)


def _judge_loaded(pcr: int, extended: Sequence[Extension], policy: Boot, found: _Found) -> None:
    words, allowed, lines = measured.WORDS.get(pcr, frozenset()), policy.allowed[pcr], policy.lines[pcr]
    if pcr == 9 and found.lines:
        lines = lines.union(*(measured.line_forms(9, line) for line in found.lines))
    ended, section = False, b""
    for one in extended:
        digest, before, section = one.digest, section, one.digest
        if digest in words:
            ended = True
        elif digest == measured.NOTHING and pcr == 9 and policy.command_lines is not None:
            raise UnknownCommandLine(
                "PCR 9: the kernel's command line was empty, or an empty file was read: both are measured alike"
            )
        elif digest in lines:
            found.proved.update(() if ended else (pcr,))
        elif digest in allowed:
            # The content of .cmdline: a unified kernel image has its own line, and PCR 4 has the image's digest.
            section_line = before == measured.COMMAND_LINE_SECTION and digest not in measured.SECTION_NAMES
            if section_line and pcr == 11 and policy.command_lines is None and not ended:
                found.proved.add(pcr)
            found.kernel |= not ended and pcr in (9, 11) and digest in (policy.kernels or ())
        elif pcr == 11 and digest in measured.SECTION_NAMES:
            continue
        elif pcr == 9 and any(map(measured.nvpcr, one.preimages())):
            ended = True
        elif (line := _line(pcr, one, policy)) is not None:
            found.lines.append(line)
            found.proved.update(() if ended else (pcr,))
        else:
            _refuse(pcr, _worst(pcr, one, extended, policy))
    if pcr in (11, 12) and not ended:
        found.open.add(pcr)


def _line(pcr: int, one: Extension, policy: Boot) -> str | None:
    """Return the kernel's command line if its text is known and a pattern allows it; else None."""
    if policy.command_lines is None or pcr not in (8, 12):
        return None
    line = logged_line(pcr, one)
    return line if line is not None and policy.allows_line(line) else None


def logged_line(pcr: int, one: Extension) -> str | None:
    """Return the text measured into *pcr* if it has the form of a command line, regardless of the log's label."""
    for data in one.preimages():
        wide = data[1:2] == b"\0"
        if wide or pcr == 8:
            line = events.text(data)
            if line and (wide or measured.starts_with_path(line)):
                return line
    return None


def _worst(pcr: int, one: Extension, extended: Sequence[Extension], policy: Boot) -> Extension:
    """Return the extension that an error message about *one* should name.

    In PCR 8, this is the refused command line, which says more than GRUB's command.
    """
    for other in extended if pcr == 8 else ():
        if other.kind is not None and events.is_command_line(other.source):  # type: ignore[arg-type]
            line = logged_line(pcr, other)
            if line is not None and not policy.allows_line(line):
                return other
    return one


def _refuse(pcr: int, one: Extension) -> None:
    """Raise the error for an extension that is not allowed. The log's label only selects the message."""
    said = f"PCR {pcr}: {one.digest.hex()}"
    if pcr in (8, 12) and one.kind is not None and events.is_command_line(one.source):  # type: ignore[arg-type]
        line = logged_line(pcr, one)
        if line is None:
            raise UnknownCommandLine(f"PCR {pcr}: the command line in the log is not what was measured")
        raise UnknownCommandLine(f"command line {line[:200]!r} matches no pattern")
    if one.kind is None:
        raise UnexpectedEvent(
            f"{said} is neither listed by the policy nor one of systemd's own words (the log calls it {one.claimed})"
        )
    raise UnknownFile(f"{said} was loaded or run (the log calls it {one.claimed})")
