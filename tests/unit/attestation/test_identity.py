"""Messages that a minion's Salt key signs, and messages that other minions send in that minion's name."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.attestation import runner_bus
from support.attestation.honest_minion import MASTER, Minion

from netspace.attestation import identity, refusals
from netspace.attestation.evidence import Context
from netspace.attestation.fleet.bus import SaltBus
from netspace.attestation.fleet.calls import Reply
from netspace.attestation.identity import Identities
from netspace.attestation.tpm import structures
from netspace.errors import NetspaceError

JOB = "20300101000000000001"
CONTEXT = Context(MASTER, "web1", "1f", bytes(32))
KNOWN = Identities(MASTER, lambda minion: runner_bus.SALT_PUBLIC)


def pem(key: Any) -> bytes:
    made: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made


def signed(kind: str, minion: str, data: dict[str, Any], key: bytes = runner_bus.SALT_KEY, **more: str) -> Any:
    return {**data, "salt": identity.sign(key, identity.statement(kind, MASTER, minion, {**data, **more}))}


def test_what_a_minion_signed_is_its_own() -> None:
    shown = {"v": 2, "ek": "abc", "chain": [], "cert": None}
    assert KNOWN.enrolment("web1", signed(identity.ENROLMENT, "web1", shown)) == shown
    opened = signed(identity.ACTIVATION, "web1", {"answer": "00"}, **identity.exchange("1f", bytes(32)))
    assert KNOWN.activation(CONTEXT, opened) == {"answer": "00"}


@pytest.mark.parametrize(
    "shown",
    [
        {"ek": "abc"},
        {"ek": "abc", "salt": None},
        {"ek": "abc", "salt": ""},
        {"ek": "abc", "salt": "zz" * 256},
        {"ek": "abc", "salt": "00" * 10**6},
        {"ek": "abc", "salt": ["00"]},
        {**signed(identity.ENROLMENT, "web1", {"ek": "abc"}), "ek": "abd"},
        {**signed(identity.ENROLMENT, "web1", {"ek": "abc"}), "more": 1},
        signed(identity.ENROLMENT, "web2", {"ek": "abc"}),
        signed(identity.ACTIVATION, "web1", {"ek": "abc"}),
        signed(identity.ENROLMENT, "web1", {"ek": "abc"}, pem(rsa.generate_private_key(65537, 2048))),
    ],
)
def test_what_another_key_signed_is_nobodys(shown: Any) -> None:
    with pytest.raises(refusals.WrongSaltKey):
        KNOWN.enrolment("web1", shown)


@pytest.mark.parametrize("shown", [None, "text", [], {"a": float("nan"), "salt": "00"}, {"a": b"raw"}, {("a",): 1}])
def test_what_json_can_not_say_is_malformed(shown: Any) -> None:
    with pytest.raises(refusals.Malformed):
        KNOWN.enrolment("web1", shown)


def test_an_activation_of_another_exchange_is_refused() -> None:
    opened = signed(identity.ACTIVATION, "web1", {"answer": "00"}, **identity.exchange("1f", bytes(31) + b"\1"))
    with pytest.raises(refusals.WrongSaltKey):
        KNOWN.activation(CONTEXT, opened)


def test_a_minion_of_another_master_is_not_checked() -> None:
    """Answers of minions whose keys this master lacks are not checked, as on a master of masters.

    The page names the attacks that this leaves open.
    """
    below = Identities(MASTER, lambda minion: None)
    assert below.enrolment("web1", {"ek": "abc", "salt": "00"}) == {"ek": "abc"}
    assert below.answer("web1", identity.exchange("1f", bytes(32)), {}) is False


def test_a_key_that_is_no_rsa_key_is_an_error() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(NetspaceError, match="not an RSA key"):
        identity.sign(pem(key), b"")
    with pytest.raises(NetspaceError, match="can't be read"):
        identity.sign(b"nothing", b"")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for bad in (public, b"nothing"):
        with pytest.raises(refusals.WrongSaltKey):
            identity.check(bad, b"", "00")


# -- what Salt lets a minion do ---------------------------------------------------------
class Events:
    """A master's event bus."""

    def __init__(self) -> None:
        self.fired: list[dict[str, Any]] = []

    def fire_event(self, data: Any, tag: str) -> None:
        self.fired.append({"tag": tag, "data": data})

    def connect_pub(self, timeout: float) -> bool:
        return True

    def get_event(self, **_: Any) -> dict[str, Any] | None:
        return self.fired.pop(0) if self.fired else None


def test_salt_lets_a_minion_answer_in_anothers_name() -> None:
    """Salt itself accepts an answer that one minion sends in another minion's name.

    This test fails once Salt refuses it.
    """
    from salt.daemons.masterapi import RemoteFuncs

    events = Events()
    client = SimpleNamespace(
        opts={}, event=events, run_job=lambda *_, **__: {"jid": JOB, "minions": ["victim", "evil"]}
    )
    bus = SaltBus(client, "netspace_attestation", 60, OSError)
    bus.send(["victim", "evil"], "answer", {})
    forged = {"tag": f"salt/job/{JOB}/ret/victim", "data": {"id": "victim", "return": {}, "retcode": 0}}
    RemoteFuncs._minion_event(SimpleNamespace(event=events), {"id": "evil", "cmd": "_minion_event", "events": [forged]})
    assert bus.receive(0.05) == Reply(JOB, "victim", {})


def test_a_race_for_a_new_minion_binds_its_own_tpm(tmp_path: Path, fake_tpm: Any) -> None:
    """Another minion answers ``enroll`` and ``activate`` first, with its own TPM; the right TPM is enrolled."""
    runner, master = runner_bus.load(tmp_path, {})
    runner._registrar().ca.init(time.time())
    mine, evil = Minion("web1", fake_tpm, master), Minion("web1", type(fake_tpm)(), master)

    class Raced(runner_bus.AskedBus):
        first: Any = None

        def send(self, minions: Any, function: str, arguments: Any) -> Any:
            if function in ("enroll", "activate"):
                given = next(one["web1"] for one in arguments.values())
                try:
                    value = evil.enroll(given) if function == "enroll" else evil.activate(**given)
                except AssertionError:  # the credential is for the other's TPM
                    value = {"answer": "00" * 32}
                for forged in ({}, value, {**value, "salt": "00" * 256}):
                    self._replies.append(Reply(str(self.number + 1), "web1", forged))
            self.number += 1
            return super().send(minions, function, arguments)

        number = 0

    def ask(minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        given = next(one["web1"] for one in arguments.values())
        return {"web1": (mine.enroll(given) if function == "enroll" else mine.activate(**given), "")}

    runner_bus.join(runner, ask)
    runner._bus = lambda settings: contextlib.nullcontext(Raced(ask, master))
    found = runner.enroll("web1")
    assert found["ek"] == runner._registrar().host("web1")["ek"]
    assert found["ek"] == structures.endorsement(fake_tpm.ek_public).fingerprint, "the host's own TPM"


def test_a_new_minion_that_only_others_speak_for_is_not_bound(tmp_path: Path, fake_tpm: Any) -> None:
    runner, master = runner_bus.load(tmp_path, {})
    runner._registrar().ca.init(time.time())
    evil = Minion("web1", fake_tpm, master)
    runner_bus.join(runner, lambda minions, function, given: {"web1": (evil.enroll(given["asked"]["web1"]), "")})
    runner._salt_key = lambda minion: pem_public
    pem_public = (
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    found = runner.enroll("web1")
    assert found["retcode"] == 1 and "[salt-key]" in found["reason"], found
    assert runner._registrar().host("web1") is None


@pytest.mark.parametrize("driver", ["", "localfs_key"])
def test_the_runner_knows_accepted_keys_alone(tmp_path: Path, driver: str) -> None:
    runner, _ = runner_bus.load(tmp_path, {}, **{"keys.cache_driver": driver or None})
    for folder, minion in (("minions", "web1"), ("minions_pre", "web2")):
        (tmp_path / "pki" / folder).mkdir()
        (tmp_path / "pki" / folder / minion).write_bytes(b"pem")
    assert runner._salt_key("web1") == b"pem"
    for minion in ("web2", "../minions/web1", "", "web3"):
        with pytest.raises(refusals.WrongSaltKey, match="no accepted Salt key"):
            runner._salt_key(minion)
    runner.__opts__["order_masters"] = True
    assert runner._salt_key("web3") is None
