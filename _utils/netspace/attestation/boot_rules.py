"""Judge a boot: every digest of every PCR that a rule touches has to be allowed.

A digest is allowed in three cases: the policy lists it; it is the digest of a constant that a specification fixes
(:mod:`netspace.attestation.measured`); or its preimage is known and has a form that only harmless data has: a
variable, a command line that a pattern allows, a word of systemd's. The log's type and origin of an event decide
nothing. In order:

1. the logs lead to every quoted value but those of ``unchecked`` PCRs;
2. each quoted PCR is covered, and every rule rests on judged PCRs (:func:`boot_policy.gaps`);
3. PCR 7 (Secure Boot, dbx, signers, SBAT), PCR 14 (shim), PCR 4 (programs);
4. PCRs 8, 12, 9, 11, 13: commands, command lines, loaded files;
5. plain values.

A boot that was judged good is good again while nothing of what was judged differs (:class:`GoodBoot`).

Pure: no file, no network, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from netspace.attestation import boot_policy, events, extensions, measured, platform_rules
from netspace.attestation.boot_policy import FIRMWARE, Boot
from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.extensions import Extension
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

References = Mapping[int, Collection[bytes]]
_UNTOUCHED = bytes(32)
# Where text is logged first: a command line that is known by it is known by its digest in the others.
_ORDER = (8, 12, 9, 11, 13)


@dataclass(frozen=True)
class GoodBoot:
    """A boot that was judged good, as a verifier remembers it of a host.

    :param identity: digest of all that was judged, in hex: see :func:`identity`.
    :param proved: the PCRs that :func:`judged_boot` returned.
    """

    identity: str
    proved: frozenset[int]


def identity(evidence: Evidence, fingerprint: str) -> str:
    """Return the digest of all that :func:`judged_boot` looks at, without references: both logs, values and policy.

    :param fingerprint: of the policy.
    """
    whole = hashlib.sha256(b"netspace: judged boot\0" + fingerprint.encode() + b"\0")
    for log in (evidence.boot_log, evidence.systemd_log):
        whole.update(b"\0" if log is None else b"\1" + hashlib.sha256(log).digest())
    for pcr, value in sorted(evidence.pcrs.items()):
        whole.update(bytes((pcr, len(value))) + value)
    return whole.hexdigest()


def judged_boot(evidence: Evidence, policy: Boot | None, references: References | None) -> frozenset[int]:
    """Check the boot, and return the PCRs that prove a command line which root can't have added later.

    Without ``command_lines`` a listed section ``.cmdline`` of a unified kernel image is one. PCRs 8 and 9 are in the
    measurement list's own first line. PCRs 11 and 12 count where their value is known, or where systemd's words follow
    the line: else a boot that measured none leaves it to be added.

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
            raise LogMismatch(f"PCR {pcr} has a value, and no log has an event for it")
    extended = logs.of(touched)
    if policy.secure_boot or policy.dbx or policy.sbat or policy.signers is not None:
        platform_rules.check(extended[7], policy)
    if 14 in policy.judged:
        platform_rules.check_shim(extended[14], policy)
    if policy.applications is not None:
        _applications(extended[4], policy.applications, policy.started_by)
    proved = _loaded(extended, policy)
    plain = {pcr: {*policy.pcrs.get(pcr, ()), *given.get(pcr, ())} for pcr in quoted}
    _values(quoted, plain, quoted.keys() - (policy.judged | policy.unchecked) | policy.pcrs.keys())
    return proved


def _covered(quoted: Mapping[int, bytes], policy: Boot, references: References) -> None:
    for gap in boot_policy.gaps(policy, quoted, references):
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
    """Judge PCR 4: a digest that is neither listed nor a constant of the specification is of a refused program.

    :param started_by: programs that may come right before each program. Root adds programs only after all others.
    """
    seen, last = 0, FIRMWARE
    for one in extended:
        if one.digest in allowed:
            seen += 1
            starters = started_by.get(one.digest)
            if starters is not None and last not in starters:
                by = last.hex() or "the firmware"
                raise UnknownApplication(f"program {one.digest.hex()} ({one.claimed}) was started by {by}")
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
    """Findings in PCRs 8 to 13: whether a kernel was loaded, lines known as text, PCRs that prove a line.

    :ivar open: PCRs where nothing after the line shows that it was there when the system started.
    """

    kernel: bool = False
    lines: list[str] = field(default_factory=list)
    proved: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)


def _loaded(extended: Mapping[int, Sequence[Extension]], policy: Boot) -> frozenset[int]:
    """Judge what boot loader and kernel measured: files, commands, and the kernel's command line.

    Extensions by root after the boot are judged likewise. After systemd's mark for the end of the boot loader's time, a
    measurement proves nothing.
    """
    found = _Found()
    for pcr in _ORDER:
        if pcr not in extended:
            continue
        if pcr in policy.judged:
            _judge_loaded(pcr, extended[pcr], policy, found)
        elif policy.command_lines is not None:  # known by its value: whose line it is needs no proof of the rest
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
            # The content of .cmdline: a unified kernel image, which PCR 4 has by its digest, brings its own line.
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
    """Return the kernel's command line, where its text is known and a pattern allows it."""
    if policy.command_lines is None or pcr not in (8, 12):
        return None
    line = logged_line(pcr, one)
    return line if line is not None and policy.allows_line(line) else None


def logged_line(pcr: int, one: Extension) -> str | None:
    """Return the text that was measured into *pcr* in the form of a command line; the log's label is not considered."""
    for data in one.preimages():
        wide = data[1:2] == b"\0"
        if wide or pcr == 8:
            line = events.text(data)
            if line and (wide or measured.starts_with_path(line)):
                return line
    return None


def _worst(pcr: int, one: Extension, extended: Sequence[Extension], policy: Boot) -> Extension:
    """Return the extension to name in place of *one*: GRUB measures the command before the line, which says more."""
    for other in extended if pcr == 8 else ():
        if other.kind is not None and events.is_command_line(other.source):  # type: ignore[arg-type]
            line = logged_line(pcr, other)
            if line is not None and not policy.allows_line(line):
                return other
    return one


def _refuse(pcr: int, one: Extension) -> None:
    """Raise the refusal of an extension that is not allowed; the log's label chooses only the message."""
    said = f"PCR {pcr}: {one.digest.hex()}"
    if pcr in (8, 12) and one.kind is not None and events.is_command_line(one.source):  # type: ignore[arg-type]
        line = logged_line(pcr, one)
        if line is None:
            raise UnknownCommandLine(f"PCR {pcr}: the command line in the log is not what was measured")
        raise UnknownCommandLine(f"command line {line[:200]!r} matches no pattern")
    if one.kind is None:
        raise UnexpectedEvent(
            f"{said}, which the log calls {one.claimed}, is neither in the policy nor a word of systemd's"
        )
    raise UnknownFile(f"{said} was loaded or run (the log calls it {one.claimed})")
