"""JSON Web Signatures (RFC 7515) in netspace's one form: compact, ES256, and a header with only alg, kid and typ.

Nothing is negotiated: a token with another algorithm (``none``) or type is refused before its key is looked up.
A host needs only this and JWK from JOSE. That is a page of code over ``cryptography``, which is required anyway, so
enforcement need not trust another library. Callers check the payload.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from netspace import ecdsa
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey


class Unreadable(NetspaceError):
    """A malformed token or key."""


class Forged(NetspaceError):
    """A token of another type or algorithm, or one that none of the keys signed."""


def sign(key: EllipticCurvePrivateKey, kind: str, payload: Mapping[str, Any]) -> str:
    """Return *payload* as a JWS whose ``typ`` is *kind*, so that it isn't accepted as another type.

    :param key: a key on P-256.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    head = text(_json({"alg": "ES256", "kid": thumbprint(jwk(key.public_key())), "typ": kind}))
    signed = f"{head}.{text(_json(payload))}"
    r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def opened(token: Any, kind: str, keys: Collection[Mapping[str, str]], limit: int) -> dict[str, Any]:
    """Return the payload of a token that one of *keys* (JWK) signed.

    :raises Unreadable: *token* is malformed, or longer than *limit* bytes.
    :raises Forged: it is of another type or algorithm, or none of the keys signed it.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(token, str) or len(token) > limit or token.count(".") != 2:
        raise Unreadable(f"not a token of at most {limit} bytes in three parts")
    head, body, signature = token.split(".")
    header, raw = _object(head, "header"), octets(signature, "signature")
    known = {thumbprint(one): one for one in keys}
    name = header.get("kid")
    if header != {"alg": "ES256", "kid": name, "typ": kind}:
        raise Forged(f"its header is not one of ES256 for {kind}: alg {header.get('alg')!r:.20}")
    if not isinstance(name, str) or name not in known or len(raw) != 64:
        raise Forged(f"signed with the key {name!r:.50}, which is not one that is trusted")
    try:
        public = _point(known[name]["x"], known[name]["y"])
        public.verify(ecdsa.to_der(raw), f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as err:
        raise Forged("the key that it names did not sign this") from err
    return _object(body, "claims")


def unchecked(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a token without checking its signature. Only for tokens of one's own making."""
    head, _, rest = token.partition(".")
    return _object(head, "header"), _object(rest.partition(".")[0], "claims")


# -- keys ------------------------------------------------------------------------------------------
def jwk(key: EllipticCurvePublicKey) -> dict[str, str]:
    """Return a public key on P-256 as a JWK (RFC 7517)."""
    numbers = key.public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": number(numbers.x), "y": number(numbers.y)}


def thumbprint(key: Mapping[str, str]) -> str:
    """Return the thumbprint of a JWK (RFC 7638), by which a key is pinned."""
    return text(hashlib.sha256(_json({name: key[name] for name in ("crv", "kty", "x", "y")})).digest())


def parse_jwk(data: Any) -> dict[str, str]:
    """Return the public key on P-256 in *data*, without other members.

    :raises Unreadable: *data* is not such a key.
    """
    if not isinstance(data, Mapping) or (data.get("kty"), data.get("crv")) != ("EC", "P-256"):
        raise Unreadable("not a key on P-256 (JWK)")
    if any(not isinstance(data.get(name), str) or len(data[name]) != 43 for name in ("x", "y")):
        raise Unreadable("not a key on P-256 (JWK)")
    found = {"crv": "P-256", "kty": "EC", "x": data["x"], "y": data["y"]}
    _point(found["x"], found["y"])
    return found


@functools.lru_cache(maxsize=64)
def _point(*coordinates: str) -> EllipticCurvePublicKey:
    """Return the public key with these coordinates.

    Results are cached: checking a point takes as long as checking a signature, and a verifier uses its own key often.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    x, y = (octets(one, "key") for one in coordinates)
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        return numbers.public_key()
    except ValueError as err:
        raise Unreadable(f"key: {err}") from err


# -- bytes -----------------------------------------------------------------------------------------
def text(data: bytes) -> str:
    """Return *data* in base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def octets(encoded: str, what: str) -> bytes:
    """Return the bytes that *encoded* encodes in base64url without padding.

    :param what: the name of the value, for the error.
    :raises Unreadable: *encoded* is malformed, or not the canonical encoding.
    """
    try:
        raw = base64.b64decode(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError) as err:
        raise Unreadable(f"{what}: not base64url") from err
    if text(raw) != encoded:
        raise Unreadable(f"{what}: not base64url as it is written")
    return raw


def number(value: int) -> str:
    """Return a coordinate, or the private number, of a key on P-256 as base64url."""
    return text(value.to_bytes(32, "big"))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _object(encoded: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(octets(encoded, what))
    except (ValueError, RecursionError) as err:
        raise Unreadable(f"{what}: not JSON") from err
    if not isinstance(found, dict):
        raise Unreadable(f"{what}: not a JSON object")
    return found
