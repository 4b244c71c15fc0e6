"""Helpers that build X.509 certificates (RFC 5280) and write certificates and keys as PEM. They use no file.

Each function imports ``cryptography`` itself, because most runs issue no certificate.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.x509 import Certificate

SKEW = 300.0  # new certificates must be valid even if a clock is a little behind


def make(
    subject: Any, whose: Any, issuer: Any, key: Any, begins: float, ends: float, extensions: Iterable[tuple[Any, bool]]
) -> Certificate:
    """Return a certificate for the public key *whose*; *key* signs it in the name of *issuer*.

    The certificate is valid from ``SKEW`` seconds before *begins* until *ends*.

    :param extensions: pairs of an extension and whether it is critical (RFC 5280, 4.2).
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(when(begins - SKEW))
        .not_valid_after(when(ends))
        .public_key(whose)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    made: Certificate = builder.sign(key, hashes.SHA256())
    return made


def private(key: EllipticCurvePrivateKey | X25519PrivateKey) -> str:
    """Return a private key as PEM."""
    from cryptography.hazmat.primitives import serialization

    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode()


def text(certificate: Certificate) -> str:
    """Return a certificate as PEM."""
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def named(common: str) -> Any:
    """Return a distinguished name with only a common name."""
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def when(seconds: float) -> datetime.datetime:
    """Return *seconds* since 1970 as a datetime for certificates: UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(int(seconds), tz=datetime.timezone.utc)


def usage(**given: bool) -> Any:
    """Return a key usage extension that permits only the *given* uses."""
    from cryptography import x509

    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    flags: Mapping[str, bool] = {**dict.fromkeys(names, False), **given}
    return x509.KeyUsage(**flags)
