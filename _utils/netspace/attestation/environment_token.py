"""Tokens of environments: a host's signed claims about one of its environments, made for an asker's nonce.

A token is an EAT (RFC 9711) in a JWT (RFC 7519), signed by ES256. The host's peer, the process that answers requests of
environments, has the token's key. This key lives as long as a boot. The host vouches for it in a *statement*, which is
valid for three hours. The statement is signed by the host's own key: the attestation key of its TPM, or its software
key.

A checker compares the boot in the token only with the boot in the statement. So a token that was made with a stolen key
is accepted until the last statement about that key expires, also after a reboot.

Token and statement travel in one collection of the RATS Conceptual Messages Wrapper (CMW, draft-ietf-rats-msg-wrap):

``token``
    ``application/eat+jwt``: the claims about the environment.
``host-key``
    ``application/vnd.netspace.host-key+json``: the host's signed statement about the token's key.
``appraisal``
    ``application/vnd.netspace.host-appraisal+jwt``: the statement of the fleet's verifier on the host and the token's
    key (``host_appraisal``), if the verifier knows the key. A collection with this member has a type of its own.

This module checks a collection by the host's own key; ``appraised_token`` checks it by the host appraisal.
:func:`verify` checks, in this order: the form; the statement's signature by the host's trusted key; the statement's
validity; the token's signature; the token's host and boot; the nonce; the token's validity; the asker's expectations.
Only :func:`verify` and ``appraised_token.verify`` make an :class:`Attested`. This module uses no file, network or
clock.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from netspace import jose, strict_json
from netspace.attestation.clocks import SKEW
from netspace.attestation.refusals import (
    HostKeyExpired,
    Malformed,
    TokenElsewhere,
    TokenExpired,
    TokenForged,
    TokenOther,
    TokenReplayed,
    WrongDigest,
    WrongQualifyingData,
    WrongScheme,
    WrongSelection,
    WrongSignature,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PROFILE = "tag:netspace.invalid,2026:environment#1"
COLLECTION = "tag:netspace.invalid,2026:environment-evidence#1"
APPRAISED = "tag:netspace.invalid,2026:environment-evidence#2"
"""The type of a collection with a host appraisal."""
TOKEN_TYPE, KEY_TYPE = "application/eat+jwt", "application/vnd.netspace.host-key+json"
APPRAISAL_TYPE = "application/vnd.netspace.host-appraisal+jwt"
EVIDENCE, ENDORSEMENT, RESULT = 4, 2, 8
"""Values of a CMW's field ``ind``, which tells the kind of a message: evidence, endorsements, attestation results."""
TYP = "eat+jwt"
PREFIX = b"netspace-host-key/1\0"
"""Precedes the statement in all that is signed, so that no other use of the host's key can be mistaken for it."""
LIFETIME = 300
"""Seconds for which a token is valid."""
KEY_LIFETIME = 3 * 3600
"""Seconds for which a host vouches for a token's key. A stolen key is of use for that long, also after a reboot."""
MOST, MOST_TOKEN = 32 * 1024, 8 * 1024
NONCE = re.compile(r"[A-Za-z0-9_-]{16,88}")
"""A nonce: RFC 9711, 4.1, permits 8 to 88 bytes."""
BOUND = re.compile(r"[A-Za-z0-9_-]{43}")
"""A key of the environment's own: the SHA-256 thumbprint of a JWK (RFC 7638)."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Kind = Literal["software", "tpm"]
Level = Literal["L1", "L2", "L3", "L4", "L5"]
CLAIMED = "tpm-claimed"
"""Kind of a public key that the host claims to be in its TPM, without proof."""


@dataclass(frozen=True)
class Expected:
    """The values that an asker expects in a token. None: any value is good.

    :param nonce: the nonce that the asker chose. A token with another nonce is a replay.
    :param environment: the environment's name.
    :param host: the host's name in links.
    :param image: digest of the environment's image: ``sha256:`` and 64 hexadecimal digits.
    :param configuration: digest of the configuration of the environment's runtime, in the form of *image*.
    :param key: thumbprint of the key that the environment named as its own.
    :param pcrs: PCRs (SHA-256 bank) that must be quoted, with these values.
    """

    nonce: str
    environment: str
    host: str | None = None
    image: str | None = None
    configuration: str | None = None
    key: str | None = None
    pcrs: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Attested:
    """The claims about an environment that a trusted host signed.

    :param host: the host's name in links. If a verifier vouches, this name is only the host's claim; *minion* has the
        name that the verifier knows.
    :param level: the level that the verifier found. If only the host's own key vouches, the level is L1: root of the
        host can use a software key, and no credential proves that another key is in a TPM.
    :param pcrs: the PCRs that were quoted, empty if a software key or a verifier vouches. Their values are only the
        host's claim.
    :param started: time when the environment's program was started, in seconds since 1970; None if the host does not
        know it.
    :param key: thumbprint of the key that the environment named as its own. The host doesn't know who has this key.
    :param minion: the host's name at the verifier; None where no verifier vouches.
    :param verifier: thumbprint of the verifier's key; None where no verifier vouches.
    """

    environment: str
    host: str
    boot: str
    image: str
    configuration: str
    started: float | None
    key: str | None
    level: Level
    pcrs: Mapping[int, bytes]
    minion: str | None = None
    verifier: str | None = None


# -- making ------------------------------------------------------------------------------------------
def statement(host: str, boot: str, key: Mapping[str, str], now: float) -> bytes:
    """Return the statement about a token's *key* (JWK), for the host to sign.

    :param boot: the kernel's id of this boot.
    """
    made = {"boot": boot, "expires": int(now) + KEY_LIFETIME, "host": host, "issued": int(now), "key": dict(key)}
    return _json(made)


def qualifying(said: bytes) -> bytes:
    """Return the qualifying data for a quote that signs a statement.

    :param said: the statement.
    """
    return hashlib.sha256(PREFIX + said).digest()


def vouched(kind: Kind, said: bytes, attest: bytes, signature: bytes, pcrs: Mapping[int, bytes]) -> str:
    """Return a host's signed statement as a message of type ``KEY_TYPE`` (JSON text).

    :param said: the statement.
    :param attest: TPMS_ATTEST; empty for a software key.
    :param signature: TPMT_SIGNATURE, or the 64 bytes of the Ed25519 signature.
    """
    made: dict[str, Any] = {"v": 1, "kind": kind, "statement": jose.text(said), "sig": jose.text(signature)}
    if kind == "tpm":
        made |= {"attest": jose.text(attest), "pcrs": {str(pcr): value.hex() for pcr, value in sorted(pcrs.items())}}
    return _json(made).decode()


def claims(about: Mapping[str, Any], nonce: str, now: float, key: str | None) -> bytes:
    """Return the claims of a token, as JSON.

    :param about: ``sub``, and the claims that begin with ``netspace_``.
    :param key: thumbprint of the key that the environment named as its own; None if it named no key.
    """
    made = {"eat_profile": PROFILE, "eat_nonce": nonce, "iat": int(now), "exp": int(now) + LIFETIME, **about}
    return _json({**made, "cnf": {"jkt": key}} if key is not None else made)


def unsigned(kid: str, said: bytes) -> bytes:
    """Return a token's header and claims as the bytes to sign (RFC 7515, 5.1).

    :param kid: the key's id.
    :param said: the claims, from :func:`claims`.
    """
    header = _json({"alg": jose.ALGORITHM, "kid": kid, "typ": TYP})
    return f"{jose.text(header)}.{jose.text(said)}".encode()


def collected(token: str, key: str, appraisal: str = "") -> str:
    """Return the collection (JSON text) of a token and the signed statement about the token's key.

    :param appraisal: the host appraisal; empty if there is none.
    """
    found: dict[str, Any] = {
        "__cmwc_t": APPRAISED if appraisal else COLLECTION,
        "token": [TOKEN_TYPE, jose.text(token.encode()), EVIDENCE],
        "host-key": [KEY_TYPE, jose.text(key.encode()), ENDORSEMENT],
    }
    if appraisal:
        found["appraisal"] = [APPRAISAL_TYPE, jose.text(appraisal.encode()), RESULT]
    return _json(found).decode()


def public_key(told: object) -> dict[str, str]:
    """Check a host's answer with its public key, and return it as ``{kind, key}``.

    :raises Malformed: when the answer is not of the form ``{kind, key}``, or when the key is not of the kind that
        *kind* names.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if (
        not isinstance(told, dict)
        or set(told) != {"kind", "key"}
        or not all(isinstance(it, str) for it in told.values())
    ):
        raise Malformed("host key: expected kind and key")
    kind = "software" if isinstance(_trusted(told["key"].encode()), Ed25519PublicKey) else CLAIMED
    if told["kind"] != kind:
        raise Malformed(f"host key: {told['kind']!r:.40}: expected the kind {kind} for such a key")
    return {"kind": kind, "key": told["key"]}


# -- checking ----------------------------------------------------------------------------------------
def verify(text: str, trusted: bytes, expected: Expected, now: float) -> Attested:
    """Check a collection, and return the claims about the environment.

    :param text: the collection.
    :param trusted: the host's key (PEM): Ed25519 for a software key, P-256 for a TPM's attestation key. Get it from the
        runner ``netspace_attestation.host_key``, which asks for a signed answer.
    :raises Refused: when a check fails; the error's code names the check.
    """
    token, key, _ = parts(text)
    said, pcrs = _vouched_for(_object(key, "host-key"), trusted)
    if not said["issued"] - SKEW <= now <= said["expires"]:
        raise HostKeyExpired(f"the token's key is valid from {said['issued']} to {said['expires']}")
    told = claims_of(token, said["key"])
    for name in ("host", "boot"):
        if told[f"netspace_{name}"] != said[name]:
            raise TokenElsewhere(f"the token is of another {name} than the statement about its key")
    found = answered(told, expected, now, Attested(**about(told), level="L1", pcrs=pcrs))
    for pcr, value in sorted(expected.pcrs.items()):
        if pcrs.get(pcr) != value:
            raise TokenOther(f"PCR {pcr}: {pcrs[pcr].hex() if pcr in pcrs else 'not quoted'}; expected {value.hex()}")
    return found


def answered(told: Mapping[str, Any], expected: Expected, now: float, found: Attested) -> Attested:
    """Check that a token has the asker's nonce, is valid now, and meets the asker's expectations; return *found*.

    :param told: the token's claims.
    :param found: the same claims, with the host or verifier that vouches for them.
    """
    if not hmac.compare_digest(told["eat_nonce"].encode(), expected.nonce.encode()):
        raise TokenReplayed("the token has another nonce than the asker's")
    if not told["iat"] - SKEW <= now <= told["exp"]:
        raise TokenExpired(f"the token is valid from {told['iat']} to {told['exp']}")
    for name in ("environment", "host", "image", "configuration", "key"):
        wanted, is_ = getattr(expected, name), getattr(found, name)
        if wanted is not None and wanted != is_:
            raise TokenOther(f"{name}: {is_}; expected {wanted}")
    return found


def about(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a token's claims as fields of :class:`Attested`."""
    names = ("host", "boot", "image", "configuration", "started")
    own = told["cnf"]["jkt"] if "cnf" in told else None
    return {"environment": told["sub"], "key": own, **{name: told[f"netspace_{name}"] for name in names}}


def parts(text: str) -> tuple[str, bytes, str]:
    """Return three parts of a CMW collection: token, message with the host's signed statement, host appraisal.

    The host appraisal is empty if the collection has none. This function checks only the form of the collection.

    :raises Malformed: when the text has another form.
    """
    if not isinstance(text, str) or len(text) > MOST:
        raise Malformed(f"no collection of at most {MOST} characters")
    found = _object(text, "collection")
    kinds = {"token": (TOKEN_TYPE, EVIDENCE), "host-key": (KEY_TYPE, ENDORSEMENT)}
    if found.get("__cmwc_t") == APPRAISED:
        kinds["appraisal"] = (APPRAISAL_TYPE, RESULT)
    if set(found) != {"__cmwc_t", *kinds} or found["__cmwc_t"] not in (COLLECTION, APPRAISED):
        raise Malformed(f"collection: expected {COLLECTION} with token and host-key")
    raw = {"appraisal": b""}
    for name, (kind, ind) in kinds.items():
        record = found[name]
        if not isinstance(record, list) or len(record) != 3 or record[0] != kind or record[2] is not ind:
            raise Malformed(f"{name}: expected a record of type {kind}")
        raw[name] = _octets(record[1], name)
    try:
        return raw["token"].decode("ascii"), raw["host-key"], raw["appraisal"].decode("ascii")
    except UnicodeDecodeError as err:
        raise Malformed("token or appraisal: not ASCII") from err


def _trusted(key: bytes) -> EllipticCurvePublicKey | Ed25519PublicKey:
    """Return the host's public key from PEM: a key on P-256, or an Ed25519 key."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        host = load_pem_public_key(key)
    except (ValueError, TypeError) as err:
        raise Malformed(f"the trusted key is not a public key (PEM): {err}") from err
    if isinstance(host, Ed25519PublicKey) or (
        isinstance(host, EllipticCurvePublicKey) and isinstance(host.curve, SECP256R1)
    ):
        return host
    raise Malformed("the trusted key is neither on P-256 nor Ed25519")


def _vouched_for(key: Mapping[str, Any], trusted: bytes) -> tuple[dict[str, Any], dict[int, bytes]]:
    """Return the statement in a message if the trusted key signed it, and the quoted PCRs."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    host = _trusted(trusted)
    kind: Kind = "software" if isinstance(host, Ed25519PublicKey) else "tpm"
    if key.get("kind") in ("software", "tpm") and key["kind"] != kind:
        raise WrongScheme(f"a key of kind {key['kind']} signed the statement; the trusted key is of kind {kind}")
    names = {"v", "kind", "statement", "sig", *(("attest", "pcrs") if kind == "tpm" else ())}
    if set(key) != names or key["kind"] != kind or type(key["v"]) is not int or key["v"] != 1:
        raise Malformed(f"host-key: expected version 1, kind {kind}, and exactly the fields of this kind")
    said, signature = _octets(key["statement"], "statement"), _octets(key["sig"], "sig")
    if kind == "tpm":
        pcrs = _quoted(key, said, signature, cast("EllipticCurvePublicKey", host))
    else:
        pcrs = {}
        try:
            cast("Ed25519PublicKey", host).verify(signature, PREFIX + said)
        except InvalidSignature as err:
            raise WrongSignature("the trusted key did not vouch for the token's key") from err
    return _statement(said), pcrs


def _quoted(key: Mapping[str, Any], said: bytes, signature: bytes, host: EllipticCurvePublicKey) -> dict[int, bytes]:
    """Check a quote over the statement in *said*, and return the values of the quoted PCRs."""
    from netspace.attestation.evidence import BANK_ID
    from netspace.attestation.tpm import structures
    from netspace.attestation.verifier import quote_checks

    attest = _octets(key["attest"], "attest")
    quote = structures.quote(attest)
    quote_checks.check_signature(signature, attest, host, None)
    if not hmac.compare_digest(quote.extra, qualifying(said)):
        raise WrongQualifyingData("the quote vouches for another key")
    if not isinstance(key["pcrs"], dict) or not all(re.fullmatch(r"[0-9]|1[0-9]|2[0-3]", pcr) for pcr in key["pcrs"]):
        raise Malformed("host-key: pcrs: expected values by the numbers of PCRs")
    if not all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one) for one in key["pcrs"].values()):
        raise Malformed("host-key: pcrs: expected SHA-256 values")
    pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in key["pcrs"].items()}
    if quote.selections != ((BANK_ID, frozenset(pcrs)),):
        raise WrongSelection("the quote covers other PCRs than the message lists")
    digest = hashlib.sha256(b"".join(pcrs[pcr] for pcr in sorted(pcrs))).digest()
    if not hmac.compare_digest(digest, quote.digest):
        raise WrongDigest("the values of the PCRs do not match the quote")
    return pcrs


def _statement(raw: bytes) -> dict[str, Any]:
    found = _object(raw, "statement")
    if set(found) != {"boot", "expires", "host", "issued", "key"}:
        raise Malformed("statement: expected boot, expires, host, issued and key")
    if any(type(found[name]) is not int for name in ("expires", "issued")):
        raise Malformed("statement: issued, expires: expected whole seconds since 1970")
    if not 0 < found["expires"] - found["issued"] <= KEY_LIFETIME:
        raise HostKeyExpired(f"a host vouches for a key for {KEY_LIFETIME} s at most")
    if any(not isinstance(found[name], str) or len(found[name]) > 255 for name in ("boot", "host")):
        raise Malformed("statement: boot, host: expected texts of at most 255 characters")
    try:
        return {**found, "key": jose.parse_jwk(found["key"])}
    except jose.Unreadable as err:
        raise Malformed(f"statement: {err}") from err


def claims_of(token: str, key: Mapping[str, str]) -> dict[str, Any]:
    """Check that *key* signed a token, and return the token's claims.

    :raises Malformed: when token or claims have another form.
    :raises TokenForged: when another key signed, or with another algorithm.
    """
    try:
        told = jose.opened(token, TYP, [key], MOST_TOKEN)
    except jose.Unreadable as err:
        raise Malformed(f"token: {err}") from err
    except jose.Forged as err:
        raise TokenForged(f"token: {err}") from err
    texts = {"eat_profile", "eat_nonce", "sub", "netspace_host", "netspace_boot"}
    digests = {"netspace_image", "netspace_configuration"}
    if set(told) - {"cnf"} != {*texts, *digests, "iat", "exp", "netspace_started"} or told["eat_profile"] != PROFILE:
        raise Malformed(f"token: its claims are not those of {PROFILE}")
    if any(not isinstance(told[name], str) or len(told[name]) > 255 for name in texts):
        raise Malformed("token: a claim is not text")
    if any(not isinstance(told[name], str) or not DIGEST.fullmatch(told[name]) for name in digests):
        raise Malformed("token: image and configuration are sha256 digests")
    if any(type(told[name]) is not int for name in ("iat", "exp")) or not 0 < told["exp"] - told["iat"] <= LIFETIME:
        raise Malformed(f"token: it lacks one of its times, or is valid for more than {LIFETIME} s")
    if not NONCE.fullmatch(told["eat_nonce"]) or type(told["netspace_started"]) not in (float, int, type(None)):
        raise Malformed("token: eat_nonce is not a valid nonce, or netspace_started is not a time")
    if "cnf" in told:
        cnf = told["cnf"]
        if not isinstance(cnf, dict) or set(cnf) != {"jkt"} or not isinstance(cnf["jkt"], str):
            raise Malformed("token: cnf: expected the thumbprint of a key")
        if not BOUND.fullmatch(cnf["jkt"]):
            raise Malformed("token: cnf: expected the thumbprint of a key")
    return told


def _object(raw: str | bytes, what: str) -> dict[str, Any]:
    try:
        found = strict_json.loads(raw)
    except ValueError as err:
        raise Malformed(f"{what}: not JSON: {err}") from err
    if not isinstance(found, dict):
        raise Malformed(f"{what}: not a JSON object")
    return found


def _octets(value: object, what: str) -> bytes:
    if not isinstance(value, str):
        raise Malformed(f"{what}: not base64url")
    try:
        return jose.octets(value, what)
    except jose.Unreadable as err:
        raise Malformed(str(err)) from err


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
