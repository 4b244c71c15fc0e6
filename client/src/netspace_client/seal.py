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

Over a link between hosts the receiver isn't told the sender's keys to sign: each message bears the endorsement of its
own by the sender's host (``endorsement``), and both ends are called by their SPIFFE IDs. A seal of the one sort is
none of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from netspace_client import endorsement, jose
from netspace_client.endorsement import Endorser
from netspace_client.errors import SealError, UnknownKey
from netspace_client.jose import MAX_BODY, MAX_SEALED, text
from netspace_client.keys import Ring

CONTENT_TYPE = "application/jose"
LIFE = 7 * 24 * 3600
"""Seconds that a seal holds: as long as a message may wait in a mailbox."""
SKEW = 60
"""Seconds that a sender's clock may be ahead."""

_TYPE = "netspace-seal"
_SIGNED = {"alg", "kid", "typ", "cty", "lnk", "frm", "to", "use", "jti", "cid", "iat", "exp"}
_ENDORSED = _SIGNED | {"edt"}
_WRAPPED = {"alg", "enc", "kid", "typ", "cty", "epk"}


@dataclass(frozen=True)
class Envelope:
    """The properties of a message on the outside of its seal, which the seal must repeat.

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
    """The content of a seal that was opened.

    :param at: when it was sealed, in seconds since 1970.
    """

    body: bytes
    content_type: str
    at: float


@dataclass(frozen=True)
class Sealed:
    """The seal of a link: the link's name, and the keys of its other end.

    :param own: between hosts: this environment's name in seals; *peer*: that of the other end.
    :param endorser: between hosts: the endorser that vouches for the other end's keys to sign; *keys* has none then.
    """

    link: str
    keys: Ring
    own: str | None = None
    peer: str | None = None
    endorser: Endorser | None = None

    def envelope(self, own: str, other: str, use: str, id: str, correlation: str, *, ours: bool) -> Envelope:
        """The envelope of a message over this link.

        :param own: this environment's name, and *other* that of the other end, as the card has them.
        :param ours: we send it.
        """
        ends = (self.own or own, self.peer or other)
        sender, receiver = ends if ours else ends[::-1]
        return Envelope(self.link, sender, receiver, use, id, correlation)


def seal(
    body: bytes, content_type: str, envelope: Envelope, mine: Ring, theirs: Ring, now: float, *, afar: bool = False
) -> bytes:
    """Seal *body* with our newest key to sign, for their newest key to encrypt.

    :param afar: it is for another host, and so has to bear the endorsement of our key.
    :raises SealError: too large; :class:`UnknownKey` where there are no keys.
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
        raise UnknownKey(f"no key of {envelope.receiver} is good now; {endorsement.REMEDY}") from err
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
    wrapped = {"alg": jose.WRAP, "enc": jose.ENCRYPT, "kid": reader.kid, "typ": _TYPE, "cty": "JWS"}
    return work.encrypt(wrapped, inner, reader.jwk)


def open_sealed(
    raw: bytes, envelope: Envelope, mine: Ring, theirs: Ring, now: float, endorser: Endorser | None = None
) -> Opened:
    """Open what *theirs* sealed for *mine*, if it is what the *envelope* says.

    :param endorser: the endorser of the sender's host, where it comes from another host.
    :raises SealError: it isn't; :class:`UnknownKey` where newer keys might help.
    """
    if len(raw) > MAX_SEALED:
        raise SealError(f"{len(raw)} bytes are more than a seal may have ({MAX_SEALED})")
    if raw.count(b".") != 4:
        raise SealError("it isn't sealed")
    work = jose.loaded()
    header = jose.decoded(raw.partition(b".")[0])
    if not header.keys() <= _WRAPPED or (header.get("alg"), header.get("enc")) != (jose.WRAP, jose.ENCRYPT):
        raise SealError(f"sealed in another way: {sorted(map(str, header))[:12]}"[:200])
    inner = work.decrypt(raw, mine.find("enc", text(header, "kid")).jwk)
    if inner.count(b".") != 2:
        raise SealError("what is in it isn't signed")
    header = jose.decoded(inner.partition(b".")[0])
    if header.keys() != (_SIGNED if endorser is None else _ENDORSED) or header.get("alg") != jose.SIGN:
        raise SealError(f"signed in another way: {sorted(map(str, header))[:12]}"[:200])
    kid, endorsed = text(header, "kid"), None
    if endorser is not None:
        endorsed = endorsement.checked(text(header, "edt"), endorser, envelope.sender, kid, now)
    body = work.verify(inner, endorsed.jwk if endorsed else theirs.find("sig", kid).jwk)
    # From here on it is the sender's word.
    said = Envelope(*(text(header, name) for name in ("lnk", "frm", "to", "use", "jti", "cid")))
    if header["typ"] != _TYPE or said != envelope:
        raise SealError(f"it was sealed as {said}, but came as {envelope}")
    at, until = header["iat"], header["exp"]
    if not all(isinstance(time, (int, float)) and not isinstance(time, bool) for time in (at, until)):
        raise SealError("it has no time")
    if not (at <= now + SKEW and now < until <= at + LIFE + 1):
        raise SealError(f"it doesn't hold now: sealed {now - at:.0f} s ago, for {until - at:.0f} s")
    if endorsed is not None and not (endorsed.begins <= at + SKEW and until <= endorsed.ends):
        raise SealError("it was sealed before its key was endorsed, or for longer than it is")
    return Opened(body, text(header, "cty"), float(at))
