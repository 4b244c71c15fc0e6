"""Report of Azure's paravisor (HCL), by which a TEE vouches for the keys of a vTPM.

The vTPM's NV index 0x01400001 has the report. The paravisor requests the TEE's report from the processor. The TEE's
report covers a JSON document with the vTPM's attestation and endorsement keys. If the TEE's report is genuine, and the
paravisor requested it, the keys belong to the vTPM in the TEE (Microsoft: "Confidential VM guest attestation",
azure-cli ``cvm-attestation-tools``).

For TDX, the index has a TDREPORT. Only the machine that made a TDREPORT can check it, so a TDX quote is needed in
addition.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace import jose
from netspace.attestation.refusals import TeeBinding, TeeMalformed
from netspace.attestation.tee import binary, snp, tdx
from netspace.attestation.tee.report import Genuine
from netspace.attestation.tee.x509 import Trust

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

MAX_SIZE = 16 * 1024
MAGIC = b"HCLA"
# Offset of the TEE's report. A report of either kind takes as much space as an SNP report.
HEADER = 32
SNP, TDX = 2, 4
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
ATTESTATION_KEY, ENDORSEMENT_KEY = "HCLAkPub", "HCLEkPub"
_MAX_KEYS = 16


@dataclass(frozen=True)
class Claims:
    """A parsed report of a paravisor. Nothing in it is proved yet.

    :param kind: :data:`SNP` or :data:`TDX`.
    :param report: the SNP report; for TDX the TDREPORT, which netspace doesn't use.
    :param bound: the hash of the JSON document, which the TEE's report must cover.
    :param claims: the JSON document.
    """

    kind: int
    report: bytes
    bound: bytes
    claims: dict[str, Any]

    def key(self, name: str) -> RSAPublicKey:
        """Return one of the vTPM's keys.

        :param name: :data:`ATTESTATION_KEY` or :data:`ENDORSEMENT_KEY`.
        :raises TeeMalformed: when the document lacks this key, or has it twice.
        """
        from cryptography.hazmat.primitives.asymmetric import rsa

        keys = self.claims.get("keys")
        if not isinstance(keys, list) or len(keys) > _MAX_KEYS or any(not isinstance(one, dict) for one in keys):
            raise TeeMalformed("HCL report: no list of keys")
        named = [one for one in keys if one.get("kid") == name]
        if len(named) != 1 or named[0].get("kty") != "RSA":
            raise TeeMalformed(f"HCL report: {len(named)} keys are named {name}; expected one RSA key")
        modulus, exponent = (_number(named[0].get(part)) for part in ("n", "e"))
        if not 2048 <= modulus.bit_length() <= 4096:
            raise TeeMalformed(f"HCL report: {name} has a wrong size, {modulus.bit_length()} bits")
        try:
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        except ValueError as err:
            raise TeeMalformed(f"HCL report: {name}: {err}") from err


def parse(raw: bytes) -> Claims:
    """Parse the content of the vTPM's NV index; zeros may follow the report.

    :raises TeeMalformed: when the content is not a paravisor's report.
    """
    if len(raw) > MAX_SIZE:
        raise TeeMalformed(f"HCL report: {len(raw)} bytes; at most {MAX_SIZE} are accepted")
    reader = binary.Reader(raw, "HCL report")
    magic, version, size = reader.take(4), reader.number(4), reader.number(4)
    if magic != MAGIC or version not in (1, 2):
        raise TeeMalformed("HCL report: unknown magic number or version")
    reader.take(HEADER - 12)
    report = reader.take(snp.SIZE)
    whole, _, kind, algorithm = (reader.number(4) for _ in range(4))
    if kind not in (SNP, TDX) or algorithm not in _HASHES:
        raise TeeMalformed(f"HCL report: type {kind} with hash {algorithm}: unknown to this version")
    length = reader.number(4)
    document = reader.take(length)
    if whole != 20 + length or size != HEADER + snp.SIZE + whole:
        raise TeeMalformed("HCL report: its lengths contradict each other")
    reader.zero(reader.left)
    try:
        claims = json.loads(document)
    except (ValueError, RecursionError) as err:
        raise TeeMalformed(f"HCL report: {err}") from err
    if not isinstance(claims, dict):
        raise TeeMalformed("HCL report: its document is not a JSON object")
    return Claims(kind, report, hashlib.new(_HASHES[algorithm], document).digest().ljust(64, b"\0"), claims)


def genuine(raw: bytes, evidence: bytes, trust: Trust, now: float) -> tuple[Genuine, Claims]:
    """Verify a paravisor's report; return the TEE's report that covers it, and the claims with the vTPM's keys.

    :param evidence: for SNP, the host's table of certificates (empty if the operator supplies them); for TDX, the
        quote.
    :raises Refused: when the TEE's report is not genuine; see ``snp.genuine`` and ``tdx.genuine``.
    :raises TeeBinding: when the TEE's report covers another document, or the paravisor did not request it.
    """
    claims = parse(raw)
    if claims.kind == SNP:
        found = snp.genuine(claims.report, evidence, trust, now)
        # The paravisor runs at VMPL 0. A report that the guest requested has another level, and may cover any data.
        if found.settings["vmpl"] != 0:
            raise TeeBinding("HCL report: the guest requested the SNP report, not the paravisor")
    else:
        found = tdx.genuine(evidence, trust, now)
    if not hmac.compare_digest(found.report_data, claims.bound):
        raise TeeBinding("HCL report: the TEE's report covers another document")
    return found, claims


def _number(text: Any) -> int:
    """Parse a number of a JWK (RFC 7518, 6.3.1)."""
    if not isinstance(text, str) or not 1 <= len(text) <= 1024:
        raise TeeMalformed("HCL report: a key without modulus or exponent")
    try:
        return int.from_bytes(jose.octets(text, "a key"), "big")
    except jose.Unreadable as err:
        raise TeeMalformed(f"HCL report: {err}") from err
