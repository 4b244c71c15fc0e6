"""Attacks that once succeeded inside an environment, on cgroup v2 under systemd."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from support import waiting
from support.environments import attackers, attacks
from support.hosts.whole_host import all_true
from vmlab import image as images
from vmlab.lab import Salt
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

ATTACKING = "/srv/attacking"
SUPPORT = "/srv/netspace/tests/support/environments"
# Everything is translated there.
until = functools.partial(waiting.until, patience=600, pause=1)


def python(machine: Machine, name: str, *arguments: str, timeout: float = 600) -> list[Any]:
    """Run a program of the tests' in the machine; return the JSON of each line that it prints."""
    command = ("/usr/bin/python3", f"{SUPPORT}/{name}.py", *arguments)
    variables = {"PYTHONPATH": images.SITE, "PYTHONPYCACHEPREFIX": images.COMPILED}
    done = machine.run(*command, timeout=timeout, variables=variables)
    return [json.loads(line) for line in done.out.splitlines()]


def told(machine: Machine, name: str) -> list[str]:
    """Return what an environment's program printed."""
    return machine.sh(f"journalctl -q -o cat -t netspace-environment-{name}").splitlines()


def attacker(kit: attackers.Kit, *left_out: str) -> dict[str, Any]:
    return attackers.declared(kit, "crun", *left_out, interface={"kind": "veth"})


def attacked(machine: Machine, salt: Salt, kit: attackers.Kit) -> dict[str, str]:
    """Return the outcomes of all attacks.

    On version 2, the kernel ends the whole environment for a row that takes more than its memory. That row was bounded
    then, and the others are tried in the environment's next start.
    """

    def over(known: dict[str, str]) -> bool:
        return (
            attackers.found(told(machine, "attacks"), known) is not None
            or salt("netspace_environment.list")["attacks"]["state"] != "running"
        )

    outcomes: dict[str, str] = {}
    for _ in attacks.ROWS:
        all_true(salt.apply({"environments": {"attacks": attacker(kit, *outcomes)}}))
        until(functools.partial(over, outcomes), pause=3)
        lines = told(machine, "attacks")
        if found := attackers.found(lines, outcomes):
            return found
        assert salt("netspace_environment.list")["attacks"]["exit"] == "oom"
        new = {row: how for row, how in attackers.told(lines).items() if row not in outcomes}
        outcomes |= {row: "bounded: all were killed" if how == attacks.BEGUN else how for row, how in new.items()}
    raise AssertionError(f"each start was ended; known outcomes: {outcomes}")


def test_what_once_succeeded_is_refused_on_version_2(plain: Machine, salt: Salt) -> None:
    # With the machine's own Python, so that nothing large has to be carried there.
    ((root, command, env),) = python(plain, "attackers", ATTACKING)
    kit = attackers.Kit(root, command, env)
    all_true(salt.apply({"environments": {"watches": attackers.declared(kit, "crun", "watch")}}))
    entering = json.dumps([kit.command[0], attackers.SECRET])

    def seen() -> list[str]:
        salt("netspace_environment.exec", "watches", entering, check=False)
        return told(plain, "watches")

    until(seen)
    assert attackers.reached(told(plain, "watches")[-1]) == attackers.NOTHING

    outcomes = attacked(plain, salt, kit)
    print(json.dumps(outcomes, indent=1))
    assert attackers.succeeded(outcomes, attackers.ALLOWED["crun"]) == {}
    # The attacker holds its booty.
    assert python(plain, "attackers") == [attackers.ALL]

    # No other user of the host reaches into an environment.
    bundle = "/run/netspace/environments/attacks"
    for path in ("/run/netspace", "/run/netspace/environments", bundle, f"{bundle}/rootfs", "/var/lib/netspace"):
        done = plain.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", path, check=False)
        assert "Permission denied" in done.err, path
