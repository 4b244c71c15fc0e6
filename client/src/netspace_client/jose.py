"""Signatures and keys of seals, each of one algorithm, by ``joserfc``; encryption is in ``agreement``.

Verification raises only :class:`SealError`. Sizes of headers and bodies are bounded.
"""

from __future__ import annotations

import base64
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


class Jose:
    """The operations: sign, verify, and import keys."""

    def __init__(self) -> None:
        from joserfc import jws
        from joserfc.jwk import ECKey

        class Signatures(jws.JWSRegistry):
            max_header_length = MAX_PART
            max_payload_length = MAX_SEALED

        self._jws, self._import = jws, ECKey.import_key
        # A cache of the keys in use: importing a key takes as long as signing with it.
        self._made = functools.lru_cache(maxsize=64)(lambda members: ECKey.import_key(dict(members)))
        # ``seal`` checks the members of headers; joserfc's registry doesn't know netspace's members.
        self._signatures = Signatures(algorithms=[SIGN], strict_check_header=False)

    def _key(self, jwk: Mapping[str, str]) -> Any:
        return self._made(tuple(jwk.items()))

    def private(self, jwk: Mapping[str, str]) -> EllipticCurvePrivateKey:
        """Return a private key of ours; it is cached."""
        found: EllipticCurvePrivateKey = self._key(jwk).private_key
        return found

    def public(self, jwk: Mapping[str, str]) -> EllipticCurvePublicKey:
        """Return a public key; it is cached."""
        found: EllipticCurvePublicKey = self._key(jwk).public_key
        return found

    def imported(self, jwk: Mapping[str, str]) -> EllipticCurvePublicKey:
        """Return a public key that is used once. A point that isn't on the curve raises any exception."""
        found: EllipticCurvePublicKey = self._import(dict(jwk)).public_key
        return found

    def sign(self, header: dict[str, Any], body: bytes, key: Mapping[str, str]) -> str:
        return self._jws.serialize_compact(header, body, self._key(key), registry=self._signatures)

    def verify(self, raw: bytes, key: Mapping[str, str]) -> bytes:
        try:
            return self._jws.deserialize_compact(raw, self._key(key), registry=self._signatures).payload
        except Exception as err:
            raise SealError(f"its signature doesn't hold: {type(err).__name__}") from None


def decoded(encoded: bytes) -> dict[str, Any]:
    """Decode a header or the claims of a token, without verification.

    :raises SealError: it can't be decoded, or is too long.
    """
    if len(encoded) > MAX_PART:
        raise SealError("its header is too long")
    try:
        found = json.loads(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))
    except (ValueError, RecursionError):
        raise SealError("its header can't be read") from None
    if not isinstance(found, dict):
        raise SealError("its header can't be read")
    return found


_made: list[Jose] = []


def loaded() -> Jose:
    """Return the shared :class:`Jose`; the first call imports ``joserfc``.

    :raises CardError: ``joserfc`` is not installed.
    """
    if not _made:
        try:
            _made.append(Jose())
        except ImportError as err:
            raise CardError(f"a link is sealed, which needs joserfc (netspace-client's extra 'seal'): {err}") from err
    return _made[0]


def text(header: Mapping[str, Any], name: str) -> str:
    """Return a header member that must be text.

    :raises SealError: it is missing or not text.
    """
    value = header.get(name)
    if not isinstance(value, str):
        raise SealError(f"{name} is missing or no text")
    return value
