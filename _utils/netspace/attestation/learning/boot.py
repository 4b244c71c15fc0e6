"""Learn rules from the logs of one boot, for :mod:`netspace.attestation.learning.policy`.

The labels in a log show this module which file is a kernel and which an initrd, and which data is a program. A wrong
label has no other effect than that a digest gets into the wrong list, or that the learned policy is refused. Pure: no
file, no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from netspace.attestation import policy_reading
from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.logs import eventlog, events, measured
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy.boot import LOADED
from netspace.attestation.refusals import LogMismatch, Refused
from netspace.attestation.verifier import boot_rules, extensions, platform_rules
from netspace.attestation.verifier.extensions import Extension

# PCRs that no rule rests on. If the firmware doesn't log all that it measures into such a PCR, the PCR may stay
# unchecked.
_APART = frozenset((0, 1, 3, 5, 6))
# The tag with which Linux's EFI stub measures an initrd (drivers/firmware/efi/libstub).
_TAG_INITRD = 0x8F3B22EC


@dataclass(frozen=True)
class Told:
    """Rules learned from the logs of one boot.

    :param rules: the rules, in a policy's written form. ``pinned`` has the digests of command lines whose text is
        known.
    :param problems: why a group of rules could not be learned, by the name of the group's first rule.
    :param unled: PCRs whose quoted value differs from the value that a replay of the log gives.
    """

    evidence: Evidence
    rules: Mapping[str, Any]
    problems: Mapping[str, str]
    unled: frozenset[int] = field(default_factory=frozenset)


def told(evidence: Evidence) -> Told:
    """Return the rules that follow from the logs of a boot.

    :raises Refused: when the logs can't be read, or when the rules rest on PCRs whose quoted values differ from the
        values that the logs give.
    """
    logs = extensions.read(evidence)
    replayed = logs.replayed()
    unled = frozenset(pcr for pcr in _APART & evidence.pcrs.keys() if not _led(pcr, evidence, logs.boot, replayed))
    logs.boot.check({pcr: value for pcr, value in evidence.pcrs.items() if pcr not in unled}, BANK, replayed)
    extended = logs.of(range(24))
    quoted = {pcr: extended[pcr] if pcr in evidence.pcrs else [] for pcr in range(24)}
    rules: dict[str, Any] = {
        "applications": [one.digest.hex() for one in quoted[4] if one.kind == events.APPLICATION],
        "started_by": _starters(quoted[4]),
        "mok": [one.digest.hex() for one in quoted[14] if one.digest not in _SHIM_CONSTANTS],
    }
    problems = {"command_lines": "the command line is not known as text", "signers": "PCR 7 is not quoted"}
    rules.update(_loaded(quoted, problems))
    if 7 in evidence.pcrs:
        rules.update(_platform(quoted[7], problems))
    return Told(evidence, rules, problems, unled)


_SHIM_CONSTANTS = frozenset((measured.EMPTY_KEY_LIST, measured.FALSE, measured.TRUE)) | measured.WORDS[14]


def _starters(extended: Sequence[Extension]) -> dict[str, list[str]]:
    """Return, for each program, the programs that ran directly before it."""
    found: dict[str, list[str]] = {}
    last = "firmware"
    for one in extended:
        if one.kind == events.APPLICATION:
            found.setdefault(one.digest.hex(), []).append(last)
            last = one.digest.hex()
        elif one.digest in measured.CALLS:
            last = "firmware"
    return {program: list(dict.fromkeys(starters)) for program, starters in found.items()}


def _led(pcr: int, evidence: Evidence, log: eventlog.EventLog, replayed: Mapping[int, bytes]) -> bool:
    try:
        log.check({pcr: evidence.pcrs[pcr]}, BANK, replayed)
    except LogMismatch:
        return False
    return True


def _platform(extended: Sequence[Extension], problems: dict[str, str]) -> dict[str, Any]:
    """Return the rules that follow from PCR 7: Secure Boot, dbx, signers of booted programs, SBAT generations."""
    try:
        found = platform_rules.read(extended)
    except Refused as err:
        problems["signers"] = str(err)
        return {}
    if found.settings.get("SecureBoot") != b"\1":
        problems["signers"] = "Secure Boot was off"
        return {}
    levels = [one for one in found.authorities if platform_rules.is_shim_level(one)]
    signers = [
        measured.digest(events.certificate(one.data)).hex()
        for one in found.authorities
        if one not in levels and len(one.data) != 48  # 48 bytes: a program's digest, learned for ``applications``
    ]
    problems["signers"] = "the firmware verified nothing that it booted"
    return {
        "secure_boot": True,
        "dbx": [one.hex() for one in found.revoked],
        "signers": list(dict.fromkeys(signers)),
        "sbat": {
            name: number
            for name, number in ((measured.sbat(levels[0].data) if levels else None) or {}).items()
            if number > 0
        },
    }


def _loaded(extended: Mapping[int, Sequence[Extension]], problems: dict[str, str]) -> dict[str, Any]:
    """Return the rules for the files that boot loader and kernel loaded, and for the command line."""
    lines = {
        one.digest: line
        for pcr in (8, 12)
        for one in extended[pcr]
        if (pcr == 12 or _claims_line(one)) and (line := boot_rules.logged_line(pcr, one)) is not None
    }
    paths = {line.split(" ", 1)[0] for line in lines.values()}
    forms = {form for line in lines.values() for pcr in LOADED for form in measured.line_forms(pcr, line)}
    found: dict[str, list[str]] = {"kernels": [], "initrds": [], "files": [], "pinned": []}
    seen: dict[bytes, str] = {}
    for pcr in LOADED:
        for one in extended[pcr]:
            if extensions.is_word(pcr, one) or (pcr == 11 and one.digest in measured.SECTION_NAMES):
                continue
            kind = "pinned" if one.digest in forms else _kind(one, paths)
            if kind != "files" or one.digest not in seen:
                seen[one.digest] = kind
    for digest, kind in seen.items():
        found[kind].append(digest.hex())
    return {
        **found,
        "grub_commands": [one.digest.hex() for one in extended[8] if one.digest not in lines],
        "command_lines": _patterns(lines.values(), problems),
    }


def _claims_line(one: Extension) -> bool:
    return isinstance(one.source, Event) and events.is_command_line(one.source)


def _patterns(lines: Any, problems: dict[str, str]) -> list[str]:
    """Return command lines as patterns; an empty list if a line is too long or has a ``*``."""
    for line in lines:
        if "*" in line or len(line) > policy_reading.MAX_PATTERN:
            has = "a '*'" if "*" in line else f"more than {policy_reading.MAX_PATTERN} characters"
            problems["command_lines"] = f"a command line has {has}: {line[:60]!r}..."
            return []
    return list(dict.fromkeys(lines))


def _kind(one: Extension, paths: set[str]) -> str:
    """Return the name of the policy's list for a file, by the file's label in the log.

    A wrong label only selects a wrong list.
    """
    if not isinstance(one.source, Event):
        return "files"
    tagged = events.tag(one.source)
    if tagged is not None:
        return "initrds" if tagged[0] == _TAG_INITRD else "files"
    said = events.text(one.source.data) or ""
    path = said[said.find(")") + 1 :] if said.startswith("(") else said
    name = path.rpartition("/")[2]
    if said in (".linux", "grub_linuxefi Kernel") or path in paths or name.startswith(("vmlinuz", "bzImage")):
        return "kernels"
    if said in (".initrd", "grub_linuxefi Initrd") or name.startswith(("initrd", "initramfs")):
        return "initrds"
    return "files"
