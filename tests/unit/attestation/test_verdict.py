"""A host whose verifier is its master: the host answers challenges, and accepts exactly one result for each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from netspace import jose
from netspace.attestation import ear, refusals, result
from netspace.attestation.ear import AppraisalClaims, Signer
from netspace.attestation.evidence import PART, Context
from netspace.attestation.evidence import parse as parse_evidence
from netspace.attestation.minion import attester, master_result, self_appraisal, settings
from netspace.attestation.reconciler import Attestations
from netspace.attestation.verifier import verifier
from netspace.errors import NetspaceError, SpecError
from netspace.layout import Layout
from netspace.spec import parse
from netspace.spec.types import Attestation

NONCE = "cd" * 32
CHALLENGE = {"session": "1f", "nonce": NONCE, "pcrs": [0, 7], "ima_from": None, "bootlog": None}


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return ear.signer(tmp_path / "verifier")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    root = tmp_path / "host"
    reboot(Layout(root=root), "boot-1")
    return Layout(root=root)


def reboot(layout: Layout, boot: str) -> None:
    path = layout.root / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{boot}\n")


def declared(*signers: Signer, **more: Any) -> Attestation:
    return Attestation(verifier="master", verifier_keys=tuple(jose.thumbprint(one.jwk) for one in signers), **more)


def token(signer: Signer, **changes: Any) -> str:
    now = time.time()
    told = AppraisalClaims("web1", 3, 2, "policy-none", "why", "how", NONCE, "boot-1", "web", 2, now + 7200)
    return ear.make(signer, dataclasses.replace(told, **changes), now, "1")


class Host:
    """A host with a declaration, and its actions."""

    def __init__(self, layout: Layout, wanted: Attestation) -> None:
        self.layout, self.wanted = layout, wanted

    def answer(self, **changes: Any) -> dict[str, Any]:
        chosen = settings.of(self.wanted)
        return master_result.answer(self.layout, chosen, "web1", "ab" * 32, {**CHALLENGE, **changes})

    def accept(self, made: str, signer: Signer) -> result.Result:
        return master_result.accept(self.layout, settings.of(self.wanted), "web1", made, signer.jwk)

    def apply(self) -> list[Any]:
        kind = Attestations(self.layout)
        return kind.apply(kind.plan(self.wanted, kind.observe()).steps)

    @property
    def level(self) -> int:
        return result.trust(self.layout).level


@pytest.fixture
def host(layout: Layout, signer: Signer) -> Host:
    return Host(layout, declared(signer))


def test_an_answer_is_bound_to_challenge_minion_master_and_boot(host: Host) -> None:
    made = host.answer()
    evidence = parse_evidence(made["evidence"])
    context = Context("ab" * 32, "web1", "1f", bytes.fromhex(NONCE), binding=b"boot-1")
    assert made["boot"] == "boot-1"
    assert verifier.verify_software(evidence, evidence.key, context).level == 1
    with pytest.raises(refusals.WrongQualifyingData):
        verifier.verify_software(evidence, evidence.key, dataclasses.replace(context, binding=b"boot-2"))


def test_a_result_is_enforced_and_its_challenge_used_up(host: Host, signer: Signer) -> None:
    host.answer()
    made = token(signer)
    assert host.accept(made, signer).level == 3
    trust = result.trust(host.layout)
    assert (trust.level, trust.verifier, trust.reason) == (3, "master", "why")
    assert not host.apply() and host.level == 3, "an apply leaves it in force"
    with pytest.raises(refusals.ResultReplayed):
        host.accept(made, signer)
    assert host.level == 3


def test_losing_trust_is_taken_at_once(host: Host, signer: Signer) -> None:
    host.answer()
    host.accept(token(signer), signer)
    host.answer()
    host.accept(token(signer, level=0, code="clock", reason="set back"), signer)
    assert result.trust(host.layout).reason == "set back" and host.level == 0


def test_the_deadline_is_the_masters(host: Host, signer: Signer) -> None:
    host.answer()
    host.accept(token(signer), signer)
    assert result.trust(host.layout, time.time() + 7100).level == 3
    assert result.trust(host.layout, time.time() + 7300).level == 0


def test_a_restart_ends_it_and_an_answer_before_it_counts_no_more(host: Host, signer: Signer) -> None:
    host.answer()
    host.accept(token(signer), signer)
    host.answer()
    reboot(host.layout, "boot-2")
    assert host.level == 0
    for boot in ("boot-1", "boot-2"):
        with pytest.raises(refusals.ResultOtherBoot):
            host.accept(token(signer, boot=boot), signer)
    assert Attestations(host.layout).restore() == [] and host.level == 0
    assert any("netspace_attestation.attest" in note for note in _plan(host).notes)


def _plan(host: Host) -> Any:
    kind = Attestations(host.layout)
    return kind.plan(host.wanted, kind.observe())


def test_a_result_by_a_key_that_is_not_pinned(host: Host, signer: Signer, tmp_path: Path) -> None:
    other = ear.signer(tmp_path / "other")
    host.answer()
    with pytest.raises(refusals.ResultForged, match="verifier_keys"):
        host.accept(token(other), other)
    with pytest.raises(refusals.ResultForged):
        host.accept(token(other), signer)
    assert host.level == 0


def test_an_older_policy_than_before(host: Host, signer: Signer) -> None:
    host.answer()
    host.accept(token(signer, version=5), signer)
    host.answer()
    with pytest.raises(refusals.PolicyDowngraded):
        host.accept(token(signer, version=4, level=4), signer)
    assert host.level == 3
    host.accept(token(signer, version=5, level=4), signer)
    assert host.level == 4


def test_what_the_host_found_by_itself_counts_no_more(layout: Layout, signer: Signer) -> None:
    """A host's earlier result from itself is ignored once its verifier is the master, even with the policy ``off``.

    An environment may still require a level.
    """
    alone = Host(layout, Attestation())
    alone.apply()
    assert alone.level == 1
    for policy in ("prefer", "off"):
        alone.apply()
        host = Host(layout, declared(signer, policy=policy))
        (outcome,) = host.apply()
        assert not outcome.error and host.level == 0 and result.trust(layout).verifier == "master"
        assert not host.apply(), "a second apply does nothing"
    alone.apply()
    assert alone.level == 1 and result.trust(layout).verifier == "self"


def test_a_key_that_is_pinned_no_longer_takes_its_result_along(host: Host, signer: Signer, tmp_path: Path) -> None:
    host.answer()
    host.accept(token(signer), signer)
    new = ear.signer(tmp_path / "new")
    both = Host(host.layout, declared(signer, new))
    assert not both.apply() and both.level == 3, "another key beside it changes nothing"
    after = Host(host.layout, declared(new))
    assert after.apply() and after.level == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "00"},
        {"nonce": 7},
        {"session": ""},
        {"session": "x" * 65},
        {"pcrs": []},
        {"pcrs": [24]},
        {"pcrs": [True]},
        {"ima_from": -1},
        {"bootlog": "00"},
        {"bootlog": 7},
        {"more": 1},
    ],
)
def test_a_challenge_that_is_none(host: Host, changes: dict[str, Any]) -> None:
    with pytest.raises(refusals.Malformed):
        host.answer(**changes)


def test_a_host_without_ima_answers_all_the_same(host: Host) -> None:
    assert not (host.layout.root / attester.IMA_LIST).exists()
    assert parse_evidence(host.answer(ima_from=0)["evidence"]).ima is None


@pytest.fixture
def logged(host: Host, fake_tpm: Any, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Let the test's TPM sign for the host; return the host's boot log, which has 1 MiB."""
    log = bytes(range(256)) * 4096

    def evidence(layout: Layout, chosen: Any, context: Context, first: int | None = None, period: bytes = b"") -> Any:
        return dataclasses.replace(fake_tpm.evidence(context, tuple(chosen["pcrs"])), boot_log=log)

    monkeypatch.setattr(self_appraisal, "evidence", evidence)
    return log


def test_a_log_that_the_verifier_has_is_told_by_its_digest_alone(host: Host, logged: bytes) -> None:
    digest = hashlib.sha256(logged).hexdigest()
    found = parse_evidence(host.answer(bootlog=digest)["evidence"])
    assert found.boot_log is None and found.known_log == digest
    assert "parts" in host.answer(bootlog="00" * 32), "another log than ours: the verifier has to have this one"
    assert "parts" in host.answer()


def test_a_large_answer_waits_to_be_fetched_part_by_part(host: Host, signer: Signer, logged: bytes) -> None:
    head = host.answer()
    assert set(head) == {"parts", "sha256"} and head["parts"] == 4
    parts = [master_result.part(host.layout, number)["text"] for number in range(head["parts"])]
    assert max(map(len, parts)) == PART
    text = "".join(parts).encode()
    assert hashlib.sha256(text).hexdigest() == head["sha256"]
    assert parse_evidence(json.loads(text)["evidence"]).boot_log == logged
    for wrong in (4, -1, "0", True, None):
        with pytest.raises(NetspaceError, match="part"):
            master_result.part(host.layout, wrong)
    host.accept(token(signer), signer)
    with pytest.raises(NetspaceError, match="no saved answer"):
        master_result.part(host.layout, 0)


def test_a_small_answer_takes_the_place_of_a_large_one(host: Host, logged: bytes) -> None:
    host.answer()
    host.answer(bootlog=hashlib.sha256(logged).hexdigest())
    with pytest.raises(NetspaceError, match="no saved answer"):
        master_result.part(host.layout, 0)


def test_forgetting_leaves_nothing(host: Host, signer: Signer, logged: bytes) -> None:
    host.answer()
    host.accept(token(signer), signer)
    host.answer()
    kind = Attestations(host.layout)
    kind.apply(kind.plan(host.wanted, kind.observe(), {"host"}).steps)
    assert not host.layout.records("attestation").exists()


def test_a_damaged_record_says_so(host: Host, signer: Signer) -> None:
    host.answer()
    (host.layout.records("attestation") / "master.json").write_text('{"nonce": 1}')
    with pytest.raises(NetspaceError, match="remove the file"):
        host.accept(token(signer), signer)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"verifier": "master"}, "verifier_keys"),
        ({"verifier": "master", "verifier_keys": ["short"]}, "verifier_keys:0"),
        ({"verifier": "grain"}, "verifier"),
    ],
)
def test_a_declaration_that_pins_nothing(given: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError, match=f"netspace:attestation:{path}"):
        parse.declaration({"attestation": given})
