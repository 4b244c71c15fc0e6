"""A challenge to one minion, and the values that its answer must match.

Pure values. Nothing here sends a challenge or judges an answer (:mod:`netspace.attestation.fleet.fleet`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from netspace.attestation import identity
from netspace.attestation.fleet.groups import Group
from netspace.attestation.policy.policy import Policy


@dataclass(frozen=True)
class Asked:
    """A challenge that waits for its answer.

    The caller passes each answer to the verifier, until one was made by the host itself.

    :param log: SHA-256 of the host's boot log that the master keeps; None: the host must send its log.
    :param listed: the host must send its whole measurement list, for learning.
    :param host: the registrar's record at the time of the challenge. The attestation key in it must sign the answer.
    :param signed: the minion's Salt key must also sign the answer.
    :param ledger: the boot of the ledger of runs that the verifier has judged, and the number of its lines; None: the
        policy demands no ledger.
    """

    minion: str
    group: Group
    policy: Policy | None
    session: str
    nonce: bytes
    ima_from: int | None
    log: str | None = None
    listed: bool = False
    host: dict[str, Any] | None = None
    signed: bool = False
    ledger: tuple[str, int] | None = None

    def wire(self) -> dict[str, Any]:
        """Return the challenge as the minion receives it."""
        period = (self.host or {}).get("period")
        return {
            "session": self.session,
            "nonce": self.nonce.hex(),
            "pcrs": list(self.group.pcrs),
            "ima_from": self.ima_from,
            "bootlog": self.log,
            # Older minions don't know these fields, so each is sent only if it is needed.
            **({} if self.policy is None or self.policy.tee is None else {"tee": True}),
            **({"period": period} if period else {}),
            **({"salt": True} if self.signed else {}),
            **({} if self.ledger is None else {"ledger": {"boot": self.ledger[0], "first": self.ledger[1]}}),
        }

    @property
    def exchange(self) -> dict[str, str]:
        """Return the part of the challenge that the host's Salt key signs."""
        return identity.exchange(self.session, self.nonce)
