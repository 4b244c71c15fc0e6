"""The origin of an answer: whether it is the host's own at all, before anything is made of what it says.

Salt lets a minion answer in another's name. Only the signature of a key that is bound to the host, over this challenge,
shows that an answer is the host's (:func:`verifier.own_quote`). What fails before that (:class:`Unproved`) says nothing
of the host: no result is made of it. A host that is taken over gains nothing by it: it has no new result, and becomes
stale.
"""

from __future__ import annotations

from netspace.attestation.refusals import Refused
from netspace.errors import NetspaceError


class Unproved(NetspaceError):
    """An answer that nothing proves to be the host's own; the message ends with the code of what it fails by."""


def unproved(err: Refused) -> Unproved:
    """Return what to say of an answer that *err* refuses."""
    return Unproved(f"nothing proves that what came is this host's answer; {err.remedy}: {err}")
