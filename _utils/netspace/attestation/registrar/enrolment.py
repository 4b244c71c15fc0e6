"""A pending enrolment: the registrar's record, and the message to the minion.

Pure values. ``netspace.attestation.registrar.registrar`` makes all checks.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspace.attestation.evidence import Context, Enrolment

if TYPE_CHECKING:
    from netspace.attestation.verifier.attestation_keys import Challenge


@dataclass(frozen=True)
class Pending:
    """An enrolment that waits for the minion's answer; see ``Registrar.begin``.

    :param known: the minion's record when the credential was made.
    :param since: the time when the credential was made, by a monotonic clock.
    """

    minion: str
    enrolment: Enrolment
    context: Context
    challenge: Challenge
    known: dict[str, Any] | None
    since: float

    def wire(self) -> dict[str, Any]:
        """Return the message to the minion."""
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
