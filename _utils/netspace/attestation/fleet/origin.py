"""Origin of an answer: proof that the host itself made the answer, before the content counts.

Salt lets a minion answer in another minion's name. So an answer counts as the host's own only if a key that is bound to
the host signed the answer for this challenge (:func:`verifier.own_quote`). Any other answer (:class:`Unproved`) proves
nothing about the host, and the verifier makes no result of it. A compromised host gains nothing by such answers: the
host gets no new result, and becomes stale.
"""

from __future__ import annotations

from netspace.attestation.refusals import Refused
from netspace.errors import NetspaceError


class Unproved(NetspaceError):
    """Error: nothing proves that an answer is the host's own. The message ends with the code of the refusal."""


def unproved(err: Refused) -> Unproved:
    """Return the error for an answer whose evidence was refused with *err*."""
    return Unproved(f"nothing proves that this answer is the host's own; {err.remedy}: {err}")
