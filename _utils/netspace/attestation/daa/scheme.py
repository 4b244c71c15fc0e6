"""The scheme: issuer's keys, credentials, and the proof of an anonymous quote. Pure, but for random numbers.

It is the scheme of Camenisch, Drijvers and Lehmann (2016) in the form of FIDO ECDAA 1.1, over BN_P256. A TPM's key has
the secret number f and the public point Q = f*G. The issuer has x and y, and publishes X = x*G2, Y = y*G2. A credential
on Q is A = l*G, B = y*A, D = l*y*Q, C = x*(A + D), for a random l. A member shows R, S, T, W = k*(A, B, C, D) for a new
random k each time, which nobody can tell from another member's, and proves that it knows f with W = f*S.

With a basename, it also shows K = f*J, where J is the basename's point: its *pseudonym* for that basename. Two quotes
for one basename by one key have the same K; for two basenames nobody can compare them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from netspace.attestation.daa import curve, pairing
from netspace.attestation.daa.curve import G1, G2, GENERATOR, GENERATOR_2
from netspace.attestation.daa.fields import N
from netspace.errors import NetspaceError

SCALAR = 32
PREFIX = bytes.fromhex("ff544347")
"""TPM_GENERATED_VALUE, with which the qualifying data of each anonymous quote begins.

For an anonymous key, a TPM signs the hash of the qualifying data and of the quote's digest. Without this beginning, the
host could write these bytes itself, for a quote that no TPM made, and have the TPM hash and sign them (TPM2_Hash,
TPM2_Sign): a restricted key signs all data but what begins with this value.
"""


class Refusal(NetspaceError):
    """Error: a message of the scheme is refused. ``code`` names the cause."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} [{code}]")
        self.code = code


def scalar(*parts: bytes) -> int:
    """Return the SHA-256 of *parts*, one after another, modulo the group's order."""
    return int.from_bytes(hashlib.sha256(b"".join(parts)).digest(), "big") % N


def random_scalar() -> int:
    return 1 + secrets.randbelow(N - 1)


def _scalar(raw: bytes, what: str) -> int:
    value = int.from_bytes(raw, "big")
    if len(raw) != SCALAR or value >= N:
        raise Refusal("malformed", f"{what}: not a number below the group's order")
    return value


def _point(raw: bytes, what: str) -> G1:
    try:
        return curve.decode(raw)
    except ValueError as err:
        raise Refusal("malformed", f"{what}: {err}") from err


def _some(point: G1 | None) -> G1:
    """Return a point that can't be infinity, since its factors are no multiples of the group's order."""
    assert point is not None
    return point


def _times(point: G1, factor: int) -> G1:
    return _some(curve.multiply(point, factor))


def combined(point: G1, factor: int, other: G1, challenge: int) -> bytes:
    """Return the encoding of factor*point - challenge*other, which a proof of knowledge hashes.

    :raises Refusal: it is infinity, which no honest proof gives.
    """
    found = curve.add(curve.multiply(point, factor), curve.negate(curve.multiply(other, challenge)))
    if found is None:
        raise Refusal("proof", "the proof's commitment is infinity")
    return curve.encode(found)


# -- the issuer's keys -----------------------------------------------------------------------------
@dataclass(frozen=True)
class IssuerKey:
    """The issuer's public key, with a proof that its maker knows x and y.

    Without the proof, a made-up key could have members whose quotes are linked.
    """

    x: G2
    y: G2
    challenge: int
    response_x: int
    response_y: int

    SIZE: ClassVar[int] = 2 * curve.SIZE_2 + 3 * SCALAR

    def encode(self) -> bytes:
        numbers = (self.challenge, self.response_x, self.response_y)
        points = curve.encode_2(self.x) + curve.encode_2(self.y)
        return points + b"".join(number.to_bytes(SCALAR, "big") for number in numbers)

    @classmethod
    def decode(cls, raw: bytes) -> IssuerKey:
        """Return the key that *raw* encodes, once its points and its proof are checked.

        :raises Refusal: when it isn't an issuer's key.
        """
        if len(raw) != cls.SIZE:
            raise Refusal("malformed", f"an issuer's key has {cls.SIZE} bytes, not {len(raw)}")
        try:
            x, y = curve.decode_2(raw[:128]), curve.decode_2(raw[128:256])
        except ValueError as err:
            raise Refusal("malformed", f"the issuer's key: {err}") from err
        numbers = [_scalar(raw[start : start + SCALAR], "the issuer's key") for start in range(256, cls.SIZE, SCALAR)]
        key = cls(x, y, *numbers)
        commitments = [_combined_2(key.response_x, x, key.challenge), _combined_2(key.response_y, y, key.challenge)]
        if key.challenge != _issuer_challenge(*commitments, x, y):
            raise Refusal("issuer", "the issuer's key has no valid proof that its maker knows the secret numbers")
        return key

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.encode()).digest()


def _combined_2(factor: int, other: G2, challenge: int) -> G2:
    negative = curve.multiply_2(other, (N - challenge) % N)
    found = curve.add_2(curve.multiply_2(GENERATOR_2, factor), negative)
    if found is None:
        raise Refusal("issuer", "the proof of the issuer's key has infinity as its commitment")
    return found


def _issuer_challenge(*points: G2) -> int:
    return scalar(b"netspace-daa/1 issuer\0", *map(curve.encode_2, (*points, GENERATOR_2)))


@dataclass(frozen=True, repr=False)
class IssuerSecret:
    """The issuer's secret numbers."""

    x: int
    y: int

    @classmethod
    def new(cls) -> IssuerSecret:
        return cls(random_scalar(), random_scalar())

    def encode(self) -> bytes:
        return self.x.to_bytes(SCALAR, "big") + self.y.to_bytes(SCALAR, "big")

    @classmethod
    def decode(cls, raw: bytes) -> IssuerSecret:
        x, y = _scalar(raw[:SCALAR], "the issuer's secret"), _scalar(raw[SCALAR:], "the issuer's secret")
        if not x or not y:
            raise Refusal("malformed", "the issuer's secret: a number is 0")
        return cls(x, y)

    def public(self) -> IssuerKey:
        def point(factor: int) -> G2:
            found = curve.multiply_2(GENERATOR_2, factor)
            assert found is not None
            return found

        x, y = point(self.x), point(self.y)
        first, second = random_scalar(), random_scalar()
        challenge = _issuer_challenge(point(first), point(second), x, y)
        return IssuerKey(x, y, challenge, (first + challenge * self.x) % N, (second + challenge * self.y) % N)

    def issue(self, member: G1) -> Credential:
        """Return a credential on a member's public point. The caller has checked whose it is."""
        blind = random_scalar()
        both = blind * self.y % N
        a, b, d = _times(GENERATOR, blind), _times(GENERATOR, both), _times(member, both)
        # A + D is infinity for one f in 2^256.
        c = _times(_some(curve.add(a, d)), self.x)
        nonce = random_scalar()
        challenge = _credential_challenge(_times(GENERATOR, nonce), _times(member, nonce), b, member, d)
        return Credential(a, b, c, d, challenge, (nonce + challenge * both) % N)


# -- credentials -----------------------------------------------------------------------------------
def _credential_challenge(*points: G1) -> int:
    # In this order as in FIDO ECDAA: the commitments, the generator, B, Q, D.
    first, second, *others = points
    return scalar(*map(curve.encode, (first, second, GENERATOR, *others)))


@dataclass(frozen=True, repr=False)
class Credential:
    """A credential, with the issuer's proof that B and D have the same factor. Its owner keeps it secret."""

    a: G1
    b: G1
    c: G1
    d: G1
    challenge: int
    response: int

    SIZE: ClassVar[int] = 4 * curve.SIZE + 2 * SCALAR

    def encode(self) -> bytes:
        numbers = self.challenge.to_bytes(SCALAR, "big") + self.response.to_bytes(SCALAR, "big")
        return b"".join(map(curve.encode, (self.a, self.b, self.c, self.d))) + numbers

    @classmethod
    def decode(cls, raw: bytes) -> Credential:
        if len(raw) != cls.SIZE:
            raise Refusal("malformed", f"a credential has {cls.SIZE} bytes, not {len(raw)}")
        a, b, c, d = (_point(raw[start : start + curve.SIZE], "the credential") for start in range(0, 256, curve.SIZE))
        challenge, response = (_scalar(raw[start : start + SCALAR], "the credential") for start in (256, 288))
        return cls(a, b, c, d, challenge, response)

    def check(self, issuer: IssuerKey, member: G1) -> None:
        """Check that this is the issuer's credential on a member's point.

        Without this check, an issuer could mark a member by a wrong credential, and know its quotes again.

        :raises Refusal: when it isn't.
        """
        first = combined(GENERATOR, self.response, self.b, self.challenge)
        second = combined(member, self.response, self.d, self.challenge)
        if self.challenge != _credential_challenge(curve.decode(first), curve.decode(second), self.b, member, self.d):
            raise Refusal("credential", "the credential's proof isn't valid for this key")
        check_credential(issuer, self.a, self.b, self.c, self.d)

    def randomized(self) -> tuple[G1, G1, G1, G1]:
        """Return the four points of this credential with a new random factor."""
        factor = random_scalar()
        return (
            _times(self.a, factor),
            _times(self.b, factor),
            _times(self.c, factor),
            _times(self.d, factor),
        )


def check_credential(issuer: IssuerKey, r: G1, s: G1, t: G1, w: G1) -> None:
    """Check that four points are a credential by the issuer, randomized or not.

    :raises Refusal: when they aren't.
    """
    good = pairing.is_one([(r, issuer.y), (curve.negate(s), GENERATOR_2)])
    if not good or not pairing.is_one([(curve.add(r, w), issuer.x), (curve.negate(t), GENERATOR_2)]):
        raise Refusal("credential", "not a credential of this issuer")


# -- anonymous quotes ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Request:
    """A verifier's request for an anonymous quote.

    :param issuer: digest of the issuer's key.
    :param nonce: 32 random bytes.
    :param basename: quotes of one member with the same basename can be linked; None: none can.
    """

    issuer: bytes
    nonce: bytes
    basename: bytes | None

    MOST: ClassVar[int] = 256

    def __post_init__(self) -> None:
        if len(self.nonce) != 32 or len(self.issuer) != 32:
            raise Refusal("malformed", "a request has a nonce of 32 bytes, and the digest of an issuer's key")
        if self.basename is not None and not 1 <= len(self.basename) <= self.MOST:
            raise Refusal("malformed", f"a basename has 1 to {self.MOST} bytes")

    def qualifying(self, points: Collection[G1], commitments: Collection[bytes]) -> bytes:
        """Return the qualifying data of the quote: a digest of this request, of all points, and of the commitments."""
        basename = b"\0" if self.basename is None else b"\1" + hashlib.sha256(self.basename).digest()
        parts = [b"netspace-daa/1 quote\0", self.issuer, self.nonce, basename, bytes([len(points)])]
        return PREFIX + hashlib.sha256(b"".join([*parts, *map(curve.encode, points), *commitments])).digest()


@dataclass(frozen=True)
class Proof:
    """The randomized credential of an anonymous quote, and the TPM's signature.

    :param k: the member's pseudonym for the request's basename; None without a basename.
    :param qualifying: the qualifying data. A TPM leaves it out of an anonymous quote, and signs it beside the quote.
    :param nonce: the TPM's own random number in its signature.
    """

    r: G1
    s: G1
    t: G1
    w: G1
    k: G1 | None
    qualifying: bytes
    nonce: bytes
    response: int

    @property
    def points(self) -> tuple[G1, ...]:
        four = (self.r, self.s, self.t, self.w)
        return four if self.k is None else (*four, self.k)

    def check(self, issuer: IssuerKey, request: Request, attest: bytes) -> None:
        """Check that a member of the issuer's made the quote *attest* for the request.

        :raises Refusal: when that isn't proved.
        """
        if (self.k is None) != (request.basename is None):
            raise Refusal("basename", "the quote is for a request " + ("with", "without")[self.k is not None] + " one")
        if not hmac.compare_digest(request.issuer, issuer.digest):
            raise Refusal("issuer", "the request is for another issuer's members")
        # The TPM's challenge is the hash of its nonce and of the digest that it signs (TPM 2.0 Part 1, annex C.4.2).
        # That digest is the one of the qualifying data and the quote's digest (Part 4, SignAttestInfo).
        signed = hashlib.sha256(self.qualifying + hashlib.sha256(attest).digest()).digest()
        challenge = scalar(self.nonce, signed)
        commitments = [combined(self.s, self.response, self.w, challenge)]
        if self.k is not None and request.basename is not None:
            _, base = curve.hashed(request.basename)
            commitments.append(combined(base, self.response, self.k, challenge))
        if not hmac.compare_digest(self.qualifying, request.qualifying(self.points, commitments)):
            raise Refusal("proof", "the TPM's signature isn't by this credential's key, or not for this request")
        check_credential(issuer, self.r, self.s, self.t, self.w)

    def check_rogue(self, keys: Collection[int], pseudonyms: Collection[bytes]) -> None:
        """Check that the quote is neither by a key that is known to have left its TPM, nor by a refused pseudonym.

        :param keys: secret numbers f.
        :param pseudonyms: encoded points K for the request's basename.
        :raises Refusal: when it is.
        """
        if any(curve.multiply(self.s, key) == self.w for key in keys):
            raise Refusal("rogue", "the quote is by a key on the rogue list")
        if self.k is not None and curve.encode(self.k) in pseudonyms:
            raise Refusal("pseudonym", "the quote is by a pseudonym that is refused")
