"""The attester: makes the messages that a verifier asks for (enrolment, answer to a credential, evidence).

The attester appraises nothing, and saves nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from netspace.attestation.evidence import (
    MAX_AREA,
    MAX_CHAIN,
    SOFTWARE_PREFIX,
    Context,
    Enrolment,
    Evidence,
    Measurements,
    TeeReport,
)
from netspace.attestation.ledger_proof import LedgerProof
from netspace.attestation.logs import eventlog, ima, systemd
from netspace.attestation.logs.eventlog import MAX_LOG
from netspace.attestation.minion import software_key
from netspace.attestation.refusals import LogMalformed
from netspace.attestation.tee import configfs
from netspace.attestation.tpm import structures
from netspace.attestation.tpm.device import Device
from netspace.errors import NetspaceError

BOOT_LOG = "sys/kernel/security/tpm0/binary_bios_measurements"
SYSTEMD_LOG = "run/log/systemd/tpm2-measure.log"
TEE_LOG = "sys/firmware/acpi/tables/data/CCEL"
IMA_LIST = "sys/kernel/security/ima/binary_runtime_measurements"
# Every kernel has a file without a suffix; since Linux 6.10 it is a link to the file with an algorithm's suffix.
_IMA_FOLDERS = ("sys/kernel/security/ima", "sys/kernel/security/integrity/ima")
_IMA_NAMES = ("", "_sha1", "_sha256", "_sha384", "_sha512")


log = logging.getLogger(__name__)

# Has the TPM certify the ledger of runs with a loaded attestation key; returns None if that fails.
Certify: TypeAlias = "Callable[[Device, Any, Context], LedgerProof | None]"


class Credential(NamedTuple):
    """A credential for an attestation key, encrypted for the endorsement key of *template*."""

    template: str
    blob: bytes
    encrypted: bytes


class Lines(NamedTuple):
    """Lines of IMA's list, from number *first* on."""

    first: int
    raw: bytes


def enrol(device: Device, template: str | None = None, period: bytes = b"", *, others: bool = False) -> Enrolment:
    """Return the TPM's identity and the attestation key of *period*.

    :param template: selects an endorsement key that the verifier already knows; None: the verifier knows no key.
    :param others: include the TPM's other endorsement keys.
    """
    endorsement = device.endorsement(template)
    more = device.others(endorsement.template) if others else []
    with device.attestation_key(period) as (_, public):
        return Enrolment(
            template=endorsement.template,
            endorsement=endorsement.public,
            certificate=endorsement.certificate,
            attestation=public,
            chain=() if endorsement.certificate is None else device.chain(MAX_CHAIN),
            tpm=device.information(),
            period=period,
            others=tuple((one.template, one.public) for one in more),
        )


def activate(device: Device, credentials: Sequence[Credential], context: Context, period: bytes = b"") -> bytes:
    """Open the credentials of one attestation key, and return the proof that the TPM opened them.

    :param credentials: one for each endorsement key of the enrolment. The TPM must open every one.
    """
    with device.attestation_key(period) as (key, public):
        secret = b"".join(device.activate(key, *one) for one in credentials)
    return context.activation(secret, structures.public(public).name)


def by_tpm(
    device: Device,
    context: Context,
    pcrs: Sequence[int],
    boot_log: bytes | None = None,
    systemd_log: bytes | None = None,
    measured: Callable[[], Lines] | None = None,
    period: bytes = b"",
    ledger: Certify | None = None,
) -> Evidence:
    """Return a quote of *pcrs* for *context*, with the logs of the boot.

    :param measured: a function that reads IMA's list; given if the verifier asks for the list. It is called after the
        quote of PCR 10, so that the list has every line that the quote covers.
    :param period: selects the attestation key; see :meth:`netspace.attestation.tpm.device.Device.attestation_key`.
    :param ledger: a function that certifies the ledger of runs; given if the verifier asks for the ledger.
    """
    made: Measurements | None = None
    with device.attestation_key(period) as (handle, public):
        attest, signature, values = device.quote(handle, context.qualifying(), pcrs)
        if measured is not None:
            ima_attest, ima_signature, ima_values = device.quote(handle, context.qualifying(), (ima.PCR,))
            lines = measured()
            made = Measurements(ima_attest, ima_signature, ima_values[ima.PCR], lines.first, lines.raw)
        runs = None if ledger is None else ledger(device, handle, context)
    return Evidence("tpm", public, attest, signature, values, boot_log, systemd_log, made, ledger=runs)


def by_key(key: software_key.Key, context: Context, ledger: LedgerProof | None = None) -> Evidence:
    """Return evidence that is signed by a software key. It has qualifying data like a quote, but no PCRs.

    :param ledger: the ledger of runs, to which *context* is bound.
    """
    attest = SOFTWARE_PREFIX + context.qualifying()
    return Evidence("software", key.public, attest, key.sign(attest), ledger=ledger)


def with_tee(made: Evidence, root: Path, context: Context, files: configfs.Files | None = None) -> Evidence:
    """Return the evidence in *made*, with a report of this host's TEE added.

    The report covers *context* and the evidence's key. Return *made* unchanged if the host is no confidential guest, or
    if the kernel gives no report. Evidence without a report is valid; the verifier decides on the level.

    :param root: the host's root folder, ``/``; another folder in tests.
    :param files: access to the kernel's files; tests pass their own.
    """
    if not configfs.available(root):
        return made
    try:
        taken = configfs.take(root, context.report_data(made.key), files)
    except configfs.TsmError as err:
        log.warning("no TEE report: %s", err)
        return made
    area = _read(root / TEE_LOG, MAX_AREA)
    return dataclasses.replace(made, tee=TeeReport(taken.provider, taken.report, taken.certificates, _log_of(area)))


def _log_of(area: bytes | None) -> bytes | None:
    """Return the log in a log area, without the padding that may fill most of the area.

    An area without a readable log is returned unchanged, and left to the verifier.
    """
    try:
        return eventlog.unpadded(area) if area else None
    except LogMalformed:
        return area


def boot_log(root: Path) -> bytes | None:
    """Return the firmware's log of this boot; None if there is no log, or if it has more than ``MAX_LOG`` bytes.

    The kernel reports a size of 0 for this file, so the file is read to its end.
    """
    raw = _read(root / BOOT_LOG, MAX_LOG)
    return raw or None


def systemd_log(root: Path) -> bytes | None:
    """Return systemd's measurement log of this boot; None if there is no log, or if it is too large."""
    raw = _read(root / SYSTEMD_LOG, systemd.MAX_LOG)
    return raw or None


def measurement_list(root: Path) -> Path | None:
    """Return the path of IMA's list; None if the kernel offers no list."""
    for folder in _IMA_FOLDERS:
        for name in _IMA_NAMES:
            path = root / folder / f"binary_runtime_measurements{name}"
            if path.exists():
                return path
    return None


def measured(root: Path, first: int) -> Lines:
    """Return IMA's list from line *first* on, converted to the form of ``binary_runtime_measurements``.

    Return no lines if the list has fewer than *first* lines. In this case the host was restarted, and the verifier will
    ask for the whole list.

    :raises NetspaceError: when there is no list, when it is too large, or when it can't be read to its end.
    """
    path = measurement_list(root)
    raw = None if path is None else _read(path, ima.MAX_LIST)
    if raw is None:
        raise NetspaceError(
            f"{path or root / IMA_LIST}: no measurement list of at most {ima.MAX_LIST} bytes; "
            "boot with ima_policy=tcb, and mount securityfs"
        )
    raw = ima.canonical(raw)
    return Lines(first, raw[ima.offset(raw, first) :])


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError:
        return None
    return raw if len(raw) <= limit else None
