"""What a verifier concluded, as a signed token that others can check: EAR (draft-ietf-rats-ear-04), JWT, ES256.

:func:`make` and :func:`check` are the two ends; no file but the signer's key (:func:`signer`), no clock.
One algorithm and one form of header are known, so there is nothing to negotiate: a token
that names another algorithm (``none``) is refused before its key is looked for. That, JWS's raw
signature and a key as JWK are all of JOSE that is needed: a page over ``cryptography``, which is
here anyway, and so no further library in what enforcement trusts.

A host takes a result (:func:`check`) only if all of this holds, in this order:

1. header, claims and sizes are what :func:`make` writes; signed with one of the pinned keys;
2. for this host; for the nonce of the challenge that it answered last, which is used up by it;
3. of this boot; not expired (ten minutes), not from the future;
4. by a policy that is not older than the last one of the same group.

Each refusal has its code (``netspace.attestation.refusals``).
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files
from netspace.attestation import hsm, privacy_ca
from netspace.attestation.refusals import (
    Malformed,
    PolicyDowngraded,
    ResultElsewhere,
    ResultExpired,
    ResultForged,
    ResultOtherBoot,
    ResultReplayed,
)
from netspace.attestation.result import SKEW
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PROFILE = "tag:ietf.org,2026:rats/ear#04"
LIFETIME = 600.0
MAX_TOKEN = 32 * 1024
AFFIRMING, WARNING, CONTRAINDICATED = "affirming", "warning", "contraindicated"
RESULT, POLICY, STATE = "JWT", "netspace-policy", "netspace-state"


@dataclass(frozen=True)
class Signer:
    """The verifier's key. It is neither Salt's nor the Privacy CA's."""

    key: EllipticCurvePrivateKey

    @functools.cached_property
    def jwk(self) -> dict[str, str]:
        return jwk(self.key.public_key())

    def sign(self, kind: str, payload: Mapping[str, Any]) -> str:
        """Return *payload* as a JWS (compact form) of *kind*: one kind can't be taken for another."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        head = _text(_json({"alg": "ES256", "kid": thumbprint(self.jwk), "typ": kind}))
        signed = f"{head}.{_text(_json(payload))}"
        r, s = utils.decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@dataclass(frozen=True)
class Told:
    """What a result says of one host.

    :param level: 0 to 5; 0: evidence was refused.
    :param minimum: what the host's group asks for.
    :param deadline: until when it counts at the host, seconds since the epoch.
    """

    minion: str
    level: int
    minimum: int
    code: str
    reason: str
    remedy: str
    nonce: str
    boot: str
    group: str
    version: int
    deadline: float

    @property
    def status(self) -> str:
        """Affirming only where a TPM says so, and the group's minimum is reached."""
        if self.level == 0:
            return CONTRAINDICATED
        return AFFIRMING if self.level >= max(self.minimum, 2) else WARNING


def signer(folder: Path, module: hsm.Module | None = None) -> Signer:
    """Return the key in *folder*; make it where there is none (0600, in a folder of its user's alone).

    :param module: where it is made, in place of the file.
    :raises NetspaceError: when others could read it, or it is none.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / "verifier.pem"
    with files.locked(folder / "lock"):
        if not path.exists():
            made = module.create("verifier") if module else ec.generate_private_key(ec.SECP256R1())
            files.write(path, privacy_ca.private_bytes(made), mode=0o600)
    info = path.lstat()
    if info.st_mode & 0o077 or info.st_uid != os.geteuid():
        raise NetspaceError(f"{path}: must be its user's alone: chmod go= it, and ask who has read it")
    return Signer(privacy_ca.private_key(path.read_bytes(), module, path))


def jwk(key: EllipticCurvePublicKey) -> dict[str, str]:
    """Return a public key as RFC 7517 has it."""
    numbers = key.public_numbers()
    return {
        "crv": "P-256",
        "kty": "EC",
        "x": _text(numbers.x.to_bytes(32, "big")),
        "y": _text(numbers.y.to_bytes(32, "big")),
    }


def jwks(keys: Collection[Mapping[str, str]]) -> dict[str, Any]:
    """Return a set of keys for others that check results."""
    return {"keys": [{**one, "alg": "ES256", "use": "sig", "kid": thumbprint(one)} for one in keys]}


def thumbprint(key: Mapping[str, str]) -> str:
    """RFC 7638: what a key is pinned by."""
    return _text(hashlib.sha256(_json({name: key[name] for name in ("crv", "kty", "x", "y")})).digest())


def opened(token: Any, kind: str, keys: Collection[Mapping[str, str]], limit: int = MAX_TOKEN) -> dict[str, Any]:
    """Return the payload of a token that one of *keys* (JWK) signed.

    :raises Malformed: when it is no token.
    :raises ResultForged: when it is of another kind or algorithm, or none of the keys signed it.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    if not isinstance(token, str) or len(token) > limit or token.count(".") != 2:
        raise Malformed(f"not a token of at most {limit} bytes in three parts")
    head, body, signature = token.split(".")
    header, raw = _object(head, "header"), _bytes(signature, "signature")
    known = {thumbprint(one): one for one in keys}
    name = header.get("kid")
    if header != {"alg": "ES256", "kid": name, "typ": kind}:
        raise ResultForged(f"its header is not one of ES256 for {kind}: alg {header.get('alg')!r:.20}")
    if not isinstance(name, str) or name not in known or len(raw) != 64:
        raise ResultForged(f"signed with the key {name!r:.50}, which is not one of the verifier's")
    try:
        public = _public(known[name])
        encoded = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        public.verify(encoded, f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as err:
        raise ResultForged("the verifier's key did not sign this") from err
    return _object(body, "claims")


def make(key: Signer, told: Told, now: float, software: str) -> str:
    """Return the result as EAR.

    :param software: this verifier's version.
    """
    tier = {CONTRAINDICATED: 96, WARNING: 32, AFFIRMING: 2}
    vector = {"instance-identity": tier[told.status]}
    if told.level >= 3:
        vector["hardware"] = 2
    if told.level >= 4:
        vector["configuration"] = 2
    if told.level >= 5:
        vector["executables"] = 2
    claims = {
        "eat_profile": PROFILE,
        "iat": int(now),
        "exp": int(now + LIFETIME),
        "sub": told.minion,
        "eat_nonce": told.nonce,
        "ear_verifier_id": {"developer": "netspace", "build": f"netspace {software}"},
        "submods": {
            "host": {
                "ear_status": told.status,
                "ear_trustworthiness_vector": vector,
                "ear_appraisal_policy_ids": [f"{told.group}:{told.version}"],
                "netspace_level": told.level,
                "netspace_minimum": told.minimum,
                "netspace_code": told.code,
                "netspace_reason": told.reason[:1000],
                "netspace_remedy": told.remedy[:1000],
                "netspace_boot": told.boot,
                "netspace_group": told.group,
                "netspace_policy_version": told.version,
                "netspace_deadline": int(told.deadline),
            }
        },
    }
    return key.sign(RESULT, claims)


def check(
    token: Any,
    keys: Collection[Mapping[str, str]],
    *,
    minion: str,
    nonce: str,
    boot: str,
    now: float,
    versions: Mapping[str, int],
) -> Told:
    """Check a result at the host that it is for; see the module's rules.

    :param keys: those that are pinned.
    :param nonce: of the challenge that this host answered last; empty for none.
    :param boot: this boot's id.
    :param versions: the last policy's version, by group.
    """
    claims = opened(token, RESULT, keys)
    told = _told(claims)
    if not hmac.compare_digest(told.minion.encode(), minion.encode()):
        raise ResultElsewhere(f"a result for {told.minion:.80}, not for {minion}")
    if not nonce or not hmac.compare_digest(told.nonce.encode(), nonce.encode()):
        raise ResultReplayed("a result of another challenge than this host answered last")
    if not boot or told.boot != boot:
        raise ResultOtherBoot("a result of another boot")
    if now > claims["exp"] or now > told.deadline:
        raise ResultExpired("the result has expired; if it was made just now, compare the clocks of host and master")
    if claims["iat"] > now + SKEW:
        raise ResultExpired("the result is from the future: compare the clocks of host and master")
    if told.version < versions.get(told.group, 0):
        raise PolicyDowngraded(
            f"judged by version {told.version} of the policy {told.group}, after version {versions[told.group]}"
        )
    return told


def _told(claims: Mapping[str, Any]) -> Told:
    names = {"eat_profile", "iat", "exp", "sub", "eat_nonce", "ear_verifier_id", "submods"}
    submods = claims.get("submods")
    host = submods.get("host") if isinstance(submods, dict) else None
    if set(claims) != names or claims["eat_profile"] != PROFILE or not isinstance(host, dict):
        raise Malformed("not a result with the claims of this profile")
    if any(type(claims[name]) is not int for name in ("iat", "exp")) or claims["exp"] - claims["iat"] > LIFETIME:
        raise Malformed("a result without a time, or for longer than results are")
    try:
        told = Told(
            minion=_typed(claims["sub"], str),
            level=_typed(host["netspace_level"], int),
            minimum=_typed(host["netspace_minimum"], int),
            code=_typed(host["netspace_code"], str),
            reason=_typed(host["netspace_reason"], str),
            remedy=_typed(host["netspace_remedy"], str),
            nonce=_typed(claims["eat_nonce"], str),
            boot=_typed(host["netspace_boot"], str),
            group=_typed(host["netspace_group"], str),
            version=_typed(host["netspace_policy_version"], int),
            deadline=_typed(host["netspace_deadline"], int),
        )
    except KeyError as err:
        raise Malformed(f"a result without {err.args[0]}") from err
    if not 0 <= told.level <= 5 or not 0 <= told.minimum <= 5 or told.version < 0:
        raise Malformed("a result with a level or a version out of bounds")
    if host.get("ear_status") != told.status:
        raise Malformed("a result whose status contradicts its level")
    return told


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Malformed(f"a result with {value!r:.40} where {kind.__name__} is expected")
    return value


def _public(key: Mapping[str, str]) -> EllipticCurvePublicKey:
    return _point(key["x"], key["y"])


@functools.lru_cache(maxsize=64)
def _point(*coordinates: str) -> EllipticCurvePublicKey:
    """A verifier opens its own records all day, and a point takes as long to check as a signature."""
    from cryptography.hazmat.primitives.asymmetric import ec

    x, y = (_bytes(one, "key") for one in coordinates)
    try:
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        return numbers.public_key()
    except ValueError as err:
        raise Malformed(f"key: {err}") from err


def parse_jwk(data: Any) -> dict[str, str]:
    """Read a public key on P-256.

    :raises Malformed: when it is none.
    """
    if not isinstance(data, Mapping) or (data.get("kty"), data.get("crv")) != ("EC", "P-256"):
        raise Malformed("not a key on P-256 (JWK)")
    if any(not isinstance(data.get(name), str) or len(data[name]) != 43 for name in ("x", "y")):
        raise Malformed("not a key on P-256 (JWK)")
    found = {"crv": "P-256", "kty": "EC", "x": data["x"], "y": data["y"]}
    _public(found)
    return found


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(_bytes(text, what))
    except (ValueError, RecursionError) as err:
        raise Malformed(f"{what}: not JSON") from err
    if not isinstance(found, dict):
        raise Malformed(f"{what}: not a JSON object")
    return found


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str, what: str) -> bytes:
    """Base64url without padding, and the one spelling of these bytes only."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError) as err:
        raise Malformed(f"{what}: not base64url") from err
    if _text(raw) != text:
        raise Malformed(f"{what}: not base64url as it is written")
    return raw
