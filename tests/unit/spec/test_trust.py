"""Who may run with which trust."""

from __future__ import annotations

import pytest

from netspace.spec import parse, trust
from netspace.spec.trust import Trust
from netspace.spec.types import Requirement


@pytest.mark.parametrize(
    ("policy", "minimum", "level", "allowed", "comment"),
    [
        ("require", "L3", 3, True, ""),
        ("require", "L3", 5, True, ""),
        ("require", "L3", 2, False, "withheld"),
        ("prefer", "L3", 2, True, "goes on"),
        ("off", "L5", 0, True, ""),
        ("require", "L0", 0, True, ""),
    ],
)
def test_a_requirement_is_met_or_not(policy, minimum, level, allowed, comment):
    verdict = trust.judge(Requirement(policy=policy, minimum=minimum), Trust(level, "self", "why"))
    assert verdict.allowed is allowed
    assert comment in verdict.comment
    assert bool(verdict.comment) is bool(comment)


def test_only_what_demands_more_is_withheld_and_its_links_with_it():
    declared = parse.declaration(
        {
            "attestation": {"policy": "prefer", "minimum": "L1"},
            "environments": {
                "plain": {"image": "tar:/x"},
                "other": {"image": "tar:/x"},
                "vault": {"image": "tar:/x", "attestation": {"policy": "require", "minimum": "L3"}},
            },
            "links": [
                {"from": "plain", "to": "vault"},
                {"from": "plain", "to": "other"},
                {"from": "other", "to": "plain", "attestation": {"policy": "require", "minimum": "L2"}},
            ],
        }
    )
    here = Trust(1, "self", "no TPM")
    assert {name: verdict.allowed for name, verdict in trust.environments(declared, here).items()} == {
        "plain": True,
        "other": True,
        "vault": False,
    }
    assert {name: verdict.allowed for name, verdict in trust.links(declared, here).items()} == {
        "plain.vault": False,
        "plain.other": True,
        "other.plain": False,
    }
    assert "vault" in trust.links(declared, here)["plain.vault"].comment
