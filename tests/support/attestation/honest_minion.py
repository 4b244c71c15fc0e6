"""A minion that answers the registrar, and its enrolment by the runner's steps."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from netspace.attestation.endorsement.makers import Makers
from netspace.attestation.evidence import Context
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tpm import structures

NOW = 1_700_000_000.0


DAY = 86400.0


MASTER = "ab" * 32


class Minion:
    """A minion that answers honestly unless a test changes it."""

    def __init__(self, name: str, tpm: Any, master: str = MASTER) -> None:
        self.name, self.tpm, self.master = name, tpm, master
        self.enrolment: Callable[[Any], Any] = lambda wire: wire
        self.answer: Callable[[Any], Any] = lambda answer: answer
        self.asked: list[str] = []

    def enroll(self, asked: dict[str, Any]) -> Any:
        self.asked.append(asked["template"])
        period = bytes.fromhex(asked["period"])
        self.tpm.take(period)
        return self.enrolment(self.tpm.enrolment(tpm={"manufacturer": "TEST"}, period=period).wire())

    def activate(self, blob: str, encrypted: str, session: str, nonce: str, period: str, **more: Any) -> Any:
        self.tpm.take(bytes.fromhex(period))
        secret = self.tpm.activate(base64.b64decode(blob), base64.b64decode(encrypted))
        context = Context(self.master, self.name, session, bytes.fromhex(nonce))
        answer = context.activation(secret, structures.public(self.tpm.ak_public).name)
        return self.answer({"answer": answer.hex()})


def enrolled(
    registrar: Registrar, minion: Minion, now: float, master: str = MASTER, name: str = "", roots: Any = ()
) -> dict[str, Any]:
    """Enrol a minion by the runner's steps.

    :param name: the minion's id at the master; by default, the minion's own.
    """
    name = name or minion.name
    makers = Makers(tuple(roots))
    pending = registrar.begin(name, minion.enroll(registrar.request(name)), master, makers, now)
    return registrar.finish(pending, minion.activate(**pending.wire()), now)
