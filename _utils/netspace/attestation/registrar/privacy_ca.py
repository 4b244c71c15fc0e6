"""Privacy CA: certifies attestation keys under pseudonyms, for a day.

A certificate states that a key is in a TPM whose endorsement key was checked. Only the CA's records name the minion.
The certificate has neither the endorsement key nor a host's name: its subject is a random pseudonym, its serial number
is random, and its times are whole hours. The registrar requires a new key for each certificate, so two certificates of
one host have nothing in common. (But a quote by the key reveals the TPM's clock and counters, and the measurements.)

Rules:

1. The CA certifies only a :class:`netspace.attestation.verifier.verifier.Bound`, which the registrar gets only from a
   correct answer to a credential. One endorsement key belongs to one minion (:func:`claim`).
2. A root signs intermediates. An intermediate signs attestation keys and the revocation list. If the root is on another
   machine: :func:`request` here, :func:`sign_request` there, then :func:`adopt` here.
3. ``ak_certificate.check`` accepts a certificate only if a trusted intermediate issued it for this key, if it is valid
   now, and if a fresh revocation list does not have it (without any list, revocation is not checked). While keys are
   rotated, two intermediates are trusted.

Keys are ECDSA P-256, and may be in a hardware security module (``netspace.attestation.hsm``). Time is an argument.
Apart from the hardware module, only :func:`save`, :func:`load` and :func:`load_certificate` do I/O. The CA's folder
must have mode 0700 and its key 0600.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from netspace import files
from netspace.attestation import hsm
from netspace.attestation.refusals import SharedEndorsementKey
from netspace.attestation.signing_keys import private_bytes, private_key
from netspace.attestation.verifier.ak_certificate import MAX_CERTIFICATE, SKEW, USAGE, issuing
from netspace.errors import NetspaceError, unreadable
from netspace.x509_helpers import when

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

    from netspace.attestation.verifier.attestation_keys import Bound

HOURS = 24.0
ROOT_DAYS, INTERMEDIATE_DAYS, LIST_HOURS = 3650.0, 365.0, 24.0


@dataclass(frozen=True)
class Authority:
    """A CA's key and certificate. *chain* has the certificates from the issuer to the root; a root's chain is empty."""

    key: EllipticCurvePrivateKey
    certificate: Certificate
    chain: tuple[Certificate, ...] = ()

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()!r})"


@dataclass(frozen=True)
class Issued:
    """An attestation key's certificate (DER), and the fields that the CA records."""

    certificate: bytes
    serial: int
    pseudonym: str
    expires: float


def root(name: str, now: float, days: float = ROOT_DAYS, key: EllipticCurvePrivateKey | None = None) -> Authority:
    """Make a root, which signs only intermediates.

    :param key: an existing key, such as one in a hardware security module; None: a new key is made.
    """
    key = key or _new_key()
    title = _name(name)
    builder = _ca(_builder(title, title, now, days * 86400), 1, key.public_key())
    return Authority(key, _signed(builder, key, key.public_key()))


def request(name: str, key: EllipticCurvePrivateKey | None = None) -> tuple[EllipticCurvePrivateKey, bytes]:
    """Return an intermediate's key (*key*, or a new key), and the certificate request (PEM) for the root."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = key or _new_key()
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    return key, made.public_bytes(serialization.Encoding.PEM)


def sign_request(authority: Authority, pem: bytes, now: float, days: float = INTERMEDIATE_DAYS) -> bytes:
    """Sign an intermediate's request with the root *authority*, and return the certificate (PEM).

    Only the name and the key are taken from the request.

    :raises NetspaceError: when *authority* is not a root, or the request is malformed or not signed by its own key.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if authority.chain:
        raise NetspaceError("an intermediate CA can't certify another one; take the request to the root")
    try:
        asked = x509.load_pem_x509_csr(pem[:MAX_CERTIFICATE])
        key = asked.public_key()
        good = asked.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey)
    except unreadable() as err:
        raise NetspaceError(f"certificate request: {err}") from err
    if not good or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NetspaceError("certificate request: not signed by its own key on P-256")
    if asked.subject == authority.certificate.subject:
        raise NetspaceError("certificate request: an intermediate needs another name than its root")
    seconds = min(days * 86400, authority.certificate.not_valid_after_utc.timestamp() - now)
    builder = _ca(_builder(asked.subject, authority.certificate.subject, now, seconds), 0, key)
    return _signed(builder, authority.key, authority.key.public_key()).public_bytes(serialization.Encoding.PEM)


def adopt(key: EllipticCurvePrivateKey, certificate: bytes, root_certificate: bytes, now: float) -> Authority:
    """Return the intermediate CA of *key* and its *certificate* (PEM).

    :raises NetspaceError: when the certificate is for another key, is by another root, is not a CA certificate, or is
        not valid now.
    """
    found, anchor = _pem(certificate), _pem(root_certificate)
    if found.public_key() != key.public_key():
        raise NetspaceError("the certificate is for another key than the request")
    problem = issuing(anchor, now) or issuing(found, now)
    if problem:
        raise NetspaceError(problem)
    try:
        found.verify_directly_issued_by(anchor)
    except Exception as err:
        raise NetspaceError(f"the certificate is not by this root: {str(err) or type(err).__name__}") from err
    return Authority(key, found, (anchor,))


def issue(authority: Authority, bound: Bound, now: float, hours: float = HOURS) -> Issued:
    """Issue a certificate for the attestation key of *bound*, under a new pseudonym.

    :raises NetspaceError: when the CA's own certificate is not valid now, or *authority* is a root.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import ObjectIdentifier

    problem = issuing(authority.certificate, now)
    if problem or not authority.chain:
        raise NetspaceError(problem or "a root signs only intermediates")
    pseudonym = secrets.token_hex(16)
    # Whole hours: an exact time of renewal would identify a host again each day.
    begin = (now - SKEW) // 3600 * 3600 + SKEW
    end = -(-(now + hours * 3600) // 3600) * 3600
    # The certificate must not outlive the CA's own.
    seconds = min(end, authority.certificate.not_valid_after_utc.timestamp()) - begin
    key = bound.key.key()
    usage = _key_usage(digital_signature=True)
    builder = (
        _builder(_name(pseudonym), authority.certificate.subject, begin, seconds)
        .public_key(key)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(usage, True)
        .add_extension(x509.ExtendedKeyUsage([ObjectIdentifier(USAGE)]), False)
    )
    made = _signed(builder, authority.key, authority.key.public_key())
    return Issued(
        made.public_bytes(serialization.Encoding.DER),
        made.serial_number,
        pseudonym,
        made.not_valid_after_utc.timestamp(),
    )


def revocations(authority: Authority, revoked: Mapping[int, float], now: float, hours: float = LIST_HOURS) -> bytes:
    """Return a new revocation list (PEM).

    :param revoked: time of revocation (seconds since the epoch) by serial number.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(when(now))
        .next_update(when(now + hours * 3600))
        .add_extension(x509.CRLNumber(int(now)), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), False)
    )
    for serial, since in sorted(revoked.items()):
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when(since)).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def claim(owners: Mapping[str, str], endorsement: str, minion: str) -> None:
    """Check that *minion* may have an endorsement key.

    :param owners: minions by the fingerprint of the endorsement key to which they are bound.
    :raises SharedEndorsementKey: when the key is bound to another minion.
    """
    owner = owners.get(endorsement)
    if owner is not None and owner != minion:
        raise SharedEndorsementKey(f"the TPM {endorsement[:16]}... is bound to {owner}; {minion} can't have it too")


def save(authority: Authority, folder: Path) -> None:
    """Write *authority* to *folder* (made with mode 0700).

    ``authority.pem`` (mode 0600) has the key and the certificates. ``chain.pem``, which anybody may read, has only the
    certificates.
    """
    from cryptography.hazmat.primitives import serialization

    pem = serialization.Encoding.PEM
    private = private_bytes(authority.key)
    chain = b"".join(one.public_bytes(pem) for one in (authority.certificate, *authority.chain))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _private(folder)
    # Key and certificate in one file: a crash must not leave one of them without the other.
    files.write(folder / "authority.pem", private + chain, mode=0o600)
    files.write(folder / "chain.pem", chain, mode=0o644)


def load(folder: Path, module: hsm.Module | None = None) -> Authority:
    """Read an authority from *folder*.

    :param module: hardware security module that may have the key.
    :raises NetspaceError: when a part is missing, the certificate is for another key, or others can access the key.
    """
    raw, chain = _read(folder)
    key = private_key(raw, module, folder / "authority.pem")
    if chain[0].public_key() != key.public_key():
        raise NetspaceError(f"{folder}: the key does not belong to the certificate")
    return Authority(key, chain[0], tuple(chain[1:]))


def load_certificate(folder: Path) -> Certificate:
    """Return an authority's certificate without its key, which a verifier does not need.

    :raises NetspaceError: as :func:`load`.
    """
    return _read(folder)[1][0]


def _read(folder: Path) -> tuple[bytes, list[Certificate]]:
    from cryptography import x509

    path = folder / "authority.pem"
    try:
        _private(folder)
        _private(path)
        raw = path.read_bytes()
        return raw, x509.load_pem_x509_certificates(raw)
    except unreadable(OSError) as err:
        # The error's text may contain the key, so the message has only the error's type.
        raise NetspaceError(f"{folder}: no CA that can be used: {type(err).__name__}") from err


def _private(path: Path) -> None:
    """Check that only the current user can access a key's file or folder.

    :raises NetspaceError: when others can read the key or replace it.
    """
    info = path.stat(follow_symlinks=False)
    wrong = info.st_mode & 0o077 or info.st_uid != os.geteuid() or stat.S_ISLNK(info.st_mode)
    if wrong:
        raise NetspaceError(f"{path}: other users can access it (mode {stat.S_IMODE(info.st_mode):04o}); chmod go= it")


def _pem(certificate: bytes) -> Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certificate[:MAX_CERTIFICATE])
    except unreadable() as err:
        raise NetspaceError(f"not a certificate in PEM: {err}") from err


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not 0 < len(text) <= 64:
        raise NetspaceError(f"a name of {len(text)} characters; expected 1 to 64")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: Name, issuer: Name, now: float, seconds: float) -> CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(when(now - SKEW))
        .not_valid_after(when(now + seconds))
    )


def _ca(builder: CertificateBuilder, depth: int, key: object) -> CertificateBuilder:
    from cryptography import x509

    return (
        builder.public_key(key)  # type: ignore[arg-type]
        .add_extension(x509.BasicConstraints(True, depth), True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)  # type: ignore[arg-type]
    )


def _signed(builder: CertificateBuilder, key: EllipticCurvePrivateKey, issuer: object) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)  # type: ignore[arg-type]
    return builder.add_extension(identifier, False).sign(key, hashes.SHA256())


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
