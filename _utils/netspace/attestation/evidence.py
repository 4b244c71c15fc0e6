"""The messages between an attester and a verifier: their content and their wire form.

Pure values, bounded in size. :meth:`Context.qualifying` binds each signature to one
request. The wire form is a plain mapping (JSON, msgpack), with binary fields in
base64. Nothing here signs, verifies or reads a file.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from netspace.attestation.base64_fields import octets as _bytes
from netspace.attestation.base64_fields import text as _text
from netspace.attestation.ledger_proof import LedgerProof
from netspace.attestation.ledger_proof import parse as _ledger
from netspace.attestation.logs import systemd
from netspace.attestation.logs.eventlog import MAX_LOG
from netspace.attestation.logs.ima import MAX_LIST
from netspace.attestation.refusals import Malformed

PROTOCOL = b"netspace-attest/1"
BANK = "sha256"
BANK_ID = 0x000B
# The Ed25519 key signs this prefix and the qualifying data, so that no other use of the key can be mistaken for it.
SOFTWARE_PREFIX = b"netspace-attest/1 software key\0"
# The data that a TEE's report covers begins with this prefix, for the same reason.
TEE_PREFIX = b"netspace-attest/1 tee report\0"
MAX_PCR = 23
# One spelling per number, so that no PCR can be given twice.
PCR_NAMES = frozenset(str(index) for index in range(MAX_PCR + 1))
MIN_NONCE, MAX_NONCE = 16, 64
# Most bytes of a TEE's report, of the certificates that the TEE's host gave it, and of the area that holds its log.
MAX_REPORT, MAX_TABLE, MAX_AREA = 16 * 1024, 64 * 1024, 512 * 1024
MAX_TEE = MAX_REPORT + MAX_TABLE + MAX_AREA
MAX_CHAIN = 8
# Maximum of further endorsement keys of one TPM.
MAX_OTHERS = 8
# Bytes of a period, which selects an attestation key: each certificate has a period and a key of its own.
PERIOD = 16
# Characters of an answer that are sent in one message: less than half of Salt's limit.
PART = 384 * 1024


@dataclass(frozen=True)
class Context:
    """The request to which one piece of evidence is bound. Attester and verifier must use equal contexts.

    :param verifier: fingerprint of the verifier's key; ``self`` if the host judges itself.
    :param host: the host's identity with this verifier.
    :param session: the verifier's id for this exchange.
    :param nonce: 16 to 64 random bytes, used once.
    :param environments: the lines of a ledger of runs that a software key signs (``LedgerProof.binding``); empty if the
        evidence has no ledger, or if the TPM's NV index proves the ledger.
    :param binding: a further value to which the evidence is bound, such as the id of the boot; may be empty.
    :param key: thumbprint of the host's token key (which signs tokens of its environments), if the evidence vouches for
        this key; else empty.
    """

    verifier: str
    host: str
    session: str
    nonce: bytes
    environments: bytes = b""
    binding: bytes = b""
    key: str = ""

    def __post_init__(self) -> None:
        if not MIN_NONCE <= len(self.nonce) <= MAX_NONCE:
            raise Malformed(f"a nonce of {len(self.nonce)} bytes; expected {MIN_NONCE} to {MAX_NONCE}")

    def qualifying(self) -> bytes:
        """Return the qualifying data of a quote: SHA-256 over the fields, each prefixed with its length."""
        return self._qualifying

    @functools.cached_property
    def _qualifying(self) -> bytes:
        fields = _joined(
            PROTOCOL,
            self.verifier.encode(),
            self.host.encode(),
            self.session.encode(),
            self.nonce,
            hashlib.sha256(self.environments).digest(),
            hashlib.sha256(self.binding).digest(),
            # Verifiers of earlier versions don't know this field, so it is added only if there is a key.
            *((self.key.encode(),) if self.key else ()),
        )
        return hashlib.sha256(fields).digest()

    def report_data(self, key: bytes) -> bytes:
        """Return the 64 bytes that a TEE's report covers: a digest of this context and of the evidence's key.

        :param key: as in :class:`Evidence`.
        """
        return hashlib.sha512(_joined(TEE_PREFIX, self.qualifying(), key)).digest()

    def activation(self, secret: bytes, name: bytes) -> bytes:
        """Return the answer to a credential: an HMAC that proves knowledge of *secret* without revealing it.

        :param name: the attestation key's TPM name.
        """
        fields = _joined(PROTOCOL, self.session.encode(), self.host.encode(), name, self.verifier.encode())
        return hmac.digest(secret, fields, "sha256")


@dataclass(frozen=True)
class Enrolment:
    """A TPM's identity and its attestation key.

    :param template: name of the endorsement key's template, e.g. ``EK-ECC256``.
    :param endorsement: TPMT_PUBLIC of the endorsement key.
    :param certificate: content of the NV index with the endorsement key's certificate; None if the TPM has no
        certificate.
    :param chain: intermediates, DER.
    :param attestation: TPMT_PUBLIC of the attestation key.
    :param tpm: manufacturer, firmware and similar claims of the TPM; not proved.
    :param period: the bytes from which the TPM derived the attestation key; empty if the host judges itself.
    :param others: the TPM's other endorsement keys: template and TPMT_PUBLIC of each.
    """

    template: str
    endorsement: bytes
    certificate: bytes | None
    attestation: bytes
    chain: tuple[bytes, ...] = ()
    tpm: Mapping[str, str] = field(default_factory=dict)
    period: bytes = b""
    others: tuple[tuple[str, bytes], ...] = ()

    def wire(self) -> dict[str, Any]:
        """Return the enrolment as JSON values, the form in which the host sends it (wire form)."""
        return {
            "v": 2,
            "template": self.template,
            "ek": _text(self.endorsement),
            "cert": None if self.certificate is None else _text(self.certificate),
            "chain": [_text(one) for one in self.chain],
            "ak": _text(self.attestation),
            "tpm": dict(self.tpm),
            "period": self.period.hex(),
            "others": [{"template": template, "ek": _text(public)} for template, public in self.others],
        }


@dataclass(frozen=True)
class Measurements:
    """IMA's list, and a quote of PCR 10 alone.

    The kernel continues to measure, so the list may have lines after the quote.

    :param value: value of PCR 10, SHA-256 bank.
    :param first: number of the first line in *lines*.
    :param lines: in the form of ``binary_runtime_measurements``.
    """

    attest: bytes
    signature: bytes
    value: bytes
    first: int
    lines: bytes


@dataclass(frozen=True)
class TeeReport:
    """A confidential guest's report, which covers :meth:`Context.report_data`.

    :param provider: the kernel's name for the report's format. The name only selects the parser.
    :param certificates: the certificates that the host gave to its guest; empty if the host gave none.
    :param log: the guest's boot log (CCEL) without the padding of its memory area. An area without a readable log is
        sent unchanged. None if there is no area.
    """

    provider: str
    report: bytes
    certificates: bytes = b""
    log: bytes | None = None


@dataclass(frozen=True)
class Evidence:
    """Evidence that a host signed for a :class:`Context`.

    :param kind: ``tpm``: a quote; ``software``: a signature by an Ed25519 key, without PCRs.
    :param key: TPMT_PUBLIC of the attestation key, or the 32 bytes of the Ed25519 key.
    :param attest: TPMS_ATTEST, or the prefixed qualifying data.
    :param signature: TPMT_SIGNATURE, or the 64 bytes of the Ed25519 signature.
    :param pcrs: values of the quoted PCRs, SHA-256 bank.
    :param boot_log: the firmware's log, if the host has one.
    :param systemd_log: systemd's measurement log, if the host has one.
    :param ima: the kernel's measurements, if the verifier asked for them.
    :param known_log: SHA-256 of the firmware's log, sent instead of a log that the verifier has already.
    :param tee: a confidential guest's report, if the verifier asked for it.
    :param ledger: the ledger of runs, if the verifier asked for it and the host keeps one.
    """

    kind: Literal["tpm", "software"]
    key: bytes
    attest: bytes
    signature: bytes
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    boot_log: bytes | None = None
    systemd_log: bytes | None = None
    ima: Measurements | None = None
    known_log: str | None = None
    tee: TeeReport | None = None
    ledger: LedgerProof | None = None

    def wire(self) -> dict[str, Any]:
        """Return the wire form. The field ``tee`` is left out without a report, since older verifiers don't know it."""
        return {
            **({} if self.tee is None else {"tee": _tee_wire(self.tee)}),
            "v": 1,
            "kind": self.kind,
            "key": _text(self.key),
            "attest": _text(self.attest),
            "sig": _text(self.signature),
            "bank": BANK,
            "pcrs": {str(pcr): value.hex() for pcr, value in sorted(self.pcrs.items())},
            "bootlog": _log_wire(self),
            "systemdlog": None if self.systemd_log is None else _text(self.systemd_log),
            "ima": None if self.ima is None else _ima_wire(self.ima),
            "env": [] if self.ledger is None else self.ledger.wire(),
        }


def parse(data: Any) -> Evidence:
    """Return the evidence in a wire form.

    :raises Malformed: for unknown or missing fields, other types, and sizes out of bounds.
    """
    keys = {"v", "kind", "key", "attest", "sig", "bank", "pcrs", "bootlog", "systemdlog", "ima", "env"}
    if not isinstance(data, Mapping) or set(data) - {"tee"} != keys:
        raise Malformed(f"evidence: expected a mapping with {', '.join(sorted(keys))}")
    if type(data["v"]) is not int or data["v"] != 1 or data["bank"] != BANK:
        raise Malformed("evidence: expected version 1 and bank sha256")
    kind = data["kind"]
    if kind not in ("tpm", "software"):
        raise Malformed(f"evidence: unknown kind {kind!r:.40}")
    pcrs = data["pcrs"]
    if not isinstance(pcrs, Mapping) or len(pcrs) > MAX_PCR + 1:
        raise Malformed("evidence: pcrs is not a mapping of at most 24 values")
    known = _known(data["bootlog"])
    return Evidence(
        kind,
        _bytes(data["key"], 4096, "key"),
        _bytes(data["attest"], 4096, "attest"),
        _bytes(data["sig"], 4096, "sig"),
        {_pcr(key): _value(value) for key, value in pcrs.items()},
        None if data["bootlog"] is None or known else _bytes(data["bootlog"], MAX_LOG, "bootlog"),
        None if data["systemdlog"] is None else _bytes(data["systemdlog"], systemd.MAX_LOG, "systemdlog"),
        None if data["ima"] is None else _ima(data["ima"]),
        known,
        _tee(data["tee"]) if "tee" in data else None,
        None if data["env"] == [] else _ledger(data["env"]),
    )


def parse_enrolment(data: Any) -> Enrolment:
    """Return the enrolment in a wire form.

    :raises Malformed: for unknown or missing fields, other types, and sizes out of bounds.
    """
    keys = {"v", "template", "ek", "cert", "chain", "ak", "tpm", "period", "others"}
    if not isinstance(data, Mapping) or set(data) != keys:
        raise Malformed(f"enrolment: expected a mapping with {', '.join(sorted(keys))}")
    if type(data["v"]) is not int or data["v"] != 2:
        raise Malformed("enrolment: an unknown version; install the same netspace on master and minion")
    chain, told, others = data["chain"], data["tpm"], data["others"]
    if not isinstance(chain, list) or len(chain) > MAX_CHAIN:
        raise Malformed(f"enrolment: chain is not a list of at most {MAX_CHAIN}")
    if not isinstance(told, Mapping) or len(told) > 16 or any(not _short(one) for pair in told.items() for one in pair):
        raise Malformed("enrolment: tpm is not a mapping of a few short texts")
    if not isinstance(others, list) or len(others) > MAX_OTHERS:
        raise Malformed(f"enrolment: others is not a list of at most {MAX_OTHERS}")
    if any(not isinstance(one, Mapping) or set(one) != {"template", "ek"} for one in others):
        raise Malformed("enrolment: others: expected the fields template and ek in each entry")
    return Enrolment(
        _template(data["template"]),
        _bytes(data["ek"], 4096, "ek"),
        None if data["cert"] is None else _bytes(data["cert"], 8192, "cert"),
        _bytes(data["ak"], 4096, "ak"),
        tuple(_bytes(one, 8192, "chain") for one in chain),
        dict(told),
        period(data["period"]),
        tuple((_template(one["template"]), _bytes(one["ek"], 4096, "ek")) for one in others),
    )


def period(text: Any) -> bytes:
    """Return the period of an attestation key from its wire form: 16 bytes in hex, or an empty text.

    :raises Malformed: for any other value.
    """
    raw = b"" if text == "" else from_hex(text, PERIOD)
    if raw is None:
        raise Malformed(f"period: expected {PERIOD} bytes in hex, or nothing")
    return raw


def _template(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z0-9-]{1,32}", name):
        raise Malformed("enrolment: template: expected the name of a template")
    return name


def _short(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= 64 and (text.isprintable() or not text)


def key_fingerprint(pem: bytes) -> str:
    """Return the fingerprint of a master's public key.

    Master and minion both compute this fingerprint, and it names the master.

    :raises Malformed: when *pem* is not a public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key = load_pem_public_key(pem.strip() + b"\n")
    except (ValueError, UnsupportedAlgorithm) as err:
        raise Malformed(f"the master's key: {err}") from err
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _log_wire(made: Evidence) -> str | dict[str, str] | None:
    if made.known_log is not None:
        return {"sha256": made.known_log}
    return None if made.boot_log is None else _text(made.boot_log)


def _known(data: Any) -> str | None:
    """Return the digest that the host sent in place of its log; None if the host sent the log."""
    if not isinstance(data, Mapping):
        return None
    if set(data) != {"sha256"} or from_hex(data["sha256"], 32) is None:
        raise Malformed("evidence: bootlog is neither a log nor the digest of one")
    return str(data["sha256"])


def _ima_wire(made: Measurements) -> dict[str, Any]:
    return {
        "attest": _text(made.attest),
        "sig": _text(made.signature),
        "value": made.value.hex(),
        "first": made.first,
        "lines": _text(made.lines),
    }


def _ima(data: Any) -> Measurements:
    keys = {"attest", "sig", "value", "first", "lines"}
    if not isinstance(data, Mapping) or set(data) != keys:
        raise Malformed(f"evidence: ima: expected a mapping with {', '.join(sorted(keys))}")
    if type(data["first"]) is not int or not 0 <= data["first"] < 2**31:
        raise Malformed("evidence: ima: first: expected the number of a line")
    return Measurements(
        _bytes(data["attest"], 4096, "ima:attest"),
        _bytes(data["sig"], 4096, "ima:sig"),
        _value(data["value"]),
        data["first"],
        _bytes(data["lines"], MAX_LIST, "ima:lines"),
    )


def _tee_wire(made: TeeReport) -> dict[str, Any]:
    return {
        "provider": made.provider,
        "report": _text(made.report),
        "certs": _text(made.certificates),
        "log": None if made.log is None else _text(made.log),
    }


def _tee(data: Any) -> TeeReport:
    if not isinstance(data, Mapping) or set(data) != {"provider", "report", "certs", "log"}:
        raise Malformed("evidence: tee: expected a mapping with provider, report, certs and log")
    provider = data["provider"]
    if not isinstance(provider, str) or not re.fullmatch(r"[a-z0-9_]{1,32}", provider):
        raise Malformed("evidence: tee: provider: expected the name of a provider")
    return TeeReport(
        provider,
        _bytes(data["report"], MAX_REPORT, "tee:report"),
        _bytes(data["certs"], MAX_TABLE, "tee:certs"),
        None if data["log"] is None else _bytes(data["log"], MAX_AREA, "tee:log"),
    )


def _joined(*fields: bytes) -> bytes:
    """Return the concatenated fields, each prefixed with its length (32 bits, big-endian).

    Because of the prefixes, different fields never give the same bytes.
    """
    return b"".join(len(part).to_bytes(4, "big") + part for part in fields)


def _pcr(key: Any) -> int:
    if isinstance(key, str) and key in PCR_NAMES:
        return int(key)
    raise Malformed(f"evidence: {key!r:.40}: expected the number of a PCR, 0 to 23")


def _value(value: Any) -> bytes:
    raw = from_hex(value, 32)
    if raw is None:
        raise Malformed("evidence: a PCR value that is not 32 bytes in hex")
    return raw


def from_hex(text: Any, size: int) -> bytes | None:
    """Parse *size* bytes in hex.

    Return None for any other text. Blanks aren't allowed either, although ``bytes.fromhex`` would accept them.
    """
    if isinstance(text, str) and len(text) == 2 * size:
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            return None
        if len(raw) == size:
            return raw
    return None
