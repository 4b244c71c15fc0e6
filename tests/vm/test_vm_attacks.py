"""Attacks that once succeeded inside an environment, on cgroup v2 under systemd, by each runtime, and an audit."""

from __future__ import annotations

import functools
import json

import pytest
from support import waiting
from support.environments import attackers
from support.hosts.whole_host import all_true
from vmlab import image
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine

from netspace.environment import runtimes

pytestmark = pytest.mark.vm

NAMES = runtimes.running("images")
ROOT = "/srv/attacking"
FILL = """
import json, sys
sys.path[:0] = ["/srv/netspace/tests", "/srv/netspace/_utils"]
from pathlib import Path
from support.environments import attackers
root = Path(sys.argv[1])
command = attackers.fill(root)
print(json.dumps({name: attackers.declared(root, command, name) for name in sys.argv[2:]}))
"""
SHARES = """
import json, sys
sys.path[:0] = ["/srv/netspace/tests", "/srv/netspace/_utils"]
from netspace.environment.audit import exhaust
program = exhaust.Program("/tmp")
print(json.dumps({name: program.answer({"share": name})[0] for name in ("inotify instances", "timers")}))
"""
# gVisor translates every system call, on a machine that is translated itself.
until = functools.partial(waiting.until, patience=600, pause=2)


def python(machine: Machine, script: str, *arguments: str) -> str:
    return machine.run("env", f"PYTHONPATH={image.SITE}", "/usr/bin/python3", "-c", script, *arguments).out


def test_what_once_succeeded_is_refused_on_version_2(plain: Machine, salt: Salt) -> None:
    before = python(plain, SHARES)
    declared = json.loads(python(plain, FILL, ROOT, *NAMES))
    environments = {f"by-{name}": one for name, one in declared.items()}
    all_true(salt.apply({"environments": {**environments, "stays": environment(STAY)}}))

    def outcomes(name: str) -> dict[str, str] | None:
        return attackers.found(salt("netspace_environment.logs", f"by-{name}"))

    for name in NAMES:
        until(lambda name=name: outcomes(name) is not None)
        told = outcomes(name) or {}
        print(f"{name}, version 2: {told}")
        assert attackers.succeeded(told, attackers.ALLOWED[name]) == {}, name
    salt("netspace_environment.stop", "by-runc")  # which counts for root
    assert python(plain, SHARES) == before

    # The audit's own attempts, by the runtimes that have the host's kernel.
    for name in ("crun", "runc"):
        summary = salt("netspace_environment.audit", f"by-{name}", "summary=True")
        assert summary["rows"] == [], name
        assert summary["refused"] > 80
    assert salt("netspace_environment.list")["stays"]["restarts"] == 0
