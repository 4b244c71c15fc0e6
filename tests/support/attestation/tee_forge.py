"""TEE reports made by tests: makers, processors and guests, whose keys the test has.

The layouts are written here a second time, from the specifications, so that tests find a mistake in the library's
parser.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding

from netspace.attestation.tee.x509 import Trust

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
END = START + datetime.timedelta(days=3650)
NOW = (START + datetime.timedelta(days=100)).timestamp()
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)

AMD = "1.3.6.1.4.1.3704.1."
SGX = "1.2.840.113741.1.13.1"
DEBUG = 1 << 19
POLICY = 0x30000
CHIP = hashlib.sha512(b"chip").digest()
TCB = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
LAUNCH = hashlib.sha384(b"launch").digest()


def issue(
    subject: str, key: Key, issuer: str, signer: Key, ca: bool, more: Sequence[tuple[str, bytes]] = (), **how: Any
) -> bytes:
    """Return a certificate as DER.

    :param how: changes to the certificate, by these names: ``start`` and ``end`` of its validity, ``serial``, ``path``
        (the path length), ``crl_sign`` (whether it may sign revocation lists).
    """

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(how.get("serial", 7))
    builder = builder.not_valid_before(how.get("start", START)).not_valid_after(how.get("end", END))
    if ca:
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), False
        )
        usage |= dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False)
        may = x509.KeyUsage(key_cert_sign=True, crl_sign=how.get("crl_sign", True), **usage)
        builder = builder.add_extension(x509.BasicConstraints(True, how.get("path")), True).add_extension(may, True)
    for oid, value in more:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False)
    if isinstance(signer, rsa.RSAPrivateKey):
        return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def revocations(issuer: str | x509.Name, signer: Key, serials: Sequence[int], end: datetime.datetime = END) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]) if isinstance(issuer, str) else issuer
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(START).next_update(end)
    for serial in serials:
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(START).build()
        builder = builder.add_revoked_certificate(one)
    if isinstance(signer, rsa.RSAPrivateKey):
        return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + head + content


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """Return the key with this name. Each key is made once, because making an RSA key takes long."""
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def _ec(name: str, curve: type[ec.EllipticCurve]) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


@functools.cache
def _amd_chain(name: str) -> tuple[bytes, bytes]:
    root, ask = rsa_key(f"{name} ark"), rsa_key(f"{name} ask")
    return (
        issue("ARK", root, "ARK", root, True),
        issue("SEV-Milan", ask, "ARK", root, True, path=0, serial=8, crl_sign=False),
    )


class Amd:
    """AMD: a root, an intermediate for each kind of key, and one processor."""

    def __init__(self, name: str = "amd") -> None:
        self.root_key, self.ask_key = rsa_key(f"{name} ark"), rsa_key(f"{name} ask")
        self.root, self.ask = _amd_chain(name)
        self.key = _ec(f"{name} vcek", ec.SECP384R1)

    def leaf(self, tcb: dict[str, int] = TCB, chip: bytes | None = CHIP, csp: bytes = b"", **how: Any) -> bytes:
        """Return the processor's certificate: a VCEK, or without *chip* a VLEK."""
        parts = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
        more = [(AMD + parts[part], integer(value)) for part, value in tcb.items()]
        if chip is not None:
            more.append((AMD + "4", chip))
        if csp:
            more.append((AMD + "5", tlv(0x16, csp)))
        return issue("SEV-VCEK", how.pop("key", self.key), "SEV-Milan", self.ask_key, False, more, **how)

    def trust(self, *known: bytes, lists: Sequence[bytes] = ()) -> Trust:
        return Trust((self.root,), (self.ask, *known), tuple(lists))

    def report(self, data: bytes = bytes(64), **changes: Any) -> bytes:
        body = snp_body(data, **changes)
        r, s = utils.decode_dss_signature(self.key.sign(body, ec.ECDSA(hashes.SHA384())))
        return body + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


def snp_body(
    data: bytes = bytes(64),
    *,
    version: int = 2,
    policy: int = POLICY,
    vmpl: int = 0,
    flags: int = 0,
    tcb: bytes = bytes([3, 0, 0, 0, 0, 0, 8, 115]),
    launch_tcb: bytes | None = None,
    chip: bytes = CHIP,
    family: int = 0,
    measurement: bytes = LAUNCH,
    host_data: bytes = bytes(32),
    platform: int = 1,
    mitigations: bytes = bytes(16),
) -> bytes:
    """Return the signed part of an SNP report: 672 bytes."""
    out = struct.pack("<IIQ", version, 0, policy) + bytes(32) + struct.pack("<II", vmpl, 1) + tcb
    out += struct.pack("<QII", platform, flags, 0) + data + measurement + host_data + bytes(96) + b"r" * 32 + bytes(32)
    out += tcb + (bytes([family, 1, 1]) if version > 2 else bytes(3)) + bytes(21) + chip + tcb
    out += bytes([1, 55, 1, 0, 1, 55, 1, 0]) + (launch_tcb or tcb) + mitigations
    out += bytes(672 - len(out))
    assert len(out) == 672
    return out


def table(*entries: tuple[str, bytes]) -> bytes:
    """Return a host's table of certificates by GUID, in the byte order that Linux tools write."""
    import uuid

    at = 24 * (len(entries) + 1)
    head, body = b"", b""
    for guid, one in entries:
        head += uuid.UUID(guid).bytes + struct.pack("<II", at + len(body), len(one))
        body += one
    return head + bytes(24) + body


VCEK_GUID = "63da758d-e664-4564-adc5-f4b93be8accd"
VLEK_GUID = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
ASK_GUID = "4ab7b379-bbac-4fe4-a02f-05aef327c782"

QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
FMSPC = bytes.fromhex("00806f050000")
MRTD = hashlib.sha384(b"mrtd").digest()
COMPONENTS = (7, 7, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0)
TEE_TCB = bytes([4, 1, 7, *bytes(13)])


class Intel:
    """Intel: a root, a platform CA, a signer of documents, and one platform with its quoting enclave."""

    def __init__(self, name: str = "intel") -> None:
        self.root_key, self.ca_key = _ec(f"{name} root", ec.SECP256R1), _ec(f"{name} ca", ec.SECP256R1)
        self.pck, self.attestation = _ec(f"{name} pck", ec.SECP256R1), _ec(f"{name} ak", ec.SECP256R1)
        self.signer = _ec(f"{name} tcb", ec.SECP256R1)
        self.root = issue("Intel SGX Root CA", self.root_key, "Intel SGX Root CA", self.root_key, True, path=1)
        self.ca = issue(
            "Intel SGX PCK Platform CA", self.ca_key, "Intel SGX Root CA", self.root_key, True, path=0, serial=8
        )
        self.tcb = issue("Intel SGX TCB Signing", self.signer, "Intel SGX Root CA", self.root_key, False, serial=9)

    def leaf(self, extension: bytes | None = None, **how: Any) -> bytes:
        more = [(SGX, extension if extension is not None else pck_extension())]
        return issue("PCK", self.pck, "Intel SGX PCK Platform CA", self.ca_key, False, more, **how)

    def trust(self, *documents: bytes, lists: Sequence[bytes] = ()) -> Trust:
        return Trust((self.root,), (self.tcb,), tuple(lists), documents)

    def quote(
        self,
        data: bytes = bytes(64),
        *,
        version: int = 4,
        chain: Sequence[bytes] | None = None,
        signer: bytes = QE_SIGNER,
        product: int = 2,
        enclave_attributes: bytes = b"\x11" + bytes(15),
        bound: bytes | None = None,
        current_tcb: bytes = TEE_TCB,
        pad: bytes = b"",
        **changes: Any,
    ) -> bytes:
        head = struct.pack("<HHIHH", version, 2, 0x81, 0, 0) + INTEL_QE + bytes(20)
        body = td_report(data, **changes)
        if version == 5:
            body = struct.pack("<HI", 3, 648) + body + current_tcb + b"v" * 48
        point = self.attestation.public_key().public_numbers()
        key = point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
        extra = bytes(range(32))
        bound = hashlib.sha256(key + extra).digest() if bound is None else bound
        enclave = bytes(20) + bytes(28) + enclave_attributes + bytes(64) + signer + bytes(96)
        enclave += struct.pack("<HH", product, 6) + bytes(60) + bound + bytes(32)
        pem = b"".join(
            x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM)
            for one in (chain if chain is not None else (self.leaf(), self.ca, self.root))
        )
        inner = enclave + _rs(self.pck, enclave) + struct.pack("<H", len(extra)) + extra
        inner += struct.pack("<HI", 5, len(pem)) + pem
        signature = _rs(self.attestation, head + body) + key + struct.pack("<HI", 6, len(inner)) + inner
        return head + body + struct.pack("<I", len(signature)) + signature + pad

    def document(self, kind: str, content: dict[str, Any], key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        """Return TCB information or an identity in the form of Intel's service."""
        signed = json.dumps(content, separators=(",", ":")).encode()
        signature = _rs(key or self.signer, signed).hex().encode()
        return b'{"' + kind.encode() + b'":' + signed + b',"signature":"' + signature + b'"}'


def _rs(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def td_report(
    data: bytes = bytes(64),
    *,
    tcb: bytes = TEE_TCB,
    module_signer: bytes = bytes(48),
    module_attributes: bytes = bytes(8),
    attributes: bytes = bytes(8),
    mrtd: bytes = MRTD,
    config_id: bytes = bytes(48),
    xfam: bytes = bytes(8),
    registers: Sequence[bytes] = (bytes(48),) * 4,
) -> bytes:
    """Return a TD's report of version 1.0: 584 bytes."""
    out = tcb + b"m" * 48 + module_signer + module_attributes + attributes + xfam + mrtd + config_id
    out += bytes(96) + b"".join(registers) + data
    assert len(out) == 584
    return out


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(one) for one in dotted.split("."))
    out = bytes([first * 40 + second])
    for arc in rest:
        part = bytes([arc & 0x7F])
        while arc := arc >> 7:
            part = bytes([arc & 0x7F | 0x80]) + part
        out += part
    return tlv(6, out)


def pck_extension(
    components: Sequence[int] = COMPONENTS, pce_svn: int = 11, fmspc: bytes = FMSPC, pce: bytes = bytes(2)
) -> bytes:
    def pair(below: str, value: bytes) -> bytes:
        return tlv(0x30, _oid(f"{SGX}.{below}") + value)

    tcb = b"".join(pair(f"2.{number}", integer(value)) for number, value in enumerate(components, 1))
    tcb += pair("2.17", integer(pce_svn)) + pair("2.18", tlv(4, bytes(components)))
    out = pair("1", tlv(4, bytes(16))) + pair("2", tlv(0x30, tcb)) + pair("3", tlv(4, pce))
    return tlv(0x30, out + pair("4", tlv(4, fmspc)) + pair("5", tlv(0x0A, b"\1")))


def tcb_info(status: str = "UpToDate", svn: int = 7, module: str = "UpToDate", **changes: Any) -> dict[str, Any]:
    """Return TCB information that the platform of :class:`Intel` satisfies if *svn* is at most 7."""
    components = [{"svn": svn}, *({"svn": value} for value in COMPONENTS[1:])]
    none = "00" * 48
    same = {"mrsigner": none, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    level = {
        "tcb": {
            "sgxtcbcomponents": components,
            "pcesvn": 11,
            "tdxtcbcomponents": [{"svn": value} for value in (5, 0, 7, *bytes(13))],
        },
        "tcbStatus": status,
    }
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": "2026-04-01T00:00:00Z",
        "nextUpdate": "2026-05-01T00:00:00Z",
        "fmspc": FMSPC.hex(),
        "pceId": "0000",
        "tdxModule": same,
        "tdxModuleIdentities": [{"id": "TDX_01", **same, "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbStatus": module}]}],
        "tcbLevels": [level],
        **changes,
    }


def identity(status: str = "UpToDate", svn: int = 4, **changes: Any) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": "2026-04-01T00:00:00Z",
        "nextUpdate": "2026-05-01T00:00:00Z",
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FB" + "FF" * 7 + "00" * 8,
        "mrsigner": QE_SIGNER.hex(),
        "isvprodid": 2,
        "tcbLevels": [{"tcb": {"isvsvn": svn}, "tcbStatus": status}],
        **changes,
    }


def hcl_report(
    report: bytes, document: bytes, *, kind: int = 2, algorithm: int = 1, version: int = 1, pad: int = 64
) -> bytes:
    """Return a paravisor's report in the form of the vTPM's NV index; *report* is an SNP report, or a TDREPORT."""
    runtime = struct.pack("<IIIII", 20 + len(document), 1, kind, algorithm, len(document)) + document
    body = report.ljust(1184, b"\0") + runtime
    return b"HCLA" + struct.pack("<IIII", version, 32 + len(body), 2, 0) + bytes(12) + body + bytes(pad)


def vtpm(*keys: rsa.RSAPrivateKey) -> bytes:
    """Return a paravisor's document with a vTPM's attestation key and endorsement key."""
    import base64

    def text(number: int) -> str:
        return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).decode().rstrip("=")

    found = []
    for name, key in zip(("HCLAkPub", "HCLEkPub"), keys, strict=True):
        numbers = key.public_key().public_numbers()
        found.append({"kid": name, "kty": "RSA", "e": text(numbers.e), "n": text(numbers.n)})
    return json.dumps({"keys": found, "vm-configuration": {"secure-boot": True}}).encode()


def ccel(*events: tuple[int, bytes], pad: bytes = b"\xff" * 512) -> bytes:
    """Return a TD's log area, with one event for each register (1: RTMR 0); each digest is of the event's data."""
    spec = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHH", 1, 0x000C, 48) + b"\0"
    out = struct.pack("<II", 1, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec
    for index, data in events:
        out += struct.pack("<IIIH", index, 13, 1, 0x000C) + hashlib.sha384(data).digest()
        out += struct.pack("<I", len(data)) + data
    return out + pad


def rtmrs(*events: tuple[int, bytes]) -> list[bytes]:
    """Return the register values that result from replaying the log of :func:`ccel`."""
    values = [bytes(48)] * 4
    for index, data in events:
        values[index - 1] = hashlib.sha384(values[index - 1] + hashlib.sha384(data).digest()).digest()
    return values
