"""Calls whose answers a minion signs, and forged answers that come first. The bus is simulated."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.attestation import runner_bus
from support.attestation.simulated_round import SimulatedBus

from netspace.attestation import identity
from netspace.attestation.fleet import own_answers
from netspace.attestation.fleet.calls import Pace, Reply, Sent
from netspace.attestation.fleet.window import Window
from netspace.errors import NetspaceError
from netspace.plugin import minions

MASTER = "ab" * 32
PRIVATE = {name: rsa.generate_private_key(65537, 2048) for name in ("h1", "h2")}
PEM = {name: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for name, key in PRIVATE.items()}
PUBLIC = {
    name: key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, key in PRIVATE.items()
}
KNOWN = identity.Identities(MASTER, PUBLIC.get)
REQUEST = "netspace_link.authority_request"


class Failed(Exception):
    """Error that a minion's function raises."""


def told(asked: Any, minion: str, value: Any, signer: str | None = None) -> dict[str, Any]:
    def function(**_: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    functions = dict.fromkeys(own_answers.SIGNED, function)
    return own_answers.answer(asked, functions, MASTER, minion, lambda: PEM[signer or minion])


class Raced(SimulatedBus):
    """A bus on which h2 first sends many forged answers in h1's name; then h1 and h2 send their own answers."""

    earlier: Any = None
    genuine: Any = "h1's own request"

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        assert function == "signed_answer"
        asked = arguments["asked"]
        evil = "h2's request"
        other = {**asked, "nonce": "00" * 32}
        replies: list[Reply] = [
            Reply("j", "h1", evil),
            Reply("j", "h1", None),
            Reply("j", "h1", {"answer": evil}),
            Reply("j", "h1", {"answer": evil, "salt": "00" * 256}),
            Reply("j", "h1", {"error": "not now"}),
            Reply("j", "h1", None, "h1 failed"),
            Reply("j", "h1", told(asked, "h2", evil)),
            Reply("j", "h1", told(asked, "h1", evil, signer="h2")),
            Reply("j", "h1", told(other, "h1", "of another time")),
            Reply("j", "h1", told({**asked, "arguments": {"folder": "/else"}}, "h1", "of another folder")),
            Reply("j", "h1", told({**asked, "function": "grains.get"}, "h1", "of another function")),
            Reply("j", "h1", {**told(asked, "h1", self.genuine), "answer": evil, "error": evil}),
        ]
        if self.genuine is not None:
            replies.append(Reply("other", "h1", told(asked, "h1", "of another job")))
            replies.append(Reply("j", "h1", told(asked, "h1", self.genuine)))
        for seconds, reply in enumerate(replies):
            self.reply(seconds * 0.1, reply)
        self.reply(2.0, Reply("j", "h2", told(asked, "h2", "h2's own request")))
        return Sent("j")


def asked(bus: SimulatedBus, *minions: str) -> dict[str, Any]:
    return own_answers.ask(bus, KNOWN, REQUEST, [(minions, {"folder": "/etc/netspace/authority"})], 60)


def test_what_another_minion_answers_first_is_passed_over() -> None:
    bus = Raced({})
    assert asked(bus, "h1", "h2") == {"h1": "h1's own request", "h2": "h2's own request"}
    assert bus.now == 2.0


def test_host_key_is_that_of_the_minion_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    bus, (runner, _) = Raced({}), runner_bus.load(tmp_path, {})
    monkeypatch.setattr(minions.Minions, "_key", lambda self, minion: PUBLIC[minion])
    monkeypatch.setattr(minions.Minions, "_identities", lambda self: KNOWN)
    monkeypatch.setattr(minions.Minions, "_bus", lambda *_: contextlib.nullcontext(bus))
    bus.genuine = {"kind": "tpm-claimed", "key": pem}
    assert runner.host_key("h1") == bus.genuine
    for other in ({"kind": "tpm", "key": pem}, {"kind": "tpm-claimed", "key": "x"}, {"key": pem}, pem):
        bus.genuine = other
        found = runner.host_key("h1")
        assert (found["code"], found["retcode"]) == ("malformed", 1), other


def windowed(bus: SimulatedBus, *minions: str) -> dict[str, Any]:
    """Make one call to all *minions*, sent together by one ``Window``; return their answers."""
    found: dict[str, Any] = {}
    call = own_answers.call(REQUEST, {"folder": "/etc/netspace/authority"})

    def heard(minion: str, answer: Any) -> None:
        assert minion not in found, "told twice"
        found[minion] = answer

    tasks = [(minion, own_answers.work(KNOWN, call, minion, heard)) for minion in minions]
    Window(bus, Pace(32, 0.0, 60.0)).run(tasks)
    return found


def test_a_window_takes_only_a_minions_own_answer() -> None:
    assert windowed(Raced({}), "h1", "h2") == {"h1": "h1's own request", "h2": "h2's own request"}
    silent = Raced({})
    silent.genuine = None
    found = windowed(silent, "h1", "h2")
    assert found["h2"] == "h2's own request" and "nothing proves" in str(found["h1"])


class Flooded(SimulatedBus):
    """A bus on which h2 floods the master in h1's name before h1 answers."""

    flood: int = 0

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        for number in range(self.flood):
            self.reply(0.01 * number, Reply("j", "h1", {"answer": "forged", "salt": "00"}))
        self.reply(0.01 * self.flood + 1, Reply("j", "h1", told(arguments["asked"], "h1", "h1's own request")))
        return Sent("j")


@pytest.mark.parametrize("flood", [Pace.refused + 1, 3000])
def test_a_flood_in_its_name_ends_no_call_of_a_fleet(flood: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """h1 is flooded with answers in its name; the call still waits for h1's own answer.

    A call that ended early would count as a failure of h1, and stop its rollout.
    """
    flooded, found = Flooded({}), list[tuple[str, Any]]()
    flooded.flood = flood
    made = minions.Minions({}, minions.Salt(*5 * [lambda *_, **__: contextlib.nullcontext()]))  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_identities", lambda: KNOWN)
    monkeypatch.setattr(made, "_bus", lambda *_: contextlib.nullcontext(flooded))
    made.each(REQUEST, [(["h1"], {})], 60, lambda minion, answer: found.append((minion, answer)))
    assert found == [("h1", "h1's own request")]


def test_a_window_tells_of_a_minion_that_is_silent_or_failed() -> None:
    failed = Raced({})
    failed.genuine = Failed("no folder")
    assert str(windowed(failed, "h1")["h1"]) == "no folder"
    found = windowed(Old({}), "h1", "gone")
    assert "synchronise the minion" in str(found["h1"]) and "accepted no key" in str(found["gone"])


def test_a_minions_own_error_is_its_answer() -> None:
    bus = Raced({})
    bus.genuine = Failed("\x1b[2Jno folder" + "x" * 5000)
    found = asked(bus, "h1")["h1"]
    assert isinstance(found, NetspaceError) and len(str(found)) == 1000
    assert str(found).startswith("\N{REPLACEMENT CHARACTER}[2Jno folder")
    assert bus.now < 2, "nobody waits after it"


def test_a_minion_for_which_only_others_speak_is_told_of() -> None:
    bus = Raced({})
    bus.genuine = None
    found = asked(bus, "h1", "h2")
    assert found["h2"] == "h2's own request"
    assert isinstance(found["h1"], NetspaceError)
    assert "nothing proves" in str(found["h1"]) and "salt h1 saltutil.sync_all" in str(found["h1"])
    assert 60 <= bus.now < 61


class Old(SimulatedBus):
    """A bus with a minion whose older version of netspace lacks the called function."""

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        self.reply(1, Reply("j", "h1", None, "'netspace_link.signed_answer' is not available."))
        return Sent("j", frozenset({"gone"}))


def test_an_earlier_minion_is_to_be_synchronised() -> None:
    found = asked(Old({}), "h1", "gone")
    assert set(found) == {"h1"}
    assert "signed_answer' is not available.); synchronise the minion (salt h1 saltutil.sync_all)" in str(found["h1"])


class Endless(SimulatedBus):
    """A bus on which ``evil`` sends events all the time, before the answer."""

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        self.reply(1, Reply("j", "h1", told(arguments["asked"], "h1", 1)))
        return Sent("j")

    def receive(self, seconds: float) -> Reply | None:
        self.now += 1
        return super().receive(0) or Reply("other", "evil", None)


def test_a_minion_that_is_always_at_work_holds_up_nobody() -> None:
    bus = Endless({})
    assert asked(bus, "h1", "evil") == {"h1": 1}
    assert 60 <= bus.now < 62


class Several(SimulatedBus):
    """A bus on which h1 answers late, and no message to ``absent`` can be sent."""

    def send(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> Sent:
        assert self.now == 0, "no message waits for an answer to the one before"
        self.messages += 1
        if "absent" in minions:
            raise NetspaceError("the master is busy")
        for minion in minions:
            number = arguments["asked"]["arguments"]["number"]
            self.reply(
                {"h1": 50, "h2": 1}[minion], Reply("0", minion, told(arguments["asked"], minion, "not this job"))
            )
            self.reply(
                {"h1": 50, "h2": 1}[minion], Reply(str(number), minion, told(arguments["asked"], minion, number))
            )
        return Sent(str(self.messages))


def test_calls_to_several_minions_are_sent_before_answers_come() -> None:
    bus, calls = (
        Several({}),
        [([minion], {"number": number}) for number, minion in enumerate(("h1", "absent", "h2"), 1)],
    )
    found = own_answers.ask(bus, KNOWN, REQUEST, calls, 60)
    assert str(found.pop("absent")) == "the master is busy" and found == {"h1": 1, "h2": 3} and bus.now == 50
    with pytest.raises(NetspaceError, match="the master is busy"):
        own_answers.ask(Several({}), KNOWN, REQUEST, [(["absent"], {"number": 1})], 60)


def test_a_minion_of_another_master_is_not_believed() -> None:
    """An answer is refused if this master can't check its signature, as on a master of masters."""
    below = identity.Identities(MASTER, lambda minion: None)
    found = own_answers.ask(Raced({}), below, REQUEST, [(["h1"], {})], 60)
    assert "a minion of another master" in str(found["h1"])


@pytest.mark.parametrize(
    "call",
    [
        None,
        {"function": REQUEST},
        {"function": "cmd.run", "arguments": {"cmd": "id"}, "nonce": "00"},
        {"function": REQUEST, "arguments": [], "nonce": "00"},
    ],
)
def test_a_minion_signs_only_what_runners_ask(call: Any) -> None:
    with pytest.raises(NetspaceError, match=r"asked: expected|not one of the functions whose answers are signed"):
        told(call, "h1", 1)


def test_an_answer_that_can_not_be_signed_is_a_signed_error() -> None:
    call = {"function": "grains.get", "arguments": {"key": "raw"}, "nonce": "00"}
    made = told(call, "h1", b"raw")
    assert "answer" not in made
    KNOWN.call("h1", call, made)
