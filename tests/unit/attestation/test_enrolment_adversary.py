"""The forger of enrolments gains nothing undeserved. If a check is removed, the search finds the hole.

``NETSPACE_FORGERIES`` is the number of forged enrolments, by default a few hundred.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from support.attestation import enrolment_forger as forger
from support.attestation.enrolment_forger import Move
from support.attestation.enrolment_material import Material

from netspace.attestation import evidence
from netspace.attestation.endorsement import ek_certificates
from netspace.attestation.registrar import privacy_ca, registrar
from netspace.attestation.verifier import attestation_keys

FORGERIES = int(os.environ.get("NETSPACE_FORGERIES", "300"))
FIRST = int(os.environ.get("NETSPACE_FORGERIES_FROM", "0"))


@pytest.fixture(scope="module")
def material(fake_rsa_tpm: Any) -> Material:
    return Material(type(fake_rsa_tpm))


def told(problem: str, scene: list[Move]) -> str:
    return problem + "".join(f"\n  {number}. {move}" for number, move in enumerate(scene, 1))


@pytest.fixture
def forged(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Record the levels that the forger's own enrolments reach. The set grows as a test plays scenes."""
    levels: set[int] = set()
    whole = forger.Scene.undeserved

    def undeserved(scene: forger.Scene, minion: str, record: dict[str, Any], *, honest: bool) -> str:
        if not honest:
            levels.add(record["level"])
        return whole(scene, minion, record, honest=honest)

    monkeypatch.setattr(forger.Scene, "undeserved", undeserved)
    return levels


@pytest.mark.parametrize("listed", [False, True], ids=["no inventory", "inventory"])
def test_a_forger_of_enrolments_gets_nothing(material: Material, listed: bool, forged: set[int]) -> None:
    problem, _, scene = forger.search(material, FORGERIES // 2, FIRST, listed=listed)
    assert not problem, told(problem, scene)
    if FORGERIES >= 300:  # among so many he gets his due; by an inventory at most T1's, which has a certificate
        assert forged >= ({3} if listed else {2, 3}), forged


def test_the_forger_is_not_refused_for_clumsiness(material: Material) -> None:
    """Without a forgery, the forger's own TPM reaches its usual level, and so does a software key at first use."""
    scenes = [
        [Move("honest", "web1", "T1"), Move("forge", "web1", "T1.ecc"), Move("forge", "web3", "S.rsa")],
        [Move("forge", "web3", "T3.rsa", (("others", "all"),)), Move("honest", "web1", "T1")],
    ]
    levels: list[int] = []

    class Counted(registrar.Registrar):
        def finish(self, *arguments: Any) -> dict[str, Any]:
            record = super().finish(*arguments)
            levels.append(record["level"])
            return record

    for scene in scenes:
        assert forger.play(material, scene, 1, make=Counted) == ""
    assert levels == [3, 3, 2, 3, 3, 3, 3]


def without_claim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(privacy_ca, "claim", lambda owners, endorsement, minion: None)


def without_other_keys(patch: pytest.MonkeyPatch) -> None:
    """Let a TPM present only one of its keys, as an earlier version did."""
    parse = evidence.parse_enrolment

    def alone(data: Any) -> Any:
        return parse({**data, "others": []} if isinstance(data, dict) else data)

    patch.setattr(registrar, "parse_enrolment", alone)


def without_signatures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ek_certificates, "_unsigned", lambda found, issuer: "")


def without_attributes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attestation_keys, "check_attestation_key", lambda key: None)


def without_pin(patch: pytest.MonkeyPatch) -> None:
    challenge = attestation_keys.challenge
    patch.setattr(attestation_keys, "challenge", lambda *given, **named: challenge(*given, **{**named, "pinned": None}))


def without_the_certificates_key(patch: pytest.MonkeyPatch) -> None:
    """Accept any genuine certificate, even for another key."""

    def endorsed(enrolment: Any, endorsement: Any, roots: Any, lists: Any, now: float) -> str:
        try:
            ek_certificates.check(ek_certificates.der(enrolment.certificate or b""), enrolment.chain, roots, now, lists)
        except ek_certificates.Untrusted as err:
            return str(err)
        return ""

    patch.setattr(attestation_keys, "_endorsed", endorsed)


def without_new_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(registrar.Registrar, "_check_new", lambda *given: None)


def without_proof_of_the_others(patch: pytest.MonkeyPatch) -> None:
    """Accept an answer with only the first key's secret, so that a forger can claim any other key."""
    activation = evidence.Context.activation
    patch.setattr(evidence.Context, "activation", lambda self, secret, name: activation(self, secret[:32], name))


@pytest.mark.parametrize(
    ("take_out", "problem", "most", "first"),
    [
        (without_claim, "have one TPM, T1", 2, 150),
        (without_other_keys, "have one TPM, T1", 2, 430),
        (without_signatures, "no genuine TPM holds", 1, 0),
        (without_attributes, "could sign anything", 1, 50),
        (without_pin, "had .* has .* now", 2, 0),
        (without_the_certificates_key, "no genuine TPM holds", 1, 0),
        (without_new_keys, "has a certificate has another", 2, 30),
        (without_proof_of_the_others, "web2 can't be enrolled", 1, 0),
    ],
    ids=lambda one: one.__name__ if callable(one) else "",
)
def test_a_check_that_is_taken_out_is_found(
    material: Material,
    monkeypatch: pytest.MonkeyPatch,
    take_out: Callable[[pytest.MonkeyPatch], None],
    problem: str,
    most: int,
    first: int,
) -> None:
    """With one check removed, the search finds the expected problem first, in few moves.

    The search begins near its end, because from the beginning it takes up to 900 scenes.
    """
    take_out(monkeypatch)
    found, _, scene = forger.search(material, 20_000, first)
    assert re.search(problem, found), told(found, scene)
    assert len(scene) <= most, told(found, scene)
