"""An enrolment that waits for its answer: what a registrar remembers of it, and what the minion is sent.

Pure values. What is checked before and after stands in ``netspace.attestation.registrar``.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace.attestation.evidence import Context, Enrolment

if TYPE_CHECKING:
    from netspace.attestation.verifier import Challenge


@dataclass(frozen=True)
class Pending:
    """A credential that waits for its answer; see :meth:`netspace.attestation.registrar.Registrar.begin`.

    :param known: what the books said of the minion then.
    :param since: when it was made, by a clock that nobody sets.
    """

    minion: str
    enrolment: Enrolment
    context: Context
    challenge: Challenge
    known: dict[str, Any] | None
    since: float

    def wire(self) -> dict[str, Any]:
        """Return what the minion is sent."""
        made = self.challenge
        others = zip(self.enrolment.others, made.others, strict=True)
        return {
            **_credential(self.enrolment.template, made.blob, made.encrypted),
            "others": [_credential(template, *credential) for (template, _), credential in others],
            "period": self.enrolment.period.hex(),
            "session": self.context.session,
            "nonce": self.context.nonce.hex(),
        }


def _credential(template: str, blob: bytes, encrypted: bytes) -> dict[str, str]:
    return {
        "template": template,
        "blob": base64.b64encode(blob).decode(),
        "encrypted": base64.b64encode(encrypted).decode(),
    }
