"""A verifier's result as a signed token: EAR (draft-ietf-rats-ear-04), JWT, ES256.

The verifier calls :func:`make`, and the host calls :func:`check`. Only :func:`signer` reads a file; nothing reads a
clock. There is one algorithm and one form of header, so nothing is negotiated (``netspace.jose``).

A host accepts a result only if all of these conditions hold. :func:`check` checks them in this order:

1. one of the pinned keys signed the result, and its header, claims and sizes have the form that :func:`make` writes;
2. the result is for this host, and has the nonce of the challenge that the host answered last. The caller deletes that
   nonce;
3. the result is of this boot, has not expired (ten minutes), and is not from the future;
4. the version of the result's policy is not lower than the last version of the same group.

Each refusal has its code (``netspace.attestation.refusals``).
"""

from __future__ import annotations

import functools
import hmac
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace import files, jose
from netspace.attestation import hsm, signing_keys
from netspace.attestation.clocks import SKEW
from netspace.attestation.refusals import (
    Malformed,
    PolicyDowngraded,
    ResultElsewhere,
    ResultExpired,
    ResultForged,
    ResultOtherBoot,
    ResultReplayed,
)
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

PROFILE = "tag:ietf.org,2026:rats/ear#04"
LIFETIME = 600.0
MAX_TOKEN = 128 * 1024
AFFIRMING, WARNING, CONTRAINDICATED = "affirming", "warning", "contraindicated"
RESULT, POLICY, STATE = "JWT", "netspace-policy", "netspace-state"


@dataclass(frozen=True)
class Signer:
    """The verifier's signing key. Neither Salt nor the Privacy CA uses this key."""

    key: EllipticCurvePrivateKey

    @functools.cached_property
    def jwk(self) -> dict[str, str]:
        return jose.jwk(self.key.public_key())

    def sign(self, kind: str, payload: Mapping[str, Any]) -> str:
        """Return *payload* as a JWS (compact form).

        The header names *kind*, so the token is not accepted where another kind of token is expected.
        """
        return jose.sign(self.key, kind, payload)


@dataclass(frozen=True)
class AppraisalClaims:
    """The content of a result for one host.

    :param level: 0 to 5; 0: the verifier refused the evidence.
    :param minimum: the level that the host's group demands.
    :param deadline: end of the result's validity at the host, seconds since the epoch.
    :param tee: the confidential guest on which the result rests (kind, measurement, TCB, code); empty if there is no
        guest.
    :param token_key: thumbprint of the key that signs the tokens of the host's environments; empty if the host has
        shown none.
    :param appraisal: statement on host and key for third parties (``netspace.attestation.host_appraisal``); empty
        without a key.
    :param ledger: fields on the host's ledger of runs; empty if the policy demands none.
    :param environments: fields on each environment that is running according to that ledger, by the environment's name.
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
    tee: Mapping[str, Any] = field(default_factory=dict)
    token_key: str = ""
    appraisal: str = ""
    ledger: Mapping[str, Any] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """EAR status: affirming only if a TPM or TEE proves the level, and the level reaches the minimum."""
        if self.level == 0:
            return CONTRAINDICATED
        return AFFIRMING if self.level >= max(self.minimum, 2) else WARNING


def signer(folder: Path, module: hsm.Module | None = None) -> Signer:
    """Return the key in *folder*. If the folder has no key, create one (mode 0600).

    :param module: hardware security module that creates a new key; the file then holds a reference to the key.
    :raises NetspaceError: when other users can read the file, or when it holds no key.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / "verifier.pem"
    with files.locked(folder / "lock"):
        if not path.exists():
            made = module.create("verifier") if module else ec.generate_private_key(ec.SECP256R1())
            files.write(path, signing_keys.private_bytes(made), mode=0o600)
    info = path.lstat()
    if info.st_mode & 0o077 or info.st_uid != os.geteuid():
        raise NetspaceError(f"{path}: other users can access this file; run chmod go= on it, and find out who read it")
    return Signer(signing_keys.private_key(path.read_bytes(), module, path))


def jwks(keys: Collection[Mapping[str, str]]) -> dict[str, Any]:
    """Return *keys* as a JWK set (RFC 7517), for third parties that check results."""
    return {"keys": [{**one, "alg": "ES256", "use": "sig", "kid": jose.thumbprint(one)} for one in keys]}


def opened(token: Any, kind: str, keys: Collection[Mapping[str, str]], limit: int = MAX_TOKEN) -> dict[str, Any]:
    """Return the payload of a token that one of *keys* (JWK) signed.

    :raises Malformed: when *token* is malformed.
    :raises ResultForged: when the token has another kind or algorithm, or when none of *keys* signed it.
    """
    try:
        return jose.opened(token, kind, keys, limit)
    except jose.Unreadable as err:
        raise Malformed(str(err)) from err
    except jose.Forged as err:
        raise ResultForged(str(err)) from err


def make(key: Signer, told: AppraisalClaims, now: float, software: str) -> str:
    """Return the signed result (EAR).

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
                **({"netspace_tee": dict(told.tee)} if told.tee else {}),
                **(
                    {"netspace_token_key": told.token_key, "netspace_appraisal": told.appraisal}
                    if told.token_key
                    else {}
                ),
                **({"netspace_ledger": dict(told.ledger)} if told.ledger else {}),
            },
            **{f"env:{name}": dict(fields) for name, fields in told.environments.items()},
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
) -> AppraisalClaims:
    """Check a result by the module's rules, and return its content. The receiving host calls this function.

    :param keys: the pinned keys (JWK).
    :param nonce: the nonce of the challenge that this host answered last; empty if there is no such challenge.
    :param boot: this boot's id.
    :param versions: the last policy's version, by group.
    :raises Refused: for the first rule that the result breaks.
    """
    claims = opened(token, RESULT, keys)
    told = _told(claims)
    if not hmac.compare_digest(told.minion.encode(), minion.encode()):
        raise ResultElsewhere(f"the result is for {told.minion:.80}, not for {minion}")
    if not nonce or not hmac.compare_digest(told.nonce.encode(), nonce.encode()):
        raise ResultReplayed("the result does not belong to the challenge that this host answered last")
    if not boot or told.boot != boot:
        raise ResultOtherBoot("the result is for another boot of this host")
    if now > claims["exp"] or now > told.deadline:
        raise ResultExpired("the result has expired; if the master just made it, compare the clocks of host and master")
    if claims["iat"] > now + SKEW:
        raise ResultExpired("the result is from the future: compare the clocks of host and master")
    if told.version < versions.get(told.group, 0):
        raise PolicyDowngraded(
            f"the policy {told.group} has version {told.version}, but "
            f"version {versions[told.group]} was in force already"
        )
    return told


def _told(claims: Mapping[str, Any]) -> AppraisalClaims:
    names = {"eat_profile", "iat", "exp", "sub", "eat_nonce", "ear_verifier_id", "submods"}
    submods = claims.get("submods")
    submods = submods if isinstance(submods, dict) else {}
    host = submods.get("host")
    if set(claims) != names or claims["eat_profile"] != PROFILE or not isinstance(host, dict):
        raise Malformed("not a result with the claims of this profile")
    if any(name != "host" and not name.startswith("env:") for name in submods):
        raise Malformed("the result has submodules other than the host and its environments")
    if any(type(claims[name]) is not int for name in ("iat", "exp")) or claims["exp"] - claims["iat"] > LIFETIME:
        raise Malformed(f"the result lacks a time, or is valid for more than {LIFETIME:.0f} s")
    try:
        told = AppraisalClaims(
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
            tee=_typed(host.get("netspace_tee", {}), dict),
            token_key=_typed(host.get("netspace_token_key", ""), str),
            appraisal=_typed(host.get("netspace_appraisal", ""), str),
            ledger=_typed(host.get("netspace_ledger", {}), dict),
            environments={
                name.removeprefix("env:"): _typed(fields, dict) for name, fields in submods.items() if name != "host"
            },
        )
    except KeyError as err:
        raise Malformed(f"the result lacks {err.args[0]}") from err
    if not 0 <= told.level <= 5 or not 0 <= told.minimum <= 5 or told.version < 0:
        raise Malformed("the result's level or version is out of bounds")
    if host.get("ear_status") != told.status:
        raise Malformed("the result's status contradicts its level")
    return told


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Malformed(f"the result has {value!r:.40}; expected {kind.__name__}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as err:  # JSON can hold half of a surrogate pair, which is no text
            raise Malformed(f"the result has {value!r:.40}; expected a text") from err
    return value


def parse_jwk(data: Any) -> dict[str, str]:
    """Return a public key on P-256 as JWK.

    :raises Malformed: when *data* is not a public key on P-256.
    """
    try:
        return jose.parse_jwk(data)
    except jose.Unreadable as err:
        raise Malformed(str(err)) from err
