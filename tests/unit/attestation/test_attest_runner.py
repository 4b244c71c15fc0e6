"""The runner of the fleet: how many are asked at once, and what is said of those who don't answer."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkout
import pytest
import salt.cache
import salt.config
import salt.utils.event
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from netspace.attestation import attester, software
from netspace.attestation.evidence import Context, key_fingerprint
from netspace.layout import Layout

MINIONS = [f"web{number}" for number in range(70)]


class Bus:
    """Minions without TPMs, and what is told to whom."""

    def __init__(self, folder: Path, master: str) -> None:
        self.key = software.load(Layout(root=folder))
        self.master = master
        self.asked: list[dict[str, Any]] = []
        self.accepted: dict[str, str] = {}
        self.silent: set[str] = set()
        self.events: list[tuple[str, str]] = []

    def ask(self, minions: list[str], function: str, arguments: Any, timeout: int) -> dict[str, Any]:
        if function == "accept":
            self.accepted.update(arguments["tokens"])
            return {minion: ({"stored": True}, "") for minion in minions}
        assert list(arguments["challenges"]) == minions
        self.asked.append(arguments["challenges"])
        return {
            minion: (None, "did not answer within 1 s") if minion in self.silent else (self.answer(minion, one), "")
            for minion, one in arguments["challenges"].items()
        }

    def answer(self, minion: str, one: dict[str, Any]) -> dict[str, Any]:
        context = Context(self.master, minion, one["session"], bytes.fromhex(one["nonce"]), binding=b"boot")
        return {"boot": "boot", "evidence": attester.by_key(self.key, context).wire()}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Bus]:
    spec = importlib.util.spec_from_file_location("attest_runner", checkout.ROOT / "_runners/netspace_attestation.py")
    assert spec is not None and spec.loader is not None
    runner: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    pki = tmp_path / "pki"
    pki.mkdir()
    pem = (
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (pki / "master.pub").write_bytes(pem)
    runner.__opts__ = {
        **salt.config.DEFAULT_MASTER_OPTS,
        "pki_dir": str(pki),
        "cachedir": str(tmp_path / "cache"),
        "netspace.attestation": {
            "folder": str(tmp_path / "books"),
            "jitter": 0,
            "groups": [{"name": "default", "minimum": "L1"}],
        },
    }
    bus = Bus(tmp_path / "host", key_fingerprint(pem))
    monkeypatch.setattr(runner, "_ask", bus.ask)
    monkeypatch.setattr(runner, "_minions", lambda target, kind: list(MINIONS))
    monkeypatch.setattr(runner, "_known", lambda fleet, pattern: list(MINIONS))

    @contextlib.contextmanager
    def events(*_: Any, **__: Any) -> Iterator[Any]:
        class Fire:
            @staticmethod
            def fire_event(data: dict[str, Any], tag: str) -> None:
                bus.events.append((data["old"], tag))

        yield Fire

    monkeypatch.setattr(salt.utils.event, "get_event", events)
    return runner, bus


def test_many_are_asked_by_few_messages_each_with_a_nonce_of_its_own(made: tuple[Any, Bus]) -> None:
    runner, bus = made
    found = runner.attest()
    assert "retcode" not in found and {one["state"] for one in found.values()} == {"trusted"}
    assert sorted(len(lot) for lot in bus.asked) == [6, 32, 32]
    nonces = {one["nonce"] for lot in bus.asked for one in lot.values()}
    sessions = {one["session"] for lot in bus.asked for one in lot.values()}
    assert len(nonces) == len(sessions) == len(MINIONS)
    assert bus.accepted.keys() == set(MINIONS)
    assert set(bus.events) == {("unknown", f"netspace/attestation/{minion}/trusted") for minion in MINIONS}
    runner.status()
    assert len(bus.events) == len(MINIONS), "what has not changed is not told again"


def test_who_does_not_answer_is_not_judged(made: tuple[Any, Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    runner, bus = made
    bus.silent = {"web1"}
    found = runner.attest()
    assert found["retcode"] == 1 and "web1" not in bus.accepted
    assert (found["web1"]["state"], found["web1"]["answered"]) == ("unknown", False)
    assert "did not answer" in found["web1"]["answer"]
    bus.silent = {"web2"}
    found = runner.attest()
    assert (found["web2"]["state"], found["web2"]["answered"]) == ("trusted", False)

    # The verifier stops: hosts become stale for whoever looks, and the bus is told.
    now = runner.time.time()
    monkeypatch.setattr(runner.time, "time", lambda: now + 7300)
    bus.events.clear()
    assert {one["state"] for one in runner.status().values()} == {"stale"}
    assert set(bus.events) == {("trusted", f"netspace/attestation/{minion}/stale") for minion in MINIONS}
    shown = runner.explain("web2")
    assert shown["state"] == "stale, L0 (asked for: L1 or more)" and "attest web2" in shown["to raise it"]


@pytest.mark.parametrize(
    "wrong", [{"jitter": -1}, {"concurrency": 0}, {"concurrency": "32"}, {"groups": {}}, {"interval": 1}]
)
def test_a_configuration_that_is_none(made: tuple[Any, Bus], wrong: dict[str, Any]) -> None:
    runner, bus = made
    runner.__opts__["netspace.attestation"].update(wrong)
    found = runner.attest()
    assert (found["code"], found["retcode"]) == ("input", 1) and next(iter(wrong)) in found["reason"]
    assert not bus.asked
