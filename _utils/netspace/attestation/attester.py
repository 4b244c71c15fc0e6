"""Makes what a verifier asks for: enrolment, answer to a credential, evidence.

Knows the protocol's host side and nothing of how it is judged. Each function does one
message; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netspace.attestation import software, structures
from netspace.attestation.eventlog import MAX_LOG
from netspace.attestation.evidence import SOFTWARE_PREFIX, Context, Enrolment, Evidence
from netspace.attestation.tpm import Device

BOOT_LOG = "sys/kernel/security/tpm0/binary_bios_measurements"


def enrol(device: Device, template: str | None = None) -> Enrolment:
    """Return the TPM's identity and attestation key.

    :param template: which endorsement key, where the verifier knows one already.
    """
    endorsement = device.endorsement(template)
    with device.attestation_key() as (_, public):
        return Enrolment(
            template=endorsement.template,
            endorsement=endorsement.public,
            certificate=endorsement.certificate,
            attestation=public,
            tpm=device.information(),
        )


def activate(device: Device, enrolment: Enrolment, blob: bytes, encrypted: bytes, context: Context) -> bytes:
    """Open a credential and return the answer that proves it."""
    secret = device.activate(enrolment.template, blob, encrypted)
    return context.activation(secret, structures.public(enrolment.attestation).name)


def by_tpm(device: Device, context: Context, pcrs: Sequence[int], boot_log: bytes | None = None) -> Evidence:
    """Return a quote of *pcrs* for *context*, with the firmware's log."""
    with device.attestation_key() as (handle, public):
        attest, signature, values = device.quote(handle, context.qualifying(), pcrs)
    return Evidence("tpm", public, attest, signature, values, boot_log)


def by_key(key: software.Key, context: Context) -> Evidence:
    """Return evidence by a software key: the same qualifying data, and no claim about PCRs."""
    attest = SOFTWARE_PREFIX + context.qualifying()
    return Evidence("software", key.public, attest, key.sign(attest))


def boot_log(root: Path) -> bytes | None:
    """Return the firmware's log of this boot; None where there is none, or one beyond all bounds.

    The file claims to be empty: it is read to its end.
    """
    try:
        with (root / BOOT_LOG).open("rb") as stream:
            raw = stream.read(MAX_LOG + 1)
    except OSError:
        return None
    return raw if 0 < len(raw) <= MAX_LOG else None
