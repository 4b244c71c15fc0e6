"""ECDSA's signatures from the form in which r and s stand beside each other to DER, which ``cryptography`` takes.

JOSE (RFC 7518, 3.4), Intel's quotes and PKCS #11 have the former: both big-endian and of one size.
"""

from __future__ import annotations


def to_der(raw: bytes) -> bytes:
    """Return a signature in DER.

    :param raw: r and s, each one half.
    """
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
