"""The policies in force: signed, never replaced by a lower version, and valid for a limited time."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.attestation.honest_minion import MASTER
from support.attestation.small_fleet import (
    Store,
)

from netspace.attestation import ear, refusals
from netspace.attestation.fleet import groups, policies
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.policy import policy


def test_a_policys_version_never_falls(made: Fleet, tmp_path: Path) -> None:
    assert made.policies.get("web") is None
    made.policies.put("web", {"version": 3})
    for version in (2, 3):
        with pytest.raises(refusals.PolicyDowngraded):
            made.policies.put("web", {"version": version})
    path = tmp_path / "master/policies/web.jws"
    old = path.read_bytes()
    made.policies.put("web", {"version": 4})
    path.write_bytes(old)  # somebody puts the old one back
    again = Fleet(made.registrar, MASTER, groups.parse([]), Store()).policies
    with pytest.raises(refusals.PolicyDowngraded):
        again.get("web")
    path.unlink()
    with pytest.raises(refusals.PolicyDowngraded):
        again.get("web")
    again.put("web", {"version": 5})
    assert again.get("web") is not None


def test_what_a_policy_allows_for_a_time_ends_by_the_clock_alone(made: Fleet, tmp_path: Path) -> None:
    now = [policy.when("2026-12-23")]
    kept = policies.Policies(tmp_path / "books", made.signer, lambda: now[0])
    rules = {
        "boot": {"kernels": ["ab" * 32], "pcrs": {"2": [], "4": []}},
        "until": {"2026-12-24": {"boot": {"kernels": ["cd" * 32]}}},
    }
    kept.put("web", {"version": 1, **rules})

    def kernels() -> int:
        found = kept.get("web")
        assert found is not None and found.boot is not None and found.boot.kernels is not None
        return len(found.boot.kernels)

    assert kernels() == 2
    now[0] += 86400
    assert kernels() == 1
    assert kept.data("web") == {"version": 1, **rules}, "what was signed stays as it was signed"
    now[0] -= 86400
    again = policies.Policies(tmp_path / "books", made.signer, lambda: now[0])
    assert again.get("web") is not None and again.get("web").changes == now[0] + 86400  # type: ignore[union-attr]


def test_a_policy_that_the_verifier_did_not_sign(made: Fleet, tmp_path: Path) -> None:
    made.policies.put("web", {"version": 1})
    made.policies.put("db", {"version": 1})
    path = tmp_path / "master/policies/web.jws"
    other = ear.signer(tmp_path / "other").sign(ear.POLICY, {"group": "web", "policy": {"version": 2}})
    for forged in (other.encode(), path.with_name("db.jws").read_bytes(), b"{}", b""):
        path.write_bytes(forged)
        with pytest.raises(refusals.PolicyForged):
            made.policies.data("web")
