"""What genuine evidence is worth: boot log, references, boot policy and IMA, in the one legal order.

Pure: no file, no network, no clock. It is asked by ``verifier.verify_quote`` alone, after
everything that was signed was found genuine, and decides on L4 and L5:

1. there are references or a boot policy;
2. the boot log (and systemd's) leads to every quoted value that it speaks of;
3. without a boot policy: each quoted PCR has a value among the references;
4. with one: each quoted PCR is covered (references count for those without a rule); then Secure
   Boot, dbx, signers (PCR 7), UEFI programs (PCR 4), the command line, what was loaded (PCR 9,
   11, 12), plain values. **L4**
5. there is an IMA policy and a list, which continues where the last one ended;
6. lines of it lead to the quoted PCR 10; later ones wait for the next time;
7. it begins with this boot's PCR values and has process 1, and the policy allows each of the lines. **L5**

Names and labels in a log are not measured. So nothing is decided by them but where the data
itself was (:func:`netspace.attestation.events.proved`); what was loaded is known by digest alone.
Only events of quoted PCRs are looked at: the others may be anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from netspace.attestation import eventlog, events, ima_rules, measurelog
from netspace.attestation.eventlog import NO_ACTION, Event
from netspace.attestation.evidence import BANK, Evidence
from netspace.attestation.ima import State
from netspace.attestation.policy import Boot, Policy
from netspace.attestation.refusals import (
    LogMismatch,
    NoBootLog,
    NoImaPolicy,
    NoPolicy,
    OldRevocations,
    Refused,
    SecureBootOff,
    Uncovered,
    UnexpectedEvent,
    UnknownApplication,
    UnknownCommandLine,
    UnknownFile,
    UnknownSigner,
    UnknownValue,
)

References = Mapping[int, Collection[bytes]]

SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
_UNTOUCHED = bytes(32)
_SEPARATED = bytes(4)
# What systemd's stub measures the name of, before the content, into PCR 11 (systemd: src/fundamental/uki.c).
_SECTIONS = (
    *(".profile", ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat"),
    *(".pcrsig", ".pcrpkey", ".dtbauto", ".hwids", ".efifw"),
)
SECTION_NAMES = frozenset(hashlib.sha256(name.encode() + b"\0").digest() for name in _SECTIONS)


@dataclass(frozen=True)
class Appraisal:
    """What evidence is worth, and why not more.

    :param level: 3, 4 or 5.
    :param code: why not the next level (``ok`` at L5).
    :param ima: how far the measurement list was judged; None where it was not.
    """

    level: int
    code: str
    reason: str
    remedy: str
    ima: State | None = None


def appraise(
    evidence: Evidence,
    policy: Policy | None,
    references: References | None,
    *,
    boot: tuple[int, int] = (0, 0),
    start: State | None = None,
) -> Appraisal:
    """Appraise genuine *evidence*.

    :param boot: (resetCount, restartCount) that were quoted.
    :param start: how far this host's measurement list was judged before.
    """
    try:
        judged_boot(evidence, policy.boot if policy else None, references)
    except Refused as err:
        return Appraisal(3, err.code, str(err), err.remedy)
    try:
        if policy is None or policy.ima is None:
            raise NoImaPolicy("what runs after the boot is not measured (IMA)")
        state = ima_rules.judged(evidence, policy.ima, policy.fingerprint, boot, start)
    except Refused as err:
        return Appraisal(4, err.code, str(err), err.remedy)
    if state.refused is not None:
        code, reason = state.refused
        return Appraisal(4, code, f"{reason} [{code}]", ima_rules.remedy(code), state)
    return Appraisal(5, "ok", "boot and programs are as the policy says", "", state)


def ask_from(policy: Policy, start: State | None) -> int:
    """Return the line of the measurement list that the next evidence is to begin with."""
    return start.lines if start is not None and start.policy == policy.fingerprint else 0


def judged_boot(evidence: Evidence, policy: Boot | None, references: References | None) -> None:
    """Check the boot.

    :raises Refused: for the first thing that is not as it should be.
    """
    if policy is None and references is None:
        raise NoPolicy("there are no references for the PCRs")
    if evidence.boot_log is None:
        raise NoBootLog("the firmware gives no boot log")
    quoted = evidence.pcrs
    log = eventlog.parse(evidence.boot_log)
    records = measurelog.parse(evidence.systemd_log) if evidence.systemd_log is not None else ()
    replayed = measurelog.extend(log.replay(BANK), records, BANK)
    log.check(quoted, BANK, replayed)
    if policy is None:
        _values(quoted, references or {}, frozenset(quoted))
        return
    _covered(quoted, policy, references or {})
    told = [event for event in log.events if event.type != NO_ACTION and event.pcr in quoted]
    ruled = judged_pcrs(policy)
    judged = ruled & quoted.keys()
    for pcr in sorted(judged - replayed.keys()):
        if quoted[pcr] != _UNTOUCHED:
            raise LogMismatch(f"PCR {pcr} has a value, and no log has an event for it")
    if policy.secure_boot or policy.dbx or policy.signers is not None:
        _platform([event for event in told if event.pcr == 7], policy)
    if policy.applications is not None:
        _applications([event for event in told if event.pcr == 4], policy.applications)
    lines = _command_lines(told, policy)
    if policy.kernels is not None:
        _loaded(told, policy, lines, [record for record in records if record.pcr in judged])
    plain = {pcr: {*policy.pcrs.get(pcr, ()), *(references or {}).get(pcr, ())} for pcr in quoted}
    _values(quoted, plain, quoted.keys() - (ruled | policy.unchecked) | policy.pcrs.keys())


def judged_pcrs(policy: Boot) -> frozenset[int]:
    """PCRs that are judged by their events."""
    found: set[int] = set()
    if policy.secure_boot and policy.signers is not None:
        found.add(7)
    if policy.applications is not None:
        found.add(4)
    if policy.kernels is not None:
        found |= {9, 11}
        if policy.command_lines is not None:
            found.add(12)
    return frozenset(found)


def _covered(quoted: Mapping[int, bytes], policy: Boot, references: References) -> None:
    covered = judged_pcrs(policy) | policy.unchecked | policy.pcrs.keys() | references.keys()
    open_pcrs = sorted(quoted.keys() - covered)
    if open_pcrs:
        raise Uncovered(f"PCRs {', '.join(map(str, open_pcrs))} are quoted, and nothing says what they may be")
    needs = {
        "secure_boot": ({7}, policy.secure_boot),
        "dbx": ({7}, bool(policy.dbx)),
        "signers": ({7}, policy.signers is not None),
        "applications": ({4}, policy.applications is not None),
        "kernels": ({9, 11}, policy.kernels is not None),
        "command_lines": ({8, 9, 11, 12}, policy.command_lines is not None),
    }
    for rule, (pcrs, there) in needs.items():
        if there and not pcrs & quoted.keys():
            raise Uncovered(f"{rule}: needs PCR {' or '.join(map(str, sorted(pcrs)))}, which is not quoted")
    missing = sorted(policy.pcrs.keys() - quoted.keys())
    if missing:
        raise Uncovered(f"pcrs: PCR {missing[0]} is not quoted")


def _values(quoted: Mapping[int, bytes], references: References, pcrs: Collection[int]) -> None:
    for pcr in sorted(pcrs):
        if quoted[pcr] not in references.get(pcr, ()):
            raise UnknownValue(f"PCR {pcr} has a value that is not among the references: {quoted[pcr].hex()}")


def _platform(told: list[Event], policy: Boot) -> None:
    """PCR 7: firmware's Secure Boot variables up to a separator, and what was trusted for whom.

    After the separator everybody may extend the PCR, so a variable counts before it only, and once.
    """
    settings: dict[tuple[str, str], bytes] = {}
    authorities: list[events.Variable] = []
    separated = False
    for event in told:
        kind = events.type_name(event.type)
        data = events.measured_data(event, BANK)
        if data is None:
            raise UnexpectedEvent(f"PCR 7: the data of an event ({kind}) is not what was measured")
        if event.type == events.SEPARATOR:
            if separated or data != _SEPARATED:
                raise UnexpectedEvent("PCR 7: a second separator, or one that tells of an error")
            separated = True
        elif event.type == events.VARIABLE_DRIVER_CONFIG and not separated:
            read = events.variable(data)
            if read is None or (read.guid, read.name) in settings:
                raise UnexpectedEvent("PCR 7: a variable that is none, or is measured twice")
            settings[read.guid, read.name] = read.data
        elif event.type == events.VARIABLE_AUTHORITY:
            read = events.variable(data, events.SLACK)
            if read is None:
                raise UnexpectedEvent("PCR 7: an authority that is no variable")
            authorities.append(read)
        elif event.type == events.EFI_ACTION:
            raise SecureBootOff(f"the firmware says: {data[:64].decode('ascii', 'replace')}")
        else:
            raise UnexpectedEvent(f"PCR 7: an event of type {kind} {'after' if separated else 'before'} the separator")
    if not separated:
        raise UnexpectedEvent("PCR 7: no separator")
    if policy.secure_boot:
        if settings.get((events.GLOBAL, "SecureBoot")) != b"\1":
            raise SecureBootOff("Secure Boot was off")
        if not settings.get((events.GLOBAL, "PK")) or not settings.get((events.GLOBAL, "KEK")):
            raise SecureBootOff("Secure Boot is in setup mode: it has no keys")
    if policy.dbx:
        lists = events.signatures(settings.get((events.SECURITY, "dbx"), b""))
        absent = policy.dbx - set(lists[1] if lists else ())
        if absent:
            raise OldRevocations(
                f"dbx lacks {len(absent)} of {len(policy.dbx)} entries, {min(absent).hex()} among them"
            )
    if policy.signers is not None:
        _signers(authorities, policy.signers, policy.applications or frozenset())


def _signers(authorities: list[events.Variable], signers: frozenset[bytes], applications: frozenset[bytes]) -> None:
    """Each authority is EFI_SIGNATURE_DATA: an owner, and a certificate or (48 bytes in all) a program's digest."""
    firmware = 0
    for one in authorities:
        if one.guid == SHIM and one.name == "SbatLevel":
            continue  # a list of revoked generations of shim's, which is no authority
        certificate = events.certificate(one.data)
        if len(one.data) == 48 and certificate in applications:
            firmware += one.guid == events.SECURITY
            continue
        found = hashlib.sha256(certificate).digest()
        if found not in signers:
            raise UnknownSigner(f"{one.name[:40]}: trusted for the certificate {found.hex()}, which is not a signer's")
        firmware += one.guid == events.SECURITY
    if not firmware:
        raise UnknownSigner("the firmware verified nothing that it booted")


def _applications(told: list[Event], allowed: frozenset[bytes]) -> None:
    seen = 0
    for event in told:
        if event.type == events.APPLICATION:
            if event.digests[BANK] not in allowed:
                raise UnknownApplication(f"program {event.digests[BANK].hex()} ({_path(event)}) was run")
            seen += 1
        elif event.type not in (events.SEPARATOR, events.ACTION, events.EFI_ACTION) or not events.proved(event, BANK):
            raise UnexpectedEvent(f"PCR 4: an unexpected event of type {events.type_name(event.type)}")
    if not seen:
        raise UnknownApplication("no UEFI program was run")


def _path(event: Event) -> str:
    """For the message alone: a path is not measured."""
    return str(events.describe(event).get("path", "unknown"))[-80:]


def _command_lines(told: list[Event], policy: Boot) -> set[bytes]:
    """Check the kernel's command line, and return the digests that allowed ones have where only a digest is logged.

    Linux's EFI stub measures it as UTF-16 into PCR 9, as it came from the boot loader (GRUB puts
    ``BOOT_IMAGE=`` before it); systemd's stub measures the section ``.cmdline`` into PCR 11. Neither
    logs the text, so there a pattern without ``*`` is needed.
    """
    if policy.command_lines is None:
        return set()
    proofs = 0
    digests: set[bytes] = set()
    exact = [pattern.text for pattern in policy.command_lines if pattern.exact]
    for event in told:
        if not events.is_command_line(event) or (event.pcr == 12 and event.digests[BANK] in policy.files):
            continue
        line = events.command_line(event, BANK)
        if line is None:
            raise UnknownCommandLine(f"PCR {event.pcr}: the command line in the log is not what was measured")
        if not any(pattern.matches(line) for pattern in policy.command_lines):
            raise UnknownCommandLine(f"command line {line[:200]!r} matches no pattern")
        exact.append(line)
        proofs += 1
    for line in exact:
        for form in (line, f"BOOT_IMAGE={line}", line.strip()):
            wide = form.encode("utf-16-le", "surrogatepass")
            plain = form.encode("utf-8", "surrogatepass")
            for data in (wide, wide + b"\0\0", plain, plain + b"\0", plain + b"\n"):
                digests.add(hashlib.sha256(data).digest())
    proofs += sum(event.pcr in (9, 11) and event.digests[BANK] in digests for event in told)
    if not proofs:
        raise UnknownCommandLine("no quoted PCR proves the kernel's command line")
    return digests


def _loaded(told: list[Event], policy: Boot, lines: set[bytes], records: list[measurelog.Record]) -> None:
    kernels = policy.kernels or frozenset()
    allowed = kernels | policy.initrds | policy.files | lines
    seen = 0
    for event in told:
        if event.pcr not in (9, 11, 12) or (event.pcr == 12 and policy.command_lines is None):
            continue
        digest = event.digests[BANK]
        if event.type == events.SEPARATOR and event.data == _SEPARATED and events.proved(event, BANK):
            continue
        if event.pcr == 11 and digest in SECTION_NAMES:
            continue
        if event.pcr == 12 and events.command_line(event, BANK) is not None:
            continue
        if digest not in allowed:
            said = str(events.describe(event).get("text", ""))[:60]
            raise UnknownFile(f"PCR {event.pcr}: {digest.hex()} was loaded (the log calls it {said!r})")
        seen += digest in kernels
    for record in records:
        # Boot phases and the like: words, not code; believed where they are what was measured.
        if not record.proved(BANK) and record.digests[BANK] not in allowed:
            raise UnexpectedEvent(f"PCR {record.pcr}: systemd's {record.kind!r} is not what was measured")
    if not seen:
        raise UnknownFile("none of the policy's kernels was loaded")
