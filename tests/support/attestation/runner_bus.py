"""The master's runner without a master: simulated hosts answer its messages.

This module is for tests of the runner itself, and for the benchmark of a large fleet. The hosts have no TPM.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import salt.config
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from netspace.attestation import identity
from netspace.attestation.evidence import Context, key_fingerprint
from netspace.attestation.fleet.calls import Reply, Sent
from netspace.attestation.minion import attester, software_key
from netspace.layout import Layout
from support import checkout

# What hosts answer to a message, by minion: the answer, and what went wrong; None where nothing comes.
Ask = Callable[[list[str], str, Mapping[str, Any]], "dict[str, tuple[Any, str] | None]"]


def load(folder: Path, settings: dict[str, Any], **opts: Any) -> tuple[Any, str]:
    """Return the runner of a master whose files are in *folder*, and the fingerprint of the master's key.

    :param settings: the settings ``netspace.attestation``. *opts*: further configuration of the master.
    """
    spec = importlib.util.spec_from_file_location("attest_runner", checkout.ROOT / "_runners/netspace_attestation.py")
    assert spec is not None and spec.loader is not None
    runner: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    key = rsa.generate_private_key(65537, 2048).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "pki").mkdir()
    (folder / "pki/master.pub").write_bytes(pem)
    runner.__opts__ = {
        **salt.config.DEFAULT_MASTER_OPTS,
        "pki_dir": str(folder / "pki"),
        "cachedir": str(folder / "cache"),
        "netspace.attestation": {"folder": str(folder / "books"), "jitter": 0, **settings},
        **opts,
    }
    return runner, key_fingerprint(pem)


def join(runner: Any, ask: Ask) -> AskedBus:
    """Give the runner a bus on which the function *ask* answers its messages; return the bus."""
    bus = AskedBus(ask, runner._master())
    runner._bus = lambda settings: contextlib.nullcontext(bus)
    runner._seen = lambda minions: set()
    runner._salt_key = lambda minion: SALT_PUBLIC
    return bus


# One Salt key for all hosts: what it signs names the minion.
_SALT = rsa.generate_private_key(65537, 2048)
SALT_KEY = _SALT.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
SALT_PUBLIC = _SALT.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(function: str, master: str, minion: str, given: Mapping[str, Any], value: Any) -> Any:
    """Return a minion's answer, with a signature by the minion's Salt key if the execution module makes one.

    :param given: the arguments of the minion's function.
    """
    kinds = {"enroll": identity.ENROLMENT, "activate": identity.ACTIVATION, "answer": identity.ANSWER}
    if function not in kinds or not isinstance(value, dict) or value.keys() & {"parts", "salt"}:
        return value
    told = identity.digest(value) if function == "answer" else value
    if function != "enroll":
        told = {**told, **identity.exchange(given["session"], bytes.fromhex(given["nonce"]))}
    return {**value, "salt": identity.sign(SALT_KEY, identity.statement(kinds[function], master, minion, told))}


class AskedBus:
    """A bus whose answers come at once, or after *later* seconds of its clock, which advances as the caller waits."""

    def __init__(self, ask: Ask, master: str) -> None:
        self._ask = ask
        self._master = master
        self._jobs = itertools.count(1)
        self._replies: deque[Reply] = deque()
        self.now = 0.0
        # Seconds until the next answer comes.
        self.later = 0.0

    def clock(self) -> float:
        return self.now

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        job = str(next(self._jobs))
        for minion, answer in self._ask(list(minions), function, arguments).items():
            if answer is not None:
                value, problem = answer
                given = next((one[minion] for one in arguments.values() if minion in one), {})
                value = signed(function, self._master, minion, given, value)
                self._replies.append(Reply(job, minion, value, problem))
        return Sent(job)

    def receive(self, seconds: float) -> Reply | None:
        self.now += min(seconds, self.later)
        self.later -= min(seconds, self.later)
        if self._replies and not self.later:
            return self._replies.popleft()
        if not self.later:
            self.now += seconds
        return None


class Bus:
    """Minions without TPMs, and the messages to them."""

    def __init__(self, folder: Path, master: str) -> None:
        self.key = software_key.load(Layout(root=folder))
        self.master = master
        self.asked: list[dict[str, Any]] = []
        self.accepted: dict[str, str] = {}
        self.silent: set[str] = set()
        self.events: list[tuple[str, str]] = []

    def ask(self, minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        """Return the minions' answers to one message of the runner (the function *ask* of :func:`join`)."""
        if function == "accept":
            self.accepted.update(arguments["tokens"])
            return {minion: ({"stored": True}, "") for minion in minions}
        assert list(arguments["challenges"]) == minions
        self.asked.append(arguments["challenges"])
        return {
            minion: None if minion in self.silent else (self.answer(minion, one), "")
            for minion, one in arguments["challenges"].items()
        }

    def answer(self, minion: str, one: dict[str, Any]) -> dict[str, Any]:
        context = Context(self.master, minion, one["session"], bytes.fromhex(one["nonce"]), binding=b"boot")
        return {"boot": "boot", "evidence": attester.by_key(self.key, context).wire()}
