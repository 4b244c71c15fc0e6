"""Self-appraisal of a host without a master: attester and verifier in one process.

The result tells the host's operator whether TPM, firmware and boot are in the expected state, as long as no attacker
has root. It proves nothing to other hosts, so its verifier is named ``self``. The module ``verifier`` makes the same
checks as on a master, but compares only PCR values (``references``), not a policy. So a self-appraisal covers neither
measurement lists nor TEE reports. The pin (the saved record of the TPM) has the TPM's last clock, but not the boot in
which it was read, so a TPM reset within one boot goes unnoticed.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files
from netspace.attestation import result
from netspace.attestation.evidence import Context, Enrolment, Evidence
from netspace.attestation.minion import attester, software_key
from netspace.attestation.minion.settings import ASK, MASTER, sources
from netspace.attestation.result import LIFETIME, RETRY, Result
from netspace.attestation.tpm import device as tpm
from netspace.errors import MissingError, NetspaceError, StateError
from netspace.layout import Layout

if TYPE_CHECKING:
    from netspace.attestation.tpm.structures import Clock
    from netspace.attestation.verifier.references import References
    from netspace.attestation.verifier.verifier import Verified

VERIFIER = "self"
# Timeout of an enrolment in seconds: the TPM derives all its endorsement keys. Some TPMs take ten seconds per RSA key.
ENROLMENT = 50.0


def appraise(layout: Layout, chosen: Mapping[str, Any]) -> Result:
    """Make and verify evidence, and return the result.

    The function saves only the pin (the TPM's identity and clock) and the software key.

    :param chosen: :func:`netspace.attestation.minion.settings.of`.
    :raises netspace.attestation.refusals.Refused: when the verifier refuses the evidence.
    :raises NetspaceError: when a TPM is configured and required, but can't be used.
    """
    if chosen["tpm"] is None:
        return _result(layout, chosen, _by_software(layout), {}, LIFETIME)
    try:
        verified, information = _by_tpm(layout, chosen)
    except (tpm.DeviceError, MissingError) as err:
        if chosen["policy"] == "require":
            raise
        fallback = _by_software(layout)
        return _result(layout, chosen, fallback, {}, RETRY, reason=f"{err}; fell back to a software key")
    return _result(layout, chosen, verified, information, LIFETIME)


def failed(layout: Layout, chosen: Mapping[str, Any], reason: str) -> Result:
    """Return the result of a failed appraisal: L0, already expired, so that the next apply tries again."""
    return _none(layout, chosen, VERIFIER, reason, "remove the cause that the reason names, and apply again")


def waiting(layout: Layout, chosen: Mapping[str, Any]) -> Result:
    """Return the result of a host that waits for its master's appraisal: L0."""
    return _none(layout, chosen, MASTER, "the master has not judged this host since it was declared the verifier", ASK)


def _none(layout: Layout, chosen: Mapping[str, Any], verifier: str, reason: str, remedy: str) -> Result:
    now = time.time()
    return Result(
        level=0,
        verifier=verifier,
        reason=reason,
        remedy=remedy,
        boot=result.boot_id(layout),
        issued=now,
        expires=now,
        settings=dict(chosen),
        sources=sources(layout, chosen),
        tpm={},
    )


def evidence(
    layout: Layout,
    chosen: Mapping[str, Any],
    context: Context,
    ima_from: int | None = None,
    period: bytes = b"",
    ledger: attester.Certify | None = None,
) -> Evidence:
    """Return evidence for a remote verifier's *context*, signed by the configured TPM or the software key.

    :param ima_from: include IMA's list from this line on, with a quote of PCR 10; None: no list.
    :param period: the registrar's bytes from which the TPM derives the attestation key.
    :param ledger: certifies the ledger of runs, if the verifier asks for it; not for a software key.
    :raises NetspaceError: when the configured TPM can't be used, or when IMA's list is missing.
    """
    if chosen["tpm"] is None:
        return attester.by_key(software_key.load(layout), context)
    root = layout.root
    logs = attester.boot_log(root), attester.systemd_log(root)
    measured = None if ima_from is None else functools.partial(attester.measured, root, ima_from)
    return tpm.run(
        chosen["tpm"],
        lambda device: attester.by_tpm(device, context, chosen["pcrs"], *logs, measured, period, ledger),
        lock=lock_path(layout),
    )


def enroll(
    layout: Layout, chosen: Mapping[str, Any], template: str | None, period: bytes = b"", *, others: bool = False
) -> Enrolment:
    """Return the TPM's identity for a remote registrar.

    :param template: selects an endorsement key that the registrar already knows; None: the registrar knows no key.
    :param period: selects the attestation key.
    :param others: include the TPM's other endorsement keys.
    :raises NetspaceError: when no TPM is configured, or the TPM can't be used.
    """
    if chosen["tpm"] is None:
        raise NetspaceError("attestation:tpm names no TPM: there is nothing to enrol")
    return tpm.run(
        chosen["tpm"],
        lambda device: attester.enrol(device, template, period, others=others),
        lock=lock_path(layout),
        timeout=ENROLMENT,
    )


def activate(
    layout: Layout,
    chosen: Mapping[str, Any],
    credentials: Sequence[attester.Credential],
    context: Context,
    period: bytes,
) -> bytes:
    """Open a registrar's credentials, and return the proof that the TPM opened them.

    :raises NetspaceError: when a credential is for another TPM or for the attestation key of another period.
    """
    if chosen["tpm"] is None:
        raise NetspaceError("attestation:tpm names no TPM: there is nothing to enrol")
    return tpm.run(
        chosen["tpm"],
        lambda device: attester.activate(device, credentials, context, period),
        lock=lock_path(layout),
        timeout=ENROLMENT,
    )


def pin(layout: Layout) -> dict[str, Any] | None:
    """Return the pin: the record of the TPM since this host's first appraisal; None before the first appraisal.

    :raises StateError: when the pin is damaged. It is not replaced automatically, because a new pin would accept any
        TPM.
    """
    path = pin_path(layout)
    record = files.read_json(path)
    if record is None:
        return None
    clock = record.get("clock")
    complete = (
        record.get("v") == 1
        and isinstance(record.get("template"), str)
        and isinstance(record.get("ek"), str)
        and isinstance(clock, dict)
        and all(type(clock.get(key)) is int for key in ("clock", "reset_count", "restart_count"))
    )
    if not complete:
        raise StateError(f"{path}: not a pinned TPM; if this host's TPM is known to be good, remove the file")
    return record


def pin_path(layout: Layout) -> Path:
    return layout.records("attestation") / "pin.json"


def lock_path(layout: Layout) -> Path:
    return layout.records("attestation") / "tpm.lock"


def _context(layout: Layout) -> Context:
    return Context(VERIFIER, software_key.host_id(layout), secrets.token_hex(8), secrets.token_bytes(32))


def _by_software(layout: Layout) -> Verified:
    from netspace.attestation.verifier import verifier

    key = software_key.load(layout)
    context = _context(layout)
    return verifier.verify_software(attester.by_key(key, context), key.public, context)


def _by_tpm(layout: Layout, chosen: Mapping[str, Any]) -> tuple[Verified, dict[str, str]]:
    from netspace.attestation.endorsement import makers
    from netspace.attestation.tpm import structures
    from netspace.attestation.tpm.structures import Clock
    from netspace.attestation.verifier import attestation_keys, verifier

    known = pin(layout)
    context = _context(layout)
    trusted = makers.read(chosen["roots"])
    logs = attester.boot_log(layout.root), attester.systemd_log(layout.root)
    references = _references(chosen["references"])
    previous = None
    if known is not None:
        seen = known["clock"]
        previous = Clock(seen["clock"], seen["reset_count"], seen["restart_count"], True)

    def exchange(device: tpm.Device) -> tuple[Enrolment, Verified, str]:
        enrolment = attester.enrol(device, known["template"] if known else None)
        enrolment = trusted.completed(enrolment, structures.endorsement(enrolment.endorsement).fingerprint)
        challenge = attestation_keys.challenge(
            enrolment,
            context,
            roots=trusted.roots,
            lists=trusted.lists,
            unreadable=trusted.unreadable,
            pinned=known["ek"] if known else None,
            now=time.time(),
        )
        credential = attester.Credential(enrolment.template, challenge.blob, challenge.encrypted)
        answer = attester.activate(device, [credential], context)
        bound = challenge.redeem(answer, time.time())
        made = attester.by_tpm(device, context, chosen["pcrs"], *logs)
        expected = verifier.Expected(context, chosen["pcrs"], previous, references)
        return enrolment, verifier.verify_quote(made, bound, expected), bound.endorsement.fingerprint

    enrolment, verified, fingerprint = tpm.run(chosen["tpm"], exchange, lock=lock_path(layout))
    assert verified.clock is not None
    _remember(layout, enrolment.template, fingerprint, verified.clock)
    return verified, {**enrolment.tpm, "template": enrolment.template, "ek": fingerprint}


def _remember(layout: Layout, template: str, fingerprint: str, clock: Clock) -> None:
    counters = {"clock": clock.clock, "reset_count": clock.reset_count, "restart_count": clock.restart_count}
    files.write_json(pin_path(layout), {"v": 1, "template": template, "ek": fingerprint, "clock": counters})


def _references(path: str | None) -> References | None:
    if path is None:
        return None
    from netspace.attestation.verifier import references

    data = files.read_json(Path(path), "correct it (attestation:references)")
    if data is None:
        raise NetspaceError(f"attestation:references: {path} does not exist")
    return references.parse(data)


def _result(
    layout: Layout,
    chosen: Mapping[str, Any],
    verified: Verified,
    information: Mapping[str, str],
    lifetime: float,
    reason: str = "",
) -> Result:
    now = time.time()
    return Result(
        level=verified.level,
        verifier=VERIFIER,
        reason=reason or verified.reason,
        remedy="make the configured TPM usable" if reason else verified.remedy,
        boot=result.boot_id(layout),
        issued=now,
        expires=now + lifetime,
        settings=dict(chosen),
        sources=sources(layout, chosen),
        tpm=dict(information),
        fallback=bool(reason),
    )
