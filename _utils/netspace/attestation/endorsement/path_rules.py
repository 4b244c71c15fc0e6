"""Rules for each certificate of a path to a maker's root (RFC 5280, 6.1), shared by TPMs and TEEs. Pure.

Each function returns a problem as text for people, or an empty text if there is no problem. The caller finds the path,
checks signatures and names, and raises the error.
"""

from __future__ import annotations

import datetime
from collections.abc import Container
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def unfit(certificate: Certificate, name: str, when: datetime.datetime, understood: Container[str]) -> str:
    """Return why a path must not contain *certificate*; empty if a path may contain it.

    Reasons are the certificate's period of validity, its key, or an extension.

    :param name: the certificate's name, for people.
    :param understood: object identifiers of the critical extensions that the caller checks.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if not certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc:
        return f"{name} is valid from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}"
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            return f"{name} has an RSA key of {key.key_size} bits"
    elif not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        return f"{name} has a key that is neither RSA nor on a curve of 256 bits or more"
    for one in certificate.extensions:
        if one.critical and one.oid.dotted_string not in understood:
            return f"{name} has the critical extension {one.oid.dotted_string}, which is not understood"
    return ""


def weak(certificate: Certificate, name: str) -> str:
    """Return why the signature of *certificate* is too weak; empty if the signature is strong enough."""
    digest = certificate.signature_hash_algorithm
    if digest is not None and digest.digest_size >= 32:
        return ""
    return f"{name} is signed with {digest.name if digest else 'no hash'}"


def no_issuer(issuer: Certificate, depth: int) -> str:
    """Return why *issuer* may not sign a certificate; empty if *issuer* may.

    :param depth: number of intermediates below the issuer.
    """
    from cryptography import x509

    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as err:
        return f"the issuer is not a CA: {err}"
    if not basic.ca or not usage.key_cert_sign:
        return "the issuer may not sign certificates"
    if basic.path_length is not None and depth > basic.path_length:
        return f"the issuer allows at most {basic.path_length} intermediates below it"
    return ""
