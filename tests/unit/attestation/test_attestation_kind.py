"""Planning of an appraisal, and the later validity of its stored result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.attestation import result
from netspace.attestation.minion import self_appraisal, settings, software_key
from netspace.attestation.reconciler import Attestations, Observed
from netspace.attestation.result import Result
from netspace.errors import NetspaceError, StateError
from netspace.layout import Layout
from netspace.spec.types import Attestation

NOW = 1_700_000_000.0
DESIRED = Attestation()
GOOD = Result(
    level=2,
    verifier="self",
    reason="why",
    remedy="how",
    boot="boot",
    issued=NOW,
    expires=NOW + 100,
    settings=settings.of(DESIRED),
    sources="s",
    tpm={},
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    path = tmp_path / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True)
    path.write_text("boot\n")
    return Layout(root=tmp_path)


def observed(found: Result | None = GOOD, **changes: Any) -> Observed:
    return dataclasses.replace(Observed(found, "", "boot", NOW + 1, "s", True), **changes)


def test_a_result_that_counts_needs_nothing() -> None:
    assert not Attestations.plan(DESIRED, observed()).steps


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (observed(None), "never appraised"),
        (observed(None, problem="damaged"), "damaged"),
        (observed(boot="other"), "restarted"),
        (observed(boot=""), "restarted"),
        (observed(now=NOW + 101), "expired"),
        (observed(now=NOW - 301), "future"),
        (observed(sources="t"), "roots"),
    ],
)
def test_when_an_appraisal_is_due(seen: Observed, reason: str) -> None:
    (step,) = Attestations.plan(DESIRED, seen).steps
    assert (step.kind, step.name, step.action) == ("attestation", "host", "appraise")
    assert reason in step.reason and not step.changes
    assert not Attestations.plan(Attestation(policy="off"), seen).steps


@pytest.mark.parametrize(
    "change", [{"tpm": "device:/x"}, {"roots": "/x"}, {"references": "/x"}, {"pcrs": (1,)}, {"policy": "require"}]
)
def test_other_settings(change: dict) -> None:
    (step,) = Attestations.plan(Attestation(**change), observed()).steps
    assert next(iter(change)) in step.reason


def test_what_enforcement_alone_needs_asks_for_no_appraisal() -> None:
    assert not Attestations.plan(Attestation(minimum="L5", pcrs=(7, 6, 5, 4, 3, 2, 1, 0, 0)), observed()).steps


def test_removal() -> None:
    (step,) = Attestations.plan(DESIRED, observed(), {"host"}).steps
    assert step.action == "remove"
    assert not Attestations.plan(DESIRED, observed(None, present=False), {"host"}).steps


def test_a_life(layout: Layout) -> None:
    """A host without a result gets a result by a software key (L1), and loses it (L0)."""
    kind = Attestations(layout)
    (outcome,) = kind.apply(kind.plan(DESIRED, kind.observe()).steps)
    assert not outcome.error
    assert outcome.step.changes["level"] == {"old": None, "new": "L1"}
    assert not kind.plan(DESIRED, kind.observe()).steps
    status = kind.status()
    assert status["level"] == "L1" and "attestation:tpm" in status["remedy"] and status["tpm"] == {}
    assert {path.name for path in layout.records("attestation").iterdir()} == {"key.json", "result.json"}
    (outcome,) = kind.apply(kind.plan(DESIRED, kind.observe(), {"host"}).steps)
    assert not outcome.error and not layout.records("attestation").exists()
    assert kind.status()["level"] == "L0"


def test_an_appraisal_that_changes_no_level_says_so(layout: Layout) -> None:
    kind = Attestations(layout)
    kind.apply(kind.plan(DESIRED, kind.observe()).steps)
    found = result.load(layout)
    result.save(layout, dataclasses.replace(found, expires=0.0))
    assert result.trust(layout).level == 0
    (outcome,) = kind.apply(kind.plan(DESIRED, kind.observe()).steps)
    assert outcome.step.changes.keys() == {"appraised"}


@pytest.mark.parametrize(
    "tcti",
    ["", "swtpm", "device:", "mssim:host=localhost", "swtpm:host=127.0.0.1,port=2321", "cmd:/bin/sh", "device:tpm0"],
)
def test_a_tcti_that_names_no_one_tpm(layout: Layout, tcti: str) -> None:
    kind = Attestations(layout)
    desired = Attestation(tpm=tcti, policy="require")
    (outcome,) = kind.apply(kind.plan(desired, kind.observe()).steps)
    assert "write device:/dev/tpmrm0" in outcome.error
    assert result.trust(layout).level == 0


def test_roots_that_are_not_there_are_an_error(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "tpm").touch()
    desired = Attestation(tpm=f"device:{tmp_path}/tpm", roots=str(tmp_path / "nowhere"))
    kind = Attestations(layout)
    (outcome,) = kind.apply(kind.plan(desired, kind.observe()).steps)
    assert "attestation:roots" in outcome.error and result.trust(layout).level == 0


def test_a_damaged_pin_is_not_made_anew(layout: Layout) -> None:
    path = self_appraisal.pin_path(layout)
    path.parent.mkdir(parents=True)
    for content in ({"v": 1}, {"v": 1, "template": "x", "ek": "y", "clock": {"clock": "1"}}):
        path.write_text(json.dumps(content))
        with pytest.raises(StateError, match="not a pinned TPM"):
            self_appraisal.pin(layout)


def test_trust(layout: Layout) -> None:
    assert result.trust(layout).level == 0
    result.save(layout, GOOD)
    assert result.load(layout) == GOOD
    assert result.trust(layout, NOW + 1).level == 2
    assert "expired" in result.trust(layout, NOW + 101).reason
    assert "future" in result.trust(layout, NOW - 301).reason
    (layout.root / "proc/sys/kernel/random/boot_id").write_text("other")
    assert "restarted" in result.trust(layout, NOW + 1).reason


def test_a_failed_appraisal_keeps_its_reason(layout: Layout) -> None:
    result.save(layout, dataclasses.replace(GOOD, level=0, reason="it burnt", expires=NOW))
    assert result.trust(layout, NOW + 50).reason == "it burnt"


@pytest.mark.parametrize(
    "change",
    [
        *({"level": 6}, {"level": -1}, {"level": True}, {"level": "5"}, {"issued": None}, {"v": 2}, {"extra": 1}),
        *({"boot": 1}, {"expires": "never"}, {"settings": []}, {"tpm": None}, {"fallback": 1}),
    ],
)
def test_a_result_that_is_none(layout: Layout, change: dict) -> None:
    result.save(layout, GOOD)
    record = json.loads(result.path(layout).read_text())
    result.path(layout).write_text(json.dumps({**record, **change}))
    assert result.trust(layout, NOW + 1).level == 0
    assert Attestations(layout).observe().problem
    assert Attestations(layout).status()["level"] == "L0"


@given(st.binary(max_size=200))
def test_noise_is_no_result(noise: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(root=Path(folder))
        result.path(layout).parent.mkdir(parents=True)
        result.path(layout).write_bytes(noise)
        assert result.trust(layout, NOW).level == 0


def test_a_clone_of_the_disk_gets_a_key_of_its_own(layout: Layout) -> None:
    machine = layout.root / "etc/machine-id"
    machine.parent.mkdir()
    machine.write_text("0" * 32)
    first = software_key.load(layout)
    assert software_key.load(layout).public == first.public
    assert "0" * 32 not in software_key.host_id(layout)
    machine.write_text("1" * 32)
    assert software_key.load(layout).public != first.public
    path = layout.records("attestation") / "key.json"
    assert path.stat().st_mode & 0o777 == 0o600
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "seed": record["seed"][:-4]}))
    with pytest.raises(NetspaceError) as caught:
        software_key.load(layout)
    assert record["seed"][:8] not in str(caught.value)


def test_software_evidence_is_refused_for_another_nonce_key_or_claim(layout: Layout, context) -> None:
    from netspace.attestation import refusals
    from netspace.attestation.minion import attester
    from netspace.attestation.verifier import verifier

    key = software_key.load(layout)
    evidence = attester.by_key(key, context)
    assert verifier.verify_software(evidence, key.public, context).level == 1
    other = dataclasses.replace(context, nonce=b"z" * 32)
    flipped = bytes([evidence.signature[0] ^ 1]) + evidence.signature[1:]
    for kind, arguments in (
        (refusals.WrongQualifyingData, (evidence, key.public, other)),
        (refusals.UnknownAttestationKey, (evidence, bytes(32), context)),
        (refusals.WrongSignature, (dataclasses.replace(evidence, signature=flipped), key.public, context)),
        (refusals.Malformed, (dataclasses.replace(evidence, pcrs={0: bytes(32)}), key.public, context)),
    ):
        with pytest.raises(kind):
            verifier.verify_software(*arguments)
