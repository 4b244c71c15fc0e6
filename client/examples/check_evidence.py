"""Check the proof of where a program runs (verb ``attest`` of the peer ``host``), without netspace.

The script needs only Python and the package cryptography. NONCE is the question that the checker has sent, a new one
for each check. The key (PEM) is the key of the host that the checker trusts: ``salt-run netspace_attestation.host_key
<minion>`` shows it. The level is always L1, even if the proof contains PCRs, because nothing proves here that the key
is in a TPM.

usage: check_evidence.py --key h1.pem --nonce NONCE --environment web [--image sha256:...] [--host h1] < evidence.json
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
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

COLLECTION = "tag:netspace.invalid,2026:environment-evidence#1"
PROFILE = "tag:netspace.invalid,2026:environment#1"
TYPES = {
    "token": ["application/eat+jwt", 4],
    "host-key": ["application/vnd.netspace.host-key+json", 2],
}
PREFIX = b"netspace-host-key/1\0"
SKEW, LIFETIME, KEY_LIFETIME = 300, 300, 10800
CLAIMS = {"eat_profile", "eat_nonce", "iat", "exp", "sub"} | {
    f"netspace_{name}" for name in ("host", "boot", "image", "configuration", "started")
}


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
    demand("a time is no whole number", type(value) is int)
    return int(value)


def quoted(attest: bytes, pcrs: dict[int, bytes]) -> bytes:
    """Return the qualifying data of a TPM's quote (TPMS_ATTEST, Part 2, 10.12.8) that covers exactly these PCRs."""
    demand("no quote by a TPM", attest[:6] == b"\xff\x54\x43\x47\x80\x18")
    at = 8 + int.from_bytes(attest[6:8], "big")  # after the signer's name
    size = int.from_bytes(attest[at : at + 2], "big")
    extra = attest[at + 2 : at + 2 + size]
    at += 2 + size + 17 + 8  # clock and counters, firmware version
    bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    digest = hashlib.sha256(b"".join(pcrs[pcr] for pcr in sorted(pcrs))).digest()
    rest = b"\0\0\0\1" + b"\0\x0b" + b"\3" + bits + b"\0\x20" + digest
    demand("other PCRs, or other values, than were quoted", attest[at:] == rest)
    return extra


def tpm_signature(raw: bytes) -> bytes:
    """Return a TPM's signature by ECDSA with SHA-256 (TPMT_SIGNATURE, Part 2, 11.3.4) in DER."""
    demand("not by ECDSA with SHA-256", raw[:4] == b"\0\x18\0\x0b")
    size = int.from_bytes(raw[4:6], "big")
    first, rest = raw[6 : 6 + size], raw[6 + size :]
    demand("not a TPM's signature", len(first) == size and int.from_bytes(rest[:2], "big") == len(rest) - 2 <= 32)
    return encode_dss_signature(int.from_bytes(first, "big"), int.from_bytes(rest[2:], "big"))


def vouched(message: dict[str, Any], trusted: Any) -> tuple[dict[str, Any], dict[int, bytes]]:
    """Return the statement for which the trusted key vouches, and the PCRs that were quoted with it."""
    said, signature = octets(message["statement"]), octets(message["sig"])
    demand("not version 1", type(message["v"]) is int and message["v"] == 1)
    if isinstance(trusted, ed25519.Ed25519PublicKey):
        demand("another kind of key vouches", message["kind"] == "software")
        demand("unknown members", set(message) == {"v", "kind", "statement", "sig"})
        trusted.verify(signature, PREFIX + said)
        return table(said), {}
    demand("another kind of key vouches", message["kind"] == "tpm")
    demand("unknown members", set(message) == {"v", "kind", "statement", "sig", "attest", "pcrs"})
    attest = octets(message["attest"])
    trusted.verify(tpm_signature(signature), attest, ec.ECDSA(hashes.SHA256()))
    demand("PCRs are numbers from 0 to 23", set(message["pcrs"]) <= {str(number) for number in range(24)})
    pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in message["pcrs"].items()}
    demand("the quote vouches for another key", quoted(attest, pcrs) == hashlib.sha256(PREFIX + said).digest())
    return table(said), pcrs


def claims(token: str, jwk: dict[str, str]) -> dict[str, Any]:
    """Return the claims of a token that the key signed (RFC 7515)."""
    head, body, signature = token.split(".")
    demand("not a key on P-256", set(jwk) == {"kty", "crv", "x", "y"} and (jwk["kty"], jwk["crv"]) == ("EC", "P-256"))
    x, y, raw = octets(jwk["x"]), octets(jwk["y"]), octets(signature)
    demand("not a key on P-256", len(x) == len(y) == 32)
    thumbprint = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()  # RFC 7638
    kid = base64.urlsafe_b64encode(hashlib.sha256(thumbprint).digest()).rstrip(b"=").decode()
    demand(
        "signed by another key, or in another way",
        table(octets(head)) == {"alg": "ES256", "kid": kid, "typ": "eat+jwt"},
    )
    demand("not a signature by ES256", len(raw) == 64)
    key = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()).public_key()
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key.verify(der, f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    return table(octets(body))


def check(text: str, trusted: bytes, nonce: str, now: float, **expected: str | None) -> dict[str, Any]:
    """Return the claims of genuine evidence, with ``level`` and ``pcrs``.

    :param text: the evidence, JSON.
    :param trusted: the host's key, PEM.
    :param expected: the expected ``environment``, ``host``, ``image``, ``configuration`` and ``key``; None: any value.
    :raises Refused: the evidence proves nothing.
    """
    try:
        return _check(text, load_pem_public_key(trusted), nonce, now, expected)
    except InvalidSignature:
        raise Refused("a signature is wrong") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, OverflowError) as err:
        raise Refused(f"malformed: {type(err).__name__}: {err}") from None


def _check(text: str, trusted: Any, nonce: str, now: float, expected: dict[str, str | None]) -> dict[str, Any]:
    demand("too long", len(text) <= 32768)
    curve = isinstance(trusted, ec.EllipticCurvePublicKey) and isinstance(trusted.curve, ec.SECP256R1)
    demand("neither Ed25519 nor P-256", curve or isinstance(trusted, ed25519.Ed25519PublicKey))
    collection = table(text)
    demand("not such a collection", set(collection) == {"__cmwc_t", *TYPES} and collection["__cmwc_t"] == COLLECTION)
    for name, (kind, indicator) in TYPES.items():
        demand(f"{name}: another type", [collection[name][0], collection[name][2]] == [kind, indicator])
        demand(f"{name}: not three members", len(collection[name]) == 3)
    said, pcrs = vouched(table(octets(collection["host-key"][1])), trusted)
    demand("another statement", set(said) == {"boot", "expires", "host", "issued", "key"})
    demand("vouched for too long", 0 < whole(said["expires"]) - whole(said["issued"]) <= KEY_LIFETIME)
    demand("the host vouches for the key no more", said["issued"] - SKEW <= now <= said["expires"])
    told = claims(octets(collection["token"][1]).decode("ascii"), said["key"])
    demand("other claims", set(told) - {"cnf"} == CLAIMS and told["eat_profile"] == PROFILE)
    demand("of another host", (told["netspace_host"], told["netspace_boot"]) == (said["host"], said["boot"]))
    demand("the answer to another question", told["eat_nonce"] == nonce)
    demand("valid for too long", 0 < whole(told["exp"]) - whole(told["iat"]) <= LIFETIME)
    demand("expired, or of the future", told["iat"] - SKEW <= now <= told["exp"])
    found = {
        "environment": told["sub"],
        "key": told["cnf"]["jkt"] if "cnf" in told else None,
        **{name: told[f"netspace_{name}"] for name in ("host", "boot", "image", "configuration", "started")},
    }
    for name, value in expected.items():
        demand(f"{name} is {found[name]}, not {value}", value is None or found[name] == value)
    return {**found, "level": "L1", "pcrs": {pcr: value.hex() for pcr, value in pcrs.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the proof of where a program runs.")
    for name in ("key", "nonce", "environment"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("host", "image", "configuration"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    wanted = {name: getattr(given, name) for name in ("environment", "host", "image", "configuration")}
    with open(given.key, "rb") as stream:
        trusted = stream.read(65536)
    try:
        print(json.dumps(check(sys.stdin.read(65536), trusted, given.nonce, time.time(), **wanted), indent=1))
    except Refused as err:
        print(f"refused: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
