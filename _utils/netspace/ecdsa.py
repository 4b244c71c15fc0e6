"""Conversion of ECDSA signatures between the raw form (r and s concatenated) and DER, which ``cryptography`` uses.

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


def to_raw(der: bytes, size: int) -> bytes:
    """Convert a signature in DER to its raw form.

    :param size: the bytes of each number.
    """
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(der))
