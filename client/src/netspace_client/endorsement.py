"""Endorsements: statements of a sender's host to receivers on other hosts that a signing key is this sender's.

Each message over a sealed link between hosts bears one: a JWT (RFC 7519), signed by the *endorser* of the sender's
host, whose keys our own host tells us in the card. :func:`checked` believes one if, in this order,

1. it is of at most ``MAX`` bytes, in three parts, with the header of an endorsement and of nothing else;
2. it is signed by a key of that endorser that is good now;
3. it says no more and no less than an endorsement does: who endorses, which is that host; whose key it is, which is
   the sender that the message came from; from when until when, which is now; and the key (RFC 7800);
4. the key is to sign, on P-256, and the one that the message says it is signed with.
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
    """The endorser of a host: the host's SPIFFE ID, and the keys by which it endorses."""

    id: str
    keys: Ring


@dataclass(frozen=True)
class Endorsed:
    """A key to sign, and the time for which it is its sender's."""

    jwk: Mapping[str, str] = field(repr=False)
    begins: float
    ends: float


def ends(token: str) -> float:
    """Return the end of an endorsement that our host gave us, in seconds since 1970; 0 where it can't be told."""
    try:
        found = jose.decoded(token.split(".")[1].encode()).get("exp")
    except (SealError, IndexError):
        return 0.0
    return float(found) if isinstance(found, (int, float)) else 0.0


def checked(token: str, endorser: Endorser, sender: str, kid: str, now: float) -> Endorsed:
    """Return the key *kid* that *sender* signs with, if *endorser* says so in *token*.

    :raises SealError: it doesn't; :class:`UnknownKey` where newer keys of the endorser might help.
    """
    if len(token) > MAX or token.count(".") != 2 or not token.isascii():
        raise SealError("its endorsement is none")
    raw = token.encode()
    header = jose.decoded(raw.partition(b".")[0])
    if header.keys() != _HEADER or (header["alg"], header["typ"]) != (jose.SIGN, KIND):
        raise SealError("its endorsement is of another kind")
    try:
        by = endorser.keys.find("sig", jose.text(header, "kid"))
    except UnknownKey:
        raise UnknownKey(f"it is endorsed by a key that isn't known to be {endorser.id}'s; {REMEDY}") from None
    if now >= by.until:
        raise UnknownKey(f"what is known of {endorser.id} has run out; {REMEDY}")
    claims = _claims(raw, tuple(by.jwk.items()))
    if claims.keys() != _CLAIMS or claims["iss"] != endorser.id or claims["sub"] != sender:
        raise SealError(f"its endorsement isn't of {sender} by {endorser.id}")
    begins, until = claims["nbf"], claims["exp"]
    if not all(isinstance(time, (int, float)) and not isinstance(time, bool) for time in (begins, until)):
        raise SealError("its endorsement has no time")
    if not (begins < until and now < until):
        raise SealError("its endorsement has ended")
    return Endorsed(_key(claims["cnf"], kid), begins, until)


def _key(confirmed: Any, kid: str) -> dict[str, str]:
    jwk = confirmed.get("jwk") if isinstance(confirmed, dict) and confirmed.keys() == {"jwk"} else None
    if not isinstance(jwk, dict) or jwk.keys() != _KEY or not all(isinstance(one, str) for one in jwk.values()):
        raise SealError("its endorsement is of no key")
    if (jwk["kty"], jwk["crv"], jwk["use"], jwk["kid"]) != ("EC", "P-256", "sig", kid):
        raise SealError("its endorsement is of another key, or of one for something else")
    return {name: jwk[name] for name in ("kty", "crv", "x", "y")}


@functools.lru_cache(maxsize=64)
def _claims(raw: bytes, key: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Verify a token by *key* and return its claims. Each is on thousands of messages; good ones alone are cached."""
    jose.loaded().verify(raw, dict(key))
    return jose.decoded(raw.split(b".")[1])
