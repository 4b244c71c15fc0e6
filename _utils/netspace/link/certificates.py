"""Certificates and keys of the authorities of links, made and written as PEM. Knows no host, file or declaration.

RFC 5280. Each function imports ``cryptography`` by itself: most runs issue nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.x509 import Certificate

SKEW = 300.0  # clocks that are set back a little must not make a new certificate one of the future


def make(
    subject: Any, whose: Any, issuer: Any, key: Any, begins: float, ends: float, extensions: Iterable[tuple[Any, bool]]
) -> Certificate:
    """Return a certificate of the public key *whose*, signed by *key* in the name *issuer*.

    It is valid from ``SKEW`` seconds before *begins*.

    :param extensions: each with whether it is critical: whoever doesn't understand it must then refuse the certificate.
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
    """A private key as PEM."""
    from cryptography.hazmat.primitives import serialization

    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode()


def text(certificate: Certificate) -> str:
    """A certificate as PEM."""
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def named(common: str) -> Any:
    """A distinguished name of one part."""
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def when(seconds: float) -> datetime.datetime:
    """Seconds since 1970 as certificates want them."""
    return datetime.datetime.fromtimestamp(int(seconds), tz=datetime.timezone.utc)


def usage(**given: bool) -> Any:
    """Return a key usage that permits what is *given*, and nothing else."""
    from cryptography import x509

    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    flags: Mapping[str, bool] = {**dict.fromkeys(names, False), **given}
    return x509.KeyUsage(**flags)
