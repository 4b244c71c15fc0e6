"""Members of anonymous attestation without a TPM: software that knows f, and does what TPM2_Commit and TPM2_Quote do.

It is also the forger's: it quotes PCRs that it makes up, and signs with parts of other members' quotes.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from netspace.attestation.daa import curve, quote
from netspace.attestation.daa.curve import G1
from netspace.attestation.daa.fields import N
from netspace.attestation.daa.scheme import Credential, IssuerKey, IssuerSecret, Proof, Request, random_scalar, scalar

PCRS: Mapping[int, bytes] = {0: b"\1" * 32, 7: b"\2" * 32}


def attest(pcrs: Mapping[int, bytes] = PCRS, signer: bytes = b"", extra: bytes = b"", kind: int = 0x8018) -> bytes:
    """Return the TPMS_ATTEST of a quote as an anonymous key's TPM makes it."""
    bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    parts = (0xFF544347).to_bytes(4, "big"), kind.to_bytes(2, "big"), _sized(signer), _sized(extra)
    clock = (1000).to_bytes(8, "big") + (3).to_bytes(4, "big") + bytes(4) + b"\1" + (1).to_bytes(8, "big")
    selected = (1).to_bytes(4, "big") + (0x000B).to_bytes(2, "big") + b"\3" + bits
    return b"".join(parts) + clock + selected + _sized(quote.digest(pcrs))


def _sized(raw: bytes) -> bytes:
    return len(raw).to_bytes(2, "big") + raw


@dataclass
class SoftMember:
    """A member whose secret number this program knows."""

    secret: int = field(default_factory=random_scalar)

    @property
    def point(self) -> G1:
        return times(curve.GENERATOR, self.secret)

    def proof(self, points: tuple[G1, G1, G1, G1], request: Request, stated: bytes, **other: G1 | int) -> Proof:
        """Return a proof for the statement *stated*.

        :param other: ``k``: the pseudonym to show in place of the own; ``shown``: 0 to show none though the request has
            a basename.
        """
        r, s, t, w = points
        blind = random_scalar()
        commitments, k = [curve.encode(times(s, blind))], None
        if request.basename is not None and other.get("shown", 1):
            _, base = curve.hashed(request.basename)
            pseudonym = other.get("k", times(base, self.secret))
            assert isinstance(pseudonym, tuple)
            k = pseudonym
            commitments.append(curve.encode(times(base, blind)))
        qualifying = request.qualifying((r, s, t, w) if k is None else (r, s, t, w, k), commitments)
        nonce = secrets.token_bytes(32)
        challenge = scalar(nonce, hashlib.sha256(qualifying + hashlib.sha256(stated).digest()).digest())
        return Proof(r, s, t, w, k, qualifying, nonce, (blind + challenge * self.secret) % N)

    def quote(self, credential: Credential, request: Request, pcrs: Mapping[int, bytes] = PCRS) -> bytes:
        stated = attest(pcrs)
        return quote.encode(self.proof(credential.randomized(), request, stated), stated)


def times(point: G1, factor: int) -> G1:
    found = curve.multiply(point, factor)
    assert found is not None
    return found


@dataclass
class Club:
    """An issuer and two members."""

    secret: IssuerSecret = field(default_factory=IssuerSecret.new)
    members: list[SoftMember] = field(default_factory=lambda: [SoftMember(), SoftMember()])

    def __post_init__(self) -> None:
        self.issuer: IssuerKey = self.secret.public()
        self.credentials = [self.secret.issue(member.point) for member in self.members]

    def request(self, basename: bytes | None = b"shop") -> Request:
        return Request(self.issuer.digest, secrets.token_bytes(32), basename)
