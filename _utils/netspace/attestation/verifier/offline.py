"""Offline verification of quotes and logs in the formats of tpm2-tools and the kernel, for people on any machine.

This needs no TPM and no enrolment, and trusts the attestation key that the caller gives. The checks and their order are
those of ``netspace.attestation.verifier.verifier``. Two checks are left out, because they need a session: the key's
binding to a TPM, and the clock. This module reads no file.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from netspace.attestation.evidence import BANK, Evidence, Measurements
from netspace.attestation.logs import eventlog as boot
from netspace.attestation.logs import events, ima
from netspace.attestation.logs import systemd as measurelog
from netspace.attestation.refusals import (
    ListMismatch,
    LogMismatch,
    Malformed,
    Refused,
    Uncovered,
    WrongAttestationCertificate,
    WrongDigest,
    WrongQualifyingData,
    WrongSelection,
)
from netspace.attestation.tpm import pcr_values, structures
from netspace.attestation.verifier import ak_certificate, appraisal, attestation_keys, quote_checks
from netspace.errors import unreadable

if TYPE_CHECKING:
    from netspace.attestation.policy.policy import Policy
    from netspace.attestation.tpm.structures import PublicKey, Quote

MAX_KEY = 16 * 1024
Values = Mapping[str, Mapping[int, bytes]]


@dataclass(frozen=True)
class Issue:
    """A Privacy CA's certificate for the key of a quote, and the files needed to check the certificate; all PEM.

    :param ca: intermediates of the Privacy CA; one of them issued the certificate.
    :param now: time of the check, seconds since the epoch.
    :param crl: revocation list of the issuer; if empty, revocation is not checked.
    """

    certificate: bytes
    ca: bytes
    now: float
    crl: bytes = b""


@dataclass(frozen=True)
class Logs:
    """Content of the log files of a boot; empty for an absent log."""

    boot: bytes = b""
    systemd: bytes = b""
    ima: bytes = b""


@dataclass
class Report:
    """Results of the checks, up to the first failed check.

    :param code: ``ok``, or the stable code of the failure (docs/attestation-reasons.md).
    """

    code: str = "ok"
    reason: str = ""
    checks: list[dict[str, str]] = field(default_factory=list)
    quote: dict[str, Any] = field(default_factory=dict)

    def passed(self, check: str, detail: str) -> None:
        self.checks.append({"check": check, "result": "passed", "detail": detail})

    def skipped(self, check: str, detail: str) -> None:
        self.checks.append({"check": check, "result": "unchecked", "detail": detail})

    def result(self) -> dict[str, Any]:
        """Return the report as the runner prints it."""
        return {
            "valid": self.code == "ok",
            "code": self.code,
            "reason": self.reason,
            "checks": self.checks,
            "quote": self.quote,
        }


def key(raw: bytes) -> tuple[PublicKey, structures.Public | None]:
    """Parse an attestation key: TPM2B_PUBLIC, TPMT_PUBLIC, PEM or DER.

    Return the key, and its TPM attributes. The attributes are None for PEM and DER, which don't have them.

    :raises Malformed: when *raw* has none of these forms, or the key is of another type or too short.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

    if len(raw) > MAX_KEY:
        raise Malformed(f"attestation key: {len(raw)} bytes; at most {MAX_KEY} are accepted")
    if raw[:1] in (b"-", b"\x30"):
        try:
            loaded = load_pem_public_key(raw) if raw[:1] == b"-" else load_der_public_key(raw)
        except (ValueError, UnsupportedAlgorithm) as err:
            raise Malformed(f"attestation key: {err}") from err
        if not isinstance(loaded, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
            raise Malformed("attestation key: neither RSA nor on an elliptic curve")
        if loaded.key_size < (256 if isinstance(loaded, ec.EllipticCurvePublicKey) else 2048):
            raise Malformed(f"attestation key: {loaded.key_size} bits are too few")
        return loaded, None
    if len(raw) >= 2 and int.from_bytes(raw[:2], "big") == len(raw) - 2:
        raw = raw[2:]
    public = structures.public(raw)
    return public.key(), public


def replay(logs: Logs) -> dict[str, Any]:
    """Return the PCR values that result from replaying the logs: ``{banks: {bank: {pcr: hex}}, events: [...]}``.

    With an IMA list, there is also ``ima``: the numbers of ``lines`` and ``violations``, and ``edited``, the lines
    whose digest does not match their data.

    :raises Refused: when a log is malformed.
    """
    if logs.boot:
        found = events.report(boot.parse(logs.boot))
    else:
        found = {"banks": {bank: {} for bank in boot.BANKS.values()}, "events": []}
    if logs.systemd:
        records = measurelog.parse(logs.systemd)
        found["events"] += [record.describe() for record in records]
        for bank, values in found["banks"].items():
            before = {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}
            after = measurelog.extend(before, records, bank)
            found["banks"][bank] = {str(pcr): value.hex() for pcr, value in sorted(after.items())}
    if logs.ima:
        entries = ima_entries(logs.ima)
        for bank, values in found["banks"].items():
            *_, last = b"", *ima.replay(entries, bank)
            if last:
                values[str(ima.PCR)] = last.hex()
        edited = [number for number, entry in enumerate(entries) if not ima.genuine(entry)]
        violations = sum(entry.violation for entry in entries)
        found["ima"] = {"lines": len(entries), "violations": violations, "edited": edited[: events.MAX_LIST]}
    return found


def ima_entries(raw: bytes) -> list[ima.Entry]:
    """Parse an IMA list in any of the kernel's forms."""
    return ima.parse(ima.canonical(raw))


def verify_quote(
    attest: bytes,
    signature: bytes,
    ak: bytes,
    *,
    nonce: bytes | None = None,
    pcrs: bytes = b"",
    logs: Logs | None = None,
    policy: Policy | None = None,
    issue: Issue | None = None,
) -> Report:
    """Check a quote, and the PCR values, logs and certificate that the caller gives with it.

    :param attest: the quote in the form that ``tpm2_quote -m`` writes.
    :param signature: the signature in the form that ``tpm2_quote -s`` writes (``-f tss``, the default).
    :param ak: the attestation key that the caller trusts; see :func:`key`.
    :param nonce: the expected qualifying data; None: not checked.
    :param pcrs: PCR values; see :mod:`netspace.attestation.tpm.pcr_values`.
    :param policy: rules for the boot, and in its section ``ima`` for the programs that ran after the boot.
    :param issue: certificate for the key; None: the caller knows by other means that the key is in a TPM.
    """
    report = Report()
    try:
        values = _verify(report, attest, signature, ak, nonce, pcrs, logs or Logs(), issue)
        if policy is not None:
            _judge(report, values, logs or Logs(), policy)
    except Refused as err:
        report.code, report.reason = err.code, err.args[0]
        report.checks.append({"check": err.code, "result": "failed", "detail": err.args[0]})
    return report


def _verify(
    report: Report,
    attest: bytes,
    signature: bytes,
    ak: bytes,
    nonce: bytes | None,
    pcrs: bytes,
    logs: Logs,
    issue: Issue | None,
) -> Values | None:
    quote = structures.quote(attest)
    report.passed("structure", "TPMS_ATTEST of type quote, made by a TPM (magic)")
    trusted, public = key(ak)
    if public is None:
        report.skipped(
            "ak-attributes",
            "PEM has no TPM attributes, so it is unknown whether the key is restricted and bound to its TPM",
        )
    else:
        attestation_keys.check_attestation_key(public)
        report.passed("ak-attributes", "restricted, signs only, fixed to its TPM")
    if issue is not None:
        _certified(report, trusted, issue)
    signed = quote_checks.check_signature(signature, attest, trusted, public.scheme if public else None)
    report.passed("signature", f"by the attestation key, scheme {signed.scheme:04x}, {structures.HASHES[signed.hash]}")
    report.quote = _shown(quote)
    if nonce is None:
        report.skipped("qualifying-data", f"no nonce was given; the quote has {quote.extra.hex() or 'none'}")
    elif not hmac.compare_digest(nonce, quote.extra):
        raise WrongQualifyingData(f"the quote is for the nonce {quote.extra.hex() or '(none)'}, not {nonce.hex()}")
    else:
        report.passed("qualifying-data", "the quote is for this nonce")
    selections = _selections(quote)
    report.passed("pcr-selection", " + ".join(f"{bank}:{quote_checks.shown(chosen)}" for bank, chosen in selections))
    digest = structures.HASHES[signed.hash]
    values = _given(quote, selections, pcrs, digest) if pcrs else None
    if values is not None:
        report.passed("pcr-digest", "the values are those that were quoted")
    if logs != Logs():
        _check_logs(report, quote, selections, values, logs, digest)
    elif values is None:
        report.skipped("pcr-digest", "neither values nor logs were given")
    return values


def _certified(report: Report, trusted: PublicKey, issue: Issue) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        leaf = x509.load_pem_x509_certificate(issue.certificate[:MAX_KEY]).public_bytes(Encoding.DER)
        issuers = x509.load_pem_x509_certificates(issue.ca[:MAX_KEY])
    except unreadable() as err:
        raise WrongAttestationCertificate(f"certificate or ca: can't be read as certificates in PEM: {err}") from err
    pseudonym = ak_certificate.check(leaf, trusted, issuers, [issue.crl] if issue.crl else None, issue.now)
    report.passed("ak-certificate", f"by the Privacy CA, for a key in a TPM; pseudonym {pseudonym}")
    if not issue.crl:
        report.skipped("ak-certificate-revoked", "no revocation list was given")


def _judge(report: Report, values: Values | None, logs: Logs, policy: Policy) -> None:
    """Judge the boot by a policy. PCR 10 is left to the policy's section ``ima``, since it changes after the boot."""
    quoted = dict((values or {}).get(BANK, {}))
    if not quoted:
        raise Uncovered(f"a policy needs the values of quoted PCRs of the {BANK} bank (pcrs=)")
    moving = quoted.pop(ima.PCR, None)
    made = None
    if logs.ima and moving is not None:
        made = Measurements(b"", b"", moving, 0, ima.canonical(logs.ima))
    evidence = Evidence("tpm", b"", b"", b"", quoted, logs.boot or None, logs.systemd or None, made)
    found = appraisal.appraise(evidence, policy, None)
    if policy.tee is not None:
        report.skipped("tee-none", "the policy demands a TEE, which a quote does not prove; use verify_tee")
    if found.level >= 4:
        report.passed("policy", "the boot is as the policy says")
    if found.level == 5:
        report.passed("policy", "what ran after the boot is as the policy says")
    elif found.level < 4 or policy.ima is not None:
        report.code, report.reason = found.code, f"{found.reason}; {found.remedy}"
        report.checks.append({"check": found.code, "result": "failed", "detail": report.reason})


def _shown(quote: Quote) -> dict[str, Any]:
    return {
        "nonce": quote.extra.hex(),
        "signer": quote.signer.hex(),
        "firmware": f"{quote.firmware:016x}",
        "clock": quote.clock.clock,
        "reset_count": quote.clock.reset_count,
        "restart_count": quote.clock.restart_count,
        "clock_safe": quote.clock.safe,
        "pcrs": {boot.BANKS.get(bank, f"{bank:04x}"): sorted(chosen) for bank, chosen in quote.selections},
        "digest": quote.digest.hex(),
    }


def _selections(quote: Quote) -> list[tuple[str, list[int]]]:
    found: list[tuple[str, list[int]]] = []
    for bank, chosen in quote.selections:
        if not chosen:
            continue
        if bank not in structures.HASHES:
            raise WrongSelection(
                f"the quote covers bank {boot.BANKS.get(bank, f'{bank:04x}')}; expected SHA-256 or better"
            )
        if structures.HASHES[bank] in dict(found):
            raise WrongSelection(f"the quote selects bank {structures.HASHES[bank]} twice")
        if max(chosen) >= boot.PCRS:
            raise WrongSelection(f"the quote selects PCR {max(chosen)}; a TPM has {boot.PCRS} PCRs")
        found.append((structures.HASHES[bank], sorted(chosen)))
    if not found:
        raise WrongSelection("the quote covers no PCR")
    return found


def _given(quote: Quote, selections: list[tuple[str, list[int]]], pcrs: bytes, digest: str) -> Values:
    """Check the caller's values of the quoted PCRs against the quote's digest, and return them.

    :raises WrongSelection: when a quoted PCR has no value.
    :raises WrongDigest: when the values do not match the quote.
    """
    given = pcr_values.parse(pcrs, selections)
    missing = [f"{bank}:{pcr}" for bank, chosen in selections for pcr in chosen if pcr not in given.get(bank, {})]
    if missing:
        raise WrongSelection(f"the quote covers {', '.join(missing)}, but their values are not given")
    joined = b"".join(given[bank][pcr] for bank, chosen in selections for pcr in chosen)
    if not hmac.compare_digest(hashlib.new(digest, joined).digest(), quote.digest):
        raise WrongDigest("the PCR values are not those that were quoted")
    return {bank: {pcr: given[bank][pcr] for pcr in chosen} for bank, chosen in selections}


def _check_logs(
    report: Report,
    quote: Quote,
    selections: list[tuple[str, list[int]]],
    values: Values | None,
    logs: Logs,
    digest: str,
) -> None:
    log = boot.parse(logs.boot) if logs.boot else None
    records = measurelog.parse(logs.systemd) if logs.systemd else ()
    entries = ima_entries(logs.ima) if logs.ima else []
    led = {}
    for bank, _ in selections:
        led[bank] = measurelog.extend(log.replay(bank) if log else {}, records, bank)
    if values is None:
        _check_blind(report, quote, selections, led, entries, digest)
        return
    for bank, chosen in selections:
        if log is not None:
            # IMA's list explains PCR 10, which is checked below.
            after = {pcr: value for pcr, value in led[bank].items() if pcr != ima.PCR}
            log.check({pcr: values[bank][pcr] for pcr in chosen}, bank, after)
            report.passed(
                "log",
                f"{bank}: the logs lead to the quoted values of PCRs "
                f"{quote_checks.shown(after.keys() & set(chosen)) or 'none'}",
            )
        if entries and ima.PCR in chosen:
            number = _ima_prefix(entries, bank, values[bank][ima.PCR])
            report.passed("ima", f"{bank}: {number} of {len(entries)} lines lead to PCR {ima.PCR}")
        unexplained = [pcr for pcr in chosen if pcr not in led[bank] and any(values[bank][pcr].strip(b"\xff"))]
        unexplained = [pcr for pcr in unexplained if not (pcr == ima.PCR and entries)]
        if unexplained:
            report.skipped(
                "log", f"{bank}: PCRs {quote_checks.shown(unexplained)} have quoted values that no log explains"
            )


def _ima_prefix(entries: list[ima.Entry], bank: str, quoted: bytes) -> int:
    if bank == "sha256":
        return ima.match(entries, bytes(32), quoted)
    for number, value in enumerate(ima.replay(entries, bank)):
        if value == quoted:
            return number + 1
    raise ListMismatch(f"IMA list: none of its {len(entries)} lines leads to the {bank} value of PCR {ima.PCR}")


def _check_blind(
    report: Report,
    quote: Quote,
    selections: list[tuple[str, list[int]]],
    led: Mapping[str, Mapping[int, bytes]],
    entries: list[ima.Entry],
    digest: str,
) -> None:
    """Check that replaying the logs gives the quote's digest. Used if the caller gave no PCR values.

    A PCR that no log extends is assumed to have its initial value.

    :raises LogMismatch: when the replay gives another digest.
    """

    def joined(tens: Mapping[str, bytes]) -> bytes:
        out = b""
        for bank, chosen in selections:
            size = hashlib.new(bank).digest_size
            for pcr in chosen:
                untouched = (b"\xff" if 17 <= pcr <= 22 else b"\0") * size
                ten = tens.get(bank) if pcr == ima.PCR else None
                out += ten or led[bank].get(pcr, untouched)
        return out

    candidates: list[Mapping[str, bytes]] = [{}]
    if entries and any(ima.PCR in chosen for _, chosen in selections):
        banks = [bank for bank, chosen in selections if ima.PCR in chosen]
        runs = zip(*(ima.replay(entries, bank) for bank in banks), strict=True)
        # The list may have lines from after the quote, but few: the search below begins at the list's end.
        candidates += [dict(zip(banks, run, strict=True)) for run in runs]
    for number in range(len(candidates) - 1, -1, -1):
        if hmac.compare_digest(hashlib.new(digest, joined(candidates[number])).digest(), quote.digest):
            report.passed("log", "the logs lead to what was quoted")
            if len(candidates) > 1:
                report.passed("ima", f"{number} of {len(entries)} lines lead to what was quoted")
            return
    raise LogMismatch("the logs don't lead to the quoted digest; give pcrs= to learn which PCR differs")
