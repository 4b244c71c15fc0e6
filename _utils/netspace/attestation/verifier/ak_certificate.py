"""Check of a certificate that the Privacy CA issued for an attestation key, and of its revocation. Reads no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from netspace.attestation.refusals import (
    ExpiredAttestationCertificate,
    RevokedAttestationCertificate,
    WrongAttestationCertificate,
)
from netspace.errors import unreadable
from netspace.x509_helpers import when

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, CertificateRevocationList


# Seconds by which a host's clock may be behind the master's.
SKEW = 300.0
MAX_CERTIFICATE = 16 * 1024
MAX_LIST = 16 * 1024 * 1024
# Extended key usage of attestation keys (TCG: tcg-kp-AIKCertificate).
USAGE = "2.23.133.8.3"


def check(
    certificate: bytes,
    key: object,
    trusted: Sequence[Certificate],
    lists: Sequence[bytes] | None,
    now: float,
) -> str:
    """Check an attestation key's certificate (DER), and return its pseudonym.

    :param key: the attestation key for which the certificate must be issued.
    :param trusted: intermediates of the Privacy CA; more than one while keys are rotated.
    :param lists: revocation lists (PEM), one from each issuer; None: revocation is not checked here.
    :raises WrongAttestationCertificate: when the certificate is malformed, is for another key or use, or comes from an
        untrusted issuer.
    :raises ExpiredAttestationCertificate: when the certificate, or the issuer's certificate, is not valid now.
    :raises RevokedAttestationCertificate: when the certificate is revoked, or its issuer has no fresh revocation list.
    """
    found = _leaf(certificate)
    if found.public_key() != key:
        raise WrongAttestationCertificate("the certificate is for another key")
    issuer = next((one for one in trusted if _by(found, one)), None)
    if issuer is None:
        raise WrongAttestationCertificate("no trusted CA issued the certificate")
    pseudonym = _attests(found)
    problem = issuing(issuer, now)
    if problem:
        raise ExpiredAttestationCertificate(problem)
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if not begins <= when(now) <= ends:
        raise ExpiredAttestationCertificate(f"the certificate is valid from {begins} to {ends}")
    if lists is not None:
        _not_revoked(found, issuer, lists, now)
    return pseudonym


def _leaf(certificate: bytes) -> Certificate:
    from cryptography import x509

    if len(certificate) > MAX_CERTIFICATE:
        raise WrongAttestationCertificate(f"a certificate of {len(certificate)} bytes")
    try:
        found = x509.load_der_x509_certificate(certificate)
        found.public_key()
        list(found.extensions)
        if certificate[-len(found.signature) - 1] != 0:
            raise ValueError("its signature has unused bits")  # else one certificate would have two encodings
    except Exception as err:  # the parser raises many types, some only on access
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
    """Check that a certificate is for an attestation key, and return its pseudonym."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as err:
        raise WrongAttestationCertificate(f"not an attestation key's certificate: {err}") from err
    if basic.ca or [usage.dotted_string for usage in usages] != [USAGE]:
        raise WrongAttestationCertificate("not an attestation key's certificate, but one for another use")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise WrongAttestationCertificate("the certificate names no pseudonym")
    return str(names[0].value)


def issuing(certificate: Certificate, now: float) -> str:
    """Return why a CA may not issue certificates now; empty if the CA may."""
    from cryptography import x509

    name = certificate.subject.rfc4514_string()
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return f"{name} is not a CA"
    if not basic.ca or not usage.key_cert_sign:
        return f"{name} is not a CA"
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= when(now) < ends:
        return f"the CA {name} is valid from {begins} to {ends}"
    return ""


def _not_revoked(certificate: Certificate, issuer: Certificate, lists: Sequence[bytes], now: float) -> None:
    """Check a certificate against the issuer's newest fresh revocation list.

    :raises RevokedAttestationCertificate: when the certificate is revoked, or there is no fresh list.
    """
    fresh: list[CertificateRevocationList] = []
    for pem in lists:
        one = _list(pem, issuer)
        if one is None or one.next_update_utc is None:
            continue
        if one.last_update_utc <= when(now + SKEW) and when(now) <= one.next_update_utc:
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
