"""A real master attests real minions over Salt's bus, and the minions enforce its signed results."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from saltfactories.manager import FactoriesManager
from support.hosts.whole_host import unfolded
from support.waiting import until
from test_registrar_fleet import Fleet, fleet, sockets

__all__ = ["fleet", "sockets"]
pytestmark = pytest.mark.root


def required(made: Fleet, name: str) -> dict[str, Any]:
    """Apply the attestation's state on a minion."""
    done = made.cli.run("state.apply", "netspace.attestation", minion_tgt=made.minions[name])
    (found,) = done.data.values()
    return dict(found)


def level(made: Fleet, name: str) -> tuple[str, str]:
    done = made.cli.run("netspace_attestation.status", minion_tgt=made.minions[name])
    return done.data["level"], done.data["verifier"]


def accept(made: Fleet, name: str, token: str, key: dict[str, str]) -> str:
    done = made.cli.run(
        "netspace_attestation.accept",
        f"tokens={json.dumps({made.minions[name]: token})}",
        f"key={json.dumps(key)}",
        minion_tgt=made.minions[name],
    )
    return str(done.data if done.data is not None else done.stdout)


def test_a_fleet_is_attested_and_enforces_it(fleet: Fleet, salt_factories: FactoriesManager) -> None:
    a, b = fleet.minions["a"], fleet.minions["b"]

    def told(state: str) -> None:
        """Check that Salt's bus has an event for *state*. The listener keeps an event for two minutes."""
        wanted = [(fleet.run.config["id"], f"netspace/attestation/{a}/{state}")]
        until(lambda: salt_factories.event_listener.get_events(wanted, after_time=since), f"no event: {state}")

    since = time.time()
    # From nothing: no host is trusted for having been seen.
    fleet.runner("ca_init")
    found, status = fleet.runner("attest", "*")
    assert status == 1 and {found[a]["state"], found[b]["state"]} == {"unknown"}
    assert f"netspace_attestation.enroll {a}" in found[a]["answer"], found

    for minion in (a, b):
        fleet.runner("enroll", minion)
    found, status = fleet.runner("status")
    assert status == 0 and {found[a]["state"], found[b]["state"]} == {"enrolled"}, found
    told("enrolled")
    found, status = fleet.runner("attest", "*")
    assert status == 0 and found[a]["state"] == found[b]["state"] == "trusted", found
    assert (found[a]["group"], found[b]["group"]) == ("alpha", "default")
    # a's TPM is by a maker that the master trusts, and nothing says yet what a good boot is; b's is not.
    assert (found[a]["level"], found[a]["code"]) == ("L3", "policy-none"), found
    assert (found[b]["level"], found[b]["code"]) == ("L2", "ek-untrusted"), found
    assert not found[a]["enforced"] and "verifier is 'self'" in found[a]["enforcement"]
    told("trusted")
    shown, _ = fleet.runner("explain", b)
    assert "does not chain to a root" in shown["why"] and "roots" in shown["to raise it"], shown
    for path in fleet.makers["b"].iterdir():
        shutil.copy(path, fleet.roots / f"b-{path.name}")
    found, status = fleet.runner("enroll", b)
    assert (status, found["level"]) == (0, "L3"), found

    # From now on the master's word counts, and nothing else.
    found, _ = fleet.runner("jwks")
    (key,) = found["keys"]
    fleet.also = {"verifier": "master", "verifier_keys": [key["kid"]], "policy": "require", "minimum": "L3"}
    fleet.give(a="a", b="b")
    for name in ("a", "b"):
        applied = required(fleet, name)
        assert applied["result"] is False and "has not judged this host since" in unfolded(applied["comment"]), applied
        assert level(fleet, name) == ("L0", "master")
    found, status = fleet.runner("attest", "*")
    assert status == 0 and found[a]["enforced"] and found[b]["enforced"], found
    for name in ("a", "b"):
        assert level(fleet, name) == ("L3", "master")
        applied = required(fleet, name)
        assert applied["result"] is True and not applied["changes"], applied

    # One minion's result is another's as little as it is good twice.
    found, _ = fleet.runner("ear_token", a)
    assert "[result-host]" in accept(fleet, "b", found["token"], key)
    assert "[result-nonce]" in accept(fleet, "a", found["token"], key)
    assert level(fleet, "b") == ("L3", "master")

    # a comes with another TPM: it fails, says why, and is withheld at the next apply.
    fleet.give(a="b")
    found, status = fleet.runner("attest", a)
    assert (status, found[a]["state"], found[a]["code"]) == (1, "failed", "ak-unknown"), found
    told("failed")
    assert required(fleet, "a")["result"] is False
    shown, _ = fleet.runner("explain", a)
    assert shown["state"].startswith("failed, L0") and "[ak-unknown]" in shown["why"] and shown["to raise it"]

    # Its TPM can't be reached: nothing is said of trust, what was known stays.
    fleet.give(b="/nonexistent")
    found, status = fleet.runner("attest", b)
    assert (status, found[b]["answered"], found[b]["state"]) == (0, False, "trusted"), found
    assert level(fleet, "b") == ("L3", "master")

    # Both are as they were: one command recovers them.
    fleet.give(a="a", b="b")
    found, status = fleet.runner("attest", "*")
    assert status == 0 and found[a]["state"] == found[b]["state"] == "trusted", found
    assert required(fleet, "a")["result"] is True

    books = Path(fleet.run.config["netspace.attestation"]["folder"])
    records = [json.loads(line) for line in (books / "audit.log").read_text().splitlines()]
    changes = [one["data"]["new"] for one in records if one["event"] == "state" and one["data"]["minion"] == a]
    assert changes == ["enrolled", "trusted", "failed", "trusted"]


def test_a_policy_is_learned_shown_signed_and_never_goes_back(fleet: Fleet, tmp_path: Path) -> None:
    a = fleet.minions["a"]
    found, status = fleet.runner("learn", a)
    assert status == 0 and found["signed"] is False and found["version"] == 1, found
    assert any(line.startswith("+") and '"pcrs"' in line for line in found["diff"])
    found, status = fleet.runner("policy_show", "alpha")
    assert (found["code"], status) == ("input", 1)
    found, status = fleet.runner("learn", a, "sign=True")
    assert status == 0 and found["signed"] is True
    found, status = fleet.runner("learn", a)
    assert found["diff"] == [] and found["version"] == 1

    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 2\nboot: {unchecked: [0, 1, 2, 3, 4, 5, 6, 7]}\n")
    found, status = fleet.runner("policy_check", "alpha", str(policy))
    assert status == 0 and found["version"] == {"in_force": 1, "proposed": 2} and found["same"] == [a], found
    found, status = fleet.runner("policy_set", "alpha", str(policy))
    assert (status, found["version"]) == (0, 2), found
    found, status = fleet.runner("policy_set", "alpha", str(policy))
    assert (found["code"], status) == ("policy-downgrade", 1)
    found, status = fleet.runner("attest", a)
    assert status == 0 and found[a]["policy_version"] == 2 and found[a]["enforced"], found

    # Somebody else writes a policy: nothing is judged by it, and a higher version mends it.
    books = Path(fleet.run.config["netspace.attestation"]["folder"])
    (books / "policies/alpha.jws").write_text("{}")
    found, status = fleet.runner("attest", a)
    assert found[a]["answered"] is False and "[policy-signature]" in found[a]["answer"], found
    policy.write_text(policy.read_text().replace("version: 2", "version: 3"))
    found, status = fleet.runner("policy_set", "alpha", str(policy))
    assert (status, found["version"]) == (0, 3), found
    found, status = fleet.runner("attest", a)
    assert status == 0 and found[a]["policy_version"] == 3, found
    found, status = fleet.runner("verify_log")
    assert status == 0 and found["valid"] is True
