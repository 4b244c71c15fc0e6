"""A whole host under a real systemd as PID 1: declared, crashed, booted again without Salt, removed without a trace."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.environments import attackers
from support.hosts.systemd_host import SystemdHost
from support.hosts.systemd_salt import Inside, listed, look, show, until
from support.hosts.whole_host import ASK, IMAGE, Salt, all_true, changes, shop

from netspace.environment.container import oci_runtime
from netspace.environment.runtimes import USUAL
from netspace.layout import Layout

pytestmark = [pytest.mark.systemd, pytest.mark.root]

ENVIRONMENTS = ("orders", "stranger", "web")
STRANGER = "netspace-environment-stranger"
UNITS = {
    "netspace-restore",
    "netspace-broker",
    "netspace-forwarder",
    *(f"netspace-environment-{name}" for name in ENVIRONMENTS),
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    assert IMAGE.exists(), f"{IMAGE} is missing: run scripts/demo-image"
    with SystemdHost(tmp_path_factory.mktemp("machine")) as one:
        yield one


@pytest.fixture
def salt(machine: SystemdHost, tmp_path: Path) -> Iterator[Salt]:
    run = Inside(tmp_path, machine)
    yield run
    assert run("netspace.teardown")["result"] is True


def active(machine: SystemdHost, names: set[str]) -> bool:
    return {name: show(machine, name, "ActiveState") for name in names} == dict.fromkeys(names, "active")


def answered(salt: Salt, text: str) -> bool:
    done = salt.exec("web", ["/usr/bin/python3", "-c", ASK, "orders", text])
    return isinstance(done, dict) and done["stdout"].strip() == f"orders to web: {text}"


def test_a_whole_host_lives_crashes_boots_again_and_goes(machine: SystemdHost, salt: Salt) -> None:
    before = look(machine)
    everything = shop(IMAGE)
    states = salt.apply(everything)
    all_true(states)
    for limit in ("memory", "cpus", "pids"):
        # No controller in this machine can keep them: said, and not in the way.
        assert limit in states["netspace environments"]["comment"]
    assert active(machine, UNITS - {"netspace-restore"})
    until(lambda: answered(salt, "two apples"), patience=180)

    again = salt.apply(everything)
    all_true(again)
    assert changes(again) == {}
    assert "without these limits" in again["netspace environments"]["comment"]

    # No process of ours beside an environment: in its unit are only its programs.
    for name in ENVIRONMENTS:
        pid = show(machine, f"netspace-environment-{name}", "MainPID")
        assert listed(machine, f"netspace-environment-{name}") == [pid]
    assert salt("netspace_environment.logs", "orders") == ["serving"]
    later = machine.run("date", "--iso-8601=seconds", "--date=1 second").stdout.strip()
    assert salt("netspace_environment.logs", "orders", "since=3600") == ["serving"]
    assert salt("netspace_environment.logs", "orders", f"since={later}") == []

    # A program that is killed is started again, by systemd.
    pid = show(machine, "netspace-environment-orders", "MainPID")
    machine.run("kill", "-9", pid)
    until(lambda: show(machine, "netspace-environment-orders", "MainPID") not in ("0", pid))
    assert salt("netspace_environment.list")["orders"]["restarts"] == 1
    until(lambda: answered(salt, "after a crash"), patience=180)
    assert salt("netspace_environment.logs", "orders", "lines=5") == ["serving"] * 2
    assert salt("netspace_environment.logs", "orders", "lines=1", "since=3600") == ["serving"]
    assert salt("netspace_environment.logs", "orders", f"since={later}") == ["serving"]
    told = salt("netspace_environment.logs", "orders", "times=True")
    assert [line.split(" ", 1)[1] for line in told] == ["= start", "| serving"] * 2
    assert all(datetime.datetime.fromisoformat(line.split(" ")[0]).tzinfo for line in told)

    # A boot without Salt brings everything back, and what is declared to be stopped without its program.
    everything["environments"]["stranger"]["state"] = "stopped"
    assert changes(salt.apply(everything)) == {
        "netspace environments": {"stranger": {"state": {"old": "running", "new": "stopped"}}}
    }
    there = look(machine)
    machine.reboot()
    until(lambda: active(machine, UNITS - {STRANGER}))
    assert show(machine, STRANGER, "ActiveState") == "inactive"
    until(lambda: answered(salt, "after a boot"), patience=180)
    now = look(machine)
    for key in ("namespaces", "interfaces", "routes", "nftables", "mounts"):
        assert now[key] == there[key], key
    settled = salt.apply(everything)
    all_true(settled)
    assert changes(settled) == {}
    row = salt("netspace_environment.list")["stranger"]
    assert (row["state"], row["declared_stopped"]) == ("stopped", True)
    # What its runtime still knows of a former run keeps it from no start.
    known = oci_runtime.state(Layout(), "crun") / oci_runtime.container(Layout(), "stranger", USUAL)
    machine.path(str(known)).mkdir(parents=True)
    del everything["environments"]["stranger"]["state"]
    all_true(salt.apply(everything))
    assert active(machine, UNITS)

    # A twin needs no supervisor, and leaves nothing.
    audit = salt("netspace_environment.audit", "orders", "summary=True")
    assert audit["rows"] == []
    assert audit["refused"] > 80, audit
    assert changes(salt.apply(everything)) == {}

    removed = salt("netspace.teardown")
    assert removed["result"] is True, removed
    assert look(machine) == before
    assert not machine.path("/var/lib/netspace-broker").exists()


def test_what_once_succeeded_is_refused_under_systemd(
    machine: SystemdHost, salt: Salt, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Known attacks are refused under systemd, where a program's output is a socket, in cgroup version 2."""
    kit = attackers.fill(tmp_path_factory.mktemp("attacking"))
    attacker = attackers.declared(kit, "crun", interface={"kind": "veth"})
    watching = attackers.declared(kit, "crun", "watch")
    all_true(salt.apply({"environments": {"attacker": attacker, "watching": watching}}))

    def told(name: str) -> list[str]:
        tag = f"netspace-environment-{name}"
        return machine.run("journalctl", "-q", "-o", "cat", "-t", tag).stdout.splitlines()

    until(lambda: attackers.found(told("attacker")) is not None, patience=240)
    outcomes = attackers.found(told("attacker")) or {}
    print(json.dumps(outcomes, indent=1))
    # Without a controller for memory nothing bounds these, which the plan says.
    assert attackers.succeeded(outcomes, {"8 unread data", "8 unread datagrams"}) == {}
    shares = machine.run(sys.executable, attackers.__file__).stdout
    assert json.loads(shares) == attackers.ALL

    entering = json.dumps([kit.command[0], attackers.SECRET])
    # The attacker may kill what enters, and then exec fails.
    until(lambda: (salt.run("netspace_environment.exec", "watching", entering), told("watching"))[1])
    assert attackers.reached(told("watching")[-1]) == attackers.NOTHING
