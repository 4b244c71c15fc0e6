"""Hosts with software TPMs prove to the fleet's verifier the key that signs their tokens; tokens then have a level.

Root of this or another host can't give a level to a token by any other key.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.attestation import runner_bus
from support.attestation.ledger_forge import run
from support.attestation.software_tpm import Factory

from netspace import jose
from netspace.attestation.endorsement import makers
from netspace.attestation.fleet.challenge import Asked
from netspace.attestation.minion import attester, master_result, run_ledger, self_appraisal, settings
from netspace.attestation.reconciler import Attestations
from netspace.host.peer import process, publish, requests, told, vouching
from netspace.host.peer.asker import Asker
from netspace.host.peer.told import Known, Told, Trust
from netspace.layout import Layout
from netspace.ledger import journal
from netspace.link import host_peer
from netspace.spec.types import Attestation

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[3]
NONCE = "b3duLXF1ZXN0aW9uLTE"
DIGEST = f"sha256:{'0' * 64}"


@dataclass
class Host:
    """A host of the fleet, whose peer works in this process. All hosts have one kernel, and so the same boot id."""

    name: str
    layout: Layout
    runner: Any
    tcti: str | None

    @property
    def chosen(self) -> dict[str, Any]:
        keys = (jose.thumbprint(self.runner._fleet().signer.jwk),)
        return settings.of(Attestation(verifier="master", verifier_keys=keys, tpm=self.tcti, pcrs=(0, 7)))

    def enrol(self, roots: Path) -> None:
        made, now = self.runner._fleet(), time.time()
        asked = made.registrar.request(self.name)
        period = bytes.fromhex(asked["period"])
        shown = self_appraisal.enroll(
            self.layout, self.chosen, asked["template"] or None, period, others=asked["others"]
        )
        trusted = makers.read(str(roots))
        pending = made.registrar.begin(self.name, shown.wire(), self.runner._master(), trusted, now)
        challenge = pending.challenge
        others = zip((one for one, _ in shown.others), challenge.others, strict=True)
        opened = [attester.Credential(shown.template, challenge.blob, challenge.encrypted)]
        opened += [attester.Credential(other, *pair) for other, pair in others]
        answer = self_appraisal.activate(self.layout, self.chosen, opened, pending.context, period)
        made.registrar.finish(pending, {"answer": answer.hex()}, now)

    def answer(self, asked: Asked, key: Any = None) -> dict[str, Any]:
        """Return the host's answer, as the execution module makes it.

        :param key: the key that a hostile root shows in place of the key that signs tokens.
        """
        signing = vouching.key(self.layout) if key is None else key
        wire, master = asked.wire(), self.runner._master()
        return master_result.answer(
            self.layout, self.chosen, self.name, master, wire, lambda: runner_bus.SALT_KEY, signing
        )

    def attest(self) -> dict[str, Any]:
        made = self.runner._fleet()
        asked = made.ask(self.name)
        record: dict[str, Any] = made.judge(asked, self.answer(asked), time.time())
        master_result.accept(self.layout, self.chosen, self.name, record["token"], made.signer.jwk)
        vouching.hand_on(self.layout)
        return record

    def publish(self) -> Told:
        known = Told(told.VERSION, self.name, Trust(), {"web": Known(("attest",), DIGEST, DIGEST, "/nowhere/web")})
        return publish._with_key(self.layout, known)

    def prove(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Return the evidence that the host's peer gives to the environment ``web``."""
        known = self.publish()
        monkeypatch.chdir(host_peer.folder(self.layout))
        body = json.dumps({"v": 1, "verb": "attest", "arguments": {"nonce": NONCE}}).encode()
        asker = Asker("web", known.environments["web"], known, time.time())
        answer = requests.answer(asker, requests.parse(body, len(body)), process.verbs())
        return str(json.loads(answer)["answer"]["evidence"])


@pytest.fixture
def fleet(tmp_path: Path, make_tpm: Callable, factory: Factory, other_factory: Factory) -> Iterator[tuple[Host, Host]]:
    groups = [{"name": "default", "minimum": "L2", "pcrs": [0, 7]}]
    runner, _ = runner_bus.load(tmp_path, {"groups": groups})
    runner._salt_key = lambda minion: runner_bus.SALT_PUBLIC
    runner._fleet().registrar.ca.init(time.time() - 86400)
    makers_ = {"web1": factory, "web2": other_factory}
    hosts = tuple(
        Host(name, Layout(f"{name}{secrets.token_hex(4)}"), runner, make_tpm(maker).tcti)
        for name, maker in makers_.items()
    )
    for one in hosts:
        host_peer.ensure(one.layout)
        one.enrol(makers_[one.name].roots)
    yield hosts
    for one in hosts:
        kind = Attestations(one.layout)
        kind.apply(kind.plan(Attestation(), kind.observe(), {"host"}).steps)
        host_peer.remove(one.layout)
        for path in (one.layout.state, one.layout.run, one.layout.logs):  # these are on this machine's disk
            shutil.rmtree(path, ignore_errors=True)


def by_runner(asked: Host, folder: Path, text: str, /, **keys: Any) -> dict[str, Any]:
    (folder / "evidence.json").write_text(text)
    given = {"nonce": NONCE, "environment": "web", **keys}
    found: dict[str, Any] = asked.runner.verify_environment(evidence=str(folder / "evidence.json"), **given)
    return found


def by_example(host: Host, folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "jwks.json").write_text(json.dumps(host.runner.jwks()))
    script = ROOT / "client/examples/check_appraised_evidence.py"
    command = [sys.executable, "-I", str(script), f"--verifiers={folder}/jwks.json", f"--nonce={NONCE}"]
    return subprocess.run(
        [*command, "--environment=web", *arguments], input=text, capture_output=True, text=True, check=False
    )


def test_token_of_an_appraised_host_has_its_level(
    fleet: tuple[Host, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fleet
    before = first.prove(monkeypatch)
    assert by_runner(first, tmp_path, before)["code"] == "appraisal-none", "nobody has judged the host yet"
    second.publish()
    assert (first.attest()["level"], second.attest()["level"]) == (3, 3)
    text = first.prove(monkeypatch)
    found = by_runner(first, tmp_path, text, minion="web1", level="L3", host="web1", image=DIGEST)
    assert (found.get("valid"), found["level"], found["minion"]) == (True, "L3", "web1"), found
    done = by_example(first, tmp_path, text, "--minion=web1", "--level=L3", f"--image={DIGEST}")
    assert done.returncode == 0 and json.loads(done.stdout)["level"] == "L3", done

    assert by_runner(first, tmp_path, text, level="L4")["code"] == "appraisal-level"
    assert by_runner(first, tmp_path, text, minion="web2")["code"] == "appraisal-host"
    assert by_runner(first, tmp_path, text, environment="till")["code"] == "token-subject"
    for wrong in ({"level": "3"}, {"pcrs": {"7": "00" * 32}}, {"host": "web1"}, {"minion": "web1", "key": "x"}):
        assert by_runner(first, tmp_path, text, **wrong)["code"] == "input"
    done = by_example(first, tmp_path, text, "--level=L4")
    assert done.returncode == 1 and "refused: the host has L3" in done.stderr
    # Another host's token with this host's word, and the other way round.
    mine, other = (json.loads(one.prove(monkeypatch)) for one in fleet)
    for mixed in ({**other, "appraisal": mine["appraisal"]}, {**mine, "appraisal": other["appraisal"]}):
        assert by_runner(first, tmp_path, json.dumps(mixed))["code"] == "token-key"
        assert by_example(first, tmp_path, json.dumps(mixed)).returncode == 1


def test_other_keys_of_a_host_give_no_level(
    fleet: tuple[Host, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fleet
    first.attest(), first.publish(), second.publish()
    first.attest()
    old = first.prove(monkeypatch)
    assert by_runner(first, tmp_path, old, level="L3")["valid"] is True
    # Root makes a key that nobody has judged: the peer has no word on it, and the old word is on another key.
    vouching.forget(first.layout)
    new = first.prove(monkeypatch)
    assert by_runner(first, tmp_path, new)["code"] == "appraisal-none"
    mixed = {**json.loads(new), "__cmwc_t": json.loads(old)["__cmwc_t"], "appraisal": json.loads(old)["appraisal"]}
    assert by_runner(first, tmp_path, json.dumps(mixed))["code"] == "token-key"
    # The verifier judges the new key: proofs by the old one are outdated for it.
    assert first.attest()["level"] == 3
    assert by_runner(first, tmp_path, first.prove(monkeypatch), level="L3")["valid"] is True
    assert by_runner(first, tmp_path, old)["code"] == "appraisal-outdated"
    assert by_example(first, tmp_path, old).returncode == 0, "others learn it when the word expires"
    # A key that the host had in an earlier boot, and a host whose result was withdrawn.
    made, key = first.runner._fleet(), vouching.key(first.layout)
    record = {**made.results.record("web1"), "token_key": [jose.thumbprint(jose.jwk(key.public_key())), "boot-0"]}
    made.results.save(record)
    asked = made.ask("web1")
    refused = made.judge(asked, first.answer(asked), time.time())
    assert (refused["level"], refused["code"]) == (0, "token-key-boot")
    assert by_runner(first, tmp_path, first.prove(monkeypatch))["code"] == "appraisal-outdated"
    # Root of one host shows the key of another, which it can't make sign.
    asked = made.ask("web2")
    shown = second.answer(asked, vouching.key(second.layout))
    other = jose.jwk(vouching.key(first.layout).public_key())
    shown["token_key"]["jwk"] = other
    shown = runner_bus.signed(
        "answer", first.runner._master(), "web2", asked.wire(), {k: v for k, v in shown.items() if k != "salt"}
    )
    assert made.judge(asked, shown, time.time())["code"] == "qualifying-data"


def test_peer_hands_on_no_word_that_does_not_hold(fleet: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = fleet
    first.publish()
    first.attest()
    assert '"appraisal"' in first.prove(monkeypatch)
    path = host_peer.folder(first.layout) / told.APPRAISAL
    good = msgspec.json.decode(path.read_bytes(), type=told.Appraisal)
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o640, host_peer.ids(first.layout))
    vouched = first.publish().vouched
    assert vouched is not None and told.appraisal(vouched, time.time()) == good.word
    for wrong in ({"kid": "x"}, {"boot": "boot-0"}, {"until": time.time() - 1}):
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(good, **wrong)))
        assert told.appraisal(vouched, time.time()) == ""
    path.write_bytes(b"damaged")
    assert told.appraisal(vouched, time.time()) == ""
    vouching.hand_on(first.layout)
    assert told.appraisal(vouched, time.time()) == good.word
    vouching.forget(first.layout)
    assert not path.exists()
    vouching.hand_on(first.layout)
    assert not path.exists(), "there is no key"


def test_ledger_is_judged_with_the_evidence(fleet: tuple[Host, Host]) -> None:
    first, second = fleet
    run_ledger.set_up(first.layout, first.tcti)
    journal.note_starts(first.layout, {"web": run("web"), "till": run("till")})
    made = first.runner._fleet()
    made.policies.put("default", {"version": 1, "environments": {"images": [run("web").image]}})
    record = first.attest()
    submods = jose.unchecked(record["token"])[1]["submods"]
    assert record["level"] == 3 and set(submods) == {"host", "env:web", "env:till"}
    assert submods["env:web"]["netspace_image"] == f"sha256:{run('web').image}"
    journal.note_starts(first.layout, {"evil": run("evil", "evil")})
    record = first.attest()
    assert (record["level"], record["code"]) == (2, "ledger-image")
    journal.note_ends(first.layout, ["evil"])
    assert (made.ask("web1").ledger or ("", 0))[1] == 3 and first.attest()["level"] == 3
    assert made.standing("web1", time.time()).shown(time.time())["ledger"]["lines"] == 4
    assert Attestations(first.layout).status()["ledger"]["lines"] == 4
    assert (second.attest()["code"], second.attest()["level"]) == ("ledger-none", 2)
    # Root defines the index again, without the image that was judged.
    run_ledger.set_up(first.layout, first.tcti)
    record = first.attest()
    assert (record["level"], record["code"]) == (0, "ledger-rolled-back")
