"""Check the proof of where a program runs, by the appraisal of its host by the fleet's verifier, without netspace.

The script needs only Python and the package cryptography. NONCE is the random value that the checker has sent, a new
one for each check. The file with the verifiers' keys is what ``salt-run netspace_attestation.jwks --out json`` shows.
The host appraisal says which host has the token key in which boot, and the level of that host. A host of L1 has its key
in a file; one of L2 or above has a TPM or is a confidential guest. The level is that of the last appraisal: if the host
was restarted or has lost its level since then, the script notices it only when the host appraisal expires.

usage: check_appraised_evidence.py --verifiers jwks.json --nonce NONCE --environment web [--minion web1] [--level L3]
       [--image sha256:...] < evidence.json
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import time
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

COLLECTION = "tag:netspace.invalid,2026:environment-evidence#2"
TOKEN, APPRAISAL = "tag:netspace.invalid,2026:environment#1", "tag:netspace.invalid,2026:host-appraisal#1"
TYPES = {
    "token": ["application/eat+jwt", 4],
    "host-key": ["application/vnd.netspace.host-key+json", 2],  # the host's own statement: not needed here
    "appraisal": ["application/vnd.netspace.host-appraisal+jwt", 8],
}
SKEW, LIFETIME, LONGEST = 300, 300, 86400
CLAIMS = {"eat_profile", "eat_nonce", "iat", "exp", "sub"} | {
    f"netspace_{name}" for name in ("host", "boot", "image", "configuration", "started")
}
WORD = {"eat_profile", "iat", "exp", "sub", "cnf"} | {
    f"netspace_{name}" for name in ("level", "boot", "group", "policy_version")
}
EXPECTED = ("environment", "minion", "host", "image", "configuration", "key")


class Refused(Exception):
    """Error: the evidence proves nothing. The text gives the reason."""


def demand(what: str, right: bool) -> None:
    if not right:
        raise Refused(what)


def octets(text: Any) -> bytes:
    """Return the bytes of canonical base64url without padding."""
    raw = base64.b64decode(text + "=" * (-len(text) % 4), "-_", validate=True)
    demand("not canonical base64url", base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == text)
    return raw


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    demand("a name is given twice", len(found) == len(pairs))
    return found


def table(raw: bytes | str) -> dict[str, Any]:
    found = json.loads(raw, object_pairs_hook=once)
    demand("not a JSON object", isinstance(found, dict))
    return dict(found)


def whole(value: Any) -> int:
    demand("not a whole number", type(value) is int)
    return int(value)


def thumbprint(jwk: dict[str, str]) -> str:
    """Return the thumbprint of a key on P-256 (RFC 7638)."""
    demand("not a key on P-256", set(jwk) == {"kty", "crv", "x", "y"} and (jwk["kty"], jwk["crv"]) == ("EC", "P-256"))
    demand("not a key on P-256", len(octets(jwk["x"])) == len(octets(jwk["y"])) == 32)
    raw = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b"=").decode()


def opened(token: str, kind: str, keys: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return the claims of a token that one of the keys signed (RFC 7515, ES256)."""
    head, body, signature = token.split(".")
    header, raw = table(octets(head)), octets(signature)
    demand(f"not a {kind} by ES256", header == {"alg": "ES256", "kid": header.get("kid"), "typ": kind})
    demand(f"{kind}: signed by a key that nobody vouches for", header["kid"] in keys)
    demand(f"{kind}: not a signature by ES256", len(raw) == 64)
    x, y = (int.from_bytes(octets(keys[header["kid"]][name]), "big") for name in ("x", "y"))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.verify(der, f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    return table(octets(body))


def timely(told: dict[str, Any], longest: int, now: float, what: str) -> None:
    demand(f"{what}: valid for too long", 0 < whole(told["exp"]) - whole(told["iat"]) <= longest)
    demand(f"{what}: expired, or from the future", told["iat"] - SKEW <= now <= told["exp"])


def check(text: str, verifiers: bytes, nonce: str, level: int, now: float, **expected: str | None) -> dict[str, Any]:
    """Return the claims of genuine evidence, with ``level`` and ``minion``.

    :param text: the evidence, JSON.
    :param verifiers: the trusted verifiers' keys: a JWK set, JSON.
    :param level: the lowest level of the host, 1 to 5.
    :param expected: the expected ``environment``, ``minion``, ``host``, ``image``, ``configuration`` and ``key``; None:
        any value. A ``host`` is what the host calls itself, so it needs ``minion``, too.
    :raises Refused: the evidence proves nothing.
    """
    try:
        given = [{name: one[name] for name in ("kty", "crv", "x", "y")} for one in table(verifiers)["keys"]]
        return _check(text, {thumbprint(one): one for one in given}, nonce, level, now, expected)
    except InvalidSignature:
        raise Refused("a signature is wrong") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError) as err:
        raise Refused(f"malformed: {type(err).__name__}: {err}") from None


def _check(
    text: str, verifiers: dict[str, Any], nonce: str, level: int, now: float, expected: dict[str, str | None]
) -> dict[str, Any]:
    demand("a host's name needs the minion's", expected.get("host") is None or expected.get("minion") is not None)
    demand("too long", len(text) <= 32768)
    collection = table(text)
    demand("no collection with an appraisal", set(collection) == {"__cmwc_t", *TYPES})
    demand("another collection", collection["__cmwc_t"] == COLLECTION)
    for name, (kind, indicator) in TYPES.items():
        demand(f"{name}: another type", [collection[name][0], collection[name][2]] == [kind, indicator])
        demand(f"{name}: not three members", len(collection[name]) == 3)
    word = opened(octets(collection["appraisal"][1]).decode("ascii"), "netspace-host-appraisal+jwt", verifiers)
    demand("another appraisal", set(word) == WORD and word["eat_profile"] == APPRAISAL and set(word["cnf"]) == {"jwk"})
    demand("a name is no text", all(isinstance(word[name], str) for name in ("sub", "netspace_boot", "netspace_group")))
    timely(word, LONGEST, now, "appraisal")
    demand(f"the host has L{word['netspace_level']}", level <= whole(word["netspace_level"]) <= 5 and level >= 1)
    key = word["cnf"]["jwk"]
    told = opened(octets(collection["token"][1]).decode("ascii"), "eat+jwt", {thumbprint(key): key})
    demand("other claims", set(told) - {"cnf"} == CLAIMS and told["eat_profile"] == TOKEN)
    demand("of another boot", told["netspace_boot"] == word["netspace_boot"])
    demand("the answer to another question", told["eat_nonce"] == nonce)
    timely(told, LIFETIME, now, "token")
    found = {
        "environment": told["sub"],
        "minion": word["sub"],
        "key": told["cnf"]["jkt"] if "cnf" in told else None,
        **{name: told[f"netspace_{name}"] for name in ("host", "boot", "image", "configuration", "started")},
    }
    for name in EXPECTED:
        value = expected.get(name)
        demand(f"{name} is {found[name]}, not {value}", value is None or found[name] == value)
    return {**found, "level": f"L{word['netspace_level']}"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the proof of where a program runs.")
    for name in ("verifiers", "nonce", "environment"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("minion", "host", "image", "configuration"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--level", default="L2", choices=["L1", "L2", "L3", "L4", "L5"])
    given = parser.parse_args()
    wanted = {name: getattr(given, name) for name in EXPECTED[:-1]}
    with open(given.verifiers, "rb") as stream:
        keys = stream.read(65536)
    try:
        found = check(sys.stdin.read(65536), keys, given.nonce, int(given.level[1]), time.time(), **wanted)
    except Refused as err:
        print(f"refused: {err}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
