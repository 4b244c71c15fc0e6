"""Check that a TPM's endorsement certificate chains to a root that the operator trusts.

This is RFC 5280 path validation, limited to the needs of TCG's EK Credential Profile 2.5. ``cryptography`` checks the
signatures and decodes certificates and names. The path building of ``cryptography.x509.verification`` can't be used,
because it always refuses the certificates of some makers: Nuvoton's because of the order of fields in names, and
Infineon's and ST's intermediates because of a critical certificatePolicies extension.

Some makers write names in an order that DER forbids. So the fields of a certificate are read from a sorted copy
(``netspace.attestation.endorsement.der``). Signatures are checked over the bytes that the maker signed.

This module fetches nothing. Intermediates come with the evidence or lie among the roots. Revocation lists are files
that the operator puts beside the roots; the module ignores the address of a list in a certificate. The entries of an
expired list still count as revoked. All other certificates of the list's issuer are refused until there is a newer
list. If a maker has no list, its certificates are not checked for revocation.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace.attestation.endorsement import der as encoding
from netspace.attestation.endorsement import path_rules, revocation
from netspace.attestation.refusals import RevokedEndorsementCertificate
from netspace.errors import NetspaceError, unreadable

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, CertificateRevocationList

# Extensions that this module and ``path_rules`` check. A certificate with any other critical extension is refused.
_UNDERSTOOD = frozenset(("2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.37", "2.5.29.32", "2.5.29.35", "2.5.29.14"))
_EK_USAGE = "2.23.133.8.1"
# Intermediates between an endorsement certificate and a root: Intel's firmware TPMs have four.
MAX_DEPTH = 8
MAX_CERTIFICATE = 8192
MAX_ROOTS = 1024
MAX_LIST = 16 * 1024 * 1024


class Untrusted(NetspaceError):
    """Error: the certificate has no valid path to a root.

    The host then gets only the level of a host whose TPM has no certificate.
    """


@dataclass(frozen=True)
class _Signed:
    """A certificate or a revocation list.

    :param fields: the object of ``cryptography``, read from a copy in DER's order.
    :param signed: the bytes that the signature covers, as received.
    """

    fields: Any
    signed: bytes


def der(data: bytes) -> bytes:
    """Return the DER certificate at the start of *data*, without the padding after it.

    NV indices are often larger than the certificate in them.

    :raises Untrusted: when *data* does not begin with a certificate.
    """
    if len(data) >= 4 and data[:2] == b"\x30\x82":
        length = 4 + int.from_bytes(data[2:4], "big")
        if length <= min(len(data), MAX_CERTIFICATE):
            return data[:length]
    raise Untrusted("the endorsement certificate is not a certificate")


def public_key(certificate: bytes) -> object:
    """Return the public key in a DER certificate.

    :raises Untrusted: when the certificate can't be read.
    """
    try:
        return _load(certificate).fields.public_key()
    except unreadable() as err:
        raise Untrusted(f"the endorsement certificate can't be read: {err}") from err


def check(leaf: bytes, chain: Sequence[bytes], roots: Sequence[bytes], now: float, lists: Sequence[bytes] = ()) -> None:
    """Check that the DER certificate *leaf* chains to one of *roots*.

    :param chain: DER intermediates from the evidence. An intermediate counts only if it chains to a root. Unreadable
        intermediates are ignored.
    :param roots: DER certificates that the operator trusts.
    :param now: seconds since the epoch.
    :param lists: makers' revocation lists, DER, as :func:`revocations` returns them.
    :raises Untrusted: when there is no valid path; the message has the reason.
    :raises RevokedEndorsementCertificate: when an issuer revoked a certificate of the path.
    """
    if not roots:
        raise Untrusted("no root certificates are configured")
    if len(chain) > MAX_DEPTH or len(roots) > MAX_ROOTS:
        raise Untrusted(f"more than {MAX_DEPTH} intermediates or {MAX_ROOTS} roots")
    try:
        when = datetime.datetime.fromtimestamp(now, tz=datetime.timezone.utc)
        certificate = _load(leaf)
        _check_leaf(certificate.fields, when)
        anchors = [_load(root) for root in roots]
        brought = [one for one in map(_readable, chain) if one is not None]
        told = [_load_list(one) for one in lists]
        path = _path(certificate, brought, anchors, when)
        for one in path if told else ():
            # An intermediate among the roots is trusted until its own issuer, if known here, revokes it.
            _not_revoked(one, [*anchors, *brought], told, when)
    except unreadable() as err:
        raise Untrusted(f"a certificate can't be read: {err}") from err


def readable(data: bytes) -> bytes:
    """Return the DER certificate *data* unchanged.

    :raises NetspaceError: when *data* can't be read as a certificate.
    """
    if len(data) > MAX_CERTIFICATE:
        raise NetspaceError(f"certificate: {len(data)} bytes; at most {MAX_CERTIFICATE} are accepted")
    try:
        found = _load(data).fields
        found.public_key()
        list(found.extensions)
    except unreadable() as err:
        raise NetspaceError(f"certificate: can't be read: {err}") from err
    return data


def described(data: bytes) -> tuple[str, str, float]:
    """Describe a certificate for people: its subject, kind of key, and expiry (seconds since the epoch).

    :param data: a certificate that :func:`readable` returned.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    found: Certificate = _load(data).fields
    key = found.public_key()
    kind = type(key).__name__
    if isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA-{key.key_size}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        kind = f"ECC {key.curve.name}"
    return found.subject.rfc4514_string(), kind, found.not_valid_after_utc.timestamp()


def revocations(raw: bytes) -> bytes:
    """Return a revocation list (PEM or DER) in the form that :func:`check` uses: DER.

    :raises NetspaceError: when *raw* is not a complete revocation list. A list with a critical extension is incomplete:
        it covers only some certificates, or only changes to an earlier list (RFC 5280, 5.2).
    """
    if len(raw) > MAX_LIST:
        raise NetspaceError(f"a revocation list of {len(raw)} bytes; at most {MAX_LIST} are accepted")
    try:
        data = raw
        if raw.lstrip()[:5] == b"-----":
            data = _only(encoding.from_pem(raw))
        found: CertificateRevocationList = _load_list(data).fields
        critical = [one.oid.dotted_string for one in found.extensions if one.critical]
        ends = found.next_update_utc
    except unreadable() as err:
        raise NetspaceError(f"not a revocation list: {err}") from err
    if critical:
        raise NetspaceError(f"a revocation list with the critical extension {critical[0]}, which is not understood")
    if ends is None:
        raise NetspaceError("a revocation list that does not say when it ends")
    return data


def _only(found: encoding.Pem) -> bytes:
    if found.problems:
        raise ValueError(found.problems[0])
    if len(found.contents) != 1:
        raise ValueError(f"{len(found.contents)} PEM blocks, where one is expected")
    return found.contents[0]


@functools.lru_cache(maxsize=64)
def _load_list(data: bytes) -> _Signed:
    from cryptography import x509

    return _Signed(x509.load_der_x509_crl(encoding.with_sorted_issuer(data)), encoding.signed_part(data))


def _not_revoked(
    certificate: _Signed, issuers: Sequence[_Signed], lists: Sequence[_Signed], when: datetime.datetime
) -> None:
    """Check that the newest revocation list of each issuer doesn't have the certificate.

    Issuers with the same name are distinguished by their keys.
    """
    number: int = certificate.fields.serial_number
    for issuer in issuers:
        subject = issuer.fields.subject
        if subject != certificate.fields.issuer or _issued(certificate, issuer, when, 0):
            continue
        genuine = [one.fields for one in lists if one.fields.issuer == subject and _signed_list(one, issuer)]
        if not genuine:
            continue
        name = subject.rfc4514_string()
        found = revocation.by_newest(genuine, number, when)
        if found.revoked is not None:
            raise RevokedEndorsementCertificate(f"{name} revoked the certificate {number:x} at {found.revoked}")
        if found.out_of_force:
            raise Untrusted(f"the revocation list of {name} {found.out_of_force}: put a newer one beside the roots")


def _signed_list(found: _Signed, issuer: _Signed) -> bool:
    from cryptography import x509

    try:
        usage = issuer.fields.extensions.get_extension_for_class(x509.KeyUsage).value
        return bool(usage.crl_sign) and not _unsigned(found, issuer)
    except x509.ExtensionNotFound:
        return False
    except unreadable():
        return False


def _unsigned(found: _Signed, issuer: _Signed) -> str:
    """Return why the signature of *found* is not a valid signature by *issuer*; empty if the signature is valid."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    fields, key = found.fields, issuer.fields.public_key()
    parameters = fields.signature_algorithm_parameters
    try:
        if isinstance(key, rsa.RSAPublicKey) and not isinstance(parameters, ec.ECDSA):
            key.verify(fields.signature, found.signed, parameters, fields.signature_hash_algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(fields.signature, found.signed, parameters)
        else:
            return "the signature was made with another kind of key"
    except InvalidSignature:
        return "invalid signature"
    return ""


@functools.lru_cache(maxsize=2048)
def _load(data: bytes) -> _Signed:
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(encoding.with_sorted_sets(data))
    # A signature is a BIT STRING of whole octets, without unused bits (X.690, 11.2). The parser accepts unused bits,
    # and then one certificate would have two encodings.
    if data[-len(certificate.signature) - 1] != 0:
        raise ValueError("its signature has unused bits")
    return _Signed(certificate, encoding.signed_part(data))


def _readable(data: bytes) -> _Signed | None:
    """Return an intermediate from the evidence; None if the intermediate can't be read and is to be ignored."""
    try:
        return _load(readable(data))
    except NetspaceError:
        return None


def _path(
    leaf: _Signed, chain: Sequence[_Signed], anchors: Sequence[_Signed], when: datetime.datetime
) -> list[_Signed]:
    """Return the shortest path from *leaf* to a root, the root last.

    The search is breadth-first. It visits each intermediate only once, at its smallest distance from the leaf, because
    a longer path could only violate more pathLenConstraints. The work grows at most with the square of the number of
    intermediates.

    :raises Untrusted: when there is no path.
    """
    last = f"its issuer, {leaf.fields.issuer.rfc4514_string()!r}, is not among the roots"
    paths, left = [[leaf]], list(chain)
    for depth in range(MAX_DEPTH + 1):
        for path in paths:
            for issuer in anchors:
                problem = _issued(path[-1], issuer, when, depth)
                if not problem:
                    return [*path, issuer]
                if issuer.fields.subject == path[-1].fields.issuer:
                    last = problem
        longer: list[list[_Signed]] = []
        for path in paths:
            issuers = [one for one in left if not _issued(path[-1], one, when, depth)]
            left = [one for one in left if one not in issuers]
            longer += [[*path, one] for one in issuers]
        paths = longer
    raise Untrusted(f"the endorsement certificate does not chain to a root: {last}")


def _issued(signed: _Signed, by: _Signed, when: datetime.datetime, depth: int) -> str:
    """Return why *by* is not the valid issuer of *signed*; empty if it is. Both are certificates."""
    certificate: Certificate = signed.fields
    issuer: Certificate = by.fields
    if issuer.subject != certificate.issuer:
        return "another name"
    problem = (
        _unfit(certificate, when)
        # A root's own signature is ignored: the operator vouches for the root.
        or path_rules.weak(certificate, _name(certificate))
        or _unfit(issuer, when)
        or path_rules.no_issuer(issuer, depth)
    )
    if problem:
        return problem
    problem = _unsigned(signed, by)
    return f"the issuer did not sign it: {problem}" if problem else ""


def _unfit(certificate: Certificate, when: datetime.datetime) -> str:
    return path_rules.unfit(certificate, _name(certificate), when, _UNDERSTOOD)


def _name(certificate: Certificate) -> str:
    return certificate.subject.rfc4514_string() or "the endorsement certificate"


def _check_leaf(certificate: Certificate, when: datetime.datetime) -> None:
    """Check the extensions of an endorsement certificate (EK Credential Profile, 3.2).

    The certificate must not be a CA's. Its key usage, if present, must allow decryption. Its extended key usage, if
    present, must include tcg-kp-EKCertificate.
    """
    from cryptography import x509

    problem = _unfit(certificate, when)
    if problem:
        raise Untrusted(problem)
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise Untrusted("the endorsement certificate is a CA's")
        if isinstance(value, x509.KeyUsage) and not (value.key_encipherment or value.key_agreement):
            raise Untrusted("the endorsement certificate's key usage does not allow decryption")
        if isinstance(value, x509.ExtendedKeyUsage) and _EK_USAGE not in [usage.dotted_string for usage in value]:
            raise Untrusted("the endorsement certificate is for another use; it lacks tcg-kp-EKCertificate")
