"""Policies learned from a fleet's hosts, and tried on them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.attestation.honest_minion import NOW, Minion
from support.attestation.small_fleet import (
    Store,
    answer,
    attest,
    by_software,
    judged,
)

from netspace.attestation.fleet import fleet, policies
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.learning.policy import Wish
from netspace.attestation.minion import software_key
from netspace.attestation.policy import policy
from netspace.attestation.registrar.host_record import key_of
from netspace.errors import NetspaceError
from netspace.layout import Layout


def learn(made: Fleet, minion: Minion) -> tuple[Any, dict[str, Any]]:
    attest(made, minion)
    group, found = made.learn(["web1"], Wish())
    assert group == "web"
    return found.before, found.after


def test_learning_shows_a_difference_and_keeps_what_was_good(made: Fleet, minion: Minion) -> None:
    before, after = learn(made, minion)
    assert before is None and after["version"] == 1 and set(after["boot"]["pcrs"]) == {str(pcr) for pcr in range(8)}
    assert any(line.startswith("+") and minion.tpm.pcrs[0].hex() in line for line in policies.diff(before, after))
    policy.parse(after)
    made.policies.put("web", after)
    before, same = learn(made, minion)
    assert before == same and policies.diff(before, same) == []
    old = minion.tpm.pcrs[4]
    minion.tpm.pcrs[4] = bytes([7]) * 32
    before, after = learn(made, minion)
    assert after["version"] == 2 and after["boot"]["pcrs"]["4"] == [old.hex(), "07" * 32]


def test_nothing_is_learned_from_what_was_refused_or_of_two_groups(made: Fleet, minion: Minion, tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match="never attested; attest this host"):
        made.learn(["web1"], Wish())
    attest(made, minion, session="other")
    with pytest.raises(NetspaceError, match="attest this host successfully"):
        made.learn(["web1"], Wish())
    with pytest.raises(NetspaceError, match="default, web: learn from the hosts of one"):
        made.learn(["web1", "db1"], Wish())
    asked = made.ask("web7")
    made.judge(asked, by_software(asked, software_key.load(Layout(root=tmp_path / "soft"))), NOW)
    with pytest.raises(NetspaceError, match="has no TPM"):
        made.learn(["web7"], Wish())
    attest(made, minion)
    with pytest.raises(NetspaceError, match="sent no measurement list"):
        made.learn(["web1"], Wish(ima=True))
    many = [f"web{number}" for number in range(fleet.MAX_LISTED + 1)]
    with pytest.raises(NetspaceError, match="at most 32 hosts at a time"):
        made.learn(many, Wish(ima=True))


def test_nothing_is_learned_where_the_log_was_lost(made: Fleet, minion: Minion, store: Store, logged: bytes) -> None:
    judged(made, minion, logged)
    assert made.learn(["web1"], Wish())[1].after["boot"]["secure_boot"] is True
    store.data["log", key_of("web1")] = {}
    with pytest.raises(NetspaceError, match="not kept any more; attest this host"):
        made.learn(["web1"], Wish())


def test_a_policy_is_tried_on_the_last_evidence(made: Fleet, minion: Minion, store: Store) -> None:
    proposed = policy.parse({"version": 1, "boot": {"pcrs": {str(pcr): ["00" * 32] for pcr in range(8)}}})
    assert made.tried("web1", proposed)["new"] is None
    attest(made, minion)
    assert made.tried("web1", proposed) == {
        "old": "L2",
        "new": "L2",
        "code": "ek-untrusted",
        "reason": "the TPM has no endorsement certificate",
    }
    store.data["state", key_of("web1")] = {}
    assert made.tried("web1", proposed)["code"] == "evidence-none"


def test_a_policy_that_would_cost_a_host_its_level_says_so(made: Fleet, minion: Minion) -> None:
    """Two policies are tried on the same evidence of a trusted TPM: one accepts the boot, the other does not."""
    from support.attestation.boot_forge import edited

    boot, pcrs = edited("shim-grub", lambda found: None)
    minion.tpm.pcrs.update(pcrs)
    record = made.registrar.host("web1")
    assert record is not None
    (path,) = (made.registrar.folder / "hosts").iterdir()
    path.write_text(json.dumps({**record, "level": 3, "reason": ""}))
    good = {"version": 1, "boot": {"pcrs": {str(pcr): [minion.tpm.pcrs[pcr].hex()] for pcr in range(8)}}}
    made.policies.put("web", good)
    asked = made.ask("web1")
    wire = answer(asked, minion.tpm)
    wire["evidence"]["bootlog"] = base64.b64encode(boot).decode()
    assert made.judge(asked, wire, NOW)["level"] == 4
    worse = {"version": 2, "boot": {"pcrs": {**good["boot"]["pcrs"], "4": ["00" * 32]}}}
    tried = made.tried("web1", policy.parse(worse))
    assert (tried["old"], tried["new"], tried["code"]) == ("L4", "L3", "pcr-value")
    assert made.tried("web1", policy.parse({**good, "version": 2}))["new"] == "L4"
    assert made.policies.get("web").version == 1, "trying puts nothing in force"
