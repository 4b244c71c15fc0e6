"""Keys in the host's files: JWKs on P-256, for signing or for encryption, each with the period of its use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace_client.errors import CardError, UnknownKey

MAX = 64
_PUBLIC = ("kty", "crv", "x", "y")


@dataclass(frozen=True)
class Key:
    """One key, public or private.

    :param use: ``sig`` or ``enc``.
    :param since: the time from which the key is used, in seconds since 1970.
    :param until: the time from which no message may be sealed with the key, in seconds since 1970.
    :param endorsement: for one of our signing keys: its endorsement, for other hosts.
    """

    kid: str
    use: str
    since: float
    jwk: Mapping[str, str] = field(repr=False)
    until: float = math.inf
    endorsement: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Ring:
    """The keys of one environment."""

    keys: tuple[Key, ...] = ()

    def current(self, use: str, now: float) -> Key:
        """Return the unexpired key for *use* that became valid last; if none is valid yet, the first to become valid.

        :raises UnknownKey: there is no unexpired key for this use.
        """
        keys = sorted((key for key in self.keys if key.use == use and now < key.until), key=lambda key: key.since)
        if not keys:
            raise UnknownKey(f"there is no key for {use!r}")
        return next((key for key in reversed(keys) if key.since <= now), keys[0])

    def find(self, use: str, kid: str) -> Key:
        """Return the key with this use and *kid*.

        :raises UnknownKey: there is no such key.
        """
        for key in self.keys:
            if key.kid == kid and key.use == use:
                return key
        raise UnknownKey(f"sealed with a key that isn't known: {kid[:64]!r}")


def ring(keys: Any, where: str, *, private: bool = False) -> Ring:
    """Parse a list of keys from a file of the host.

    :param where: the prefix of error texts.
    :param private: whether the keys have private parts.
    :raises CardError: the list is invalid.
    """
    if not isinstance(keys, list) or len(keys) > MAX:
        raise CardError(f"{where}: expected a list of at most {MAX} keys")
    return Ring(tuple(_key(value, f"{where}:{index}", private) for index, value in enumerate(keys)))


def _key(value: Any, where: str, private: bool) -> Key:
    if not isinstance(value, dict):
        raise CardError(f"{where}: expected a JWK")
    members = (*_PUBLIC, "d") if private else _PUBLIC
    jwk = {name: value.get(name) for name in members}
    kid, use, since = value.get("kid"), value.get("use"), value.get("nbf", 0)
    if not all(isinstance(text, str) and text for text in (*jwk.values(), kid)) or use not in ("sig", "enc"):
        raise CardError(f"{where}: expected a JWK with {', '.join(members)}, kid and use")
    if jwk["kty"] != "EC" or jwk["crv"] != "P-256":
        raise CardError(f"{where}: {jwk['kty']} {jwk['crv']}: expected EC P-256")
    if isinstance(since, bool) or not isinstance(since, (int, float)):
        raise CardError(f"{where}: nbf: expected a time in seconds since 1970")
    assert isinstance(kid, str)
    assert isinstance(use, str)
    until, endorsed = value.get("exp", math.inf), value.get("endorsement")
    if isinstance(until, bool) or not isinstance(until, (int, float)):
        raise CardError(f"{where}: exp: expected a time in seconds since 1970")
    if endorsed is not None and not isinstance(endorsed, str):
        raise CardError(f"{where}: endorsement: expected a token")
    plain = {name: text for name, text in jwk.items() if isinstance(text, str)}
    return Key(kid, use, since, plain, until, endorsed)
