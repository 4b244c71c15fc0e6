"""A small fleet: its store in memory, and the answers of its hosts."""

from __future__ import annotations

import base64
import json
from typing import Any

from netspace.attestation.evidence import Context
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.minion import attester, software_key
from support.attestation import runner_bus
from support.attestation.honest_minion import MASTER, NOW, Minion

BOOT = "0f0e0d0c-boot"


HOUR = 3600.0


class Store:
    def __init__(self) -> None:
        self.data: dict[tuple[str, str], dict[str, Any]] = {}

    def fetch(self, kind: str, key: str) -> dict[str, Any]:
        return self.data.get((kind, key), {})

    def store(self, kind: str, key: str, data: dict[str, Any]) -> None:
        self.data[kind, key] = json.loads(json.dumps(data))


def answer(asked: Asked, tpm: Any, boot: str = BOOT, **changes: Any) -> dict[str, Any]:
    values = {"verifier": MASTER, "host": asked.minion, "session": asked.session, "nonce": asked.nonce, **changes}
    context = Context(**values, binding=boot.encode())
    return signed(asked, {"boot": boot, "evidence": tpm.evidence(context).wire()})


def signed(asked: Asked, answer: dict[str, Any]) -> dict[str, Any]:
    """Return *answer* with the signature of the minion's Salt key."""
    plain = {key: value for key, value in answer.items() if key != "salt"}
    made: dict[str, Any] = runner_bus.signed("answer", MASTER, asked.minion, asked.wire(), plain)
    return made


def attest(made: Fleet, minion: Minion, now: float = NOW, **changes: Any) -> dict[str, Any]:
    asked = made.ask(minion.name)
    return made.judge(asked, answer(asked, minion.tpm, **changes), now)


def standing(made: Fleet, now: float = NOW, minion: str = "web1") -> tuple[str, str]:
    found = made.standing(minion, now)
    return found.state, found.shown(now)["level"]


def judged(made: Fleet, minion: Minion, log: Any, asked: Asked | None = None, now: float = NOW) -> dict[str, Any]:
    asked = made.ask("web1") if asked is None else asked
    wire = answer(asked, minion.tpm)
    wire["evidence"]["bootlog"] = base64.b64encode(log).decode() if isinstance(log, bytes) else log
    return made.judge(asked, signed(asked, wire), now)


def trusted(made: Fleet, minion: Minion) -> None:
    """Trust the TPM's maker, and accept the current boot as good."""
    record = made.registrar.host("web1")
    assert record is not None
    (path,) = (made.registrar.folder / "hosts").iterdir()
    path.write_text(json.dumps({**record, "level": 3, "reason": ""}))
    made.policies.put("web", {"version": 1, "boot": {"pcrs": {str(n): [minion.tpm.pcrs[n].hex()] for n in range(8)}}})


def by_software(asked: Asked, key: software_key.Key) -> dict[str, Any]:
    context = Context(MASTER, asked.minion, asked.session, asked.nonce, binding=BOOT.encode())
    return signed(asked, {"boot": BOOT, "evidence": attester.by_key(key, context).wire()})
