"""The Privacy CA: certifies attestation keys under pseudonyms, for a day.

A certificate says that a key lives in a TPM whose endorsement key was checked. Only the CA's records name the minion.
The certificate's subject is a random pseudonym, its serial number is random, its times are whole hours, and it has
neither the endorsement key nor a host's name. The registrar asks for a new key for each certificate, so two
certificates of one host have nothing in common. A quote made with the key says more than the certificate does: the
TPM's clock and counters, and the measurements.

Rules:

1. Only a :class:`netspace.attestation.verifier.Bound` is certified, which only the answer to
   a credential makes. One endorsement key belongs to one minion (:func:`claim`).
2. A root signs an intermediate, the intermediate signs attestation keys and the revocation list.
   The root may be elsewhere: :func:`request`, :func:`sign_request` there, :func:`adopt`.
3. :func:`check` accepts a certificate of one of the intermediates that are trusted (two, while keys are
   rotated), for this very key, within its time, and not on a list that is fresh.

Keys are ECDSA P-256, and may be in a module (``netspace.attestation.hsm``). Pure but for that, :func:`save` and
:func:`load`: the CA's folder is 0700 and its key 0600, or it isn't used. Time is an argument.
"""

from __future__ import annotations

import datetime
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from netspace import files
from netspace.attestation import hsm
from netspace.attestation.refusals import (
    ExpiredAttestationCertificate,
    RevokedAttestationCertificate,
    SharedEndorsementKey,
    WrongAttestationCertificate,
)
from netspace.errors import NetspaceError, unreadable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, CertificateRevocationList, KeyUsage, Name

    from netspace.attestation.verifier import Bound

HOURS = 24.0
ROOT_DAYS, INTERMEDIATE_DAYS, LIST_HOURS = 3650.0, 365.0, 24.0
# A host's clock may be behind the master's by so much.
SKEW = 300.0
MAX_CERTIFICATE = 16 * 1024
MAX_LIST = 16 * 1024 * 1024
# TCG: tcg-kp-AIKCertificate.
_USAGE = "2.23.133.8.3"


@dataclass(frozen=True)
class Authority:
    """A key and its certificate; *chain* leads from its issuer to the root, and is empty for a root."""

    key: EllipticCurvePrivateKey
    certificate: Certificate
    chain: tuple[Certificate, ...] = ()

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()!r})"


@dataclass(frozen=True)
class Issued:
    """An attestation key's certificate, and what the CA's records keep of it."""

    certificate: bytes
    serial: int
    pseudonym: str
    expires: float


def root(name: str, now: float, days: float = ROOT_DAYS, key: EllipticCurvePrivateKey | None = None) -> Authority:
    """Make a root, which signs intermediates alone.

    :param key: one that is somewhere else; None: it is made here.
    """
    key = key or _new_key()
    title = _name(name)
    builder = _ca(_builder(title, title, now, days * 86400), 1, key.public_key())
    return Authority(key, _signed(builder, key, key.public_key()))


def request(name: str, key: EllipticCurvePrivateKey | None = None) -> tuple[EllipticCurvePrivateKey, bytes]:
    """Make an intermediate's key (or take *key*), and the request (PEM) to take to the root."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = key or _new_key()
    made = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    return key, made.public_bytes(serialization.Encoding.PEM)


def sign_request(authority: Authority, pem: bytes, now: float, days: float = INTERMEDIATE_DAYS) -> bytes:
    """Sign an intermediate's request, where the root is; return the certificate (PEM). Only name and key are taken.

    :raises NetspaceError: when it is no request, or not signed by its own key, or this is no root.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if authority.chain:
        raise NetspaceError("an intermediate can't sign another: take the request to the root")
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
    """Take an intermediate's certificate (PEM) into use.

    :raises NetspaceError: when it is not for this key, not by this root, not a CA's, or not in its time.
    """
    found, anchor = _pem(certificate), _pem(root_certificate)
    if found.public_key() != key.public_key():
        raise NetspaceError("the certificate is for another key than the one that was requested for")
    problem = _issuing(anchor, now) or _issuing(found, now)
    if problem:
        raise NetspaceError(problem)
    try:
        found.verify_directly_issued_by(anchor)
    except Exception as err:
        raise NetspaceError(f"the certificate is not by this root: {str(err) or type(err).__name__}") from err
    return Authority(key, found, (anchor,))


def issue(authority: Authority, bound: Bound, now: float, hours: float = HOURS) -> Issued:
    """Certify the attestation key of *bound*, under a pseudonym that nobody had before.

    :raises NetspaceError: when the CA's own certificate has run out, or this is a root.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import ObjectIdentifier

    problem = _issuing(authority.certificate, now)
    if problem or not authority.chain:
        raise NetspaceError(problem or "a root signs intermediates alone")
    pseudonym = secrets.token_hex(16)
    # Whole hours: the second at which a host is renewed would tell it from others, each day again.
    begin = (now - SKEW) // 3600 * 3600 + SKEW
    end = -(-(now + hours * 3600) // 3600) * 3600
    # It must not outlive what it is checked by.
    seconds = min(end, authority.certificate.not_valid_after_utc.timestamp()) - begin
    key = bound.key.key()
    usage = _key_usage(digital_signature=True)
    builder = (
        _builder(_name(pseudonym), authority.certificate.subject, begin, seconds)
        .public_key(key)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(usage, True)
        .add_extension(x509.ExtendedKeyUsage([ObjectIdentifier(_USAGE)]), False)
    )
    made = _signed(builder, authority.key, authority.key.public_key())
    return Issued(
        made.public_bytes(serialization.Encoding.DER),
        made.serial_number,
        pseudonym,
        made.not_valid_after_utc.timestamp(),
    )


def revocations(authority: Authority, revoked: Mapping[int, float], now: float, hours: float = LIST_HOURS) -> bytes:
    """Return the revocation list (PEM): serial numbers, and when each was revoked."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(_when(now))
        .next_update(_when(now + hours * 3600))
        .add_extension(x509.CRLNumber(int(now)), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), False)
    )
    for serial, since in sorted(revoked.items()):
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_when(since)).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def check(
    certificate: bytes,
    key: object,
    trusted: Sequence[Certificate],
    lists: Sequence[bytes] | None,
    now: float,
) -> str:
    """Check an attestation key's certificate (DER), and return its pseudonym.

    :param key: the attestation key that it must be for.
    :param trusted: intermediates of the Privacy CA; more than one while keys are rotated.
    :param lists: revocation lists (PEM), one by each issuer; None: revocation is known otherwise.
    :raises WrongAttestationCertificate: see the module's rules; likewise the other two.
    """
    found = _leaf(certificate)
    if found.public_key() != key:
        raise WrongAttestationCertificate("the certificate is for another key")
    issuer = next((one for one in trusted if _by(found, one)), None)
    if issuer is None:
        raise WrongAttestationCertificate("the certificate is by none of the CAs that are trusted")
    pseudonym = _attests(found)
    problem = _issuing(issuer, now)
    if problem:
        raise ExpiredAttestationCertificate(problem)
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if not begins <= _when(now) <= ends:
        raise ExpiredAttestationCertificate(f"the certificate is valid from {begins} to {ends}")
    if lists is not None:
        _not_revoked(found, issuer, lists, now)
    return pseudonym


def claim(owners: Mapping[str, str], endorsement: str, minion: str) -> None:
    """Check that an endorsement key may be *minion*'s.

    :param owners: minions by the fingerprint of the endorsement key that they are bound to.
    :raises SharedEndorsementKey: when it is another's: one TPM serves one minion.
    """
    owner = owners.get(endorsement)
    if owner is not None and owner != minion:
        raise SharedEndorsementKey(f"the TPM {endorsement[:16]}... is bound to {owner}; {minion} can't have it too")


def save(authority: Authority, folder: Path) -> None:
    """Write *authority* to *folder* (made with 0700): ``authority.pem`` (0600), and its ``chain.pem`` for others."""
    from cryptography.hazmat.primitives import serialization

    pem = serialization.Encoding.PEM
    private = private_bytes(authority.key)
    chain = b"".join(one.public_bytes(pem) for one in (authority.certificate, *authority.chain))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _private(folder)
    # Key and certificate in one file: a crash must not leave one of them without the other.
    files.write(folder / "authority.pem", private + chain, mode=0o600)
    files.write(folder / "chain.pem", chain, mode=0o644)


def private_bytes(key: EllipticCurvePrivateKey) -> bytes:
    """Return what a file holds of a key: the key (PEM), or where it is."""
    from cryptography.hazmat.primitives import serialization

    return hsm.reference(key) or key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key(raw: bytes, module: hsm.Module | None, path: Path) -> EllipticCurvePrivateKey:
    """Return the key that a file holds, as :func:`private_bytes` wrote it.

    :raises NetspaceError: when it is none that can be used; what it holds is in no message.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if raw.startswith(hsm.PREFIX):
        return hsm.opened(raw, module, path)
    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise NetspaceError(f"{path}: no key that can be used: {type(err).__name__}") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NetspaceError(f"{path}: not a key on P-256")
    return key


def load(folder: Path, module: hsm.Module | None = None) -> Authority:
    """Read an authority.

    :param module: where its key may be.
    :raises NetspaceError: when it is incomplete, its key and certificate don't fit, or others can get at the key.
    """
    raw, chain = _read(folder)
    key = private_key(raw, module, folder / "authority.pem")
    if chain[0].public_key() != key.public_key():
        raise NetspaceError(f"{folder}: the key is not the certificate's")
    return Authority(key, chain[0], tuple(chain[1:]))


def load_certificate(folder: Path) -> Certificate:
    """Return an authority's certificate alone: whoever checks by it needs no key.

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
        # The key's content is never repeated in a message.
        raise NetspaceError(f"{folder}: no CA that can be used: {type(err).__name__}") from err


def _private(path: Path) -> None:
    """Refuse a key that others can read, or a folder in which others can replace it."""
    info = path.stat(follow_symlinks=False)
    wrong = info.st_mode & 0o077 or info.st_uid != os.geteuid() or stat.S_ISLNK(info.st_mode)
    if wrong:
        raise NetspaceError(f"{path}: must be its user's alone (mode {stat.S_IMODE(info.st_mode):04o}): chmod go= it")


def _pem(certificate: bytes) -> Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certificate[:MAX_CERTIFICATE])
    except unreadable() as err:
        raise NetspaceError(f"not a certificate in PEM: {err}") from err


def _leaf(certificate: bytes) -> Certificate:
    from cryptography import x509

    if len(certificate) > MAX_CERTIFICATE:
        raise WrongAttestationCertificate(f"a certificate of {len(certificate)} bytes")
    try:
        found = x509.load_der_x509_certificate(certificate)
        found.public_key()
        list(found.extensions)
        if certificate[-len(found.signature) - 1] != 0:
            raise ValueError("its signature has unused bits")  # a second encoding of it: see certificates.py
    except Exception as err:  # many kinds, some of them late: see certificates.py
        raise WrongAttestationCertificate(f"the certificate can't be read: {err}") from err
    return found


def _by(certificate: Certificate, issuer: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except unreadable(InvalidSignature):
        return False
    return True


def _attests(certificate: Certificate) -> str:
    """Check that a certificate is an attestation key's, and return its pseudonym."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as err:
        raise WrongAttestationCertificate(f"not an attestation key's certificate: {err}") from err
    if basic.ca or [usage.dotted_string for usage in usages] != [_USAGE]:
        raise WrongAttestationCertificate("not an attestation key's certificate, but one for another use")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise WrongAttestationCertificate("the certificate names no pseudonym")
    return str(names[0].value)


def _issuing(certificate: Certificate, now: float) -> str:
    """Return why a CA may not issue now; empty when it may."""
    from cryptography import x509

    name = certificate.subject.rfc4514_string()
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return f"{name} is no CA"
    if not basic.ca or not usage.key_cert_sign:
        return f"{name} is no CA"
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= _when(now) < ends:
        return f"the CA {name} is valid from {begins} to {ends}"
    return ""


def _not_revoked(certificate: Certificate, issuer: Certificate, lists: Sequence[bytes], now: float) -> None:
    """One list by the issuer must be fresh; of several, the newest counts."""
    fresh: list[CertificateRevocationList] = []
    for pem in lists:
        one = _list(pem, issuer)
        if one is None or one.next_update_utc is None:
            continue
        if one.last_update_utc <= _when(now + SKEW) and _when(now) <= one.next_update_utc:
            fresh.append(one)
    if not fresh:
        raise RevokedAttestationCertificate("there is no fresh revocation list of its issuer")
    newest = max(fresh, key=lambda one: one.last_update_utc)
    revoked = newest.get_revoked_certificate_by_serial_number(certificate.serial_number)
    if revoked is not None:
        raise RevokedAttestationCertificate(f"the certificate was revoked at {revoked.revocation_date_utc}")


def _list(pem: bytes, issuer: Certificate) -> CertificateRevocationList | None:
    from cryptography import x509

    if len(pem) > MAX_LIST:
        return None
    try:
        found = x509.load_pem_x509_crl(pem)
        genuine = found.issuer == issuer.subject and found.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except unreadable():
        return None
    return found if genuine else None


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not 0 < len(text) <= 64:
        raise NetspaceError(f"a name of {len(text)} characters; 1 to 64 are possible")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _when(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), tz=datetime.timezone.utc)


def _builder(subject: Name, issuer: Name, now: float, seconds: float) -> CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_when(now - SKEW))
        .not_valid_after(_when(now + seconds))
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
