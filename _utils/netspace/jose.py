"""JSON Web Signatures (RFC 7515) in one form: compact, ES256, a header with only ``alg``, ``kid`` and ``typ``.

``joserfc`` signs and verifies. Before ``joserfc`` gets a token, this module refuses a token that is too long, has
another algorithm (such as ``none``), another type or a further member in its header, or isn't encoded canonically.
Callers check the payload.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from netspace import strict_json
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from joserfc.jwk import ECKey
    from joserfc.jws import JWSRegistry

ALGORITHM = "ES256"


class Unreadable(NetspaceError):
    """Error: a token or key is malformed."""


class Forged(NetspaceError):
    """Error: a token has another type or algorithm, or none of the expected keys signed it."""


def sign(key: EllipticCurvePrivateKey, kind: str, payload: Mapping[str, Any]) -> str:
    """Return *payload* as a JWS whose ``typ`` is *kind*, so that no reader accepts it as another type.

    :param key: a private key on P-256.
    """
    from joserfc import jws
    from joserfc.jwk import ECKey

    public = jwk(key.public_key())
    header = {"alg": ALGORITHM, "kid": thumbprint(public), "typ": kind}
    # Given the public members, joserfc doesn't ask for the private number, which a key in hardware doesn't give.
    return jws.serialize_compact(header, _json(payload), ECKey(key, public), [ALGORITHM])


def opened(token: Any, kind: str, keys: Collection[Mapping[str, str]], limit: int) -> dict[str, Any]:
    """Return the payload of a token that one of *keys* (JWK) signed.

    :param kind: the expected ``typ``.
    :param limit: the most bytes of the token.
    :raises Unreadable: *token* is malformed, or longer than *limit* bytes.
    :raises Forged: *token* has another type or algorithm, or none of the keys signed it.
    """
    from joserfc import errors, jws

    if not isinstance(token, str) or len(token) > limit or token.count(".") != 2:
        raise Unreadable(f"not a token of at most {limit} bytes in three parts")
    head, body, signature = token.split(".")
    octets(signature, "signature")
    header, claims = _object(octets(head, "header"), "header"), octets(body, "claims")
    known = {thumbprint(one): one for one in keys}
    name = header.get("kid")
    if header != {"alg": ALGORITHM, "kid": name, "typ": kind}:
        raise Forged(f"its header is not one of {ALGORITHM} for {kind}: alg {header.get('alg')!r:.20}")
    if not isinstance(name, str) or name not in known:
        raise Forged(f"signed with the key {name!r:.50}, which is not trusted")
    try:
        jws.deserialize_compact(token, _key(known[name]["x"], known[name]["y"]), registry=_registry(limit))
    except errors.JoseError as err:
        raise Forged("the key that it names did not sign it") from err
    return _object(claims, "claims")


def unchecked(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a token without checking its signature.

    Use it only for tokens that this host itself has made.
    """
    head, _, rest = token.partition(".")
    body = rest.partition(".")[0]
    return _object(octets(head, "header"), "header"), _object(octets(body, "claims"), "claims")


@functools.lru_cache(maxsize=16)
def _registry(limit: int) -> JWSRegistry:
    """Return joserfc's rules: one algorithm, no unknown member of a header, at most *limit* bytes of payload."""
    from joserfc.jws import JWSRegistry

    made = JWSRegistry(algorithms=[ALGORITHM])
    made.max_payload_length = limit
    return made


# -- keys ------------------------------------------------------------------------------------------
def jwk(key: EllipticCurvePublicKey) -> dict[str, str]:
    """Return a public key on P-256 as a JWK (RFC 7517).

    joserfc before 1.6 strips leading zeros from a coordinate, which RFC 7518 (6.2.1.2) forbids.
    """
    numbers = key.public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": number(numbers.x), "y": number(numbers.y)}


def thumbprint(key: Mapping[str, str]) -> str:
    """Return the thumbprint of a JWK (RFC 7638), which identifies a pinned key.

    :raises Unreadable: *key* is no point on P-256.
    """
    return _key(key["x"], key["y"]).thumbprint()


def parse_jwk(data: Any) -> dict[str, str]:
    """Return the P-256 public key in *data*, a JWK. Members that such a key doesn't need are left out.

    :raises Unreadable: *data* is not such a key.
    """
    if not isinstance(data, Mapping) or (data.get("kty"), data.get("crv")) != ("EC", "P-256"):
        raise Unreadable("not a key on P-256 (JWK)")
    if any(not isinstance(data.get(name), str) or len(data[name]) != 43 for name in ("x", "y")):
        raise Unreadable("not a key on P-256 (JWK)")
    found = {"crv": "P-256", "kty": "EC", "x": data["x"], "y": data["y"]}
    _key(found["x"], found["y"])
    return found


@functools.lru_cache(maxsize=64)
def _key(x: str, y: str) -> ECKey:
    """Return the public key with these coordinates.

    Results are cached: checking a point takes as long as checking a signature, and a verifier uses its own key often.
    """
    from joserfc.jwk import ECKey

    octets(x, "key"), octets(y, "key")
    try:
        made: ECKey = ECKey.import_key({"crv": "P-256", "kty": "EC", "x": x, "y": y})
    except ValueError as err:
        raise Unreadable(f"key: {err}") from err
    return made


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
        raise Unreadable(f"{what}: not canonical base64url")
    return raw


def number(value: int) -> str:
    """Return a number of a key on P-256 (a coordinate, or the private number) as base64url of 32 bytes."""
    return text(value.to_bytes(32, "big"))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        found = strict_json.loads(raw)
    except ValueError as err:
        raise Unreadable(f"{what}: not JSON: {err}") from err
    if not isinstance(found, dict):
        raise Unreadable(f"{what}: not a JSON object")
    return found
