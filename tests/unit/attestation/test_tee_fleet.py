"""Confidential guests in a fleet: which hosts are asked, their answers, and the levels in the results."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509 as pyca
from cryptography.hazmat.primitives.serialization import Encoding
from support.attestation import runner_bus, tee_forge
from support.attestation.honest_minion import MASTER, Minion, enrolled
from support.attestation.small_fleet import BOOT, Store, answer
from support.attestation.tee_forge import LAUNCH, NOW, Amd, Intel, rtmrs
from test_tee_ccel import EVENTS
from test_tee_configfs import FakeKernel

from netspace.attestation import ear, refusals, result
from netspace.attestation.endorsement import ek_certificates
from netspace.attestation.evidence import Context, Evidence, TeeReport
from netspace.attestation.evidence import parse as parse_evidence
from netspace.attestation.fleet import challenge, groups
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.minion import attester, master_result, software_key
from netspace.attestation.minion import settings as terms
from netspace.attestation.policy import policy
from netspace.attestation.reconciler import Attestations
from netspace.attestation.registrar.host_record import key_of
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tee import configfs, roots, x509
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Attestation

SECTION = {"snp": {"measurements": [LAUNCH.hex()]}}


@pytest.fixture
def made(tmp_path: Path) -> Fleet:
    registrar = Registrar(tmp_path / "master")
    registrar.ca.init(NOW)
    chosen = groups.parse([{"name": "web", "match": ["web*"], "minimum": "L3"}])
    maker = Amd()
    found = Fleet(registrar, MASTER, chosen, Store(), "1", lambda: maker.trust(maker.leaf()))
    found.policies.put("web", {"version": 1, "tee": SECTION})
    return found


@pytest.fixture
def key(tmp_path: Path) -> software_key.Key:
    return software_key.load(Layout(root=tmp_path / "host"))


def context(asked: challenge.Asked) -> Context:
    return Context(MASTER, asked.minion, asked.session, asked.nonce, binding=BOOT.encode())


def guest(asked: challenge.Asked, key: software_key.Key, **changes: Any) -> dict[str, Any]:
    """Return the answer of a host without a TPM that is a confidential guest."""
    evidence = attester.by_key(key, context(asked))
    report = Amd().report(context(asked).report_data(evidence.key), **changes)
    return {"boot": BOOT, "evidence": dataclasses.replace(evidence, tee=TeeReport("sev_guest", report)).wire()}


def judged(made: Fleet, key: software_key.Key, **changes: Any) -> dict[str, Any]:
    asked = made.ask("web1")
    return made.judge(asked, guest(asked, key, **changes), NOW)


def rooted(made: Fleet) -> None:
    made.policies.put("web", {"version": 2, "tee": {**SECTION, "rooted_key": True}})


def test_a_report_is_asked_for_where_the_policy_demands_one(made: Fleet) -> None:
    assert made.ask("web1").wire()["tee"] is True
    assert "tee" not in made.ask("other").wire()


def test_a_guest_without_a_tpm_is_rooted_by_its_policy_alone(made: Fleet, key: software_key.Key) -> None:
    record = judged(made, key)
    assert (record["level"], record["code"]) == (1, "software-key")
    rooted(made)
    record = judged(made, key)
    assert (record["level"], record["code"]) == (3, "tee-boot") and "there is no TPM" in record["reason"]
    standing = made.standing("web1", NOW)
    assert standing.state == "trusted"
    told = {"kind": "snp", "measurement": LAUNCH.hex(), "tcb": tee_forge.TCB, "code": "ok"}
    assert standing.shown(NOW)["tee"] == told
    claims = ear.opened(record["token"], ear.RESULT, [made.signer.jwk])
    host = claims["submods"]["host"]
    assert host["netspace_tee"] == told and host["netspace_level"] == 3 and host["ear_status"] == "affirming"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"measurement": b"\1" * 48}, "tee-measurement"), ({"policy": tee_forge.POLICY | tee_forge.DEBUG}, "tee-debug")],
)
def test_a_guest_that_is_not_good_is_l1(made: Fleet, key: software_key.Key, changes: Any, code: str) -> None:
    rooted(made)
    record = judged(made, key, **changes)
    assert (record["level"], record["code"], record["tee"]["code"]) == (1, code, code)
    assert made.standing("web1", NOW).state == "degraded"


def test_a_replayed_report_refuses_the_host(made: Fleet, key: software_key.Key) -> None:
    rooted(made)
    asked = made.ask("web1")
    old = guest(asked, key)
    assert made.judge(asked, old, NOW)["level"] == 3
    again = made.ask("web1")
    fresh = guest(again, key)
    fresh["evidence"]["tee"] = old["evidence"]["tee"]
    record = made.judge(again, fresh, NOW)
    assert (record["level"], record["code"], record["tee"]) == (0, "tee-binding", {})


def test_another_hosts_guest_vouches_for_nothing(made: Fleet, key: software_key.Key, tmp_path: Path) -> None:
    """A host sends a good guest's report with its own signature; refused, since the report covers the guest's key."""
    rooted(made)
    asked = made.ask("web1")
    evidence = attester.by_key(key, context(asked))
    other = software_key.load(Layout(root=tmp_path / "other"))
    relayed = guest(asked, other)["evidence"]["tee"]
    record = made.judge(asked, {"boot": BOOT, "evidence": {**evidence.wire(), "tee": relayed}}, NOW)
    assert (record["level"], record["code"]) == (0, "tee-binding")


def test_a_tpm_without_the_tee_that_is_demanded_is_l2(made: Fleet, fake_tpm: Any) -> None:
    enrolled(made.registrar, Minion("web1", fake_tpm), NOW)
    asked = made.ask("web1")
    record = made.judge(asked, answer(asked, fake_tpm), NOW)
    assert (record["level"], record["code"], record["tee"]) == (2, "ek-untrusted", {})


def test_a_tpm_with_a_tee_is_worth_what_it_is_and_says_both(made: Fleet, fake_tpm: Any) -> None:
    enrolled(made.registrar, Minion("web1", fake_tpm), NOW)
    asked = made.ask("web1")
    evidence: Evidence = fake_tpm.evidence(context(asked))
    report = Amd().report(context(asked).report_data(evidence.key))
    with_tee = dataclasses.replace(evidence, tee=TeeReport("sev_guest", report))
    record = made.judge(asked, {"boot": BOOT, "evidence": with_tee.wire()}, NOW)
    assert (record["level"], record["tee"]["code"], record["kind"]) == (2, "ok", "tpm")
    asked = made.ask("web1")
    again: Evidence = fake_tpm.evidence(context(asked))
    forged = dataclasses.replace(again, tee=TeeReport("sev_guest", report[:-600] + b"\1" + report[-599:]))
    record = made.judge(asked, {"boot": BOOT, "evidence": forged.wire()}, NOW)
    assert record["level"] == 0 and record["clock"] is not None, "refused, and the TPM's clock is not forgotten"


def test_a_report_that_nobody_asked_for_is_not_looked_at(made: Fleet, key: software_key.Key) -> None:
    asked = made.ask("other")
    record = made.judge(asked, guest(asked, key, measurement=b"\1" * 48), NOW)
    assert (record["level"], record["code"], record["tee"]) == (1, "software-key", {})


def test_a_trial_says_that_it_does_not_try_the_section(made: Fleet, fake_tpm: Any) -> None:
    enrolled(made.registrar, Minion("web1", fake_tpm), NOW)
    asked = made.ask("web1")
    made.judge(asked, answer(asked, fake_tpm), NOW)
    record = made.results.record("web1")
    assert record is not None
    kept = {**record, "base": 3}
    made.results._store.store("state", key_of("web1"), {"jws": made.signer.sign(ear.STATE, kept)})
    with_section = policy.parse({"version": 3, "tee": SECTION})
    assert "is not tried here" in made.tried("web1", with_section)["reason"]
    assert "is not tried here" not in made.tried("web1", policy.parse({"version": 3}))["reason"]


# -- the guest --------------------------------------------------------------------------
CHALLENGE = {"session": "1f", "nonce": "cd" * 32, "pcrs": [0, 7], "ima_from": None, "bootlog": None}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    path = tmp_path / "guest/proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True)
    path.write_text("boot-1\n")
    return Layout(root=tmp_path / "guest")


def answered(layout: Layout, monkeypatch: pytest.MonkeyPatch, kernel: FakeKernel, **changes: Any) -> Evidence:
    (layout.root / configfs.FOLDER).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(configfs, "Kernel", lambda: kernel)
    found = master_result.answer(layout, terms.of(Attestation()), "web1", MASTER, {**CHALLENGE, **changes})
    return parse_evidence(found["evidence"])


def test_a_guest_that_is_asked_brings_a_report_for_the_challenge(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel()
    evidence = answered(layout, monkeypatch, kernel, tee=True)
    asked = Context(MASTER, "web1", "1f", bytes.fromhex("cd" * 32), binding=b"boot-1")
    assert evidence.tee == TeeReport(
        "sev_guest", b"report over " + asked.report_data(evidence.key), b"certificates", None
    )
    assert kernel.entries == {}
    assert answered(layout, monkeypatch, kernel).tee is None, "who is not asked brings none"


def test_a_td_brings_its_log_without_the_padding(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layout.root / attester.TEE_LOG
    path.parent.mkdir(parents=True)
    path.write_bytes(tee_forge.ccel(*EVENTS, pad=b"\xff" * 200_000))
    evidence = answered(layout, monkeypatch, FakeKernel("tdx_guest", None, None), tee=True)
    assert evidence.tee is not None and evidence.tee.log == tee_forge.ccel(*EVENTS, pad=b"")
    path.write_bytes(b"not a log")
    evidence = answered(layout, monkeypatch, FakeKernel("tdx_guest", None, None), tee=True)
    assert evidence.tee is not None and evidence.tee.log == b"not a log"


def test_a_kernel_that_gives_no_report_leaves_the_rest(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = FakeKernel()
    kernel.fail = {"outblob": 5}
    with caplog.at_level(logging.WARNING):
        evidence = answered(layout, monkeypatch, kernel, tee=True)
    assert evidence.tee is None and evidence.signature and kernel.entries == {}
    assert "no TEE report" in caplog.text


@pytest.mark.parametrize("value", [False, None, 1, "yes", {}])
def test_a_challenge_that_asks_otherwise_is_none(layout: Layout, value: Any) -> None:
    with pytest.raises(refusals.Malformed, match="tee"):
        master_result.answer(layout, terms.of(Attestation()), "web1", MASTER, {**CHALLENGE, "tee": value})


def test_the_host_tells_what_its_level_rests_on(layout: Layout, tmp_path: Path) -> None:
    from test_verdict import Host, declared, token

    signer = ear.signer(tmp_path / "verifier")
    host = Host(layout, declared(signer))
    told = {"kind": "snp", "measurement": LAUNCH.hex(), "tcb": tee_forge.TCB, "code": "ok"}
    host.answer()
    host.accept(token(signer, nonce="cd" * 32, tee=told), signer)
    assert Attestations(layout).status()["tee"] == told
    loaded = result.load(layout)
    assert loaded is not None and loaded.tee == told


def test_a_result_of_before_there_were_any_is_read(layout: Layout) -> None:
    from netspace import files

    now = time.time()
    made = result.Result(1, "self", "why", "how", "boot-1", now, now + 60, {}, "", {})
    record = {"v": result.VERSION, **dataclasses.asdict(made)}
    del record["tee"]
    files.write_json(result.path(layout), record)
    assert result.load(layout) == made


# -- the master's folder and runner -----------------------------------------------------
def folder(path: Path) -> Path:
    amd, intel = Amd(), Intel()
    path.mkdir()
    pem = [pyca.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in (amd.root, amd.ask)]
    (path / "amd.pem").write_bytes(b"".join(pem))
    (path / "vcek.der").write_bytes(amd.leaf())
    (path / "intel.crt").write_bytes(intel.root)
    (path / "tcb.der").write_bytes(intel.tcb)
    (path / "amd.crl").write_bytes(tee_forge.revocations("ARK", amd.root_key, []))
    (path / "tcb.json").write_bytes(intel.document("tcbInfo", tee_forge.tcb_info()))
    (path / "README").write_text("not looked at")
    return path


def test_the_operators_folder_is_read(tmp_path: Path) -> None:
    found = roots.read(str(folder(tmp_path / "roots")))
    names = [x509.load(one).subject.rfc4514_string() for one in (*found.roots, *found.known)]
    assert names[:2] == ["CN=ARK", "CN=Intel SGX Root CA"] and len(found.roots) == 2
    assert names[2:] == ["CN=SEV-Milan", "CN=Intel SGX TCB Signing", "CN=SEV-VCEK"]
    assert len(found.lists) == len(found.documents) == 1
    assert roots.read(None).roots == ()


@pytest.mark.parametrize("name", ["bad.pem", "bad.der", "bad.crl", "bad.json"])
def test_a_damaged_file_in_the_folder_is_an_error(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "roots")
    (path / name).write_bytes(b"damaged")
    with pytest.raises(NetspaceError, match=name):
        roots.read(str(path))
    with pytest.raises(NetspaceError, match="tee_roots"):
        roots.read(str(tmp_path / "nowhere"))


def test_no_block_of_a_file_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    path = folder(tmp_path / "roots")
    good = (path / "amd.pem").read_bytes()
    (path / "amd.pem").write_bytes(good[:-20])
    with pytest.raises(NetspaceError, match=r"amd\.pem: certificates: PEM at byte \d+: the block has no END line"):
        roots.read(str(path))
    listed = pyca.load_der_x509_crl((path / "amd.crl").read_bytes()).public_bytes(Encoding.PEM)
    (path / "amd.pem").write_bytes(good + listed)
    with pytest.raises(NetspaceError, match=r"amd\.pem: certificate: "):
        roots.read(str(path))


def test_a_list_whose_name_is_in_the_wrong_order_is_an_error(tmp_path: Path) -> None:
    """A TEE's revocation list is refused if its name is in the wrong order for DER.

    Revocation lists of TPM makers are accepted with such a name.
    """
    parts = [pyca.NameAttribute(pyca.NameOID.COMMON_NAME, "A"), pyca.NameAttribute(pyca.NameOID.COUNTRY_NAME, "TW")]
    name = pyca.Name([pyca.RelativeDistinguishedName(parts)])
    # A name of one set has a head of four bytes.
    alone = [pyca.Name([pyca.RelativeDistinguishedName([one])]).public_bytes()[4:] for one in parts]
    wrong = next(both for both in (alone[0] + alone[1], alone[1] + alone[0]) if both not in name.public_bytes())
    good = tee_forge.revocations(name, Amd().root_key, [])
    raw = good.replace(name.public_bytes()[4:], wrong)
    assert ek_certificates.revocations(raw) == raw != good
    path = folder(tmp_path / "roots")
    (path / "odd.crl").write_bytes(raw)
    with pytest.raises(NetspaceError, match=r"tee_roots: .*/odd\.crl: revocation list: .*; get it again"):
        roots.read(str(path))


def test_the_runner_asks_judges_and_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way is tested: the operator's folder, a policy in force, the challenge, and the output."""
    path = folder(tmp_path / "roots")
    settings = {"tee_roots": str(path), "groups": [{"name": "web", "match": ["web*"], "minimum": "L3"}]}
    runner, master = runner_bus.load(tmp_path, settings)
    monkeypatch.setattr(runner.time, "time", lambda: NOW)
    monkeypatch.setattr(runner, "_announce", lambda *_: None)
    monkeypatch.setattr(runner, "_known", lambda made, pattern: ["web1"])
    made = runner._fleet()
    made.registrar.ca.init(NOW)
    made.policies.put("web", {"version": 1, "tee": {**SECTION, "rooted_key": True}})
    asked = made.ask("web1")
    key = software_key.load(Layout(root=tmp_path / "host"))
    bound = Context(master, "web1", asked.session, asked.nonce, binding=BOOT.encode())
    evidence = attester.by_key(key, bound)
    report = TeeReport("sev_guest", Amd().report(bound.report_data(key.public)))
    plain = {"boot": BOOT, "evidence": dataclasses.replace(evidence, tee=report).wire()}
    monkeypatch.setattr(runner, "_salt_key", lambda minion: runner_bus.SALT_PUBLIC)
    made = runner._fleet()
    found = runner_bus.signed("answer", master, "web1", asked.wire(), plain)
    assert made.judge(asked, found, NOW)["code"] == "tee-boot"
    shown = runner.explain("web1")
    assert shown["state"].startswith("trusted, L3") and shown["tee"]["measurement"] == LAUNCH.hex()
    assert runner.status()["web1"]["tee"]["code"] == "ok"


def test_a_folder_that_can_not_be_read_judges_nobody_wrongly(made: Fleet, key: software_key.Key) -> None:
    """The folder of TEE roots can't be read: hosts whose policy needs it keep their result, others are appraised."""
    assert judged(made, key)["level"] == 1

    def unreadable() -> Any:
        return roots.read("/nowhere")

    made._trust = unreadable
    with pytest.raises(NetspaceError, match="tee_roots"):
        judged(made, key)
    assert made.standing("web1", NOW).shown(NOW)["tee"]["code"] == "ok", "the last result stands"
    asked = made.ask("other")
    assert made.judge(asked, guest(asked, key), NOW)["level"] == 1


def test_the_runner_checks_reports_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "roots")
    runner, _ = runner_bus.load(tmp_path, {"tee_roots": str(path)})
    monkeypatch.setattr(runner.time, "time", lambda: NOW)
    (tmp_path / "snp").write_bytes(Amd().report(b"\xab" * 64))
    found = runner.verify_tee(str(tmp_path / "snp"), data="ab" * 64)
    assert found["valid"] and found["report"]["measurement"] == LAUNCH.hex() and "retcode" not in found
    assert {one["check"] for one in found["checks"]} == {"tee-signature", "tee-binding", "tee-policy"}
    found = runner.verify_tee(str(tmp_path / "snp"), data="cd" * 64)
    assert (found["code"], found["retcode"]) == ("tee-binding", 1)
    (tmp_path / "tdx").write_bytes(Intel().quote(registers=rtmrs(*EVENTS)))
    (tmp_path / "log").write_bytes(tee_forge.ccel(*EVENTS))
    found = runner.verify_tee(str(tmp_path / "tdx"), folder=str(path), ccel=str(tmp_path / "log"))
    assert found["valid"] and "tee-log" in {one["check"] for one in found["checks"]}
    (tmp_path / "log").write_bytes(tee_forge.ccel(*EVENTS[1:]))
    assert runner.verify_tee(str(tmp_path / "tdx"), ccel=str(tmp_path / "log"))["code"] == "tee-log"
    (tmp_path / "policy").write_text(f"version: 1\ntee: {{snp: {{measurements: ['{LAUNCH.hex()}']}}}}\n")
    assert runner.verify_tee(str(tmp_path / "snp"), policy=str(tmp_path / "policy"))["valid"]
    assert runner.verify_tee(str(tmp_path / "tdx"), policy=str(tmp_path / "policy"))["code"] == "tee-kind"
    (tmp_path / "policy").write_text("version: 1\n")
    assert "no section 'tee'" in str(runner.verify_tee(str(tmp_path / "snp"), policy=str(tmp_path / "policy")))
    (tmp_path / "snp").write_bytes(b"neither")
    assert runner.verify_tee(str(tmp_path / "snp"))["code"] == "tee-malformed"
