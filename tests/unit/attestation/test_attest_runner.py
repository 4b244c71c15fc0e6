"""The fleet's runner: the number of hosts that it asks at once, and its report on hosts that don't answer."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt.cache
import salt.utils.event
from support.attestation import boot_forge, runner_bus
from support.attestation.honest_minion import Minion, enrolled
from support.attestation.runner_bus import Bus

from netspace.attestation.endorsement import makers
from netspace.attestation.evidence import Context
from netspace.attestation.logs import ima
from netspace.attestation.minion import attester, master_result, self_appraisal, settings
from netspace.layout import Layout
from netspace.spec.types import Attestation

MINIONS = [f"web{number}" for number in range(70)]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Bus]:
    runner, master = runner_bus.load(tmp_path, {"groups": [{"name": "default", "minimum": "L1"}]})
    bus = Bus(tmp_path / "host", master)
    runner_bus.join(runner, bus.ask)
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


def test_the_deadline_follows_long_rounds_unless_it_is_given(made: tuple[Any, Bus], tmp_path: Path) -> None:
    runner, _ = made
    runner.__opts__["netspace.attestation"]["groups"].append({"name": "strict", "match": ["web1"], "deadline": 600})
    found = runner.attest()
    assert found["web2"]["deadline"] - found["web2"]["evidence"] == 7200
    record = {"v": 1, "absent": [], "slow": [], "rounds": [[time.time() - 60, 5000]]}
    (tmp_path / "books/rounds.json").write_text(json.dumps(record))
    found = runner.attest()
    assert found["web2"]["deadline"] - found["web2"]["evidence"] == 15_000
    assert found["web1"]["deadline"] - found["web1"]["evidence"] == 600


BOOT = boot_forge.policy("shim-grub")


class Measured:
    """The host ``web1`` with the test's TPM, a boot log and a measurement list; and the messages to and from it."""

    def __init__(self, runner: Any, tpm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.runner, self.tpm = runner, tpm
        self.layout = Layout(root=folder)
        boot = folder / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text("boot-1")
        (folder / attester.IMA_LIST).parent.mkdir(parents=True)
        (folder / attester.IMA_LIST).touch()  # what is in it comes from evidence()
        self.log, pcrs = boot_forge.edited("shim-grub", lambda found: None)
        tpm.pcrs.update(pcrs)
        self.master = runner._master()
        self.sent: list[tuple[str, int]] = []
        self.replies: Any = lambda function, reply: reply
        raw, value, number, so_far = [], bytes(32), 0, 0
        aggregate = hashlib.sha256(b"".join(tpm.pcrs[pcr] for pcr in range(10))).digest()
        while so_far < size:
            name = b"/usr/lib/" + b"long-" * 100 + b"%06d" % number if number else b"boot_aggregate"
            if number == 1:
                name = b"/usr/lib/systemd/systemd"
            digest = hashlib.sha256(b"%d" % number).digest() if number else aggregate
            data = ima.line(name, b"sha256:\0" + digest)
            head = struct.pack("<I20sI6sI", 10, hashlib.sha1(data).digest(), 6, b"ima-ng", len(data))
            raw.append(head + data)
            value = hashlib.sha256(value + hashlib.sha256(data).digest()).digest()
            number += 1
            so_far += len(raw[-1])
        tpm.pcrs[10] = value
        self.list = b"".join(raw)
        monkeypatch.setattr(self_appraisal, "evidence", self.evidence)
        self.bus = runner_bus.join(runner, self.ask)
        monkeypatch.setattr(runner, "_minions", lambda target, kind: ["web1"])
        runner.__opts__["netspace.attestation"]["groups"] = [
            {"name": "default", "minimum": "L3", "pcrs": list(boot_forge.PCRS["shim-grub"])}
        ]
        made = runner._fleet()
        made.registrar.ca.init(time.time())
        enrolled(made.registrar, Minion("web1", tpm, self.master), time.time(), self.master)
        (path,) = (made.registrar.folder / "hosts").iterdir()
        path.write_text(json.dumps({**json.loads(path.read_text()), "level": 3, "reason": ""}))
        rules = {**BOOT, "ima": {"exclude": ["/usr/lib/*"]}}
        made.policies.put("default", {**rules, "version": 1})

    def evidence(
        self, layout: Layout, chosen: Any, context: Context, first: int | None = None, period: bytes = b""
    ) -> Any:
        brought = None
        if first is not None:
            brought = self.tpm.measurements(context, self.list[ima.offset(self.list, first) :], first)
        made = self.tpm.evidence(context, tuple(chosen["pcrs"]))
        return dataclasses.replace(made, boot_log=self.log, ima=brought)

    def ask(self, minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        assert minions == ["web1"]
        if function == "accept":
            return {"web1": ({"stored": True}, "")}
        if function == "part":
            reply: Any = master_result.part(self.layout, arguments["parts"]["web1"])
        else:
            chosen = settings.of(Attestation(tpm="x"))
            asked = arguments["challenges"]["web1"]
            reply = master_result.answer(self.layout, chosen, "web1", self.master, asked, lambda: runner_bus.SALT_KEY)
        reply = self.replies(function, reply)
        self.sent.append((function, len(json.dumps(reply))))
        return {"web1": (reply, "")}

    def attest(self) -> dict[str, Any]:
        self.sent.clear()
        return dict(self.runner.attest()["web1"])


@pytest.fixture
def measured(made: tuple[Any, Bus], fake_tpm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda size: Measured(made[0], fake_tpm, tmp_path / "root", monkeypatch, size)


def test_a_measurement_list_of_20_megabytes_chokes_nothing(measured: Any) -> None:
    host = measured(20_000_000)
    assert len(host.list) >= 20_000_000
    found = host.attest()
    assert (found["level"], found["code"], found["state"]) == ("L5", "ok", "trusted"), found
    # No message is larger than what Salt lets through (max_event_size: a MiB, and a value half of it).
    assert max(size for _, size in host.sent) < 512 * 1024
    assert [name for name, _ in host.sent].count("answer") == 1 and len(host.sent) < 100
    # From then on only what is new travels: nothing, and no boot log either.
    assert host.attest()["level"] == "L5"
    assert [name for name, _ in host.sent] == ["answer"] and host.sent[0][1] < 4096


def test_files_are_learned_shown_signed_and_take_the_host_to_l5(measured: Any, tmp_path: Path) -> None:
    host = measured(100_000)
    runner = host.runner
    (tmp_path / "strict.json").write_text(json.dumps({**BOOT, "version": 2, "ima": {}}))
    assert runner.policy_set("default", str(tmp_path / "strict.json"))["version"] == 2
    assert (host.attest()["level"], host.attest()["code"]) == ("L4", "ima-file")
    found = runner.learn("web1")
    assert found["diff"] == [] and found["version"] == 2, "lists are learned from where that is asked for"
    found = runner.learn("web1", ima=True, file=str(tmp_path / "learned.json"))
    assert not found["signed"] and found["version"] == 3 and "retcode" not in found, found
    added = [line for line in found["diff"] if line.startswith("+ima:files:/usr/lib/")]
    assert len(added) > 100 and not found["notes"], found["notes"]
    assert len(json.loads((tmp_path / "learned.json").read_text())["ima"]["files"]) == len(added)
    assert "exists already" in runner.learn("web1", ima=True, file=str(tmp_path / "learned.json"))["reason"]
    assert host.attest()["level"] == "L4", "nothing is in force yet"
    assert runner.policy_set("default", str(tmp_path / "learned.json"))["version"] == 3
    assert host.attest()["level"] == "L5"
    found = runner.learn("web1", ima=True, sign=True)
    assert (found["diff"], found["signed"], found["version"]) == ([], False, 3)


def test_rules_for_what_runs_are_tried_on_the_hosts_lists_before_they_are_in_force(
    measured: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = measured(10_000)
    monkeypatch.setattr(host.runner, "_known", lambda fleet, pattern: ["web1"])
    assert host.attest()["level"] == "L5"
    strict = {**BOOT, "version": 2, "ima": {"exclude": ["/usr/lib/systemd/*"]}}
    path = tmp_path / "strict.json"
    path.write_text(json.dumps(strict))
    found = host.runner.policy_check("default", str(path))
    assert found["same"] == ["web1"] and found["not_tried"] == ["ima (ima=True tries it)"]
    found = host.runner.policy_check("default", str(path), ima=True)
    change = found["changes"]["web1"]
    assert (change["old"], change["new"], change["code"], found["not_tried"]) == ("L5", "L4", "ima-file", [])
    assert host.attest()["level"] == "L5", "nothing was put in force"
    strict["ima"]["exclude"].append("/usr/lib/long-*")
    path.write_text(json.dumps(strict))
    assert host.runner.policy_check("default", str(path), ima=True)["same"] == ["web1"]
    host.replies = lambda function, reply: "VALUE_TRIMMED" if function == "answer" else reply
    assert "web1" in host.runner.policy_check("default", str(path), ima=True)["untried"]


def test_a_long_difference_is_cut_and_says_so(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = measured(100_000)
    (path,) = (host.layout.root.parent / "books/policies").glob("default.jws")
    path.unlink()
    (path.parent / "versions.json").unlink()
    monkeypatch.setattr(host.runner, "MAX_SHOWN", 50)
    found = host.runner.learn("web1", ima=True)
    assert len(found["diff"]) == 51 and "lines more: 'file'" in found["diff"][-1], found["diff"][-3:]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"overlap": 0}, "overlap"),
        ({"overlap": "14"}, "overlap"),
        ({"overlap": 1e9}, "overlap"),
        ({"keys": "/nonexistent"}, "ima=True"),
        ({"keys": "/nonexistent", "ima": True}, "/nonexistent"),
        ({"keys": "/proc/version", "ima": True}, "no certificate"),
    ],
)
def test_wishes_that_cannot_be_met_ask_nobody(made: tuple[Any, Bus], wrong: dict[str, Any], reason: str) -> None:
    runner, bus = made
    found = runner.learn("*", **wrong)
    assert (found["code"], found["retcode"]) == ("input", 1) and reason in found["reason"]
    assert not bus.asked


def test_keys_that_are_too_many_are_refused_and_not_cut_off(made: tuple[Any, Bus], tmp_path: Path) -> None:
    runner, bus = made
    keys = tmp_path / "keys.pem"
    keys.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".ljust(runner.MAX_KEYS + 1, b"\n"))
    found = runner.learn("*", ima=True, keys=str(keys))
    assert (found["code"], found["retcode"]) == ("input", 1)
    assert found["reason"] == f"{keys}: more than {runner.MAX_KEYS} bytes; name a file with fewer keys"
    assert not bus.asked


def test_a_lost_log_is_asked_for_again_with_the_reason(measured: Any) -> None:
    host = measured(1000)
    assert host.attest()["level"] == "L5"
    salt.cache.factory(host.runner.__opts__).flush("netspace_attestation/log")
    found = host.attest()
    assert (found["level"], found["answered"]) == ("L5", True)
    assert "asked for again" in found["answer"] and [name for name, _ in host.sent] == ["answer", "answer"]
    assert host.attest()["answer"] == "" and len(host.sent) == 1


@pytest.mark.parametrize(
    ("function", "reply", "code"),
    [
        ("answer", {"parts": 10**9, "sha256": "00" * 32}, "malformed"),
        ("answer", {"parts": 3, "sha256": "00" * 32}, "malformed"),
        ("answer", "VALUE_TRIMMED", "malformed"),
        ("part", {"text": "VALUE_TRIMMED"}, "malformed"),
        ("part", "VALUE_TRIMMED", "malformed"),
    ],
)
def test_parts_that_anybody_may_have_made_up_are_no_answer(measured: Any, function: str, reply: Any, code: str) -> None:
    host = measured(1_000_000)
    host.replies = lambda name, genuine: reply if name == function else genuine
    found = host.attest()
    assert (found["state"], found["code"], found["answered"]) == ("enrolled", None, False), found
    assert f"[{code}]" in found["answer"]
    host.replies = lambda name, genuine: genuine
    assert host.attest()["level"] == "L5"


def test_certificates_are_renewed_by_two_messages_whoever_is_away(
    made: tuple[Any, Bus], monkeypatch: pytest.MonkeyPatch, fake_tpm: Any
) -> None:
    """A round renews eight certificates in two messages, and waits for all absent hosts together."""
    runner, _ = made
    master = runner._master()
    hosts = {f"web{number}": Minion(f"web{number}", type(fake_tpm)(), master) for number in range(8)}
    monkeypatch.setattr(runner, "_minions", lambda target, kind: list(hosts))
    registrar = runner._fleet().registrar
    registrar.ca.init(time.time() - 90000)
    for host in hosts.values():
        enrolled(registrar, host, time.time() - 86000, master)
    away, sent = {"web1", "web2", "web3"}, []

    def ask(minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        sent.append((function, len(minions)))
        found: dict[str, Any] = {}
        for name in minions:
            reply: Any = None
            if function == "enroll":
                reply = hosts[name].enroll(arguments["asked"][name])
            elif function == "activate":
                reply = hosts[name].activate(**arguments["credentials"][name])
            elif function == "answer":
                asked = arguments["challenges"][name]
                hosts[name].tpm.take(bytes.fromhex(asked["period"]))  # web4 goes on with the key that it had
                session, nonce = asked["session"], bytes.fromhex(asked["nonce"])
                context = Context(master, name, session, nonce, binding=b"boot")
                reply = {"boot": "boot", "evidence": hosts[name].tpm.evidence(context).wire()}
            found[name] = None if name in away else (reply, "")
        return found

    runner_bus.join(runner, ask)
    hosts["web4"].answer = lambda answer: {"answer": "00" * 32}
    found = runner.attest()
    # web4 answers its credential wrongly and is judged by its old certificate; who is away is not asked again.
    assert sent == [("enroll", 8), ("activate", 5), ("answer", 5), ("accept", 5)]
    assert all(found[name]["answer"].endswith("did not answer within 60 s") for name in away)
    assert "can't be renewed" in found["web4"]["answer"] and "[activation]" in found["web4"]["answer"]
    assert [found[f"web{number}"]["state"] for number in range(4, 8)] == ["trusted"] * 4
    for name, host in hosts.items():
        record = registrar.host(name)
        assert (record["expires"] > time.time() + 80000) == (name not in away | {"web4"}), host.name


def test_enroll_reads_the_makers_folder_once_and_says_what_it_could_not_read(
    made: tuple[Any, Bus], monkeypatch: pytest.MonkeyPatch, fake_tpm: Any, tmp_path: Path
) -> None:
    runner, _ = made
    host = Minion("web1", fake_tpm, runner._master())
    runner._fleet().registrar.ca.init(time.time())
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "odd.pem").write_text("nothing of a certificate")
    runner.__opts__["netspace.attestation"]["roots"] = str(roots)
    read: list[str] = []
    whole = makers.read
    monkeypatch.setattr(makers, "read", lambda folder: read.append(folder) or whole(folder))

    def ask(minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        if function == "enroll":
            return {"web1": (host.enroll(arguments["asked"]["web1"]), "")}
        return {"web1": (host.activate(**arguments["credentials"]["web1"]), "")}

    runner_bus.join(runner, ask)
    found = runner.enroll("web1")
    (unreadable,) = found["unreadable_roots"]
    assert found["level"] == "L2" and unreadable.startswith("odd.pem: ") and "retcode" not in found
    assert read == [str(roots)]


def test_a_damaged_record_or_lost_roots_stop_no_other_host(made: tuple[Any, Bus], fake_tpm: Any) -> None:
    runner, bus = made
    registrar = runner._fleet().registrar
    registrar.ca.init(time.time() - 90000)
    enrolled(registrar, Minion("web1", fake_tpm, bus.master), time.time() - 86000, bus.master)
    (path,) = (registrar.folder / "hosts").iterdir()
    whole = path.read_text()
    path.write_text("{")
    found = runner.attest()
    assert str(path) in found["web1"]["answer"] and (found["web1"]["state"], found["web1"]["level"]) == (
        "unknown",
        "L0",
    )
    assert found["web2"]["state"] == "trusted"
    # The makers' folder is gone when a certificate is due: that host says so, and the others are judged.
    path.write_text(whole)
    runner.__opts__["netspace.attestation"]["roots"] = "/nonexistent"
    found = runner.attest()
    assert "/nonexistent" in found["web1"]["answer"] and found["web2"]["state"] == "trusted"
    assert "/nonexistent" in runner.enroll("web1")["reason"]


def test_makers_are_shown_with_what_can_not_be_read(made: tuple[Any, Bus], tmp_path: Path) -> None:
    from test_certificates import ROOT, der

    runner, _ = made
    folder = tmp_path / "makers"
    folder.mkdir()
    (folder / "good.der").write_bytes(der(ROOT.certificate))
    (folder / "bad.crt").write_bytes(b"<html>404</html>")
    runner.__opts__["netspace.attestation"]["roots"] = str(folder)
    found = runner.roots()
    assert [one["subject"] for one in found["certificates"]] == ["CN=root"] and found["lists"] == 0
    assert [one.partition(":")[0] for one in found["unreadable"]] == ["bad.crt"]
    (folder / "bad.crl").write_bytes(b"<html>404</html>")
    assert "bad.crl: not a revocation list" in runner.roots()["reason"]


def test_parts_that_do_not_come_are_no_judgement(measured: Any) -> None:
    host = measured(1_000_000)
    genuine = host.ask

    def silent(minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        return {} if function == "part" else dict(genuine(minions, function, arguments))

    runner_bus.join(host.runner, silent)
    found = host.attest()
    assert (found["state"], found["answered"]) == ("enrolled", False) and "more than 60 s" in found["answer"]

    def slow(minions: list[str], function: str, arguments: Any) -> dict[str, Any]:
        bus.later += 50 * (function == "part")
        return dict(genuine(minions, function, arguments))

    bus = runner_bus.join(host.runner, slow)
    found = host.attest()
    assert (found["state"], found["answered"]) == ("enrolled", False) and "more than 66 s" in found["answer"], found


def test_what_commands_print_is_taken_from_a_file_as_it_stands(tmp_path: Path) -> None:
    """A request and a certificate, redirected into files as the page shows, are read despite Salt's indentation."""
    import salt.output

    runner, _ = runner_bus.load(tmp_path, {})

    def printed(found: dict[str, Any]) -> str:
        assert "retcode" not in found, found
        path = tmp_path / f"printed{len(list(tmp_path.iterdir()))}"
        path.write_text(salt.output.out_format(found, "nested", runner.__opts__))
        return str(path)

    request = printed(runner.ca_init(root_elsewhere=True))
    certificate = printed(runner.ca_sign(request, str(tmp_path / "usb/root")))
    taken = runner.ca_import(certificate, str(tmp_path / "usb/root/chain.pem"))
    assert taken["ca"] == "CN=netspace Privacy CA" and not taken["root_here"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": "60"},
        {"jitter": -1},
        {"concurrency": 0},
        {"concurrency": "32"},
        {"groups": {}},
        {"interval": 1},
    ],
)
def test_a_configuration_that_is_none(made: tuple[Any, Bus], wrong: dict[str, Any]) -> None:
    runner, bus = made
    runner.__opts__["netspace.attestation"].update(wrong)
    found = runner.attest()
    assert (found["code"], found["retcode"]) == ("input", 1) and next(iter(wrong)) in found["reason"]
    assert not bus.asked
