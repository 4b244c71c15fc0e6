"""Rules for PCRs 7 and 14: the state of Secure Boot, its keys, and whether shim verified the programs that it started.

Only the firmware runs before the separator in PCR 7. So a variable that is measured before the separator has the value
that the firmware read. After the separator, any program can extend the PCR. So every later digest must be allowed, and
no later digest raises trust. Pure: called by :mod:`netspace.attestation.verifier.boot_rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from netspace.attestation.logs import events, measured
from netspace.attestation.logs.measured import SHIM
from netspace.attestation.policy.boot import Boot
from netspace.attestation.refusals import (
    OldRevocations,
    OldShimLevel,
    SecureBootOff,
    ShimInsecure,
    UnexpectedEvent,
    UnknownSigner,
)
from netspace.attestation.verifier.extensions import Extension

_NAMESPACES = {events.GLOBAL: measured.SETTINGS, events.SECURITY: measured.KEY_LISTS}


@dataclass
class Platform:
    """Content of PCR 7.

    :param settings: values of Secure Boot's variables, by name.
    :param revoked: the digests that dbx lists.
    :param authorities: certificates and digests by which firmware and shim trusted the programs that they started.
    """

    settings: dict[str, bytes] = field(default_factory=dict)
    revoked: list[bytes] = field(default_factory=list)
    authorities: list[events.Variable] = field(default_factory=list)


def check(extended: Sequence[Extension], policy: Boot) -> None:
    """Judge PCR 7 by ``secure_boot``, ``dbx``, ``signers`` and ``sbat``.

    :raises Refused: for the first measurement that the policy does not allow.
    """
    found = read(extended)
    settings = found.settings
    if policy.secure_boot:
        if settings.get("SecureBoot") != b"\1":
            raise SecureBootOff("Secure Boot was off")
        if not settings.get("PK") or not settings.get("KEK") or settings.get("SetupMode") == b"\1":
            raise SecureBootOff("Secure Boot is in setup mode: it has no keys")
        if settings.get("AuditMode") == b"\1":
            raise SecureBootOff("Secure Boot is in audit mode: it refuses nothing")
    if policy.dbx:
        absent = policy.dbx.difference(found.revoked)
        if absent:
            raise OldRevocations(
                f"dbx lacks {len(absent)} of {len(policy.dbx)} entries, {min(absent).hex()} among them"
            )
    if policy.signers is not None:
        _signers(found.authorities, policy)
    if policy.sbat:
        _sbat(found.authorities, policy)


def read(extended: Sequence[Extension]) -> Platform:
    """Read PCR 7. Each digest must be the separator, a known variable (once), an authority, or a string of systemd's.

    :raises Refused: for any other digest.
    """
    found = Platform()
    separated = False
    for one in extended:
        if one.digest == measured.SEPARATOR:
            if separated:
                raise UnexpectedEvent("PCR 7: a second separator")
            separated = True
            continue
        if separated and one.digest in measured.WORDS[7]:
            continue
        data = one.preimage()
        if data is None:
            raise UnexpectedEvent(f"PCR 7: the data of an event ({one.claimed}) is not what was measured")
        if one.digest == measured.DEBUG_MODE or one.kind == events.EFI_ACTION:
            said = data[:64].decode("ascii", "replace")
            kind = SecureBootOff if one.digest == measured.DEBUG_MODE else UnexpectedEvent
            raise kind(f"PCR 7: the firmware says: {said}")
        if separated:
            _authority(found, events.variable(data, events.SLACK))
        else:
            _setting(found, events.variable(data))
    if not separated:
        raise UnexpectedEvent("PCR 7: no separator")
    return found


def _setting(found: Platform, read: events.Variable | None) -> None:
    """Record a measurement before the separator: a known variable, or the authority of a trusted driver.

    :raises UnexpectedEvent: for any other measurement.
    """
    if read is None or read.name not in _NAMESPACES.get(read.guid, ()):
        name = "none" if read is None else f"{read.name[:40]!r}"
        raise UnexpectedEvent(f"PCR 7: {name} before the separator: no specification has this variable there")
    if read.name in found.settings:
        if read.name not in measured.KEY_LISTS or not _is_authority(read.data):
            raise UnexpectedEvent(f"PCR 7: {read.name} is measured twice before the separator")
        found.authorities.append(read)
        return
    if read.name in measured.KEY_LISTS:
        lists = events.signatures(read.data)
        if lists is None:
            raise UnexpectedEvent(f"PCR 7: {read.name} is not a list of keys")
        if read.name == "dbx":
            found.revoked = lists[1]
    found.settings[read.name] = read.data


def _authority(found: Platform, read: events.Variable | None) -> None:
    """Record a measurement after the separator: the authority of a started program, or a variable of shim.

    :raises UnexpectedEvent: for any other measurement.
    :raises ShimInsecure: when shim's variable turns verification off.
    """
    if read is None:
        raise UnexpectedEvent("PCR 7: an event after the separator does not hold a variable")
    if read.guid == SHIM and read.name in ("MokSBState", "MokDBState") and len(read.data) == 1:
        if read.data != b"\0":
            raise ShimInsecure(f"{read.name}: shim is set not to verify what it starts")
        return
    if read.guid == SHIM and read.name == "MokListTrusted" and read.data in (b"\0", b"\1"):
        return
    if not is_shim_level(read) and not _is_authority(read.data):
        raise UnexpectedEvent(f"PCR 7: {read.name[:40]!r}, which is neither a certificate nor a program's digest")
    found.authorities.append(read)


def is_shim_level(read: events.Variable) -> bool:
    return read.guid == SHIM and read.name in ("SbatLevel", "SBAT") and measured.sbat(read.data) is not None


def _is_authority(data: bytes) -> bool:
    """Return whether *data* is EFI_SIGNATURE_DATA (an owner, then a certificate or digest), or a certificate alone."""
    return len(data) == 48 or (len(data) > 64 and events.certificate(data)[:1] == b"\x30")


def _signers(authorities: Sequence[events.Variable], policy: Boot) -> None:
    firmware = 0
    for one in authorities:
        if is_shim_level(one):
            continue  # shim's list of revoked generations, which is no authority
        certificate = events.certificate(one.data)
        found = measured.digest(certificate)
        listed = found in (policy.signers or ()) or (len(one.data) == 48 and certificate in (policy.applications or ()))
        if not listed:
            raise UnknownSigner(
                f"{one.name[:40]}: was trusted because of the certificate {found.hex()}, which 'signers' does not list"
            )
        firmware += one.guid == events.SECURITY
    if not firmware:
        raise UnknownSigner("the firmware verified nothing that it booted")


def _sbat(authorities: Sequence[events.Variable], policy: Boot) -> None:
    """Check that each recorded ``SbatLevel`` refuses the generations that the policy refuses.

    Shim must record a level before its first trust decision. Later levels alone prove nothing, since root can add them.

    :raises OldShimLevel: when the first level is missing, or a level is too low.
    """
    told = [one for one in authorities if one.guid == SHIM]
    if not told or not is_shim_level(told[0]):
        raise OldShimLevel("shim records no refused generations (SbatLevel) before it trusts anything")
    for one in told:
        if not is_shim_level(one):
            continue
        level = measured.sbat(one.data) or {}
        for component, lowest in sorted(policy.sbat.items()):
            told_lowest = level.get(component, 0)
            if told_lowest < lowest:
                raise OldShimLevel(
                    f"SbatLevel lets {component} of generation {told_lowest} run; the policy asks for {lowest}"
                )


def check_shim(extended: Sequence[Extension], policy: Boot) -> None:
    """Judge PCR 14: the policy lists shim's lists of keys, and shim verifies the programs that it starts.

    A measured byte 1 can be the value of ``MokListTrusted`` (since shim 15.5), or of ``MokSBState``, which turns
    verification off. So the digest of this byte is allowed once, and refused the second time.

    :raises Refused: for the first measurement that the policy does not allow.
    """
    switched = 0
    for one in extended:
        if one.digest in (measured.EMPTY_KEY_LIST, measured.FALSE) or one.digest in measured.WORDS[14]:
            continue
        if one.digest == measured.TRUE:
            switched += 1
            if switched > 1:
                raise ShimInsecure("PCR 14: shim is set not to verify what it starts (MokSBState)")
        elif one.digest not in (policy.mok or ()):
            said = f"{one.digest.hex()} (named {one.claimed} in the log)"
            raise UnknownSigner(f"PCR 14: the policy doesn't list this measurement of shim's keys: {said}")
