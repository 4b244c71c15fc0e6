"""The attestation plugins, called through Salt's own loader, as by an operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netspace.attestation import evidence, result
from netspace.attestation.minion import host_facts, software_key
from netspace.attestation.reconciler import Attestations
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import verifier
from netspace.layout import Layout
from netspace.spec.types import Attestation

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[3]
NONCE = bytes(range(16)).hex()


@pytest.fixture
def load() -> Callable[..., Any]:
    import salt.config
    import salt.loader.lazy

    def load(kind: str, pillar: dict | None = None, instance: str = "netspace") -> Any:
        opts = {**salt.config.DEFAULT_MINION_OPTS, "netspace.instance": instance}
        pack = {"__pillar__": {"netspace": pillar or {}}, "__grains__": {}, "__salt__": {}, "__context__": {}}
        return salt.loader.lazy.LazyLoader([str(ROOT / f"_{kind}")], opts, tag=kind.rstrip("s"), pack=pack)

    return load


@pytest.fixture
def host() -> Any:
    """The layout with the real paths of a host; in the sandbox, these folders belong to the test."""
    layout = Layout()
    kind = Attestations(layout)
    yield layout
    kind.apply(kind.plan(Attestation(), kind.observe(), {"host"}).steps)


def test_status_before_and_after(load: Callable, host: Layout) -> None:
    module = load("modules")
    before = module["netspace_attestation.status"]()
    assert before["level"] == "L0" and before["verifier"] == "none" and before["remedy"] == "apply the attestation"
    kind = Attestations(host)
    kind.apply(kind.plan(Attestation(), kind.observe()).steps)
    after = module["netspace_attestation.status"]()
    assert after["level"] == "L1" and after["verifier"] == "self"


def test_evidence_without_a_tpm(load: Callable, host: Layout) -> None:
    made = load("modules")["netspace_attestation.evidence"](NONCE, verifier="v", session="s")
    name = made.pop("host")
    parsed = evidence.parse(made)
    context = evidence.Context("v", name, "s", bytes.fromhex(NONCE))
    assert verifier.verify_software(parsed, software_key.load(host).public, context).level == 1


def test_evidence_by_a_tpm(load: Callable, host: Layout, make_tpm: Callable) -> None:
    pillar = {"attestation": {"tpm": make_tpm().tcti, "pcrs": [0, 7]}}
    made = load("modules", pillar)["netspace_attestation.evidence"](NONCE)
    name = made.pop("host")
    parsed = evidence.parse(made)
    assert parsed.kind == "tpm" and set(parsed.pcrs) == {0, 7}
    quote = structures.quote(parsed.attest)
    assert quote.extra == evidence.Context("", name, "", bytes.fromhex(NONCE)).qualifying()


@pytest.mark.parametrize("line", [-1, True, "3", 2**31])
def test_a_line_that_is_none(load: Callable, host: Layout, line: Any) -> None:
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match="ima_from"):
        load("modules", {})["netspace_attestation.evidence"](NONCE, ima_from=line)


@pytest.mark.parametrize(
    ("nonce", "pillar", "message"),
    [
        ("xyz", {}, "expected 16 to 64 bytes in hex"),
        ("00", {}, "a nonce of 1 bytes"),
        (NONCE, {"attestation": {"tpm": "device:/nowhere"}}, "/nowhere does not exist"),
        (NONCE, {"attestation": {"tmp": "x"}}, "did you mean tpm"),
    ],
)
def test_errors_are_for_the_operator(load: Callable, host: Layout, nonce: str, pillar: dict, message: str) -> None:
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match=message):
        load("modules", pillar)["netspace_attestation.evidence"](nonce)


def test_forget(load: Callable, host: Layout, make_tpm: Callable) -> None:
    kind = Attestations(host)
    kind.apply(kind.plan(Attestation(tpm=make_tpm().tcti), kind.observe()).steps)
    module = load("modules")
    assert module["netspace_attestation.forget"]() == {"forgotten": True}
    assert module["netspace_attestation.forget"]() == {"forgotten": False}
    assert result.trust(host).level == 0


def test_grains(load: Callable, host: Layout) -> None:
    grains = load("grains")["netspace.netspace_facts"]()
    assert grains == host_facts.facts()


def test_the_grain_of_the_base_is_read_from_files(load: Callable, host: Layout) -> None:
    from netspace.attestation.tcb import facts

    assert load("grains")["netspace_tcb.netspace_tcb"]() == {"netspace_tcb": facts.facts()}


def test_grains_add_what_the_appraisal_learnt(
    load: Callable, host: Layout, monkeypatch: pytest.MonkeyPatch, make_tpm: Callable
) -> None:
    import dataclasses

    kind = Attestations(host)
    kind.apply(kind.plan(Attestation(tpm=make_tpm().tcti), kind.observe()).steps)
    known = result.load(host)
    assert known is not None
    hardware = {**known.settings, "tpm": "device:/dev/tpmrm0"}
    result.save(host, dataclasses.replace(known, settings=hardware))
    found = {"tpm": {"present": True, "manufacturer": None, "firmware": None}}
    monkeypatch.setattr(host_facts, "facts", lambda: found)
    tpm = load("grains")["netspace.netspace_facts"]()["tpm"]
    assert tpm["manufacturer"] == "IBM" and tpm["firmware"]
