"""Encryption of seals: JWE in compact form (RFC 7516), by ``ECDH-ES+A256KW`` (RFC 7518, 4.6) and ``A256GCM``.

One key agreement serves a *session* of several messages, because it takes longer than the rest of a seal
(``docs/adr/0042``). For a session, the sender makes an ephemeral key, agrees with the receiver's key, makes
``MESSAGES`` content keys, wraps them in the agreed key, and deletes the ephemeral and the agreed key. Each message uses
one content key, which is then deleted. So nothing in the sender's memory opens an earlier message.

A message has the form of any JWE of these algorithms, so a receiver can open the messages of a session in any order,
and each without the other messages. :class:`Agreed` caches agreed keys for a receiver. It only saves time: each key can
be computed again from the message's header and the receiver's key. Only keys of messages with a valid signature are
cached, and a sender can displace only its own keys.

The JWE is assembled here from primitives of ``cryptography``, because no library lets an agreement be used twice.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from netspace_client import jose
from netspace_client.errors import SealError
from netspace_client.keys import Key, Ring

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

WRAP, ENCRYPT = "ECDH-ES+A256KW", "A256GCM"
TYPE = "netspace-seal"
MESSAGES = 32
"""Messages of a session. A copy of the sender's memory opens at most this number of later messages."""
SECONDS = 5.0
"""Seconds after which a session ends. A copy of the sender's memory opens only messages sealed within this time."""
RECEIVERS = 256
"""Keys of receivers with which a program has sessions at the same time."""
EACH, SENDERS = 16, 256
"""Agreed keys that are remembered for each sender, and the number of senders."""
LONGEST = 1024
"""Bytes of a header whose agreed key is remembered; ours have 300."""

_HEADER = {"alg", "enc", "kid", "typ", "cty", "epk"}
_CONTENT_KEY, _VECTOR, _TAG = 32, 12, 16
# ConcatKDF's other information (RFC 7518, 4.6.2): the algorithm, no party information, and the bits of the key.
_PURPOSE = len(WRAP).to_bytes(4, "big") + WRAP.encode() + bytes(8) + (256).to_bytes(4, "big")


@dataclass
class _Session:
    """The state of a session after its key agreement.

    :param header: the encoded header, the same in all messages of the session.
    :param keys: unused content keys, each with its wrapped and encoded form.
    """

    header: bytes
    begun: float
    keys: list[tuple[bytes, bytes]] = field(repr=False)


class Sessions:
    """A sender's sessions, one for each public key of a receiver."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str, ...], _Session] = OrderedDict()

    def encrypt(self, text: bytes, reader: Key, now: float) -> bytes:
        """Return *text*, encrypted for the owner of the public key *reader*.

        :param now: seconds since 1970.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        place = (reader.kid, *reader.jwk.values())
        session = self._of.get(place)
        if session is None or not session.keys or not 0 <= now - session.begun < SECONDS:
            self._of.pop(place, None)
            if len(self._of) >= RECEIVERS:
                self._of.popitem(last=False)
            session = self._of[place] = _begun(reader, now)
        key, wrapped = session.keys.pop()
        # Random, not counted: a program that was copied while it ran has the same content keys twice.
        vector = os.urandom(_VECTOR)
        sealed = AESGCM(key).encrypt(vector, text, session.header)
        return b".".join((session.header, wrapped, *map(jose.encoded, (vector, sealed[:-_TAG], sealed[-_TAG:]))))


def _begun(reader: Key, now: float) -> _Session:
    """Agree on a key with a receiver's key, and make the content keys of a session."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    ours = ec.generate_private_key(ec.SECP256R1())
    public = ours.public_key().public_numbers()
    x, y = (jose.encoded(number.to_bytes(32, "big")).decode() for number in (public.x, public.y))
    epk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    header = {"alg": WRAP, "enc": ENCRYPT, "kid": reader.kid, "typ": TYPE, "cty": "JWS", "epk": epk}
    agreed = _agree(ours, jose.loaded().public(reader.jwk))
    keys = [
        (key, jose.encoded(aes_key_wrap(agreed, key))) for key in (os.urandom(_CONTENT_KEY) for _ in range(MESSAGES))
    ]
    return _Session(jose.header_of(header), now, keys)


class Agreed:
    """A receiver's cache of agreed keys, by sender and header. All keys were agreed with one ring of own keys."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, OrderedDict[bytes, bytes]] = OrderedDict()

    def known(self, sender: str, header: bytes) -> bytes | None:
        """Return the cached key for an encoded header; None: no key is cached."""
        theirs = self._of.get(sender)
        return None if theirs is None else theirs.get(header)

    def remember(self, sender: str, header: bytes, key: bytes) -> None:
        """Cache an agreed key. Call this only after a message of *sender* with this header was accepted."""
        if len(header) > LONGEST:
            return
        theirs = self._of.setdefault(sender, OrderedDict())
        self._of.move_to_end(sender)
        theirs[header] = key
        if len(theirs) > EACH:
            theirs.popitem(last=False)
        if len(self._of) > SENDERS:
            self._of.popitem(last=False)


@dataclass(frozen=True)
class Decrypted:
    """The decrypted content of a message. It isn't verified yet, and any process can encrypt for a public key.

    :param header: the encoded header; *key*: the key agreed with it.
    """

    text: bytes
    header: bytes
    key: bytes = field(repr=False)


def decrypt(raw: bytes, mine: Ring, agreed: Agreed, sender: str) -> Decrypted:
    """Decrypt a message.

    :param mine: our own keys; *agreed* must belong to the same keys.
    :param sender: the sender's name in its link.
    :raises SealError: the message isn't encrypted for one of our keys, doesn't have the accepted form, or was changed.
    :raises UnknownKey: our key is unknown; newer files of the host might contain it.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

    parts = raw.split(b".", 5)
    if len(parts) != 5:
        raise SealError("it isn't sealed")
    header = parts[0]
    key = agreed.known(sender, header)
    if key is None:
        key = _agreed(header, mine)
    wrapped, vector, text, tag = map(jose.segment, parts[1:])
    if (len(wrapped), len(vector), len(tag)) != (_CONTENT_KEY + 8, _VECTOR, _TAG):
        raise SealError("it can't be decrypted: a part has the wrong size")
    try:
        return Decrypted(AESGCM(aes_key_unwrap(key, wrapped)).decrypt(vector, text + tag, header), header, key)
    except Exception as err:  # a forged message may raise anything here
        raise SealError(f"it can't be decrypted: {type(err).__name__}") from None


def _agreed(encoded: bytes, mine: Ring) -> bytes:
    """Check the header of a message, and compute the agreed key from the header and our own key."""
    header = jose.decoded(encoded)
    if not header.keys() <= _HEADER or (header.get("alg"), header.get("enc")) != (WRAP, ENCRYPT):
        raise SealError(f"sealed in another way: {sorted(map(str, header))[:12]}"[:200])
    work, own = jose.loaded(), mine.find("enc", jose.text(header, "kid"))
    try:
        return _agree(work.private(own.jwk), work.imported(_ephemeral(header.get("epk"))))
    except SealError:
        raise
    except Exception as err:  # a forged message may raise anything here
        raise SealError(f"it can't be decrypted: {type(err).__name__}") from None


def _ephemeral(key: Any) -> Mapping[str, str]:
    """Return the members of a public key on P-256 and ignore others (RFC 7518, 4.6.1.1)."""
    members = {name: key.get(name) for name in ("kty", "crv", "x", "y")} if isinstance(key, dict) else {}
    texts = {name: one for name, one in members.items() if isinstance(one, str) and len(one) <= 64}
    if len(texts) != 4:
        raise SealError("its ephemeral key is not a key")
    if (texts["kty"], texts["crv"]) != ("EC", "P-256"):
        raise SealError("its ephemeral key isn't on P-256")
    return texts


def _agree(private: EllipticCurvePrivateKey, public: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDH
    from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

    return ConcatKDFHash(hashes.SHA256(), 32, _PURPOSE).derive(private.exchange(ECDH(), public))
