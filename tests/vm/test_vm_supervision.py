"""Supervision under a real systemd: start order by health, a crash, and an update that is rolled back."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from support import waiting
from support.hosts.whole_host import all_true
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

# Healthy from its first breath; what never is, is given a quarter of a minute.
HEALTH = {"exec": ["/bin/sh", "-c", "[ -e /tmp/well ]"], "interval": 5, "timeout": 60}
until = functools.partial(waiting.until, patience=240, pause=0.5)


def declared(**there: Any) -> dict[str, Any]:
    well = environment(f"touch /tmp/well; {STAY}", restart="on-failure", health=HEALTH, stop_timeout=30)
    return {
        "environments": {
            "there": {**well, **there},
            "later": environment(STAY, restart="on-failure", after=["there"]),
        }
    }


def test_order_a_crash_and_an_update_that_is_taken_back(plain: Machine, salt: Salt) -> None:
    def show(name: str, key: str) -> str:
        return plain.sh(f"systemctl show -P {key} netspace-environment-{name}")

    all_true(salt.apply(declared()))
    # What comes after another is started once that is healthy.
    first, second = (int(show(name, "ActiveEnterTimestampMonotonic")) for name in ("there", "later"))
    assert second > first
    assert '"healthy"' in plain.sh("cat /run/netspace/health/there.json")

    # A crash: it comes back, and how it ended is told.
    pid = show("there", "MainPID")
    plain.sh(f"kill -9 {pid}")
    until(lambda: show("there", "MainPID") not in ("0", pid))
    found = salt("netspace_environment.inspect", "there")
    assert (found["exit"], found["restarts"]) == ("signal 9", 1)

    # An update that never gets healthy: what was there before is there again.
    failed = salt.apply(declared(command=["/bin/sh", "-c", STAY]))["netspace environments"]
    assert failed["result"] is False
    assert "taken back, since its health check failed" in failed["comment"]
    assert set(failed["changes"]["there"]) == {"rolled back"}
    until(lambda: "true" in plain.sh("systemctl is-active -q netspace-environment-there && echo true", check=False))
    assert plain.sh("cat /run/netspace/environments/there/config.json").count("touch /tmp/well") == 1


def test_an_update_beside_and_a_power_cut_in_the_midst_of_one(plain: Machine, salt: Salt) -> None:
    def declared(turn: str, script: str = f"touch /tmp/well; {STAY}", **update: Any) -> dict[str, Any]:
        keys = {
            "restart": "on-failure",
            "health": HEALTH,
            "read_only": True,
            "stop_timeout": 30,
            "env": {"TURN": turn},
            "update": update,
        }
        return {"environments": {"there": environment(script, **keys)}}

    def units() -> set[str]:
        listed = plain.sh("systemctl list-units --plain --no-legend --state=active 'netspace-environment-*'")
        return {line.split()[0] for line in listed.splitlines()}

    own, beside = "netspace-environment-there.service", "netspace-environment-there-NEXT.service"
    pid = f"systemctl show -P MainPID {own}"
    all_true(salt.apply(declared("1")))
    until(lambda: '"healthy"' in plain.sh("cat /run/netspace/health/there.json", check=False))
    first = plain.sh(pid)

    # What watches health is killed: what it watches runs on, and it is back.
    watch = "systemctl show -P MainPID netspace-health"
    before = plain.sh(watch)
    plain.sh(f"kill -9 {before}")
    until(lambda: plain.sh(watch).strip() not in ("0", before.strip()))
    assert plain.sh(pid) == first

    all_true(salt.apply(declared("2")))
    second = plain.sh(pid)
    assert second not in ("0", first)
    assert units() == {own}

    # One that doesn't get healthy runs beside it when the power fails: what comes back is what was there before.
    salt.declare(declared("3", STAY, deadline=3600))
    plain.sh("systemd-run --quiet --unit=update salt-call state.apply netspace")
    until(lambda: units() == {own, beside})
    assert plain.sh(pid) == second
    plain.run("sync")
    plain.cut()
    plain.on()
    assert units() == {own}
    assert '"TURN=2"' in plain.sh("cat /run/netspace/environments/there/config.json")
    left = "ls -d /var/lib/netspace/beside /run/netspace/environments/*NEXT /etc/systemd/system/*NEXT*"
    assert plain.sh(left, check=False) == ""
    assert plain.sh("systemctl is-system-running") == "running"
