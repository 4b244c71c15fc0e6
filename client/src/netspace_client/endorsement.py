"""Endorsements: JWTs in which a sender's host certifies to other hosts that a signing key belongs to this sender.

Each message over a sealed link between hosts carries an endorsement (RFC 7519), signed by the *endorser* of the
sender's host. The card contains the endorser's public keys. :func:`checked` accepts an endorsement if, checked in this
order,

1. it has at most ``MAX`` bytes, three parts, and exactly the header of an endorsement;
2. a presently valid key of that endorser has signed it;
3. it has exactly the claims of an endorsement: the issuer is that host, the subject is the message's sender, it has not
  expired, and it contains a key (RFC 7800);
4. the key is on P-256, for signing, and has the ``kid`` that the message's signature names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace_client import jose
from netspace_client.errors import SealError, UnknownKey
from netspace_client.keys import Ring

KIND = "netspace-endorsement+jwt"
MAX = 2048
REMEDY = "its host and ours have to exchange their keys: salt-run netspace_link.exchange_seals"
_HEADER = {"alg", "kid", "typ"}
_CLAIMS = {"iss", "sub", "nbf", "exp", "cnf"}
_KEY = {"kty", "crv", "x", "y", "kid", "use"}


@dataclass(frozen=True)
class Endorser:
    """The endorser of a host: the host's SPIFFE ID, and its public keys."""

    id: str
    keys: Ring


@dataclass(frozen=True)
class Endorsed:
    """An endorsed signing key, and the period of its endorsement."""

    jwk: Mapping[str, str] = field(repr=False)
    begins: float
    ends: float


def ends(token: str) -> float:
    """Return the expiry of our own host's endorsement, in seconds since 1970; 0 if the endorsement can't be read."""
    try:
        found = jose.decoded(token.split(".")[1].encode()).get("exp")
    except (SealError, IndexError):
        return 0.0
    return float(found) if isinstance(found, (int, float)) else 0.0


def checked(token: str, endorser: Endorser, sender: str, kid: str, now: float) -> Endorsed:
    """Check the endorsement *token*; return the signing key *kid* of *sender* in it.

    :raises SealError: a check failed.
    :raises UnknownKey: the endorser's key is unknown or expired; newer keys of the endorser might help.
    """
    if len(token) > MAX or token.count(".") != 2 or not token.isascii():
        raise SealError("its endorsement is not a token")
    raw = token.encode()
    header = jose.decoded(raw.partition(b".")[0])
    if header.keys() != _HEADER or (header["alg"], header["typ"]) != (jose.SIGN, KIND):
        raise SealError("its endorsement is of another kind")
    try:
        by = endorser.keys.find("sig", jose.text(header, "kid"))
    except UnknownKey:
        raise UnknownKey(f"its endorsement is signed by a key that isn't known as {endorser.id}'s; {REMEDY}") from None
    if now >= by.until:
        raise UnknownKey(f"the known key of {endorser.id} has expired; {REMEDY}")
    claims = _claims(raw, tuple(by.jwk.items()))
    if claims.keys() != _CLAIMS or claims["iss"] != endorser.id or claims["sub"] != sender:
        raise SealError(f"its endorsement isn't valid for {sender}, or {endorser.id} didn't issue it")
    begins, until = claims["nbf"], claims["exp"]
    if not (jose.is_time(begins) and jose.is_time(until)):
        raise SealError("its endorsement has no time")
    if not (begins < until and now < until):
        raise SealError("its endorsement has ended")
    return Endorsed(_key(claims["cnf"], kid), begins, until)


def _key(confirmed: Any, kid: str) -> dict[str, str]:
    jwk = confirmed.get("jwk") if isinstance(confirmed, dict) and confirmed.keys() == {"jwk"} else None
    if not isinstance(jwk, dict) or jwk.keys() != _KEY or not all(isinstance(one, str) for one in jwk.values()):
        raise SealError("its endorsement contains no key")
    if (jwk["kty"], jwk["crv"], jwk["use"], jwk["kid"]) != ("EC", "P-256", "sig", kid):
        raise SealError("its endorsement is of another key, or of a key for another use")
    return {name: jwk[name] for name in ("kty", "crv", "x", "y")}


@functools.lru_cache(maxsize=64)
def _claims(raw: bytes, key: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Verify a token by *key* and return its claims.

    Valid tokens are cached, because thousands of messages carry the same token.
    """
    jose.loaded().verify(raw, dict(key))
    return jose.decoded(raw.split(b".")[1])
