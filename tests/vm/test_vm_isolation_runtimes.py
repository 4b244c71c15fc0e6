"""The audit and the exhaustion test, and attacks that once succeeded under runc and runsc, on cgroup v2 under systemd.

These tests run on request (``NETSPACE_ATTACKS=all``), because they take minutes of processor time.
"""

from __future__ import annotations

import functools
import json
import os

import pytest
from support import waiting
from support.environments import attackers
from support.hosts.whole_host import all_true
from vmlab.lab import STAY, Salt, environment, program, told
from vmlab.machine import Machine

from netspace.environment.audit import storms

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.environ.get("NETSPACE_ATTACKS") != "all", reason="on request: NETSPACE_ATTACKS=all"),
]

ATTACKING = "/srv/attacking"
# Everything is translated there.
until = functools.partial(waiting.until, patience=1200, pause=2)


@pytest.mark.parametrize("runtime", ["runc", "runsc"])
def test_what_once_succeeded_is_refused_under_others_on_version_2(plain: Machine, salt: Salt, runtime: str) -> None:
    ((root, command, env),) = program(plain, "attackers", ATTACKING)
    attacker = attackers.declared(attackers.Kit(root, command, env), runtime, interface={"kind": "veth"})
    all_true(salt.apply({"environments": {"attacks": attacker}}))
    until(lambda: attackers.found(told(plain, "attacks")) is not None)
    outcomes = attackers.found(told(plain, "attacks")) or {}
    print(json.dumps(outcomes, indent=1))
    # What it holds of pools by user is counted for root under runc (docs/limits.md).
    assert attackers.succeeded(outcomes, attackers.ALLOWED[runtime]) == {}
    if runtime != "runc":
        assert program(plain, "attackers") == [attackers.ALL]
    assert plain.sh("systemctl is-active netspace-environment-attacks") == "active"


def test_who_enters_for_the_host_under_runc_gives_nothing_away(plain: Machine, salt: Salt) -> None:
    """Under runc, a program inside gets nothing from the host's process that enters for an ``exec``.

    gVisor lets no process of the host in, and crun has a separate test.
    """
    ((root, command, env),) = program(plain, "attackers", ATTACKING)
    kit = attackers.Kit(root, command, env)
    all_true(salt.apply({"environments": {"watches": attackers.declared(kit, "runc", "watch")}}))
    entering = json.dumps([kit.command[0], attackers.SECRET])

    def seen() -> list[str]:
        salt("netspace_environment.exec", "watches", entering, check=False)
        return told(plain, "watches")

    until(seen)
    assert attackers.reached(told(plain, "watches")[-1]) == attackers.NOTHING


def test_the_audit_of_an_environment_finds_nothing_on_version_2(plain: Machine, salt: Salt) -> None:
    """The audit finds nothing, although an attempt takes more than ``memory``, which must not end the whole twin."""
    web = environment(STAY, limits={"memory": "64M", "pids": 64}, interface={"kind": "veth"})
    all_true(salt.apply({"environments": {"web": web}}))
    done = json.loads(plain.run("salt-call", "--out=json", "netspace_environment.audit", "web", timeout=1200).out)
    rows = {row["name"]: row["outcome"] for row in done["local"]}
    assert "succeeded" not in rows.values()
    assert rows["use more memory than its limit"] == "refused"


def test_others_are_timed_meanwhile_on_version_2(plain: Machine, salt: Salt) -> None:
    """Run the part of the exhaustion test that measures how long other programs must wait.

    The times depend on this machine's load, so they are only printed.
    """
    web = environment(STAY, limits={"memory": "128M", "pids": 128, "disk": "64M"}, interface={"kind": "veth"})
    all_true(salt.apply({"environments": {"web": web}}))
    rows = program(plain, "exhausting", "web", "waiting", timeout=1800)
    print("\n".join(f"{row['name']}: {row['outcome']}: {row['detail']}" for row in rows))
    assert [row["name"] for row in rows] == list(storms.STORMS)
    assert all(second > 0 for row in rows for pair in row["seconds"].values() for second in pair)
    assert plain.sh("systemctl is-system-running") == "running"
