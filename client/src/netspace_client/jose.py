"""Signatures, keys and base64url of seals, by primitives of ``cryptography``. Encryption is in ``agreement``.

A signature is a JWS in compact form (RFC 7515) by ``ES256``. The JWS is assembled here because a library takes as long
for the rest of a JWS as for the signature itself. The caller decodes a header once and checks its algorithm, so no
second decoding can give another result.

Verification raises only :class:`SealError`. Sizes of headers and bodies are limited.
"""

from __future__ import annotations

import binascii
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from netspace_client.errors import CardError, SealError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

SIGN = "ES256"
MAX_PART = 8192
MAX_BODY = 8 * 1024 * 1024
"""The most bytes of a body. Sealed, it fits into the broker's limit of 16 MiB."""
MAX_SEALED = MAX_BODY * 16 // 9 + 2 * MAX_PART

_NUMBER = 32
"""Bytes of a coordinate, of a private key, and of each half of a signature."""
_LATEST = 2**53
# ``base64`` does the same by two more calls for each part, of which a message has seven.
_TO_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
_written = json.JSONEncoder(separators=(",", ":")).encode


class Jose:
    """The operations: sign, verify, and import keys on P-256."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        self._ec, self._utils = ec, utils
        self._way = ec.ECDSA(hashes.SHA256())
        # Caches of the keys in use: importing a key takes as long as signing with it.
        self._private = functools.lru_cache(maxsize=256)(self._private_key)
        self._public = functools.lru_cache(maxsize=256)(self._public_key)

    def forget(self) -> None:
        """Forget all private keys. Keys that are still used are imported again."""
        self._private.cache_clear()

    def private(self, jwk: Mapping[str, str]) -> EllipticCurvePrivateKey:
        """Return one of our private keys, imported from its JWK.

        :raises ValueError: the JWK is not a private key.
        """
        return self._private(jwk["x"], jwk["y"], jwk["d"])

    def public(self, jwk: Mapping[str, str]) -> EllipticCurvePublicKey:
        """Return a public key that is used often.

        :raises ValueError: the JWK is not a key, or not on the curve.
        :raises SealError: the JWK isn't in base64url.
        """
        return self._public(jwk["x"], jwk["y"])

    def imported(self, jwk: Mapping[str, str]) -> EllipticCurvePublicKey:
        """Return a public key that is used once. The errors are those of :meth:`public`."""
        return self._public_key(jwk["x"], jwk["y"])

    def _public_key(self, x: str, y: str) -> EllipticCurvePublicKey:
        # ``cryptography`` refuses a point that isn't on the curve, and a coordinate that is too large.
        return self._ec.EllipticCurvePublicNumbers(_number(x), _number(y), self._ec.SECP256R1()).public_key()

    def _private_key(self, x: str, y: str, d: str) -> EllipticCurvePrivateKey:
        public = self._ec.EllipticCurvePublicNumbers(_number(x), _number(y), self._ec.SECP256R1())
        return self._ec.EllipticCurvePrivateNumbers(_number(d), public).private_key()

    def sign(self, header: Mapping[str, Any], body: bytes, key: Mapping[str, str]) -> bytes:
        """Return a JWS by the private key *key*.

        :param header: the encoded header, which must name the algorithm ``SIGN``.
        """
        said = header_of(header) + b"." + encoded(body)
        halves = self._utils.decode_dss_signature(self.private(key).sign(said, self._way))
        return said + b"." + encoded(b"".join(half.to_bytes(_NUMBER, "big") for half in halves))

    def verify(self, raw: bytes, key: Mapping[str, str]) -> bytes:
        """Return the body of a JWS that the owner of the public key *key* signed.

        The caller has to check the header: above all, that its algorithm is ``SIGN``.

        :raises SealError: this key did not sign exactly these bytes.
        """
        said, _, signature = raw.rpartition(b".")
        halves = segment(signature)
        if said.count(b".") != 1 or len(halves) != 2 * _NUMBER:
            raise SealError("its signature doesn't hold: it isn't one by ES256")
        pair = (int.from_bytes(half, "big") for half in (halves[:_NUMBER], halves[_NUMBER:]))
        try:
            self.public(key).verify(self._utils.encode_dss_signature(*pair), said, self._way)
        except Exception as err:  # a forged message may raise anything here
            raise SealError(f"its signature doesn't hold: {type(err).__name__}") from None
        return segment(said.partition(b".")[2])


def _number(text: str) -> int:
    """Return a coordinate. Some libraries cut its leading zeros off (against RFC 7518, 6.2.1.2)."""
    raw = segment(text.encode())
    if len(raw) > _NUMBER:
        raise ValueError(f"a coordinate of {len(raw)} bytes")
    return int.from_bytes(raw, "big")


def encoded(raw: bytes) -> bytes:
    """Encode in base64url (RFC 7515, 2)."""
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=")


def segment(text: bytes) -> bytes:
    """Decode base64url, only in its canonical spelling.

    :raises SealError: the text is not base64url, or not in canonical spelling.
    """
    try:
        raw = binascii.a2b_base64(text.translate(_FROM_URL) + b"=" * (-len(text) % 4))
    except binascii.Error:
        raise SealError("it can't be read: a part isn't in base64url") from None
    if encoded(raw) != text:
        raise SealError("it can't be read: a part is in base64url, but not in its only valid spelling")
    return raw


def header_of(members: Mapping[str, Any]) -> bytes:
    """Return an encoded header."""
    return encoded(_written(members).encode())


def decoded(text: bytes) -> dict[str, Any]:
    """Decode a header or the claims of a token, without verification.

    :raises SealError: the text can't be decoded, or is too long.
    """
    if len(text) > MAX_PART:
        raise SealError("its header is too long")
    try:
        found = json.loads(segment(text))
    except (ValueError, RecursionError):
        raise SealError("its header can't be read") from None
    if not isinstance(found, dict):
        raise SealError("its header can't be read")
    return found


_made: list[Jose] = []


def loaded() -> Jose:
    """Return the shared :class:`Jose`; the first call imports ``cryptography``.

    :raises CardError: ``cryptography`` is not installed.
    """
    if not _made:
        try:
            _made.append(Jose())
        except ImportError as err:
            raise CardError(
                f"a link is sealed, which needs cryptography (netspace-client's extra 'seal'): {err}"
            ) from err
    return _made[0]


def is_time(value: Any) -> bool:
    """Return whether a header member is a time in seconds since 1970, small enough for calculations with floats."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LATEST  # NaN isn't


def text(header: Mapping[str, Any], name: str) -> str:
    """Return a header member that must be text.

    :raises SealError: the member is missing or not text.
    """
    value = header.get(name)
    if not isinstance(value, str):
        raise SealError(f"{name} is missing or no text")
    return value
