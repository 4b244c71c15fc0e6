"""Conversion of raw ECDSA signatures (r and s concatenated) to DER, which ``cryptography`` accepts.

JOSE (RFC 7518, 3.4), Intel's quotes and PKCS #11 use the raw form: r and s are big-endian and of equal length.
"""

from __future__ import annotations


def to_der(raw: bytes) -> bytes:
    """Convert a raw signature to DER.

    :param raw: r and s, concatenated; each takes half of the bytes.
    """
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
