"""Attacks that once succeeded inside an environment, on cgroup v2 under systemd."""

from __future__ import annotations

import functools
import json

import pytest
from support import waiting
from support.environments import attackers
from support.hosts.whole_host import all_true
from vmlab.lab import Salt, program, told
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

ATTACKING = "/srv/attacking"
# Everything is translated there.
until = functools.partial(waiting.until, patience=600, pause=1)


def test_what_once_succeeded_is_refused_on_version_2(plain: Machine, salt: Salt) -> None:
    # With the machine's own Python, so that nothing large has to be carried there.
    ((root, command, env),) = program(plain, "attackers", ATTACKING)
    kit = attackers.Kit(root, command, env)
    all_true(salt.apply({"environments": {"watches": attackers.declared(kit, "crun", "watch")}}))
    entering = json.dumps([kit.command[0], attackers.SECRET])

    def seen() -> list[str]:
        salt("netspace_environment.exec", "watches", entering, check=False)
        return told(plain, "watches")

    until(seen)
    assert attackers.reached(told(plain, "watches")[-1]) == attackers.NOTHING

    attacker = attackers.declared(kit, "crun", interface={"kind": "veth"})
    all_true(salt.apply({"environments": {"attacks": attacker}}))
    until(lambda: attackers.found(told(plain, "attacks")) is not None)
    outcomes = attackers.found(told(plain, "attacks")) or {}
    print(json.dumps(outcomes, indent=1))
    assert attackers.succeeded(outcomes, attackers.ALLOWED["crun"]) == {}
    # The attacker holds its booty.
    assert program(plain, "attackers") == [attackers.ALL]

    # No other user of the host reaches into an environment.
    bundle = "/run/netspace/environments/attacks"
    for path in ("/run/netspace", "/run/netspace/environments", bundle, f"{bundle}/rootfs", "/var/lib/netspace"):
        done = plain.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", path, check=False)
        assert "Permission denied" in done.err, path
