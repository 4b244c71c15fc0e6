"""After a reboot and after a power cut, everything declared comes back, without Salt, master or network."""

from __future__ import annotations

import json

import pytest
from support.hosts.whole_host import all_true, changes
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

NAMES = ("here", "there")
DECLARED = {
    "environments": {
        "here": environment(STAY, restart="on-failure", interface={"kind": "veth"}),
        "there": environment(STAY, restart="on-failure", read_only=True),
    }
}


def network(machine: Machine) -> dict[str, object]:
    links = json.loads(machine.sh("ip -j address"))
    kept = {link["ifname"]: (link["address"], sorted(a["local"] for a in link["addr_info"])) for link in links}
    return {
        "links": kept,
        "rules": [line for line in machine.sh("nft -s list ruleset").splitlines() if "counter" not in line],
        "namespaces": sorted(machine.sh("ls /run/netns").split()),
    }


def test_environments_come_back_by_themselves(plain: Machine, salt: Salt) -> None:
    all_true(salt.apply(DECLARED))
    before = network(plain)
    for again in (plain.reboot, lambda: (plain.run("sync"), plain.cut(), plain.on())):
        again()
        assert plain.sh("systemctl is-system-running") == "running"
        for name in NAMES:
            assert plain.sh(f"systemctl is-active netspace-environment-{name}") == "active"
        assert network(plain) == before
    settled = salt.apply(DECLARED)
    all_true(settled)
    assert changes(settled) == {}
    assert salt("netspace.teardown")["result"] is True
    units = "systemctl list-units --all --plain --no-legend 'netspace*'"
    left = f"ls /run/netns; ls -d /var/lib/netspace /run/netspace; {units}"
    assert plain.sh(left, check=False) == ""
