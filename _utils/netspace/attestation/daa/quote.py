"""Anonymous quotes: their bytes, and the verifier. Pure: no file, no TPM, no clock.

The bytes are ``NDQ1``, the number of points (4, or 5 with a pseudonym), the points, the qualifying data (36 bytes), and
the TPM's nonce, its response and the TPMS_ATTEST, each with two bytes of length before it. Nothing follows.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from netspace.attestation.daa import curve
from netspace.attestation.daa.fields import N
from netspace.attestation.daa.scheme import SCALAR, IssuerKey, Proof, Refusal, Request
from netspace.attestation.refusals import Refused
from netspace.attestation.tpm import structures
from netspace.attestation.tpm.structures import Quote, Reader

MAGIC = b"NDQ1"
LARGEST = 1024
SHA256 = 0x000B
QUALIFYING = 36
_ATTEST = 512


@dataclass(frozen=True)
class Rogues:
    """Members whose quotes are refused.

    :param keys: secret numbers f that are known.
    :param pseudonyms: encoded pseudonyms, each for the basename that it was shown for.
    """

    keys: frozenset[int] = frozenset()
    pseudonyms: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class Verified:
    """An anonymous quote that passed all checks. Only :func:`verify` makes one.

    :param pseudonym: the member's pseudonym for the request's basename, in hex; empty without a basename.
    :param quote: the TPM's statement. Its clock and counters can link quotes: see the documentation.
    """

    pseudonym: str
    quote: Quote


def encode(proof: Proof, attest: bytes) -> bytes:
    points = b"".join(map(curve.encode, proof.points))
    response = proof.response.to_bytes(SCALAR, "big")
    sized = b"".join(len(part).to_bytes(2, "big") + part for part in (proof.nonce, response, attest))
    return MAGIC + bytes([len(proof.points)]) + points + proof.qualifying + sized


def decode(raw: bytes) -> tuple[Proof, bytes]:
    """Return the proof, and the TPMS_ATTEST.

    :raises Refusal: when the bytes are not an anonymous quote. Each quote has only one valid encoding.
    """
    try:
        reader = Reader(raw, "the anonymous quote", LARGEST)
        if reader.take(4) != MAGIC:
            raise reader.refuse("it doesn't begin with NDQ1")
        count = reader.number(1)
        if count not in (4, 5):
            raise reader.refuse(f"{count} points; expected 4 or 5")
        points = [curve.decode(reader.take(curve.SIZE)) for _ in range(count)]
        qualifying = reader.take(QUALIFYING)
        nonce, response = reader.sized(SCALAR, "the nonce"), reader.sized(SCALAR, "the response")
        attest = reader.sized(_ATTEST, "TPMS_ATTEST")
        reader.end()
    except (Refused, ValueError) as err:
        raise Refusal("malformed", str(err)) from err
    number = int.from_bytes(response, "big")
    if not nonce or len(response) != SCALAR or number >= N:
        raise Refusal("malformed", "the anonymous quote: not a signature by ECDAA")
    r, s, t, w = points[:4]
    return Proof(r, s, t, w, points[4] if count == 5 else None, qualifying, nonce, number), attest


def verify(
    raw: bytes, issuer: IssuerKey, request: Request, pcrs: Mapping[int, bytes], rogues: Rogues | None = None
) -> Verified:
    """Verify an anonymous quote.

    :param pcrs: the values that these PCRs of the SHA-256 bank must have; the quote covers exactly these PCRs.
    :raises Refusal: when any check fails. Its ``code`` names the check.
    """
    if not pcrs or any(len(value) != hashlib.sha256().digest_size for value in pcrs.values()):
        raise Refusal("malformed", "pcrs: expected the values of one or more PCRs, each of 32 bytes")
    proof, attest = decode(raw)
    try:
        quote = structures.quote(attest)
    except Refused as err:
        raise Refusal("quote", str(err)) from err
    if quote.signer or quote.extra:
        raise Refusal("quote", "the quote names its signer or its request: it isn't by an anonymous scheme")
    proof.check(issuer, request, attest)
    rogues = rogues or Rogues()
    proof.check_rogue(rogues.keys, rogues.pseudonyms)
    if quote.selections != ((SHA256, frozenset(pcrs)),):
        raise Refusal("selection", "the quote doesn't cover exactly the PCRs that are asked for")
    if not hmac.compare_digest(quote.digest, digest(pcrs)):
        raise Refusal("digest", "the PCRs don't have the expected values")
    return Verified("" if proof.k is None else curve.encode(proof.k).hex(), quote)


def digest(pcrs: Mapping[int, bytes]) -> bytes:
    return hashlib.sha256(b"".join(pcrs[pcr] for pcr in sorted(pcrs))).digest()


def keys(texts: Collection[str]) -> frozenset[int]:
    """Return secret numbers that are written in hex.

    :raises Refusal: when one isn't a number below the group's order.
    """
    found = set()
    for text in texts:
        try:
            number = int.from_bytes(bytes.fromhex(text), "big")
        except (TypeError, ValueError) as err:
            raise Refusal("malformed", "a key of the rogue list isn't hex") from err
        if not 0 < number < N:
            raise Refusal("malformed", "a key of the rogue list isn't below the group's order")
        found.add(number)
    return frozenset(found)


def pseudonyms(texts: Collection[str]) -> frozenset[bytes]:
    """Return pseudonyms that are written in hex.

    :raises Refusal: when one isn't a pseudonym.
    """
    found = set()
    for text in texts:
        try:
            found.add(curve.encode(curve.decode(bytes.fromhex(text))))
        except (TypeError, ValueError) as err:
            raise Refusal("malformed", f"a pseudonym of the rogue list: {err}") from err
    return frozenset(found)
