"""Checks of a quote: its key's signature, the request that it answers, the PCRs that it covers, and their values.

Pure: no file, no network, no TPM, no clock. The order of the checks is in ``netspace.attestation.verifier.verifier``.
These checks use neither a policy nor the host's last quote, and decide on no level.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from netspace.attestation.evidence import BANK_ID, Context, Evidence, Measurements
from netspace.attestation.logs import ima
from netspace.attestation.refusals import (
    OtherBoot,
    UnknownAttestationKey,
    WrongDigest,
    WrongHierarchy,
    WrongQualifyingData,
    WrongScheme,
    WrongSelection,
    WrongSignature,
)
from netspace.attestation.tpm import structures
from netspace.attestation.tpm.structures import Clock, Public, Quote, Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    from netspace.attestation.tpm.structures import PublicKey


def own_quote(evidence: Evidence, key: Public, context: Context) -> Quote:
    """Check that *key* signed the quote for this challenge, and return the quote.

    The signature proves which host made the evidence. ``verifier.verify_quote`` makes all other checks.

    :raises Refused: when *key* did not sign the quote, or the quote is for another challenge.
    """
    if evidence.kind != "tpm":
        raise UnknownAttestationKey(f"the evidence is by a {evidence.kind} key; expected a TPM's key")
    if evidence.key != key.raw:
        raise UnknownAttestationKey("the key that signed the evidence is not the one bound to this TPM")
    return _signed(evidence.attest, evidence.signature, key, context)


def check_signature(raw: bytes, attest: bytes, key: PublicKey, scheme: tuple[int, int] | None) -> Signature:
    """Check that *raw* (TPMT_SIGNATURE) is a signature by *key* over *attest*, and return the signature.

    :param scheme: (scheme, hash) to which the key is restricted; None if unknown.
    :raises Refused: with code `malformed`, `scheme` or `signature`, checked in this order.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    signature = structures.signature(raw)
    if scheme is not None and (signature.scheme, signature.hash) != scheme:
        raise WrongScheme(f"signed by {signature.scheme:04x}/{signature.hash:04x}, the key is for another scheme")
    if signature.hash not in structures.HASHES:
        raise WrongScheme(f"the signature's hash is {signature.hash:04x}; SHA-256 or better is required")
    curve = isinstance(key, ec.EllipticCurvePublicKey)
    if curve != (signature.scheme == structures.ECDSA):
        raise WrongScheme(f"a signature by {signature.scheme:04x}, which this kind of key can't make")
    algorithm = structures.hash_algorithm(signature.hash)
    try:
        if curve:
            cast("ec.EllipticCurvePublicKey", key).verify(signature.value, attest, ec.ECDSA(algorithm))
        else:
            block: Any = padding.PKCS1v15()
            if signature.scheme == structures.RSAPSS:
                block = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            cast("rsa.RSAPublicKey", key).verify(signature.value, attest, block, algorithm)
    except InvalidSignature as err:
        raise WrongSignature("the attestation key did not sign this") from err
    return signature


def _signed(attest: bytes, signature: bytes, key: Public, context: Context, at: str = "") -> Quote:
    """Parse a quote, and check that *key* signed it for *context*.

    :param at: prefix for the error message about a wrong context.
    :raises Refused: when structure, signature or qualifying data are wrong.
    """
    quote = structures.quote(attest)
    check_signature(signature, attest, key.key(), key.scheme)
    if not hmac.compare_digest(quote.extra, context.qualifying()):
        raise WrongQualifyingData(f"{at}signed for another nonce, session, host or verifier")
    return quote


def check_covers(quote: Quote, key: Public, pcrs: frozenset[int], at: str = "") -> None:
    """Check that a quote is by a key of the endorsement hierarchy, and covers exactly *pcrs*.

    For keys of other hierarchies, a TPM obfuscates its counters.

    :param at: prefix of error messages.
    :raises Refused: when the key is of another hierarchy, or the quote covers other PCRs.
    """
    if not hmac.compare_digest(quote.signer, key.qualified_name):
        # In other hierarchies, a TPM obfuscates its counters and its firmware version (Part 1, 36.7).
        raise WrongHierarchy(f"{at}the attestation key is not a primary key of the TPM's endorsement hierarchy")
    if quote.selections != ((BANK_ID, pcrs),):
        raise WrongSelection(f"{at}the quote covers {_selected(quote.selections)}, not exactly sha256:{shown(pcrs)}")


def is_digest(quote: Quote, values: bytes, key: Public) -> bool:
    """Return whether the quote's digest is that of the PCRs' *values*, by the hash of the key's scheme.

    The function :func:`check_signature` has checked that this hash is good enough. Source: TPM 2.0 Library
    specification, Part 3, TPM2_Quote.
    """
    scheme = cast("tuple[int, int]", key.scheme)
    return hmac.compare_digest(hashlib.new(structures.HASHES[scheme[1]], values).digest(), quote.digest)


def check_measurements(made: Measurements, key: Public, context: Context, clock: Clock) -> None:
    """Check the quote of PCR 10 as the main quote is checked, and that both quotes are of the same boot."""
    quote = _signed(made.attest, made.signature, key, context, "IMA: ")
    check_covers(quote, key, frozenset((ima.PCR,)), "IMA: ")
    if not is_digest(quote, made.value, key):
        raise WrongDigest(f"IMA: the value of PCR {ima.PCR} is not the one that was quoted")
    if (quote.clock.reset_count, quote.clock.restart_count) != (clock.reset_count, clock.restart_count):
        raise OtherBoot(f"IMA: the quote of PCR {ima.PCR} is from another boot")


def shown(pcrs: Collection[int]) -> str:
    """Return PCR numbers as text for people."""
    return ",".join(str(pcr) for pcr in sorted(pcrs)) or "none"


def _selected(selections: Sequence[tuple[int, frozenset[int]]]) -> str:
    return " + ".join(f"{structures.HASHES.get(bank, f'{bank:04x}')}:{shown(pcrs)}" for bank, pcrs in selections)
