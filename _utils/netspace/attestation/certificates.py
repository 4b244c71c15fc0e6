"""Does a TPM's endorsement certificate chain to a root that the operator trusts?

RFC 5280 path validation, for exactly what TCG's EK Credential Profile 2.5 needs, written out
because ``cryptography.x509.verification`` can't be used: it demands a subject that is a DNS
name or an address, while an EK certificate has an empty subject, a critical subjectAltName of
directory names and its own extended key usage; custom extension policies came with
cryptography 45 only. Signatures, encodings and names are ``cryptography``'s.

Fetches nothing: intermediates come with the evidence or lie among the roots, and revocation lists are those
that the operator put beside the roots; where a certificate says that a list is to be had is not looked at. A
maker of whom there is a list says by it which of his certificates are revoked. One that has run out tells nothing
of the others, so it is as if their maker were not trusted. Of makers without a list nothing is asked.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING

from netspace.attestation.refusals import RevokedEndorsementCertificate
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, CertificateRevocationList

# Checked by hand here, so a certificate that marks more than these as critical is refused.
_UNDERSTOOD = frozenset(("2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.37", "2.5.29.32", "2.5.29.35", "2.5.29.14"))
_EK_USAGE = "2.23.133.8.1"
MAX_DEPTH = 5
MAX_CERTIFICATE = 8192
MAX_ROOTS = 1024
MAX_LIST = 16 * 1024 * 1024
# The maker's clock may be ahead of ours by so much.
_SKEW = datetime.timedelta(minutes=5)


class Untrusted(NetspaceError):
    """No path to a root: the host keeps what it has without one."""


def der(data: bytes) -> bytes:
    """Return the one DER certificate at the start of *data*, without padding.

    NV indices are often larger than the certificate in them.

    :raises Untrusted: when there is none.
    """
    if len(data) >= 4 and data[:2] == b"\x30\x82":
        length = 4 + int.from_bytes(data[2:4], "big")
        if length <= min(len(data), MAX_CERTIFICATE):
            return data[:length]
    raise Untrusted("the endorsement certificate is not a certificate")


def public_key(certificate: bytes) -> object:
    """Return the key that a DER certificate is for.

    :raises Untrusted: when it can't be read.
    """
    try:
        return _load(certificate).public_key()
    except _unreadable() as err:
        raise Untrusted(f"the endorsement certificate can't be read: {err}") from err


def check(leaf: bytes, chain: Sequence[bytes], roots: Sequence[bytes], now: float, lists: Sequence[bytes] = ()) -> None:
    """Check that the DER certificate *leaf* chains to one of *roots*.

    :param chain: DER intermediates that came along; trusted for nothing.
    :param roots: DER certificates that the operator trusts.
    :param now: seconds since the epoch.
    :param lists: makers' revocation lists, DER, as :func:`revocations` returns them.
    :raises Untrusted: saying what is missing.
    :raises RevokedEndorsementCertificate: when its maker, or his, revoked one of the path.
    """
    if not roots:
        raise Untrusted("no root certificates are configured")
    if len(chain) > MAX_DEPTH or len(roots) > MAX_ROOTS:
        raise Untrusted(f"more than {MAX_DEPTH} intermediates or {MAX_ROOTS} roots")
    try:
        when = datetime.datetime.fromtimestamp(now, tz=datetime.timezone.utc)
        certificate = _load(leaf)
        _check_leaf(certificate, when)
        anchors = [_load(root) for root in roots]
        brought = [_load(one) for one in chain]
        told = [_load_list(one) for one in lists]
        for one in _path(certificate, brought, anchors, when, 0):
            # An intermediate that lies among the roots is trusted as long as its own issuer, if he is there, does.
            _not_revoked(one, [*anchors, *brought], told, when)
    except _unreadable() as err:
        raise Untrusted(f"a certificate can't be read: {err}") from err


def revocations(raw: bytes) -> bytes:
    """Return a revocation list (PEM or DER) as DER, if it is one that :func:`check` can go by.

    :raises NetspaceError: for anything else. A list with a critical extension is for some certificates only, or
        names the changes alone: who took it for the whole would miss what is not in it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    if len(raw) > MAX_LIST:
        raise NetspaceError(f"a revocation list of {len(raw)} bytes; at most {MAX_LIST} are possible")
    try:
        found = x509.load_pem_x509_crl(raw) if raw.lstrip()[:5] == b"-----" else x509.load_der_x509_crl(raw)
        critical = [one.oid.dotted_string for one in found.extensions if one.critical]
        ends = found.next_update_utc
    except _unreadable() as err:
        raise NetspaceError(f"not a revocation list: {err}") from err
    if critical:
        raise NetspaceError(f"a revocation list with the critical extension {critical[0]}, which is not understood")
    if ends is None:
        raise NetspaceError("a revocation list that does not say how long it is good")
    return found.public_bytes(Encoding.DER)


def _load_list(data: bytes) -> CertificateRevocationList:
    from cryptography import x509

    return x509.load_der_x509_crl(data)


def _not_revoked(
    certificate: Certificate,
    issuers: Sequence[Certificate],
    lists: Sequence[CertificateRevocationList],
    when: datetime.datetime,
) -> None:
    """By the newest list of each of *issuers* that issued it; one's name alone is not one."""
    for issuer in issuers:
        if issuer.subject != certificate.issuer or _issued(certificate, issuer, when, 0):
            continue
        genuine = [one for one in lists if one.issuer == issuer.subject and _signed_list(one, issuer)]
        if not genuine:
            continue
        newest = max(genuine, key=lambda one: one.last_update_utc)
        name = issuer.subject.rfc4514_string()
        found = newest.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if found is not None:
            raise RevokedEndorsementCertificate(
                f"{name} revoked the certificate {certificate.serial_number:x} at {found.revocation_date_utc}"
            )
        ends = newest.next_update_utc
        if newest.last_update_utc > when + _SKEW or ends is None or when > ends:
            raise Untrusted(
                f"the revocation list of {name} is good from {newest.last_update_utc} to {ends}: "
                "put a newer one beside the roots"
            )


def _signed_list(found: CertificateRevocationList, issuer: Certificate) -> bool:
    from cryptography import x509

    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        return usage.crl_sign and found.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except x509.ExtensionNotFound:
        return False
    except _unreadable():
        return False


def _unreadable() -> tuple[type[Exception], ...]:
    """What ``cryptography`` raises for certificates that it can't read, some of it late: on use of a part."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    late = (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion)
    return (ValueError, TypeError, UnsupportedAlgorithm, *late)


def _load(data: bytes) -> Certificate:
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(data)
    # DER of a BIT STRING of whole octets (X.690, 11.2): no unused bits. The parser lets them
    # pass, and then one certificate would have two encodings.
    if data[-len(certificate.signature) - 1] != 0:
        raise ValueError("its signature has unused bits")
    return certificate


def _path(
    certificate: Certificate,
    chain: Sequence[Certificate],
    anchors: Sequence[Certificate],
    when: datetime.datetime,
    depth: int,
) -> list[Certificate]:
    """Find an issuer that is a root, or an intermediate that has a path itself; return the path, the root last.

    Each step uses up an intermediate, so a loop among them ends.
    """
    last = f"its issuer, {certificate.issuer.rfc4514_string()!r}, is not among the roots"
    for issuer in anchors:
        problem = _issued(certificate, issuer, when, depth)
        if not problem:
            return [certificate, issuer]
        if issuer.subject == certificate.issuer:
            last = problem
    if depth < MAX_DEPTH:
        for index, issuer in enumerate(chain):
            if not _issued(certificate, issuer, when, depth):
                rest = [*chain[:index], *chain[index + 1 :]]
                return [certificate, *_path(issuer, rest, anchors, when, depth + 1)]
    raise Untrusted(f"the endorsement certificate does not chain to a root: {last}")


def _issued(certificate: Certificate, issuer: Certificate, when: datetime.datetime, depth: int) -> str:
    """Return why *issuer* is not the valid issuer of *certificate*; empty when it is."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    if issuer.subject != certificate.issuer:
        return "another name"
    problem = _common(certificate, when) or _common(issuer, when)
    if problem:
        return problem
    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as err:
        return f"the issuer is no CA: {err}"
    if not basic.ca or not usage.key_cert_sign:
        return "the issuer may not sign certificates"
    if basic.path_length is not None and depth > basic.path_length:
        return f"more than {basic.path_length} intermediates below an issuer that allows no more"
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as err:
        return f"the issuer did not sign it: {str(err) or 'invalid signature'}"
    return ""


def _common(certificate: Certificate, when: datetime.datetime) -> str:
    """What holds for every certificate of a path."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    name = certificate.subject.rfc4514_string() or "the endorsement certificate"
    if not certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc:
        return f"{name} is valid from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}"
    digest = certificate.signature_hash_algorithm
    if digest is not None and digest.digest_size < 32:
        return f"{name} is signed with {digest.name}"
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            return f"{name} has an RSA key of {key.key_size} bits"
    elif not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        return f"{name} has a key that is neither RSA nor on a curve of 256 bits or more"
    for extension in certificate.extensions:
        if extension.critical and extension.oid.dotted_string not in _UNDERSTOOD:
            return f"{name} has the critical extension {extension.oid.dotted_string}, which is not understood"
    return ""


def _check_leaf(certificate: Certificate, when: datetime.datetime) -> None:
    """EK Credential Profile, 3.2: no CA, key usage for decryption, EKU tcg-kp-EKCertificate."""
    from cryptography import x509

    problem = _common(certificate, when)
    if problem:
        raise Untrusted(problem)
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise Untrusted("the endorsement certificate is a CA's")
        if isinstance(value, x509.KeyUsage) and not (value.key_encipherment or value.key_agreement):
            raise Untrusted("the endorsement certificate's key may not be used for decryption")
        if isinstance(value, x509.ExtendedKeyUsage) and _EK_USAGE not in [usage.dotted_string for usage in value]:
            raise Untrusted("the endorsement certificate is for another use")
