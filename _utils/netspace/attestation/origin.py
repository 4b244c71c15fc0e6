"""The origin of an answer: whether it is the host's own at all, before anything is made of what it says.

Salt lets a minion answer in another's name. Only the signature of a key that is bound to the host, over this challenge,
shows that an answer is the host's. What fails before that (:class:`Unproved`) says nothing of the host: no result is
made of it. A host that is taken over gains nothing by it: it has no new result, and becomes stale.
"""

from __future__ import annotations

import hmac

from netspace.attestation import structures, verifier
from netspace.attestation.evidence import Context, Evidence
from netspace.attestation.refusals import Refused, UnknownAttestationKey, WrongQualifyingData
from netspace.attestation.structures import Public
from netspace.errors import NetspaceError


class Unproved(NetspaceError):
    """An answer that nothing proves to be the host's own; the message ends with the code of what it fails by."""


def unproved(err: Refused) -> Unproved:
    """Return what to say of an answer that *err* refuses."""
    return Unproved(f"nothing proves that what came is this host's answer; {err.remedy}: {err}")


def check_quote(evidence: Evidence, key: Public, context: Context) -> None:
    """Check that *key* signed this evidence, and for this challenge.

    :raises Refused: when it did not. Everything else that is wrong is for :func:`verifier.verify_quote` to find.
    """
    if evidence.kind != "tpm":
        raise UnknownAttestationKey(f"evidence by a {evidence.kind} key, where a TPM's is expected")
    if evidence.key != key.raw:
        raise UnknownAttestationKey("evidence by another key than the one bound to this TPM")
    quote = structures.quote(evidence.attest)
    verifier.check_signature(evidence.signature, evidence.attest, key.key(), key.scheme)
    if not hmac.compare_digest(quote.extra, context.qualifying()):
        raise WrongQualifyingData("signed for another nonce, session, host or verifier")
