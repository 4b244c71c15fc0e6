"""Strict parsers of TPM structures, without libtss2.

The structures are TPMS_ATTEST (quotes, and certificates of NV indices), TPMT_SIGNATURE and TPMT_PUBLIC (TPM 2.0 Library
specification, Part 2: Structures). All integers are big-endian. Every length is checked before it is used, and bytes
after a structure are an error. This module verifies no signature, reads no file and uses no TPM.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeAlias

from netspace.attestation.refusals import Malformed, WrongEndorsementKey, WrongMagic, WrongType

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

    PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MAX_STRUCTURE = 4096
# The fields of TPMS_ATTEST from TPMS_CLOCK_INFO over firmwareVersion to the number of PCR selections.
_QUOTED = struct.Struct(">QIIBQI")
# The same fields without that number.
_CERTIFIED = struct.Struct(">QIIBQ")
# TPM_RH_ENDORSEMENT (Part 2, 7.4).
ENDORSEMENT = 0x4000000B
# TPM_GENERATED_VALUE: if data begins with this value, a restricted key signs it only if the TPM made the data.
GENERATED = 0xFF544347
ATTEST_QUOTE, ATTEST_NV = 0x8018, 0x8014

RSA, ECC, NULL = 0x0001, 0x0023, 0x0010
AES, CFB = 0x0006, 0x0043
RSASSA, RSAPSS, ECDSA = 0x0014, 0x0016, 0x0018
SHA1 = 0x0004
# TPM_ALG_ID of the hashes that evidence may use: SHA-256 or better.
HASHES = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
CURVES = {0x0003: ("secp256r1", 32), 0x0004: ("secp384r1", 48)}

# TPMA_OBJECT (Part 2, 8.3)
FIXED_TPM = 1 << 1
ST_CLEAR = 1 << 2
FIXED_PARENT = 1 << 4
SENSITIVE_DATA_ORIGIN = 1 << 5
USER_WITH_AUTH = 1 << 6
ADMIN_WITH_POLICY = 1 << 7
NO_DA = 1 << 10
ENCRYPTED_DUPLICATION = 1 << 11
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18
KNOWN_ATTRIBUTES = (
    FIXED_TPM
    | ST_CLEAR
    | FIXED_PARENT
    | SENSITIVE_DATA_ORIGIN
    | USER_WITH_AUTH
    | ADMIN_WITH_POLICY
    | NO_DA
    | ENCRYPTED_DUPLICATION
    | RESTRICTED
    | DECRYPT
    | SIGN
)


@functools.lru_cache(maxsize=len(HASHES))
def hash_algorithm(identifier: int) -> HashAlgorithm:
    """Return ``cryptography``'s object for one of :data:`HASHES`."""
    from cryptography.hazmat.primitives import hashes

    known: dict[int, HashAlgorithm] = {0x000B: hashes.SHA256(), 0x000C: hashes.SHA384(), 0x000D: hashes.SHA512()}
    return known[identifier]


class Reader:
    """Sequential reader of a byte string, which never reads past the end.

    :param what: name of the structure, for error messages.
    """

    order: ClassVar[Literal["big", "little"]] = "big"
    malformed: ClassVar[type[Malformed]] = Malformed

    def __init__(self, data: bytes, what: str, limit: int = MAX_STRUCTURE) -> None:
        if len(data) > limit:
            raise self.malformed(f"{what}: {len(data)} bytes; at most {limit} are accepted")
        self._data = data
        self._what = what
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            raise self.refuse(f"ends after {len(self._data)} bytes, but needs {end}")
        part = self._data[self.at : end]
        self.at = end
        return part

    def number(self, size: int) -> int:
        """Read an unsigned number of *size* bytes."""
        return int.from_bytes(self.take(size), self.order)

    def sized(self, limit: int, field: str) -> bytes:
        """Read a TPM2B (a 16-bit length, then that many bytes), and return its content."""
        length = self.number(2)
        if length > limit:
            raise self.refuse(f"{field} of {length} bytes; at most {limit} are accepted")
        return self.take(length)

    @property
    def left(self) -> int:
        """Number of unread bytes."""
        return len(self._data) - self.at

    def refuse(self, message: str) -> Malformed:
        return self.malformed(f"{self._what}: {message}")

    def end(self) -> None:
        """Check that no bytes are left."""
        if self.left:
            raise self.refuse(f"{self.left} bytes too many")


class Clock(NamedTuple):
    """TPMS_CLOCK_INFO (Part 2, 10.11.1). *clock* is the time in ms since the TPM was last cleared."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


class Quote(NamedTuple):
    """TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE (Part 2, 10.12.8).

    :param signer: qualified name of the key that signed the quote.
    :param extra: the qualifying data.
    :param selections: bank (TPM_ALG_ID) and selected PCRs, in the quote's order.
    :param digest: digest of the selected PCRs' values.
    """

    signer: bytes
    extra: bytes
    clock: Clock
    firmware: int
    selections: tuple[tuple[int, frozenset[int]], ...]
    digest: bytes


def quote(raw: bytes) -> Quote:
    """Parse a quote.

    :raises WrongMagic: when the TPM did not make these bytes itself.
    :raises WrongType: when the bytes are an attestation structure of another type.
    :raises Malformed: when the bytes are not an attestation structure.
    """
    reader, signer, extra = _attested(raw, ATTEST_QUOTE, "a quote")
    ticks, resets, restarts, safe, firmware, count = _QUOTED.unpack(reader.take(_QUOTED.size))
    clock = _clock(reader, ticks, resets, restarts, safe)
    if count > 16:
        raise reader.refuse(f"{count} PCR selections; at most 16 are accepted")
    selections = tuple(_selection(reader) for _ in range(count))
    digest = reader.sized(64, "the PCR digest")
    reader.end()
    return Quote(signer, extra, clock, firmware, selections, digest)


class CertifiedIndex(NamedTuple):
    """TPMS_ATTEST of type TPM_ST_ATTEST_NV (Part 2, 10.12.9).

    :param signer: qualified name of the key that signed the certificate.
    :param extra: the qualifying data.
    :param name: name of the NV index. It covers the index's number, type and attributes.
    :param offset: position of the first byte of *content* in the index.
    """

    signer: bytes
    extra: bytes
    clock: Clock
    name: bytes
    offset: int
    content: bytes


def certified_index(raw: bytes) -> CertifiedIndex:
    """Parse a TPM's certificate of an NV index.

    :raises WrongMagic: when the TPM did not make these bytes itself.
    :raises WrongType: when the bytes are an attestation structure of another type.
    :raises Malformed: when the bytes are not an attestation structure.
    """
    reader, signer, extra = _attested(raw, ATTEST_NV, "a certificate of an NV index")
    ticks, resets, restarts, safe, _ = _CERTIFIED.unpack(reader.take(_CERTIFIED.size))
    clock = _clock(reader, ticks, resets, restarts, safe)
    name, offset = reader.sized(68, "the index's name"), reader.number(2)
    content = reader.sized(2048, "the index's content")
    reader.end()
    return CertifiedIndex(signer, extra, clock, name, offset, content)


def _attested(raw: bytes, kind: int, what: str) -> tuple[Reader, bytes, bytes]:
    """Read the head of a TPMS_ATTEST of a type; return the reader, the signer's name, and the qualifying data."""
    reader = Reader(raw, "TPMS_ATTEST")
    magic = reader.number(4)
    if magic != GENERATED:
        raise WrongMagic(f"TPMS_ATTEST begins with {magic:08x} instead of {GENERATED:08x}: not made by a TPM")
    found = reader.number(2)
    if found != kind:
        raise WrongType(f"TPMS_ATTEST is of type {found:04x}; expected {what} ({kind:04x})")
    return reader, reader.sized(68, "the signer's name"), reader.sized(64, "qualifying data")


def _clock(reader: Reader, ticks: int, resets: int, restarts: int, safe: int) -> Clock:
    if safe > 1:
        raise reader.refuse(f"'safe' is {safe}, neither yes nor no")
    return Clock(ticks, resets, restarts, safe == 1)


def _selection(reader: Reader) -> tuple[int, frozenset[int]]:
    bank = reader.number(2)
    size = reader.number(1)
    if not 1 <= size <= 4:
        raise reader.refuse(f"a PCR selection of {size} bytes; expected 1 to 4")
    return bank, _set_bits(reader.take(size))


@functools.lru_cache(maxsize=64)
def _set_bits(bitmap: bytes) -> frozenset[int]:
    """Return the numbers of the set bits. The result is cached, because quotes have only a few different selections."""
    bits = int.from_bytes(bitmap, "little")
    return frozenset(index for index in range(len(bitmap) * 8) if bits >> index & 1)


class Signature(NamedTuple):
    """TPMT_SIGNATURE (Part 2, 11.3.4): the scheme, its hash, and the signature's bytes.

    :param value: the signature's bytes in the form that ``cryptography`` takes: DER for ECDSA; for RSA, as in the
        structure.
    """

    scheme: int
    hash: int
    value: bytes


def signature(raw: bytes) -> Signature:
    """Parse a signature by ECDSA, RSASSA or RSAPSS.

    :raises Malformed: when the signature is malformed, or has another scheme.
    """
    reader = Reader(raw, "TPMT_SIGNATURE")
    scheme, digest = reader.number(2), reader.number(2)
    if scheme == ECDSA:
        r, s = reader.sized(66, "r"), reader.sized(66, "s")
        value = _der_pair(r, s)
    elif scheme in (RSASSA, RSAPSS):
        value = reader.sized(512, "the signature")
    else:
        raise reader.refuse(f"unknown scheme {scheme:04x}")
    reader.end()
    return Signature(scheme, digest, value)


def _der_pair(first: bytes, second: bytes) -> bytes:
    """Return the DER of ``SEQUENCE { INTEGER, INTEGER }`` (RFC 3279, 2.2.3) for numbers of at most 66 bytes."""
    body = b""
    for part in (first, second):
        number = part.lstrip(b"\0") or b"\0"
        if number[0] & 0x80:
            number = b"\0" + number
        body += bytes((0x02, len(number))) + number
    head = bytes((0x30, len(body))) if len(body) < 0x80 else bytes((0x30, 0x81, len(body)))
    return head + body


@dataclass(frozen=True)
class Public:
    """TPMT_PUBLIC (Part 2, 12.2.4) of an RSA or ECC key.

    :param symmetric: (algorithm, key bits, mode) of a storage key; None otherwise.
    :param scheme: (TPM_ALG_ID, hash) to which the key is restricted; None if the key may use any scheme.
    :param size: key bits (RSA) or TPM_ECC_CURVE (ECC).
    :param unique: the modulus, or the point's two coordinates.
    """

    raw: bytes
    type: int
    name_alg: int
    attributes: int
    auth_policy: bytes
    symmetric: tuple[int, int, int] | None
    scheme: tuple[int, int] | None
    size: int
    exponent: int
    unique: tuple[bytes, ...]

    @property
    def name(self) -> bytes:
        """Name of the object (Part 1, 16): nameAlg and the hash of the public area."""
        return self.name_alg.to_bytes(2, "big") + hashlib.new(HASHES[self.name_alg], self.raw).digest()

    @functools.cached_property
    def qualified_name(self) -> bytes:
        """Qualified name (Part 1, 16) of the object as a primary key of the endorsement hierarchy.

        It is the hash of the hierarchy's name (its handle) and the object's name.
        """
        above = ENDORSEMENT.to_bytes(4, "big") + self.name
        return self.name_alg.to_bytes(2, "big") + hashlib.new(HASHES[self.name_alg], above).digest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key itself (SubjectPublicKeyInfo), in hex.

        A hash of the whole public area would not identify a TPM: the sender chooses other fields of the area
        (attributes, policy, leading zeros), and could make one TPM look like two.
        """
        return _fingerprint(self.type, self.size, self.exponent, self.unique)

    def key(self) -> PublicKey:
        """Return the key for ``cryptography``.

        :raises Malformed: when the numbers are not a valid key (such as a point off its curve).
        """
        return _key(self.type, self.size, self.exponent, self.unique)


@functools.lru_cache(maxsize=1024)
def _key(kind: int, size: int, exponent: int, unique: tuple[bytes, ...]) -> PublicKey:
    """Return the public key. The result is cached, because a key is used often and checking its point takes long."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    try:
        if kind == RSA:
            return rsa.RSAPublicNumbers(exponent, int.from_bytes(unique[0], "big")).public_key()
        curves: dict[str, Callable[[], ec.EllipticCurve]] = {"secp256r1": ec.SECP256R1, "secp384r1": ec.SECP384R1}
        x, y = (int.from_bytes(part, "big") for part in unique)
        return ec.EllipticCurvePublicNumbers(x, y, curves[CURVES[size][0]]()).public_key()
    except ValueError as err:
        raise Malformed(f"TPMT_PUBLIC: not a key: {err}") from err


@functools.lru_cache(maxsize=1024)
def _fingerprint(kind: int, size: int, exponent: int, unique: tuple[bytes, ...]) -> str:
    """Return the fingerprint of a key. The result is cached, because each attestation result names its key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    spki = _key(kind, size, exponent, unique).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def public(raw: bytes) -> Public:
    """Parse the public area of an RSA key (2048 to 4096 bits) or an ECC key (P-256, P-384).

    :raises Malformed: when the area is malformed, or has another type, curve or name algorithm.
    """
    reader = Reader(raw, "TPMT_PUBLIC")
    kind, name_alg, attributes = reader.number(2), reader.number(2), reader.number(4)
    if name_alg not in HASHES:
        raise reader.refuse(f"name algorithm {name_alg:04x}; SHA-256 or better is required")
    if attributes & ~KNOWN_ATTRIBUTES:
        raise reader.refuse(f"reserved attributes are set: {attributes:08x}")
    policy = reader.sized(64, "the authorization policy")
    if kind not in (RSA, ECC):
        raise reader.refuse(f"key type {kind:04x}; only RSA and ECC are supported")
    symmetric = _symmetric(reader)
    scheme = _scheme(reader, kind)
    if kind == RSA:
        size = reader.number(2)
        exponent = reader.number(4) or 65537
        if size not in (2048, 3072, 4096) or exponent != 65537:
            raise reader.refuse(f"an RSA key of {size} bits with exponent {exponent}")
        unique: tuple[bytes, ...] = (reader.sized(512, "the modulus"),)
        if len(unique[0]) != size // 8 or not unique[0][0] & 0x80 or not unique[0][-1] & 1:
            raise reader.refuse(f"a modulus that is not odd, of {size} bits")
    else:
        size, exponent = reader.number(2), 0
        if size not in CURVES:
            raise reader.refuse(f"curve {size:04x}; only P-256 and P-384 are supported")
        if reader.number(2) != NULL:
            raise reader.refuse("a key derivation scheme, which no endorsement or attestation key has")
        unique = (reader.sized(66, "x"), reader.sized(66, "y"))
        if any(len(part) > CURVES[size][1] for part in unique):
            raise reader.refuse("coordinates that are larger than the curve's field")
    reader.end()
    return Public(bytes(raw), kind, name_alg, attributes, policy, symmetric, scheme, size, exponent, unique)


def _symmetric(reader: Reader) -> tuple[int, int, int] | None:
    algorithm = reader.number(2)
    if algorithm == NULL:
        return None
    if algorithm != AES:
        raise reader.refuse(f"symmetric algorithm {algorithm:04x}; only AES is supported")
    bits, mode = reader.number(2), reader.number(2)
    return algorithm, bits, mode


def _scheme(reader: Reader, kind: int) -> tuple[int, int] | None:
    scheme = reader.number(2)
    if scheme == NULL:
        return None
    if scheme not in ((RSASSA, RSAPSS) if kind == RSA else (ECDSA,)):
        raise reader.refuse(f"scheme {scheme:04x} is not possible for this key")
    return scheme, reader.number(2)


def endorsement(raw: bytes) -> Public:
    """Parse a public area, and check that it has the properties of an endorsement key.

    An endorsement key is a restricted decryption key that was made in this TPM and can't leave it (TCG EK Credential
    Profile 2.5, templates L-1, L-2 and H-1 to H-3, AES-128 or AES-256 in CFB mode).

    :raises WrongEndorsementKey: when the key lacks one of these properties.
    :raises Malformed: when the bytes are not a public area.
    """
    key = public(raw)
    required = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
    forbidden = SIGN | ENCRYPTED_DUPLICATION | ST_CLEAR
    if key.attributes & required != required or key.attributes & forbidden:
        raise WrongEndorsementKey(f"attributes {key.attributes:08x} are not those of an endorsement key")
    if key.symmetric not in ((AES, 128, CFB), (AES, 256, CFB)) or key.scheme is not None:
        raise WrongEndorsementKey(
            "this is not an endorsement key: expected AES-128 or AES-256 in CFB mode, and no scheme"
        )
    return key
