"""A host that appraises its own evidence from a real (software) TPM gets the level that the evidence proves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from netspace.attestation import result
from netspace.attestation.minion import attester, self_appraisal
from netspace.attestation.reconciler import Attestations
from netspace.attestation.tpm import device as tpm
from netspace.attestation.tpm import structures
from netspace.layout import Layout
from netspace.plan import Outcome
from netspace.spec.types import Attestation


def converge(layout: Layout, desired: Attestation) -> list[Outcome]:
    kind = Attestations(layout)
    outcomes = kind.apply(kind.plan(desired, kind.observe()).steps)
    if not any(outcome.error for outcome in outcomes):
        assert not kind.plan(desired, kind.observe()).steps
    return outcomes


def reboot(layout: Layout, name: str) -> None:
    (layout.root / "proc/sys/kernel/random/boot_id").write_text(name)


def test_a_tpm_without_a_certificate_is_pinned_and_gives_l2(layout: Layout, make_tpm: Callable) -> None:
    device = make_tpm()
    (outcome,) = converge(layout, Attestation(tpm=device.tcti))
    assert not outcome.error
    assert outcome.step.changes["level"] == {"old": None, "new": "L2"}
    trust = result.trust(layout)
    assert (trust.level, trust.verifier) == (2, "self")
    assert "no endorsement certificate" in trust.reason
    assert self_appraisal.pin(layout) is not None


def test_a_certificate_that_chains_to_the_roots_gives_l3(layout: Layout, make_tpm: Callable, factory) -> None:
    device = make_tpm(factory)
    (outcome,) = converge(layout, Attestation(tpm=device.tcti, roots=str(factory.roots)))
    assert not outcome.error
    assert result.trust(layout).level == 3
    status = Attestations(layout).status()
    assert status["level"] == "L3" and status["verifier"] == "self"
    assert status["tpm"]["manufacturer"] == "IBM" and status["tpm"]["template"] == "EK-RSA2048"
    assert "references" in status["remedy"]


def test_a_certificate_on_p_256_in_nv_is_taken_before_rsa_and_gives_l3(
    layout: Layout, make_tpm: Callable, factory, tmp_path: Path
) -> None:
    """A TPM with an RSA and a P-256 certificate in its NV memory attests with the P-256 key, and reaches L3.

    The test issues the P-256 certificate, since the tool of swtpm certifies only RSA-2048 and P-384.
    """
    device = make_tpm(factory)
    public = tpm.run(device.tcti, lambda one: one.endorsement("EK-ECC256").public, lock=tmp_path / "lock")
    certificate = factory.certify(structures.public(public).key()).public_bytes(serialization.Encoding.DER)
    (tmp_path / "ek.der").write_bytes(certificate)
    rights = "ppwrite|ppread|authread|ownerread|no_da|platformcreate"
    for command in (
        ["tpm2_nvdefine", "0x01c0000a", "-C", "p", "-s", str(len(certificate)), "-a", rights],
        ["tpm2_nvwrite", "0x01c0000a", "-C", "p", "-i", str(tmp_path / "ek.der")],
    ):
        subprocess.run([*command, "-T", device.tcti], check=True, stdout=subprocess.DEVNULL)
    (outcome,) = converge(layout, Attestation(tpm=device.tcti, roots=str(factory.roots)))
    assert not outcome.error
    status = Attestations(layout).status()
    assert (status["level"], status["tpm"]["template"]) == ("L3", "EK-ECC256"), status


def test_another_makers_roots_give_l2(layout: Layout, make_tpm: Callable, factory, other_factory) -> None:
    device = make_tpm(factory)
    converge(layout, Attestation(tpm=device.tcti, roots=str(other_factory.roots)))
    trust = result.trust(layout)
    # Both makers' CAs have the same name, so it is the signature that tells them apart.
    assert trust.level == 2 and "does not chain to a root" in trust.reason and "did not sign" in trust.reason


def test_without_a_tpm_it_is_l1(layout: Layout) -> None:
    (outcome,) = converge(layout, Attestation())
    assert not outcome.error and outcome.step.changes["level"]["new"] == "L1"
    assert (layout.records("attestation") / "key.json").stat().st_mode & 0o777 == 0o600


def test_roots_that_come_later_raise_the_level(layout: Layout, make_tpm: Callable, factory, tmp_path: Path) -> None:
    roots = tmp_path / "roots"
    roots.mkdir()
    desired = Attestation(tpm=make_tpm(factory).tcti, roots=str(roots))
    converge(layout, desired)
    assert result.trust(layout).level == 2
    for one in factory.roots.iterdir():
        (roots / one.name).write_bytes(one.read_bytes())
    (outcome,) = converge(layout, desired)
    assert outcome.step.changes["level"] == {"old": "L2", "new": "L3"}


def test_references_for_a_boot_without_a_log_do_not_give_l4(
    layout: Layout, make_tpm: Callable, factory, tmp_path: Path
) -> None:
    references = tmp_path / "references.json"
    references.write_text(json.dumps({"sha256": {str(pcr): ["00" * 32] for pcr in range(8)}}))
    converge(layout, Attestation(tpm=make_tpm(factory).tcti, roots=str(factory.roots), references=str(references)))
    trust = result.trust(layout)
    assert trust.level == 3 and "no boot log" in trust.reason


@pytest.fixture
def booted(layout: Layout, make_tpm: Callable, factory, tmp_path: Path):
    """A host whose TPM has measured a boot, with the boot's log and with references that match only this boot."""
    from netspace.attestation.logs import eventlog

    raw = (Path(__file__).parents[2] / "fixtures/eventlogs/uki/binary_bios_measurements").read_bytes()
    device = make_tpm(factory)
    parsed = eventlog.parse(raw)

    def extend(dev: tpm.Device) -> None:
        tss = dev._tss
        for event in parsed.events:
            if event.type != eventlog.NO_ACTION:
                digest = tss.TPMT_HA(hashAlg=tss.constants.TPM2_ALG.SHA256)
                digest.digest.sha256 = event.digests["sha256"]
                dev._esapi.pcr_extend(tss.ESYS_TR(event.pcr), tss.TPML_DIGEST_VALUES([digest]))

    tpm.run(device.tcti, extend, lock=tmp_path / "lock")
    log = layout.root / attester.BOOT_LOG
    log.parent.mkdir(parents=True)
    log.write_bytes(raw)
    references = tmp_path / "references.json"
    values = {str(pcr): [value.hex()] for pcr, value in parsed.replay("sha256").items()}
    references.write_text(json.dumps({"sha256": values}))
    return Attestation(tpm=device.tcti, roots=str(factory.roots), references=str(references)), log, references


def test_a_boot_as_recorded_gives_l4(layout: Layout, booted) -> None:
    desired, _, _ = booted
    (outcome,) = converge(layout, desired)
    assert outcome.step.changes["level"]["new"] == "L4", outcome.step.reason


def test_a_boot_log_that_leaves_something_out_does_not_give_l4(layout: Layout, booted) -> None:
    desired, log, _ = booted
    log.write_bytes(log.read_bytes()[:100])
    converge(layout, desired)
    trust = result.trust(layout)
    assert trust.level == 3 and "log-malformed" in trust.reason


def test_a_boot_that_is_not_among_the_references_does_not_give_l4(layout: Layout, booted) -> None:
    desired, _, references = booted
    known = json.loads(references.read_text())
    known["sha256"]["4"] = ["11" * 32]
    references.write_text(json.dumps(known))
    converge(layout, desired)
    trust = result.trust(layout)
    assert trust.level == 3 and "PCR 4" in trust.reason


def test_another_tpm_than_the_pinned_one_is_refused(layout: Layout, make_tpm: Callable) -> None:
    converge(layout, Attestation(tpm=make_tpm().tcti))
    (outcome,) = converge(layout, Attestation(tpm=make_tpm().tcti))
    assert "ek-changed" in outcome.error
    assert outcome.step.changes["level"] == {"old": "L2", "new": "L0"}
    assert result.trust(layout).level == 0


def test_a_cleared_tpm_is_refused_until_it_is_forgotten(layout: Layout, make_tpm: Callable) -> None:
    device = make_tpm()
    desired = Attestation(tpm=device.tcti)
    for name in ("second", "third"):  # resetCount grows with each start
        converge(layout, desired)
        device.stop()
        device.start()
        reboot(layout, name)
    converge(layout, desired)

    def clear(dev: tpm.Device) -> None:
        dev._esapi.clear(dev._tss.ESYS_TR.LOCKOUT)

    tpm.run(device.tcti, clear, lock=layout.root / "lock")
    reboot(layout, "fourth")
    (outcome,) = converge(layout, desired)
    assert "[clock]" in outcome.error
    kind = Attestations(layout)
    kind.apply(kind.plan(desired, kind.observe(), {"host"}).steps)
    (outcome,) = converge(layout, desired)
    assert not outcome.error and result.trust(layout).level == 2


def test_prefer_falls_back_to_the_software_key_and_returns_to_the_tpm(layout: Layout, make_tpm: Callable) -> None:
    device = make_tpm()
    device.stop()
    desired = Attestation(tpm=device.tcti, policy="prefer")
    (outcome,) = converge(layout, desired)
    assert not outcome.error
    trust = result.trust(layout)
    assert trust.level == 1 and "does not exist; fell back to a software key" in trust.reason
    kind = Attestations(layout)
    assert any("fell back" in note for note in kind.plan(desired, kind.observe()).notes)
    device.start()
    (outcome,) = converge(layout, desired)
    assert outcome.step.changes["level"] == {"old": "L1", "new": "L2"}


def test_require_fails_without_the_configured_tpm_and_an_old_result_does_not_stay(
    layout: Layout, make_tpm: Callable
) -> None:
    device = make_tpm()
    desired = Attestation(tpm=device.tcti, policy="require")
    converge(layout, desired)
    assert result.trust(layout).level == 2
    device.stop()
    (outcome,) = converge(layout, desired)
    assert "does not exist" in outcome.error
    assert result.trust(layout).level == 0


def test_off_asks_nothing(layout: Layout) -> None:
    assert converge(layout, Attestation(tpm="device:/nonexistent", policy="off")) == []
    assert not layout.records("attestation").exists()


@pytest.mark.parametrize("policy", ["prefer", "require"])
def test_a_tpm_that_goes_half_way(
    layout: Layout, make_tpm: Callable, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    device = make_tpm()
    activate = attester.activate

    def gone(*arguments):
        device.stop()
        return activate(*arguments)

    monkeypatch.setattr(attester, "activate", gone)
    desired = Attestation(tpm=device.tcti, policy=policy)
    kind = Attestations(layout)
    (outcome,) = kind.apply(kind.plan(desired, kind.observe()).steps)
    assert bool(outcome.error) == (policy == "require")
    assert result.trust(layout).level == (0 if policy == "require" else 1)
    assert not self_appraisal.pin_path(layout).exists()


def test_a_tpm_that_hangs_does_not_hang_the_host(make_tpm: Callable, tmp_path: Path) -> None:
    device = make_tpm()
    device.pause()
    with pytest.raises(tpm.DeviceError, match=r"no answer within 0\.3 s"):
        tpm.run(device.tcti, lambda dev: dev.information(), lock=tmp_path / "lock", timeout=0.3)
    with pytest.raises(tpm.DeviceError, match="in use by another process"):
        tpm.run(device.tcti, lambda dev: dev.information(), lock=tmp_path / "lock", timeout=0.1)


def test_no_object_stays_in_the_tpm(layout: Layout, make_tpm: Callable, tmp_path: Path) -> None:
    desired = Attestation(tpm=make_tpm().tcti)
    converge(layout, desired)

    def handles(device: tpm.Device) -> list[int]:
        found = []
        for first in (0x80000000, 0x02000000, 0x03000000, 0x81000000):  # transient, sessions, persistent
            capability = device._esapi.get_capability(device._tss.constants.TPM2_CAP.HANDLES, first, 16)[1]
            found += [int(handle) for handle in capability.data.handles]
        return found

    assert tpm.run(desired.tpm, handles, lock=tmp_path / "lock") == []


def test_a_reboot_is_appraised_again_by_restore(layout: Layout, make_tpm: Callable) -> None:
    device = make_tpm()
    converge(layout, Attestation(tpm=device.tcti))
    assert Attestations(layout).restore() == []
    device.stop()
    device.start()
    reboot(layout, "second")
    assert result.trust(layout).level == 0
    (outcome,) = Attestations(layout).restore()
    assert not outcome.error
    assert result.trust(layout).level == 2


def test_nothing_to_do_imports_nothing_heavy_and_writes_nothing(layout: Layout, make_tpm: Callable) -> None:
    desired = Attestation(tpm=make_tpm().tcti)
    converge(layout, desired)
    folder = layout.records("attestation")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    program = f"""
import sys
from pathlib import Path
from netspace.attestation.reconciler import Attestations
from netspace.attestation import result
from netspace.layout import Layout
from netspace.spec.parse import convert
from netspace.spec.types import Attestation
layout = Layout(root=Path({str(layout.root)!r}))
kind = Attestations(layout)
plan = kind.plan(convert({msgspec.to_builtins(desired)!r}, Attestation, "x"), kind.observe())
assert not plan.steps, plan
assert kind.apply(plan.steps) == []
assert result.trust(layout).level == 2
heavy = [name for name in sys.modules if name.split(".")[0] in ("cryptography", "tpm2_pytss", "cffi", "subprocess")]
assert not heavy, heavy
"""
    library = str(Path(self_appraisal.__file__).parents[3])
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": library})
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before
