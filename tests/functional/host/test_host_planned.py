"""The minion's side of a fleet's plan: this host's plan, and an apply that does exactly that plan or nothing."""

from __future__ import annotations

import copy
import fcntl
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.hosts.whole_host import IDLE, Salt, all_true, changes, python, shop
from support.waiting import until

from netspace.layout import Layout

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("clean")]


def planned(salt: Salt, declared: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of a declaration."""
    salt.declare(declared)
    found: dict[str, Any] = salt("netspace_fleet.plan")
    return found


def applied(salt: Salt, plan: dict[str, Any]) -> dict[str, Any]:
    """Apply exactly the given plan."""
    found: dict[str, Any] = salt("netspace_fleet.apply", f"expected={json.dumps([plan['digest']])}")
    return found


def running(salt: Salt) -> dict[str, str]:
    return {name: str(one["since"]) for name, one in salt("netspace_environment.list").items()}


def test_each_planned_change_is_applied_as_planned(salt: Salt, image: Path) -> None:
    whole = shop(image)
    other, smaller = copy.deepcopy(whole), copy.deepcopy(whole)
    other["environments"]["stranger"]["command"] = python(IDLE, "other")
    other["environments"]["stranger"]["limits"] = {"memory": "96M"}
    other["environments"]["more"] = {**whole["environments"]["stranger"], "interface": {"kind": "none"}}
    del smaller["environments"]["orders"]
    smaller["links"] = []
    nothing: dict[str, Any] = {"environments": {}}
    for declared in (whole, other, smaller, nothing, whole):
        plan = planned(salt, declared)
        assert plan["steps"] and planned(salt, declared) == plan, "it stays the same as long as nothing changes"
        done = applied(salt, plan)
        assert done == {"applied": True, "withheld": 0, "steps": done["steps"], "reason": ""} and done["steps"] > 0
        assert planned(salt, declared)["steps"] == []
        assert applied(salt, plan)["steps"] == 0, "there is nothing left to do"
    assert changes(salt.apply(whole)) == {}, "the states agree"
    assert set(running(salt)) == set(whole["environments"])


def test_a_planned_rename_is_applied(salt: Salt, image: Path) -> None:
    all_true(salt.apply(shop(image)))
    declared = shop(image)
    declared["environments"]["desk"] = {**declared["environments"].pop("orders"), "formerly": "orders"}
    declared["links"] = [{**declared["links"][0], "to": "desk"}]
    plan = planned(salt, declared)
    assert ("environment", "desk", "rename") in {(one["kind"], one["name"], one["action"]) for one in plan["steps"]}
    done = applied(salt, plan)
    assert done["applied"] is True and done["reason"] == "", done
    assert planned(salt, declared)["steps"] == [] and set(running(salt)) == {"desk", "web", "stranger"}


def test_a_changed_host_or_declaration_is_refused_by_name(salt: Salt, image: Path) -> None:
    all_true(salt.apply(shop(image)))
    declared = shop(image)
    declared["environments"]["stranger"]["command"] = python(IDLE, "other")
    plan = planned(salt, declared)
    before = running(salt)
    salt("netspace_environment.stop", "web")
    refused = salt.run("netspace_fleet.apply", f"expected={json.dumps([plan['digest']])}")
    assert refused.returncode != 0 and "its plan is no longer the same (now " in refused.stdout + refused.stderr
    assert {name: since for name, since in running(salt).items() if name != "web"} == {
        name: since for name, since in before.items() if name != "web"
    }
    salt("netspace_environment.start", "web")
    declared["environments"]["web"]["env"] = {"WORD": "secret"}
    plan = planned(salt, declared)
    assert "secret" not in json.dumps(plan)
    declared["environments"]["web"]["env"] = {"WORD": "other"}
    again = planned(salt, declared)
    assert again["steps"] == plan["steps"] and again["digest"] != plan["digest"], "a hidden value counts"
    refused = salt.run("netspace_fleet.apply", f"expected={json.dumps([plan['digest']])}")
    assert refused.returncode != 0 and "no longer the same" in refused.stdout + refused.stderr


def test_the_plan_is_compared_under_the_lock(salt: Salt, image: Path) -> None:
    """The host changes while an apply of a plan waits for the lock; the apply then refuses the outdated plan."""
    all_true(salt.apply(shop(image)))
    declared = shop(image)
    declared["environments"]["stranger"]["command"] = python(IDLE, "other")
    plan = planned(salt, declared)
    layout = Layout()
    with layout.lock.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inode = f":{layout.lock.stat().st_ino} "
        apply = subprocess.Popen(
            salt.command("netspace_fleet.apply", f"expected={json.dumps([plan['digest']])}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(
            lambda: any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines()),
            "the apply waits for the lock",
            patience=120,
        )
        netns = Path(salt("netspace_interface.list")["stranger"]["netns"]).name
        listed = subprocess.run(["ip", "-n", netns, "-j", "link"], check=True, capture_output=True).stdout
        (name,) = [one["ifname"] for one in json.loads(listed) if one["ifname"] != "lo"]
        subprocess.run(["ip", "-n", netns, "link", "del", name], check=True)
    output, _ = apply.communicate(timeout=300)
    assert apply.returncode != 0 and "no longer the same" in output, output


def test_what_ails_a_host_is_told(salt: Salt, image: Path) -> None:
    all_true(salt.apply(shop(image)))
    until(lambda: salt("netspace_fleet.ailing") == [], patience=120)
    salt("netspace_environment.stop", "web")
    assert [one.split(":")[0] for one in salt("netspace_fleet.ailing")] == ["web"]
    assert salt("netspace_fleet.ailing", "gate=[trust]") == []
    salt("netspace_environment.start", "web")
    until(lambda: salt("netspace_fleet.ailing") == [], patience=120)


def test_a_host_prepares_and_its_plan_stays_the_same(salt: Salt, image: Path, tmp_path: Path) -> None:
    all_true(salt.apply(shop(image)))
    newer = tmp_path / "newer.tar"
    shutil.copy(image, newer)
    with tarfile.open(newer, "a") as archive:
        archive.addfile(tarfile.TarInfo("usr/share/newer"))
    declared = shop(image)
    declared["environments"]["stranger"]["image"] = f"tar:{newer}"
    plan, before = planned(salt, declared), running(salt)
    assert salt("netspace_fleet.prepare") == [] == salt("netspace_fleet.prepare")
    sources = [source for row in salt("netspace_image.list").values() for source in row["sources"]]
    assert f"tar:{newer}" in sources
    assert planned(salt, declared) == plan and running(salt) == before
    assert applied(salt, plan)["applied"] is True
    declared["environments"]["web"]["image"] = f"tar:{tmp_path}/none.tar"
    declared["environments"]["stranger"]["attestation"] = {"policy": "require", "minimum": "L5"}
    planned(salt, declared)
    gates = {gate: salt("netspace_fleet.prepare", f"gate=[{gate}]") for gate in ("health", "trust")}
    assert [one.split(":")[0] for one in gates["health"]] == ["web"] and "none.tar" in gates["health"][0]
    assert [one.split(":")[0] for one in gates["trust"]] == ["web", "stranger"] and "L5" in gates["trust"][1]


def test_a_drift_needs_no_declaration(salt: Salt, image: Path) -> None:
    all_true(salt.apply(shop(image)))
    salt.declare({"environments": {}})
    assert salt("netspace_fleet.plan", "applied=True")["steps"] == []
    salt("netspace_environment.stop", "web")
    (step,) = salt("netspace_fleet.plan", "applied=True")["steps"]
    assert (step["kind"], step["name"]) == ("environment", "web")
