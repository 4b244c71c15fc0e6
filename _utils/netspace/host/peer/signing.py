"""ES256 signatures (RFC 7518, 3.4) by OpenSSL's libcrypto, which Python has loaded already for TLS.

The peer needs only such signatures. Importing ``cryptography`` would double the peer's memory.
"""

from __future__ import annotations

import ctypes
import functools

_LIBRARY = "libcrypto.so.3"
_SIZE = 32  # bytes of a number on P-256
_MOST = 128  # bytes of a signature in DER


class SigningError(Exception):
    """Error: OpenSSL refused the key, or could not sign."""


def es256(key: bytes, message: bytes) -> bytes:
    """Return the ES256 signature of a message: the numbers r and s, 32 bytes each.

    :param key: a private key on P-256 (PKCS #8, DER).
    :raises SigningError: when OpenSSL can't read the key or can't sign.
    """
    library = _library()
    start = ctypes.c_char_p(key)
    loaded = library.d2i_AutoPrivateKey(None, ctypes.byref(start), len(key))
    context = library.EVP_MD_CTX_new()
    try:
        if not loaded or not context:
            raise SigningError("OpenSSL can't read the key that signs tokens")
        signature, size = ctypes.create_string_buffer(_MOST), ctypes.c_size_t(_MOST)
        began = library.EVP_DigestSignInit(context, None, library.EVP_sha256(), None, loaded)
        if began != 1 or library.EVP_DigestSign(context, signature, ctypes.byref(size), message, len(message)) != 1:
            raise SigningError("OpenSSL can't sign with the key that signs tokens")
        return _numbers(signature.raw[: size.value])
    finally:
        library.EVP_MD_CTX_free(context)
        library.EVP_PKEY_free(loaded)


def _numbers(der: bytes) -> bytes:
    """Return the numbers r and s, 32 bytes each, from a signature in DER (RFC 3279, 2.2.3).

    In DER, each number must take fewer than 128 bytes.
    """
    at, found = 2, b""
    for _ in range(2):
        size = der[at + 1]
        found += int.from_bytes(der[at + 2 : at + 2 + size], "big").to_bytes(_SIZE, "big")
        at += 2 + size
    return found


@functools.cache
def _library() -> ctypes.CDLL:
    library, pointer = ctypes.CDLL(_LIBRARY), ctypes.c_void_p
    for name, result, arguments in (
        ("d2i_AutoPrivateKey", pointer, (pointer, ctypes.POINTER(ctypes.c_char_p), ctypes.c_long)),
        ("EVP_MD_CTX_new", pointer, ()),
        ("EVP_MD_CTX_free", None, (pointer,)),
        ("EVP_PKEY_free", None, (pointer,)),
        ("EVP_sha256", pointer, ()),
        ("EVP_DigestSignInit", ctypes.c_int, (pointer, pointer, pointer, pointer, pointer)),
        (
            "EVP_DigestSign",
            ctypes.c_int,
            (pointer, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_char_p, ctypes.c_size_t),
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
