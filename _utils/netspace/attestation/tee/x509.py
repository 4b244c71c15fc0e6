"""Certificates of processors: parsed, and validated up to one of the operator's roots.

This is RFC 5280 path validation for the certificates of AMD (VCEK, VLEK; RSA-PSS) and Intel (PCK, TCB signing; ECDSA).
``cryptography.x509.verification`` can't be used, because it demands a DNS name or an address as subject.
``cryptography`` only checks signatures, and parses encodings and names. The module fetches nothing: intermediates come
with the report or from the operator, and revocation lists come from the operator. If the operator supplies an issuer's
revocation list, the list must be valid now.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netspace.attestation.endorsement import der as encoding
from netspace.attestation.endorsement import path_rules, revocation
from netspace.attestation.refusals import TeeMalformed, TeeRevoked, TeeUntrusted
from netspace.errors import unreadable

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, CertificateRevocationList

MAX_CERTIFICATE = 8192
# The most intermediates in a path, and the most signatures that are checked to find a path.
MAX_DEPTH, MAX_CHECKS = 3, 64
# basicConstraints, keyUsage, extKeyUsage, subject and authority key identifiers.
_UNDERSTOOD = frozenset(("2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.14", "2.5.29.35"))


@dataclass(frozen=True)
class Trust:
    """The operator's certificates and documents, from files (``roots``).

    :param roots: self-signed certificates, DER; trusted.
    :param known: certificates of CAs and processors, DER; not trusted by themselves.
    :param lists: revocation lists, DER.
    :param documents: Intel's TCB information and enclave identities: JSON, byte for byte as Intel signed it.
    """

    roots: tuple[bytes, ...] = ()
    known: tuple[bytes, ...] = ()
    lists: tuple[bytes, ...] = ()
    documents: tuple[bytes, ...] = ()

    @functools.cached_property
    def root_certificates(self) -> tuple[Certificate, ...]:
        """The roots, parsed once for all reports.

        :raises TeeMalformed: when a root can't be parsed.
        """
        return tuple(load(one) for one in self.roots)

    @functools.cached_property
    def known_certificates(self) -> tuple[Certificate, ...]:
        """The certificates of :attr:`known`, parsed once.

        :raises TeeMalformed: when a certificate can't be parsed.
        """
        return tuple(load(one) for one in self.known)

    @functools.cached_property
    def revocation_lists(self) -> tuple[CertificateRevocationList, ...]:
        """The revocation lists, parsed once.

        :raises TeeMalformed: when a list can't be parsed.
        """
        return tuple(load_list(one) for one in self.lists)


def from_pem(raw: bytes, limit: int) -> list[bytes]:
    """Return the content (DER) of the PEM blocks in *raw*. Each must be a certificate, which :func:`load` checks.

    :raises TeeMalformed: when a block is damaged, or *raw* has more than *limit* blocks.
    """
    blocks, problems = encoding.from_pem(raw)
    if problems:
        raise TeeMalformed(f"certificates: {problems[0]}")
    if len(blocks) > limit:
        raise TeeMalformed(f"{len(blocks)} certificates; at most {limit} are accepted")
    return blocks


def load(der: bytes) -> Certificate:
    """Parse one DER certificate.

    :raises TeeMalformed: when the certificate can't be parsed.
    """
    from cryptography import x509

    if len(der) > MAX_CERTIFICATE:
        raise TeeMalformed(f"certificate: {len(der)} bytes; at most {MAX_CERTIFICATE} are accepted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # AMD's serial numbers are 0, of which cryptography warns
            found = x509.load_der_x509_certificate(der)
            # cryptography parses these only on access, so they are accessed here to find errors.
            _ = found.extensions, found.subject, found.issuer, found.public_key(), found.signature_hash_algorithm
    except unreadable() as err:
        raise TeeMalformed(f"certificate: {err}") from err
    return found


def extension(certificate: Certificate, dotted: str) -> bytes | None:
    """Return the DER value of a maker's own extension; None if the certificate does not have it."""
    from cryptography import x509

    try:
        value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(dotted)).value
    except x509.ExtensionNotFound:
        return None
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


def check(leaf: Certificate, brought: Sequence[Certificate], trust: Trust, now: float) -> None:
    """Check that *leaf* chains to one of the operator's roots.

    :param brought: intermediates that came with the report; not trusted.
    :param now: seconds since the epoch.
    :raises TeeUntrusted: when there is no path; the message has the reason.
    :raises TeeRevoked: when a certificate of the path was revoked.
    """
    if not trust.roots:
        raise TeeUntrusted("no root certificates are configured")
    when = datetime.datetime.fromtimestamp(now, tz=datetime.timezone.utc)
    path = _path(leaf, (*trust.known_certificates, *brought), trust.root_certificates, when)
    for certificate, issuer in itertools.pairwise(path):
        _not_revoked(certificate, issuer, trust.revocation_lists, when)


def is_root(certificate: Certificate) -> bool:
    """Return whether *certificate* is a self-signed CA certificate."""
    return certificate.subject == certificate.issuer and not _signed(certificate, certificate, 0)


def _path(
    leaf: Certificate, between: Sequence[Certificate], roots: Sequence[Certificate], when: datetime.datetime
) -> list[Certificate]:
    """Return a path from *leaf* to a root, both included.

    ``MAX_DEPTH`` and ``MAX_CHECKS`` limit the search, so that a sender of many certificates can't prolong it.

    :raises TeeUntrusted: when there is no path.
    """
    last = ""
    checks = 0
    open_paths = [[leaf]]
    while open_paths:
        path = open_paths.pop()
        certificate = path[-1]
        problem = _unfit(certificate, when)
        last = problem or last or f"its issuer, {certificate.issuer.rfc4514_string()!r:.200}, is missing"
        if problem:
            continue
        for issuer in (*roots, *reversed(between)):
            trusted = issuer in roots
            if issuer.subject != certificate.issuer or issuer in path or not (trusted or len(path) <= MAX_DEPTH):
                continue
            checks += 1
            if checks > MAX_CHECKS:
                raise TeeUntrusted(f"more than {MAX_CHECKS} certificates might be issuers")
            problem = _signed(certificate, issuer, len(path) - 1) or (_unfit(issuer, when) if trusted else "")
            if problem:
                last = problem
            elif trusted:
                return [*path, issuer]
            else:
                open_paths.append([*path, issuer])
    raise TeeUntrusted(f"{_name(leaf)} does not chain to a root: {last}")


def _signed(certificate: Certificate, issuer: Certificate, depth: int) -> str:
    """Return why *issuer* is not the valid issuer of *certificate*; empty if *issuer* is the valid issuer.

    :param depth: number of intermediates below the issuer.
    """
    from cryptography.exceptions import InvalidSignature

    problem = path_rules.no_issuer(issuer, depth)
    if problem:
        return problem
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return "the issuer did not sign it"
    except unreadable() as err:
        return f"its signature can't be checked: {err}"
    return ""


def _unfit(certificate: Certificate, when: datetime.datetime) -> str:
    """Return why a path must not contain the certificate; empty if it may."""
    name = _name(certificate)
    return path_rules.unfit(certificate, name, when, _UNDERSTOOD) or path_rules.weak(certificate, name)


def _name(certificate: Certificate) -> str:
    return f"{certificate.subject.rfc4514_string() or 'a certificate'!r:.200}"


def load_list(der: bytes) -> CertificateRevocationList:
    """Parse one DER revocation list.

    :raises TeeMalformed: when the list can't be parsed.
    """
    from cryptography import x509

    try:
        found = x509.load_der_x509_crl(der)
        # cryptography parses these only on access, so they are accessed here to find errors.
        _ = found.extensions, found.issuer, found.last_update_utc, found.next_update_utc
    except unreadable() as err:
        raise TeeMalformed(f"revocation list: {err}; get it again from its maker") from err
    return found


def _not_revoked(
    certificate: Certificate,
    issuer: Certificate,
    lists: Sequence[CertificateRevocationList],
    when: datetime.datetime,
) -> None:
    """Check a certificate against the newest revocation list of *issuer*. Without a list, accept the certificate.

    :raises TeeRevoked: when the certificate was revoked.
    :raises TeeUntrusted: when the list is not valid now.
    """
    genuine = [one for one in lists if one.issuer == issuer.subject and _signed_list(one, issuer)]
    if not genuine:
        return
    found = revocation.by_newest(genuine, certificate.serial_number, when)
    if found.revoked is not None:
        raise TeeRevoked(f"{_name(issuer)} revoked the certificate {certificate.serial_number:x}")
    if found.out_of_force:
        raise TeeUntrusted(
            f"the revocation list of {_name(issuer)} {found.out_of_force}: put a newer one into the folder of roots"
        )


def _signed_list(found: CertificateRevocationList, issuer: Certificate) -> bool:
    from cryptography import x509

    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        return usage.crl_sign and found.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except x509.ExtensionNotFound:
        return False
    except unreadable():
        return False
