"""Origin of an answer: proof that the host itself made it, before its content counts.

Salt lets a minion answer in another minion's name. An answer is the host's own only if a key that is bound to the host
signed it over this challenge (:func:`verifier.own_quote`). An answer that fails this check (:class:`Unproved`) proves
nothing about the host, so the verifier makes no result of it. A compromised host gains nothing by such answers: it gets
no new result, and becomes stale.
"""

from __future__ import annotations

from netspace.attestation.refusals import Refused
from netspace.errors import NetspaceError


class Unproved(NetspaceError):
    """Error: nothing proves that an answer is the host's own. The message ends with the code of the refusal."""


def unproved(err: Refused) -> Unproved:
    """Return the error for an answer that *err* refuses."""
    return Unproved(f"nothing proves that what came is this host's answer; {err.remedy}: {err}")
