"""JSON Web Signatures (RFC 7515) as netspace writes them: compact, ES256, and a header that says no more than that.

Nothing is negotiated: a token that names another algorithm (``none``), or another kind, is refused before its key is
looked for. That and a key as JWK are all of JOSE that a host needs: a page over ``cryptography``, which is here
anyway, and so no further library in what enforcement trusts. What a payload says is for others to check.
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
    """It is no token, or no key."""


class Forged(NetspaceError):
    """A token of another kind or algorithm, or one that none of the keys signed."""


def sign(key: EllipticCurvePrivateKey, kind: str, payload: Mapping[str, Any]) -> str:
    """Return *payload* as a JWS of *kind*: one kind can't be taken for another.

    :param key: on P-256.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    head = text(_json({"alg": "ES256", "kid": thumbprint(jwk(key.public_key())), "typ": kind}))
    signed = f"{head}.{text(_json(payload))}"
    r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def opened(token: Any, kind: str, keys: Collection[Mapping[str, str]], limit: int) -> dict[str, Any]:
    """Return the payload of a token that one of *keys* (JWK) signed.

    :raises Unreadable: when it is no token of at most *limit* bytes.
    :raises Forged: when it is of another kind or algorithm, or none of the keys signed it.
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
    """Header and claims of a token, which may be anybody's: for who made and kept it."""
    head, _, rest = token.partition(".")
    return _object(head, "header"), _object(rest.partition(".")[0], "claims")


# -- keys ------------------------------------------------------------------------------------------
def jwk(key: EllipticCurvePublicKey) -> dict[str, str]:
    """Return a public key on P-256 as RFC 7517 has it."""
    numbers = key.public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": number(numbers.x), "y": number(numbers.y)}


def thumbprint(key: Mapping[str, str]) -> str:
    """Return the thumbprint (RFC 7638) by which a key is pinned."""
    return text(hashlib.sha256(_json({name: key[name] for name in ("crv", "kty", "x", "y")})).digest())


def parse_jwk(data: Any) -> dict[str, str]:
    """Read a public key on P-256, of which no other member is looked at.

    :raises Unreadable: when it is none.
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
    """Read a point, once: it takes as long to check as a signature, and a verifier opens its own records all day."""
    from cryptography.hazmat.primitives.asymmetric import ec

    x, y = (octets(one, "key") for one in coordinates)
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        return numbers.public_key()
    except ValueError as err:
        raise Unreadable(f"key: {err}") from err


# -- bytes -----------------------------------------------------------------------------------------
def text(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def octets(encoded: str, what: str) -> bytes:
    """Return the bytes that are *encoded* in base64url without padding, by the one spelling that they have.

    :param what: names them in the error.
    :raises Unreadable: for any other spelling, and for what is none.
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
