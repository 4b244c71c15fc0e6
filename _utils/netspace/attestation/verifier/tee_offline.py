"""Offline verification of TEE reports from files, for people on any machine. Shows the result of each check.

A report is the content of a kernel's ``outblob`` (SNP report, TDX quote) or a paravisor's report (``hcl``). The first
bytes show the kind of the report. This module reads no file.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace.attestation.refusals import Refused, TeeBinding, UnknownTee
from netspace.attestation.tee import appraisal, ccel, hcl, snp, tdx
from netspace.attestation.tee.report import Genuine
from netspace.attestation.tee.x509 import Trust
from netspace.attestation.verifier.offline import Report

if TYPE_CHECKING:
    from netspace.attestation.tee.rules import Tee


# Limits in bytes: larger than any report or certificate table, and larger than the area of any log.
MAX_FILE, MAX_LOG = 128 * 1024, 1024 * 1024


@dataclass(frozen=True)
class Given:
    """Content of the files of a report and its attachments; empty for an absent file.

    :param certificates: the host's certificate table (``auxblob``).
    :param quote: a TDX quote, if *report* is a paravisor's.
    :param log: the memory area of the guest's log (CCEL).
    """

    report: bytes
    certificates: bytes = b""
    quote: bytes = b""
    log: bytes = b""


def verify(
    given: Given, trust: Trust, now: float, *, data: bytes | None = None, section: Tee | None = None
) -> dict[str, Any]:
    """Check a report, and return ``{valid, code, reason, checks, report}``.

    :param data: up to 64 bytes that the report must cover, padded with zeros; None: not checked.
    :param section: the policy's rules for the guest; None: not checked.
    """
    shown = Report()
    try:
        _verify(shown, given, trust, now, data, section)
    except Refused as err:
        shown.code, shown.reason = err.code, err.args[0]
        shown.checks.append({"check": err.code, "result": "failed", "detail": err.args[0]})
    found = shown.result()
    return {("report" if key == "quote" else key): value for key, value in found.items()}


def _verify(shown: Report, given: Given, trust: Trust, now: float, data: bytes | None, section: Tee | None) -> None:
    found = _genuine(shown, given, trust, now)
    if data is None:
        shown.skipped("tee-binding", "no data was given; the report was made for what it shows as report_data")
    elif not hmac.compare_digest(found.report_data, data.ljust(64, b"\0")):
        raise TeeBinding(f"the report was made for the data {found.report_data.hex()}, expected {data.hex()}")
    else:
        shown.passed("tee-binding", "the report was made for this data")
    if given.log:
        ccel.check(given.log, found.registers)
        shown.passed("tee-log", "the log leads to the registers")
    if section is None:
        shown.skipped("tee-policy", "no policy was given: measurement, TCB and settings are not judged")
        if found.debug:
            shown.skipped("tee-debug", found.debug)
        return
    rules = section.kinds.get(found.kind)
    if rules is None:
        raise UnknownTee(f"the policy has no rules for {found.kind}")
    appraisal.judge(found, rules, given.log or None)
    shown.passed("tee-policy", "the guest is as the policy says")


def _genuine(shown: Report, given: Given, trust: Trust, now: float) -> Genuine:
    if given.report[:4] == hcl.MAGIC:
        found, claims = hcl.genuine(given.report, given.quote or given.certificates, trust, now)
        shown.quote = {**found.describe(), "vtpm": _vtpm(claims)}
        shown.passed("tee-binding", "the TEE vouches for the vTPM's keys")
    elif len(given.report) == snp.SIZE:
        found = snp.genuine(given.report, given.certificates, trust, now)
        shown.quote = found.describe()
    else:
        found = tdx.genuine(given.report, trust, now)
        shown.quote = found.describe()
    shown.passed("tee-signature", f"a genuine {found.kind} report, by a processor whose maker is trusted")
    return found


def _vtpm(claims: hcl.Claims) -> dict[str, Any]:
    """Return the vTPM's keys (PEM, the form that ``verify_quote`` takes) and the VM's configuration."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    keys = {"attestation_key": hcl.ATTESTATION_KEY, "endorsement_key": hcl.ENDORSEMENT_KEY}
    pem = {
        shown: claims.key(name).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for shown, name in keys.items()
    }
    return {**pem, "configuration": claims.claims.get("vm-configuration")}
