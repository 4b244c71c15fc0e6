"""Intel TDX: verification of quotes (versions 4 and 5) by the platform's certificates.

Sources: for a quote's layout, "Intel TDX DCAP: Quote Generation Library and Quote Verification Library" (0.9), appendix
A.3 and A.4; for the layout of a TD's report, "Intel TDX Module v1.5 ABI", TDREPORT. All integers are little-endian,
except for those of ECDSA.

:func:`genuine` makes these checks, in this order:

1. the quote's structure;
2. the quoting enclave (QE) is one of Intel's;
3. the QE's report vouches for the attestation key;
4. the attestation key signed the quote;
5. the key of the platform's certificate (PCK) signed the QE's report;
6. this certificate chains to one of the operator's roots;
7. the TDX module is Intel's;
8. Intel's status of the TCB is good, if the operator has Intel's documents (``tdx_tcb``).

Every owner of an SGX platform can run any enclave, and the platform certifies the enclave's report. So this module
always checks the QE's signer, product and attributes, even without Intel's identity document.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace import ecdsa
from netspace.attestation.refusals import TeeMalformed, TeeRevoked, TeeSignature
from netspace.attestation.tee import binary, tdx_tcb, x509
from netspace.attestation.tee.report import REVOKED, Genuine
from netspace.attestation.tee.tdx_tcb import Enclave, Platform
from netspace.attestation.tee.x509 import Trust

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

KIND = "tdx"
MAX_QUOTE = 16 * 1024
TEE_TDX = 0x81
ECDSA_P256 = 2
HEADER, BODY, BODY_15, ENCLAVE = 48, 584, 648, 384
INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
# Signer and product of Intel's quoting enclave for TDX (Intel PCS, /tdx/certification/v4/qe/identity).
QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
QE_PRODUCT = 2
_ENCLAVE_DEBUG = 1 << 1
# Bit 29 of a TD's attributes, as a bit of their fourth byte.
_MIGRATABLE = 1 << 5
_CHAIN, _QE_REPORT = 5, 6
_MAX_CHAIN = 4


@dataclass(frozen=True)
class Body:
    """A TD's parsed report. Nothing in it is proved yet.

    :param tcb: security versions at the start of the TD.
    :param module_signer: signer of the TDX module; zeros for Intel.
    :param module_attributes: attributes of the TDX module. (The field *attributes* has those of the TD.)
    :param current_tcb: security versions now, because the module can be updated while the TD runs.
    :param services: hash of the service TDs that are bound to the TD. A report of version 1.0 has neither *current_tcb*
        nor *services*: both are None.
    """

    tcb: bytes
    module: bytes
    module_signer: bytes
    module_attributes: bytes
    attributes: bytes
    xfam: bytes
    mrtd: bytes
    config_id: bytes
    owner: bytes
    owner_config: bytes
    registers: tuple[bytes, ...]
    report_data: bytes
    current_tcb: bytes | None
    services: bytes | None


@dataclass(frozen=True)
class Quote:
    """A parsed quote. Nothing in it is proved yet.

    :param signed: the bytes that *key* signed with *signature*.
    :param key: the attestation key: x and y.
    :param enclave: the QE's report, which the PCK signed with *enclave_signature*.
    :param extra: the data that the QE hashed together with *key*.
    """

    version: int
    body: Body
    signed: bytes
    signature: bytes
    key: bytes
    enclave: bytes
    enclave_signature: bytes
    extra: bytes
    chain: tuple[bytes, ...]


def parse(raw: bytes) -> Quote:
    """Parse a quote. Zeros may follow the quote, because some guests return the whole buffer.

    :raises TeeMalformed: when *raw* is not a quote of a known version.
    """
    if len(raw) > MAX_QUOTE:
        raise TeeMalformed(f"TDX quote: {len(raw)} bytes; at most {MAX_QUOTE} are accepted")
    reader = binary.Reader(raw, "TDX quote")
    version = _header(reader)
    size = BODY
    if version == 5:
        kind, size = reader.number(2), reader.number(4)
        if (kind, size) not in ((2, BODY), (3, BODY_15)):
            raise TeeMalformed(f"TDX quote: a body of type {kind} with {size} bytes is unknown")
    body = _body(reader, size)
    signed = raw[: reader.at]
    rest = binary.Reader(reader.take(reader.number(4)), "TDX quote's signature")
    reader.zero(reader.left)
    signature, key = rest.take(64), rest.take(64)
    inner = _data(rest, _QE_REPORT)
    rest.end()
    enclave, enclave_signature = inner.take(ENCLAVE), inner.take(64)
    extra = inner.take(inner.number(2))
    chain = _data(inner, _CHAIN)
    inner.end()
    return Quote(
        version, body, signed, signature, key, enclave, enclave_signature, extra, _chain(chain.take(chain.left))
    )


def _header(reader: binary.Reader) -> int:
    version, kind, tee = reader.number(2), reader.number(2), reader.number(4)
    if version not in (4, 5) or kind != ECDSA_P256 or tee != TEE_TDX:
        raise TeeMalformed(f"TDX quote: version {version} (4, 5 are known), key type {kind}, TEE {tee:02x}: unknown")
    reader.take(4)
    if reader.take(16) != INTEL_QE:
        raise TeeMalformed("TDX quote: not made by Intel's quoting enclave")
    reader.take(20)
    return version


def _body(reader: binary.Reader, size: int) -> Body:
    take = reader.take
    tcb, module, signer = take(16), take(48), take(48)
    module_attributes, attributes, xfam = take(8), take(8), take(8)
    mrtd, config_id, owner, owner_config = take(48), take(48), take(48), take(48)
    registers = tuple(take(48) for _ in range(4))
    data = take(64)
    current, services = None, None
    if size == BODY_15:
        current, services = take(16), take(48)
    return Body(
        tcb, module, signer, module_attributes, attributes, xfam, mrtd, config_id, owner, owner_config, registers,
        data, current, services,
    )  # fmt: skip


def _data(reader: binary.Reader, wanted: int) -> binary.Reader:
    """Return a reader of certification data; the data must have the type *wanted*."""
    kind = reader.number(2)
    if kind != wanted:
        raise TeeMalformed(f"TDX quote: certification data of type {kind} instead of {wanted}")
    return binary.Reader(reader.take(reader.number(4)), "TDX quote's certification data")


def _chain(pem: bytes) -> tuple[bytes, ...]:
    found = x509.from_pem(pem, _MAX_CHAIN)
    if not found:
        raise TeeMalformed("TDX quote: without certificates")
    return tuple(found)


def genuine(raw: bytes, trust: Trust, now: float) -> Genuine:
    """Verify a quote, and return its values.

    :param now: seconds since the epoch.
    :raises TeeMalformed: when the quote can't be parsed.
    :raises TeeSignature: when a signature in the quote is wrong, or Intel didn't sign the quoting enclave or the
        module.
    :raises TeeUntrusted: when there is no path to a root.
    :raises TeeRevoked: when a certificate was revoked, or Intel's status of the TCB is revoked.
    """
    quote = parse(raw)
    enclave = _enclave(quote.enclave)
    if enclave.signer != QE_SIGNER or enclave.product != QE_PRODUCT or enclave.attributes[0] & _ENCLAVE_DEBUG:
        raise TeeSignature("TDX quote: made by another enclave than Intel's for TDX, or by one for debugging")
    bound = hashlib.sha256(quote.key + quote.extra).digest()
    if not hmac.compare_digest(bound + bytes(32), enclave.report_data):
        raise TeeSignature("TDX quote: its enclave vouches for another key")
    _verify(_key(quote.key), quote.signature, quote.signed, "the attestation key did not sign it")
    leaf, *rest = (x509.load(one) for one in quote.chain)
    _verify(leaf.public_key(), quote.enclave_signature, quote.enclave, "the platform did not sign the enclave's report")
    x509.check(leaf, rest, trust, now)
    body = quote.body
    if any(body.module_signer):
        raise TeeSignature("TDX quote: made by a TDX module that Intel did not sign")
    platform = platform_of(leaf, body)
    status = tdx_tcb.status(platform, enclave, trust, now)
    if status == REVOKED:
        raise TeeRevoked(f"TDX quote: Intel calls this platform's TCB revoked (FMSPC {platform.fmspc.hex()})")
    debug = ""
    if body.attributes[0]:
        debug = "the TD was started for debugging, or with another attribute that makes it untrusted"
    elif any(body.module_attributes):
        debug = "the TDX module is one for debugging"
    return Genuine(
        KIND,
        body.report_data,
        body.mrtd,
        debug,
        status=status,
        registers=dict(enumerate(body.registers)),
        settings={
            "config_id": body.config_id,
            "owner": body.owner,
            "owner_config": body.owner_config,
            "attributes": body.attributes,
            "xfam": body.xfam,
            "module": body.module,
            "migration": bool(body.attributes[3] & _MIGRATABLE),
            "services": body.services or bytes(48),
        },
        shown=_shown(quote, platform, enclave),
    )


def _enclave(report: bytes) -> Enclave:
    """Parse the needed fields of an SGX report (Intel SDM, volume 3D, 38.15)."""
    reader = binary.Reader(report, "enclave's report")
    reader.take(16)
    misc = reader.take(4)
    reader.take(28)
    attributes = reader.take(16)
    reader.take(64)
    signer = reader.take(32)
    reader.take(96)
    product, svn = reader.number(2), reader.number(2)
    reader.take(60)
    return Enclave(misc, attributes, signer, product, svn, reader.take(64))


def _key(raw: bytes) -> object:
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + raw)
    except ValueError as err:
        raise TeeMalformed("TDX quote: its key is not on P-256") from err


def _verify(key: object, signature: bytes, data: bytes, problem: str) -> None:
    """Check an ECDSA signature (P-256, SHA-256) that consists of r and s, each of 32 big-endian bytes.

    :raises TeeSignature: when the signature is wrong; the message is *problem*.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TeeSignature("TDX quote: signed by a key that is not on P-256")
    try:
        key.verify(ecdsa.to_der(signature), data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as err:
        raise TeeSignature(f"TDX quote: {problem}") from err


_SGX = "1.2.840.113741.1.13.1"


def platform_of(leaf: Certificate, body: Body) -> Platform:
    """Return the platform's versions from a PCK certificate (Intel PCK Certificate and CRL Profile 1.5, 1.3.5).

    :raises TeeMalformed: when *leaf* is not a PCK certificate.
    """
    what = "PCK certificate"
    raw = x509.extension(leaf, _SGX)
    if raw is None:
        raise TeeMalformed(f"{what}: without Intel's extension")
    fields = _pairs(binary.element(raw, binary.SEQUENCE, what), what)
    tcb = _pairs(_field(fields, "2", binary.SEQUENCE), what, "2.")
    components = tuple(binary.number(_field(tcb, str(number), binary.INTEGER), what) for number in range(1, 17))
    pce_svn = binary.number(_field(tcb, "17", binary.INTEGER), what)
    pce, fmspc = _field(fields, "3", binary.OCTETS), _field(fields, "4", binary.OCTETS)
    if len(pce) != 2 or len(fmspc) != 6:
        raise TeeMalformed(f"{what}: expected 2 bytes of PCE-ID and 6 of FMSPC, got {len(pce)} and {len(fmspc)}")
    tcbs = (body.tcb,) if body.current_tcb is None else (body.tcb, body.current_tcb)
    return Platform(fmspc, pce, components, pce_svn, tcbs, body.module_signer, body.module_attributes)


def _pairs(data: bytes, what: str, below: str = "") -> dict[str, tuple[int, bytes]]:
    """Parse a sequence of (object identifier, value); return the values by identifier, without Intel's prefix."""
    found: dict[str, tuple[int, bytes]] = {}
    for tag, content in binary.elements(data, what):
        pair = binary.elements(content, what)
        if tag != binary.SEQUENCE or len(pair) != 2 or pair[0][0] != binary.OID:
            raise TeeMalformed(f"{what}: Intel's extension is not made of pairs")
        name = binary.oid(pair[0][1], what)
        if not name.startswith(f"{_SGX}.{below}"):
            raise TeeMalformed(f"{what}: the identifier {name} is not accepted there")
        name = name[len(f"{_SGX}.{below}") :]
        if name in found:
            raise TeeMalformed(f"{what}: {name} is given twice")
        found[name] = pair[1]
    return found


def _field(fields: dict[str, tuple[int, bytes]], name: str, tag: int) -> bytes:
    found, content = fields.get(name, (0, b""))
    if found != tag:
        raise TeeMalformed(f"PCK certificate: Intel's extension lacks {name}")
    return content


def _shown(quote: Quote, platform: Platform, enclave: Enclave) -> dict[str, Any]:
    return {
        "version": quote.version,
        "fmspc": platform.fmspc.hex(),
        "tee_tcb_svn": quote.body.tcb.hex(),
        "pce_svn": platform.pce_svn,
        "sgx_components": list(platform.components),
        "qe_svn": enclave.svn,
    }
