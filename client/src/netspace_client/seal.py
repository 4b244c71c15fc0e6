"""Seals of messages: the sender signs and encrypts a message for the receiver, so that relays can't read or alter it.

A sealed body is a JWE (ECDH-ES+A256KW, A256GCM) around a JWS (ES256), both in compact form. The signature also covers
all properties that a relay might change:

1. sender, receiver, link, and whether it is a message or an answer, so that a relay can't redirect or return the
  message;
2. its id and its correlation id, so that it can't pass for another message, nor for the answer to another question;
3. the time of sealing and the expiry, so that a receiver that remembers ids can detect a replay.

``open_sealed`` checks all of this in a fixed order and returns an :class:`Opened`, or raises a :class:`SealError`. It
checks sizes before any cryptographic work. It reads no file, and its result depends only on its arguments; the caller
recognizes duplicates (``window``). Several messages share a key agreement (``agreement``), but each has its own
signature.

Keys are JWKs on P-256, made by the host: each environment has a key pair for signing and one for encryption. A key is
published before the time from which it is used (``nbf``), so that all peers have it by then.

On a link between hosts, the receiver's card doesn't contain the sender's signing keys. Instead, each message carries an
endorsement of its signing key by the sender's host (``endorsement``), and SPIFFE IDs name both ends. A link between
hosts doesn't accept a seal of a local link, and a local link doesn't accept a seal between hosts.
"""

from __future__ import annotations

from dataclasses import dataclass

from netspace_client import agreement, endorsement, jose
from netspace_client.agreement import Agreed, Sessions
from netspace_client.endorsement import Endorser
from netspace_client.errors import SealError, UnknownKey
from netspace_client.jose import MAX_BODY, MAX_SEALED, text
from netspace_client.keys import Ring

CONTENT_TYPE = "application/jose"
LIFE = 7 * 24 * 3600
"""Seconds for which a seal is valid."""
SKEW = 60
"""Seconds that a sender's clock may be ahead."""

_TYPE = agreement.TYPE
_SIGNED = {"alg", "kid", "typ", "cty", "lnk", "frm", "to", "use", "jti", "cid", "iat", "exp"}
_ENDORSED = _SIGNED | {"edt"}


@dataclass(frozen=True)
class Envelope:
    """The properties of a message outside its seal. They must equal the signed properties inside.

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
    """The verified content of a sealed message.

    :param at: the time of sealing, in seconds since 1970.
    """

    body: bytes
    content_type: str
    at: float


@dataclass(frozen=True)
class Sealed:
    """The seal of a link, as in the card: the link's name, and the public keys of its other end.

    :param keys: the public keys of the other end.
    :param own: the SPIFFE ID of this environment; only for a link between hosts.
    :param peer: the SPIFFE ID of the other end; only for a link between hosts.
    :param endorser: the endorser of the other end's signing keys, only for a link between hosts. If it is given, *keys*
        has no signing keys.
    """

    link: str
    keys: Ring
    own: str | None = None
    peer: str | None = None
    endorser: Endorser | None = None

    def envelope(self, own: str, other: str, use: str, id: str, correlation: str, *, ours: bool) -> Envelope:
        """Return the envelope of a message over this link.

        :param own: this environment's name in the card; *other*: the other end's name.
        :param ours: whether this environment is the sender.
        """
        ends = (self.own or own, self.peer or other)
        sender, receiver = ends if ours else ends[::-1]
        return Envelope(self.link, sender, receiver, use, id, correlation)


def seal(
    body: bytes,
    content_type: str,
    envelope: Envelope,
    mine: Ring,
    theirs: Ring,
    now: float,
    *,
    afar: bool = False,
    sessions: Sessions | None = None,
) -> bytes:
    """Return *body*, signed with our current signing key and encrypted for the receiver's current encryption key.

    :param afar: whether the receiver is on another host, so that the endorsement of our key is added.
    :param sessions: the sender's sessions with receivers, kept for many messages; None: a new session for this message.
    :raises SealError: the body is too large, or our key has no valid endorsement.
    :raises UnknownKey: there is no key to sign or to encrypt.
    """
    if len(body) > MAX_BODY:
        raise SealError(f"{len(body)} bytes can't be sealed: at most {MAX_BODY}")
    work = jose.loaded()
    signer = mine.current("sig", now)
    try:
        reader = theirs.current("enc", now)
    except UnknownKey as err:
        if not afar:
            raise
        raise UnknownKey(f"no key of {envelope.receiver} is valid now; {endorsement.REMEDY}") from err
    stamp = round(now, 3)
    signed = {
        "alg": jose.SIGN,
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
    if afar:
        ends = 0.0 if signer.endorsement is None else endorsement.ends(signer.endorsement)
        if ends <= now:
            raise SealError("our key isn't endorsed for other hosts (any more): this host's links have to be applied")
        signed |= {"edt": signer.endorsement, "exp": min(stamp + LIFE, ends)}
    inner = work.sign(signed, body, signer.jwk)
    return (Sessions() if sessions is None else sessions).encrypt(inner, reader, now)


def open_sealed(
    raw: bytes,
    envelope: Envelope,
    mine: Ring,
    theirs: Ring,
    now: float,
    endorser: Endorser | None = None,
    *,
    agreed: Agreed | None = None,
) -> Opened:
    """Decrypt and verify a sealed message, and compare it with its *envelope*; return its content.

    :param mine: our own keys; *theirs*: the sender's public keys.
    :param endorser: the endorser of the sender's host, if that is another host.
    :param agreed: the cached agreed keys of earlier messages, agreed with the same *mine*; None: no cache is used.
    :raises SealError: a check failed.
    :raises UnknownKey: a key is unknown; newer files of the host might contain it.
    """
    if len(raw) > MAX_SEALED:
        raise SealError(f"{len(raw)} bytes are more than a seal may have ({MAX_SEALED})")
    work = jose.loaded()
    agreed = Agreed() if agreed is None else agreed
    found = agreement.decrypt(raw, mine, agreed, envelope.sender)
    inner = found.text
    if inner.count(b".") != 2:
        raise SealError("its content isn't signed")
    header = jose.decoded(inner.partition(b".")[0])
    if header.keys() != (_SIGNED if endorser is None else _ENDORSED) or header.get("alg") != jose.SIGN:
        raise SealError(f"signed in another way than expected; its header has {sorted(map(str, header))[:12]}"[:200])
    kid, endorsed = text(header, "kid"), None
    if endorser is not None:
        endorsed = endorsement.checked(text(header, "edt"), endorser, envelope.sender, kid, now)
    body = work.verify(inner, endorsed.jwk if endorsed else theirs.find("sig", kid).jwk)
    # From here on, the header is verified as the sender's.
    said = Envelope(*(text(header, name) for name in ("lnk", "frm", "to", "use", "jti", "cid")))
    if header["typ"] != _TYPE or said != envelope:
        raise SealError(f"it was sealed as {said}, but came as {envelope}")
    at, until = header["iat"], header["exp"]
    if not (jose.is_time(at) and jose.is_time(until)):
        raise SealError("it has no time")
    if not (at <= now + SKEW and now < until <= at + LIFE + 1):
        raise SealError(f"it is not valid now: sealed {now - at:.0f} s ago, to be valid for {until - at:.0f} s")
    if endorsed is not None and not (endorsed.begins <= at + SKEW and until <= endorsed.ends):
        raise SealError("it was sealed before its key was endorsed, or is valid for longer than the endorsement")
    opened = Opened(body, text(header, "cty"), float(at))
    agreed.remember(envelope.sender, found.header, found.key)
    return opened
