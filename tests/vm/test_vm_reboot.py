"""What was declared comes back after a reboot and after a power cut, in order: without Salt, master or network.

In the same machine: a crash, and an update that is taken back.
"""

from __future__ import annotations

import functools
import json

import pytest
import waiting
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine
from whole_host import all_true, changes

pytestmark = pytest.mark.vm

# Healthy from its first breath; what is never healthy is given a quarter of a minute.
HEALTH = {"exec": ["/bin/sh", "-c", "[ -e /tmp/well ]"], "interval": 5, "timeout": 60}
NAMES = ("here", "there", "later")
DECLARED = {
    "environments": {
        "here": environment(STAY, restart="on-failure", interface={"kind": "veth"}),
        "there": environment(f"touch /tmp/well; {STAY}", restart="on-failure", read_only=True, health=HEALTH),
        "later": environment(STAY, restart="on-failure", after=["there"]),
    }
}

until = functools.partial(waiting.until, patience=240, pause=0.5)


def network(machine: Machine) -> dict[str, object]:
    links = json.loads(machine.sh("ip -j address"))
    kept = {link["ifname"]: (link["address"], sorted(a["local"] for a in link["addr_info"])) for link in links}
    return {
        "links": kept,
        "rules": [line for line in machine.sh("nft -s list ruleset").splitlines() if "counter" not in line],
        "namespaces": sorted(machine.sh("ls /run/netns").split()),
    }


def show(machine: Machine, name: str, key: str) -> str:
    return machine.sh(f"systemctl show --property {key} --value netspace-environment-{name}")


def in_order(machine: Machine) -> None:
    """What comes after another was started when that was healthy."""
    later = int(show(machine, "later", "ActiveEnterTimestampMonotonic")) / 1e6
    boot = float(machine.sh("grep btime /proc/stat").split()[1])
    verdict = json.loads(machine.sh("cat /run/netspace/health/there.json"))
    assert verdict["state"] == "healthy"
    assert later >= verdict["since"] - boot - 1.5, "btime is a whole second"


def test_environments_come_back_by_themselves(plain: Machine, salt: Salt) -> None:
    all_true(salt.apply(DECLARED))
    before = network(plain)
    for again in (plain.reboot, lambda: (plain.run("sync"), plain.cut(), plain.on())):
        again()
        assert plain.sh("systemctl is-system-running") == "running"
        for name in NAMES:
            assert plain.sh(f"systemctl is-active netspace-environment-{name}") == "active"
        assert network(plain) == before
        in_order(plain)

    # A crash: it comes back, and what it was is told.
    pid = show(plain, "here", "MainPID")
    plain.sh(f"kill -9 {pid}")
    until(lambda: show(plain, "here", "MainPID") not in ("0", pid))
    assert "signal killed KILL" in plain.sh("cat /run/netspace/ended/environment-here")

    # An update that never gets healthy: what was there before is there again.
    environments = {**DECLARED["environments"], "there": {**DECLARED["environments"]["there"]}}
    environments["there"]["command"] = ["/bin/sh", "-c", STAY]
    failed = salt.apply({"environments": environments})["netspace environments"]
    assert failed["result"] is False
    assert "taken back, since its health check failed" in failed["comment"]
    assert set(failed["changes"]) == {"there"} and set(failed["changes"]["there"]) == {"rolled back"}
    settled = salt.apply(DECLARED)
    all_true(settled)
    assert changes(settled) == {}
    until(lambda: json.loads(plain.sh("cat /run/netspace/health/there.json"))["state"] == "healthy")

    assert salt("netspace.teardown")["result"] is True
    units = "systemctl list-units --all --plain --no-legend 'netspace*'"
    left = f"ls /run/netns; ls -d /var/lib/netspace /run/netspace; {units}"
    assert plain.sh(left, check=False) == ""
