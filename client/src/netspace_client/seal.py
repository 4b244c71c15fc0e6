"""Sealed links: what is sent is signed by its sender and encrypted for its receiver; those between can't read it.

A sealed body is a JWE (ECDH-ES+A256KW, A256GCM) around a JWS (ES256), both compact, by ``joserfc``. What
is signed along with the body says all that a relay might want to change:

1. by whom and for whom it is, over which link, a message or an answer: it can't be readdressed, nor sent back;
2. its id and its correlation id: it can't be given out for another, nor an answer for that to another question;
3. when it was sealed and until when it holds: with the ids that were seen, it can't be repeated.

``open_sealed`` checks all of it in one order and returns what only it can make, an :class:`Opened`; whatever is
wrong is a :class:`SealError`. Its work is bounded before it begins. It reads no file and keeps nothing: that an
id was not seen before is for the caller to say (``window``).

Keys are JWKs on P-256, a pair to sign and a pair to encrypt for each environment, made by the host. A key has a time
from which it is used (``nbf``): before that it is only known, so that all have it when it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netspace_client.errors import CardError, LinkError

CONTENT_TYPE = "application/jose"
MAX_BODY = 8 * 1024 * 1024
"""Sealed, it fits into the 16 MiB that the broker takes."""
MAX_SEALED = MAX_BODY * 16 // 9 + 8192
LIFE = 7 * 24 * 3600
"""Seconds that a seal holds: as long as a message may wait in a mailbox."""
SKEW = 60
"""Seconds that a sender's clock may be ahead."""
MAX_KEYS = 64

_TYPE = "netspace-seal"
_SIGN, _WRAP, _ENCRYPT = "ES256", "ECDH-ES+A256KW", "A256GCM"
_SIGNED = {"alg", "kid", "typ", "cty", "lnk", "frm", "to", "use", "jti", "cid", "iat", "exp"}
_WRAPPED = {"alg", "enc", "kid", "typ", "cty", "epk"}
_PUBLIC = ("kty", "crv", "x", "y")


class SealError(LinkError):
    """A message on a sealed link that isn't what its sender sealed for this receiver, here and now."""


class UnknownKey(SealError):
    """It is sealed by, or for, a key that isn't known (yet, or any more)."""


@dataclass(frozen=True)
class Envelope:
    """What a message says of itself on the outside, and what its seal must say too.

    :param use: ``message`` or ``answer``.
    """

    link: str
    sender: str
    receiver: str
    use: str
    id: str
    correlation: str = ""


@dataclass(frozen=True)
class Opened:
    """What was in a seal.

    :param at: when it was sealed, in seconds.
    """

    body: bytes
    content_type: str
    at: float


@dataclass(frozen=True)
class Key:
    """One key. ``jwk`` has a private part, or not."""

    kid: str
    use: str
    since: float
    jwk: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Ring:
    """The keys of one environment."""

    keys: tuple[Key, ...] = ()

    def current(self, use: str, now: float) -> Key:
        """The key to use now: the newest whose time has come; where none has, the first.

        :raises UnknownKey: there is none at all.
        """
        keys = sorted((key for key in self.keys if key.use == use), key=lambda key: key.since)
        if not keys:
            raise UnknownKey(f"there is no key for {use!r}")
        return next((key for key in reversed(keys) if key.since <= now), keys[0])

    def find(self, use: str, kid: str) -> Key:
        """:raises UnknownKey: it isn't there."""
        for key in self.keys:
            if key.kid == kid and key.use == use:
                return key
        raise UnknownKey(f"sealed with a key that isn't known: {kid[:64]!r}")


@dataclass(frozen=True)
class Sealed:
    """That a link is sealed, its name, and the keys of the one at its other end."""

    link: str
    keys: Ring


def ring(keys: Any, where: str, *, private: bool = False) -> Ring:
    """Read keys as the host writes them.

    :raises CardError: they aren't that.
    """
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise CardError(f"{where}: expected a list of at most {MAX_KEYS} keys")
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
        raise CardError(f"{where}: nbf: expected seconds")
    assert isinstance(kid, str)
    assert isinstance(use, str)
    return Key(kid, use, since, {name: text for name, text in jwk.items() if isinstance(text, str)})


def seal(body: bytes, content_type: str, envelope: Envelope, mine: Ring, theirs: Ring, now: float) -> bytes:
    """Seal *body* with our newest key to sign, for their newest key to encrypt.

    :raises SealError: too large, or there are no keys.
    """
    if len(body) > MAX_BODY:
        raise SealError(f"{len(body)} bytes can't be sealed: at most {MAX_BODY}")
    jose = _jose()
    signer, reader = mine.current("sig", now), theirs.current("enc", now)
    stamp = round(now, 3)
    signed = {
        "alg": _SIGN,
        "kid": signer.kid,
        "typ": _TYPE,
        "cty": content_type,
        "lnk": envelope.link,
        "frm": envelope.sender,
        "to": envelope.receiver,
        "use": envelope.use,
        "jti": envelope.id,
        "cid": envelope.correlation,
        "iat": stamp,
        "exp": stamp + LIFE,
    }
    inner = jose.sign(signed, body, signer.jwk)
    wrapped = {"alg": _WRAP, "enc": _ENCRYPT, "kid": reader.kid, "typ": _TYPE, "cty": "JWS"}
    return jose.encrypt(wrapped, inner, reader.jwk)


def open_sealed(raw: bytes, envelope: Envelope, mine: Ring, theirs: Ring, now: float) -> Opened:
    """Open what *theirs* sealed for *mine*, if it is what the *envelope* says.

    :raises SealError: it isn't; :class:`UnknownKey` where newer keys might help.
    """
    if len(raw) > MAX_SEALED:
        raise SealError(f"{len(raw)} bytes are more than a seal may have ({MAX_SEALED})")
    if raw.count(b".") != 4:
        raise SealError("it isn't sealed")
    jose = _jose()
    header = jose.header(raw)
    if not header.keys() <= _WRAPPED or (header.get("alg"), header.get("enc")) != (_WRAP, _ENCRYPT):
        raise SealError(f"sealed in another way: {sorted(map(str, header))[:12]}"[:200])
    inner = jose.decrypt(raw, mine.find("enc", _text(header, "kid")).jwk)
    if inner.count(b".") != 2:
        raise SealError("what is in it isn't signed")
    header = jose.header(inner)
    if header.keys() != _SIGNED or header.get("alg") != _SIGN:
        raise SealError(f"signed in another way: {sorted(map(str, header))[:12]}"[:200])
    body = jose.verify(inner, theirs.find("sig", _text(header, "kid")).jwk)
    # From here on it is the sender's word.
    said = Envelope(*(_text(header, name) for name in ("lnk", "frm", "to", "use", "jti", "cid")))
    if header["typ"] != _TYPE or said != envelope:
        raise SealError(f"it was sealed as {said}, but came as {envelope}")
    at, until = header["iat"], header["exp"]
    if not all(isinstance(time, (int, float)) and not isinstance(time, bool) for time in (at, until)):
        raise SealError("it has no time")
    if not (at <= now + SKEW and now < until <= at + LIFE + 1):
        raise SealError(f"it doesn't hold now: sealed {now - at:.0f} s ago, for {until - at:.0f} s")
    return Opened(body, _text(header, "cty"), float(at))


def _text(header: Mapping[str, Any], name: str) -> str:
    value = header.get(name)
    if not isinstance(value, str):
        raise SealError(f"{name} is missing or no text")
    return value


class _Jose:
    """The four operations, each with one algorithm, and all that they raise as :class:`SealError`."""

    def __init__(self) -> None:
        from joserfc import jwe, jws
        from joserfc.jwk import ECKey

        class Signatures(jws.JWSRegistry):
            max_header_length = 4096
            max_payload_length = MAX_SEALED

        class Encryptions(jwe.JWERegistry):
            max_protected_header_length = 4096
            max_ciphertext_length = MAX_SEALED

        self._jws, self._jwe = jws, jwe
        # Of the keys in use; to make one of its numbers takes as long as to sign with it.
        self._made = functools.lru_cache(maxsize=64)(lambda members: ECKey.import_key(dict(members)))
        # Which members a header has is checked by us: the registry doesn't know ours.
        self._signatures = Signatures(algorithms=[_SIGN], strict_check_header=False)
        self._encryptions = Encryptions(algorithms=[_WRAP, _ENCRYPT], strict_check_header=False)

    def _key(self, jwk: Mapping[str, str]) -> Any:
        return self._made(tuple(jwk.items()))

    def sign(self, header: dict[str, Any], body: bytes, key: Mapping[str, str]) -> str:
        return self._jws.serialize_compact(header, body, self._key(key), registry=self._signatures)

    def encrypt(self, header: dict[str, Any], text: str, key: Mapping[str, str]) -> bytes:
        return self._jwe.encrypt_compact(header, text, self._key(key), registry=self._encryptions).encode()

    def decrypt(self, raw: bytes, key: Mapping[str, str]) -> bytes:
        try:
            found = self._jwe.decrypt_compact(raw, self._key(key), registry=self._encryptions)
        except Exception as err:  # whatever a forger can make it raise
            raise SealError(f"it can't be decrypted: {type(err).__name__}") from None
        return found.plaintext or b""

    def verify(self, raw: bytes, key: Mapping[str, str]) -> bytes:
        try:
            return self._jws.deserialize_compact(raw, self._key(key), registry=self._signatures).payload
        except Exception as err:
            raise SealError(f"its signature doesn't hold: {type(err).__name__}") from None

    @staticmethod
    def header(raw: bytes) -> dict[str, Any]:
        """The protected header, of which nothing is believed yet."""
        import base64
        import json

        encoded = raw[: raw.index(b".")]
        if len(encoded) > 4096:
            raise SealError("its header is too long")
        try:
            header = json.loads(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))
        except (ValueError, RecursionError):
            raise SealError("its header can't be read") from None
        if not isinstance(header, dict):
            raise SealError("its header can't be read")
        return header


_made: list[_Jose] = []


def _jose() -> _Jose:
    if not _made:
        try:
            _made.append(_Jose())
        except ImportError as err:
            raise CardError(f"a link is sealed, which needs joserfc (netspace-client's extra 'seal'): {err}") from err
    return _made[0]
