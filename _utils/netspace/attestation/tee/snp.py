"""AMD SEV-SNP: verification of attestation reports by the processor's certificates.

The layout is ATTESTATION_REPORT of "SEV Secure Nested Paging Firmware ABI Specification" (56860, revision 1.58),
versions 2 to 5. The certificates are those of "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
Specification" (57230). All integers are little-endian.

:func:`genuine` checks, in this order:

1. the structure;
2. whether a certificate fits the report: kind of key, chip (for a VCEK), reported TCB;
3. the signature;
4. the path to one of the operator's roots.

It returns the bits of the guest's policy without judging them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from netspace.attestation.refusals import TeeCertificate, TeeMalformed, TeeSignature, TeeUntrusted
from netspace.attestation.tee import binary, x509
from netspace.attestation.tee.report import Genuine
from netspace.attestation.tee.x509 import Trust

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

KIND = "snp"
SIZE = 1184
SIGNED = 672
VERSIONS = (2, 3, 4, 5)
ECDSA_P384_SHA384 = 1
TURIN = 0x1A
VCEK, VLEK = 0, 1
KEYS = {VCEK: "vcek", VLEK: "vlek"}

# Bits of the guest's policy (56860, table 10).
SMT, MIGRATION, DEBUG, SINGLE_SOCKET = 1 << 16, 1 << 18, 1 << 19, 1 << 20

# Bit of the platform: since its last reset, the firmware has checked that memory has no aliases (AMD-SB-3015).
ALIAS_CHECK = 1 << 5

_AMD = "1.3.6.1.4.1.3704.1."
_HWID = _AMD + "4"
_CSP = _AMD + "5"
_PARTS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_FMC = "3.9"
# Offsets of the parts in the eight bytes of a TCB (57230, 3.1; 56860, 2.2).
_LAYOUT = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_LAYOUT_TURIN = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}

# GUIDs of the ARK, ASK, VCEK and VLEK certificates in the host's table for its guest (GHCB specification 2.01,
# 4.1.8.1), in the byte order of memory.
_TABLE = frozenset(
    (
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
    )
)
_MAX_ENTRIES = 32


@dataclass(frozen=True)
class Report:
    """A parsed report. Nothing in it is proved yet.

    :param key: :data:`VCEK` or :data:`VLEK`: the kind of key that must have signed the report.
    :param tcb: the reported TCB, from which the signing key is derived.
    :param r: the signature's number r; the field *s* is its number s.
    """

    version: int
    policy: int
    vmpl: int
    platform: int
    key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key: bytes
    author_key: bytes
    report_id: bytes
    tcb: dict[str, int]
    launch_tcb: dict[str, int]
    committed_tcb: dict[str, int]
    chip: bytes
    family: int
    svn: int
    r: int
    s: int


def parse(raw: bytes) -> Report:
    """Parse a report.

    :raises TeeMalformed: when *raw* is not a report of a known version, or a reserved byte is not 0.
    """
    if len(raw) != SIZE:
        raise TeeMalformed(f"SNP report: {len(raw)} bytes instead of {SIZE}")
    reader = binary.Reader(raw, "SNP report")
    version = reader.number(4)
    if version not in VERSIONS:
        raise TeeMalformed(f"SNP report: version {version}; known are {', '.join(map(str, VERSIONS))}")
    svn, policy = reader.number(4), reader.number(8)
    reader.take(32)  # family and image: names that the guest's owner chose
    vmpl, algorithm = reader.number(4), reader.number(4)
    if algorithm != ECDSA_P384_SHA384 or vmpl > 3:
        raise TeeMalformed(f"SNP report: signature algorithm {algorithm} or VMPL {vmpl} is not accepted")
    reader.take(8)  # the current TCB, which may be newer than the reported one
    platform, flags = reader.number(8), reader.number(4)
    key = flags >> 2 & 7
    if flags >> 5 or key not in KEYS:
        raise TeeMalformed(f"SNP report: flags {flags:08x}: not signed by a known kind of key")
    reader.zero(4)
    data, measurement, host_data = reader.take(64), reader.take(48), reader.take(32)
    id_key, author_key, report_id = reader.take(48), reader.take(48), reader.take(32)
    reader.take(32)  # the migration agent's report
    tcb = reader.take(8)
    family = reader.number(1)
    if version == 2:
        if family:
            raise TeeMalformed("SNP report: version 2 with a processor family, which this version does not have")
        reader.zero(23)
    else:
        reader.take(2)  # model and stepping
        reader.zero(21)
    turin = family == TURIN
    chip, committed = reader.take(64), reader.take(8)
    for _ in range(2):  # current and committed build
        reader.take(3)
        reader.zero(1)
    launch = reader.take(8)
    # Mitigation vectors at launch and now, which version 5 defines. Firmware for Turin fills them in version 4 already.
    mitigations = reader.take(16)
    if version < 4 and any(mitigations):
        raise TeeMalformed(f"SNP report: version {version} with mitigation vectors, which this version does not have")
    reader.zero(152)
    r, s = reader.number(72), reader.number(72)
    reader.zero(368)
    reader.end()
    return Report(
        version, policy, vmpl, platform, key, data, measurement, host_data, id_key, author_key, report_id,
        _tcb(tcb, turin), _tcb(launch, turin), _tcb(committed, turin), chip, family, svn, r, s,
    )  # fmt: skip


def genuine(raw: bytes, table: bytes, trust: Trust, now: float) -> Genuine:
    """Verify a report, and return its values.

    :param table: the certificate table that the host gave to the guest; empty if the host gave no table.
    :param now: seconds since the epoch.
    :raises TeeMalformed: when report or table can't be parsed.
    :raises TeeCertificate: when the certificate that came with the report does not fit the report.
    :raises TeeSignature: when certificates fit the report, but none of their keys signed it.
    :raises TeeUntrusted: when no certificate fits the report, or there is no path to a root.
    :raises TeeRevoked: when a certificate was revoked.
    """
    report = parse(raw)
    brought = [x509.load(one) for one in certificates(table)]
    leaf = _leaf(report, raw, brought, trust.known_certificates)
    x509.check(leaf, brought, trust, now)
    return Genuine(
        KIND,
        report.report_data,
        report.measurement,
        "the guest's launch policy allows its host to debug it" if report.policy & DEBUG else "",
        tcb=_lowest(report),
        settings={
            "smt": bool(report.policy & SMT),
            "migration": bool(report.policy & MIGRATION),
            "single_socket": bool(report.policy & SINGLE_SOCKET),
            "alias_check": bool(report.platform & ALIAS_CHECK),
            "vmpl": report.vmpl,
            "host_data": report.host_data,
            "id_key": report.id_key,
            "author_key": report.author_key,
            "chip": report.chip,
            "key": KEYS[report.key],
            "provider": _provider(leaf),
        },
        shown=_shown(report),
    )


def certificates(table: bytes) -> list[bytes]:
    """Return the DER certificates in a host's certificate table (GHCB, 4.1.8.1).

    An entry of the table is GUID, offset and length. The last entry is all zeros.

    :raises TeeMalformed: for entries that point outside the table.
    """
    found: list[bytes] = []
    if not table:
        return found
    reader = binary.Reader(table, "certificate table")
    for _ in range(_MAX_ENTRIES):
        guid, offset, length = reader.take(16), reader.number(4), reader.number(4)
        if not any(guid):
            return found
        if offset + length > len(table):
            raise TeeMalformed(f"certificate table: an entry ends at byte {offset + length} of {len(table)}")
        if _guids(guid) & _TABLE:
            found.append(table[offset : offset + length])
    raise TeeMalformed(f"certificate table: more than {_MAX_ENTRIES} entries")


def _guids(raw: bytes) -> set[str]:
    """Return both spellings of a GUID, one for each byte order, because tools on hosts use either."""
    import uuid

    return {str(uuid.UUID(bytes=raw)), str(uuid.UUID(bytes_le=raw))}


def _leaf(report: Report, raw: bytes, brought: Sequence[Certificate], known: Sequence[Certificate]) -> Certificate:
    """Return the certificate of the key that signed the report.

    Several certificates can match the report, because a VLEK's certificate names no chip, only the TCB. So each match
    is tried.

    :raises Refused: when there is no such certificate; see :func:`genuine`.
    """
    other, fits = "", False
    for certificate in (*brought, *known):
        if x509.extension(certificate, _AMD + _PARTS["snp"]) is None:
            continue
        problem = _mismatch(certificate, report)
        if problem:
            if not other and certificate in brought:
                other = problem
            continue
        if _signed(report, raw, certificate):
            return certificate
        fits = True
    if fits:
        raise TeeSignature("SNP report: the processor's key did not sign the report")
    if other:
        raise TeeCertificate(f"the certificate that came with the report does not fit the report: {other}")
    raise TeeUntrusted(
        f"there is no {KEYS[report.key].upper()} certificate for chip {report.chip.hex()[:16]}... with TCB {report.tcb}"
    )


def _signed(report: Report, raw: bytes, certificate: Certificate) -> bool:
    """Return whether the key of *certificate*, which must be on P-384, signed the report."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    key = cast("ec.EllipticCurvePublicKey", certificate.public_key())
    try:
        key.verify(utils.encode_dss_signature(report.r, report.s), raw[:SIGNED], ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _mismatch(certificate: Certificate, report: Report) -> str:
    """Return why *certificate* does not fit *report*; empty if it fits."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return "it is not for a key on P-384"
    chip = x509.extension(certificate, _HWID)
    if (chip is None) != (report.key == VLEK):
        return f"the report is signed by a {KEYS[report.key].upper()}, and the certificate is of the other kind"
    # The identifier has 8 bytes since Turin, and 64 before (57230, 3.1).
    if chip is not None and (len(chip) not in (8, 64) or chip.ljust(64, b"\0") != report.chip or not any(chip)):
        return f"it is for chip {chip.hex()[:16]}..., the report is of {report.chip.hex()[:16]}..."
    parts = {**_PARTS, "fmc": _FMC} if "fmc" in report.tcb else _PARTS
    certified: dict[str, int] = {}
    for name, number in parts.items():
        value = x509.extension(certificate, _AMD + number)
        if value is None:
            return f"it lacks the version of {name}"
        try:
            certified[name] = binary.number(binary.element(value, binary.INTEGER, "certificate"), "certificate")
        except TeeMalformed as err:
            return f"its version of {name} can't be read: {err.args[0]}"
    if certified != report.tcb:
        return f"it is for TCB {certified}, the report has {report.tcb}"
    return ""


def _provider(leaf: Certificate) -> str:
    """Return the cloud provider to which a VLEK was issued; empty for a VCEK."""
    value = x509.extension(leaf, _CSP)
    if value is None:
        return ""
    text = binary.element(value, binary.IA5, "certificate").decode("ascii", "replace")
    return text if text.isprintable() else ""


def _tcb(raw: bytes, turin: bool) -> dict[str, int]:
    layout = _LAYOUT_TURIN if turin else _LAYOUT
    if any(raw[at] for at in range(8) if at not in layout.values()):
        raise TeeMalformed(f"SNP report: TCB {raw.hex()}: a reserved byte is not 0")
    return {name: raw[at] for name, at in layout.items()}


def _lowest(report: Report) -> dict[str, int]:
    """Return, for each part of the TCB, the lower of its versions at launch and in the report.

    The guest may have been started under an older TCB than the reported one.
    """
    return {name: min(value, report.launch_tcb[name]) for name, value in report.tcb.items()}


def _shown(report: Report) -> dict[str, Any]:
    return {
        "version": report.version,
        "policy": f"{report.policy:016x}",
        "platform": f"{report.platform:016x}",
        "guest_svn": report.svn,
        "report_id": report.report_id.hex(),
        "reported_tcb": report.tcb,
        "launch_tcb": report.launch_tcb,
        "committed_tcb": report.committed_tcb,
    }
