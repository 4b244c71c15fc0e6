"""Attacks and stressors in environments on cgroup v2 under systemd, in one machine.

Of the stressors a few are run each day, others the next. ``NETSPACE_STRESS`` and ``NETSPACE_STRESS_REPORT`` have the
same meaning as for the test on cgroup version 1 (``test_environment_stress.py``).
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import waiting
from support.environments import attackers, stressing
from support.hosts.whole_host import all_true
from vmlab import image as images
from vmlab.lab import STAY, Lab, Salt, environment, send
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

SAMPLE = 4
AT_ONCE = 8  # stressors between two looks at the host, which cost there more than the stressors
ATTACKING = "/srv/attacking"
SUPPORT = "/srv/netspace/tests/support/environments"
# Everything is translated there.
until = functools.partial(waiting.until, patience=400, pause=0.5)


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    machine = lab.clone("plain")
    yield machine
    machine.cut()
    shutil.rmtree(machine.folder)


@pytest.fixture(scope="module")
def salt(machine: Machine) -> Salt:
    return Salt(machine)


@pytest.fixture(scope="module")
def root(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A root with the attacks and with stress-ng, also in the machine; and the command of the attacks."""
    root = stressing.fill(tmp_path_factory.mktemp("attacking"))
    command = attackers.fill(root)
    send(machine, root, ATTACKING)
    return root, command


def python(machine: Machine, name: str, *arguments: str, timeout: float = 120) -> list[Any]:
    """Run a program of the tests' in the machine; return the JSON of each line that it prints."""
    command = ("/usr/bin/python3", f"{SUPPORT}/{name}.py", *arguments)
    variables = {"PYTHONPATH": images.SITE, "PYTHONPYCACHEPREFIX": images.COMPILED}
    done = machine.run(*command, timeout=timeout, variables=variables)
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_what_once_succeeded_is_refused_on_version_2(
    machine: Machine, salt: Salt, root: tuple[Path, list[str]], runtime: str
) -> None:
    folder, command = root
    own = {"image": f"dir:{ATTACKING}"}
    attacker = attackers.declared(folder, command, runtime, **own, interface={"kind": "veth"})
    watching = attackers.declared(folder, [*command, "watch"], runtime, **own)
    all_true(salt.apply({"environments": {"attacker": attacker, "watching": watching}}))
    until(lambda: attackers.found(salt("netspace_environment.logs", "attacker")) is not None)
    outcomes = attackers.found(salt("netspace_environment.logs", "attacker")) or {}
    print(f"{runtime}: {json.dumps(outcomes, indent=1)}")
    assert attackers.succeeded(outcomes, attackers.ALLOWED[runtime]) == {}
    # The attacker holds its booty. Under runc it is counted for root (docs/limits.md).
    if runtime != "runc":
        assert python(machine, "attackers") == [attackers.ALL]

    def told() -> list[str]:
        salt("netspace_environment.exec", "watching", json.dumps([command[0], attackers.SECRET]), check=False)
        return list(salt("netspace_environment.logs", "watching"))

    until(told)
    assert attackers.reached(told()[-1]) == attackers.NOTHING
    # No other user of the host reaches into an environment.
    bundle = "/run/netspace/environments/attacker"
    for path in ("/run/netspace", "/run/netspace/environments", bundle, f"{bundle}/rootfs", "/var/lib/netspace"):
        done = machine.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", path, check=False)
        assert "Permission denied" in done.err, path


@pytest.mark.parametrize(("profile", "stressors"), stressing.chosen(SAMPLE))
def test_the_host_is_as_it_was_after_each_stressor(
    machine: Machine, salt: Salt, root: tuple[Path, list[str]], profile: str, stressors: list[str]
) -> None:
    own = {"image": f"dir:{ATTACKING}"}
    web = environment(STAY, limits=stressing.LIMITS, seccomp=profile, **own)
    all_true(salt.apply({"environments": {"web": web, "other": environment(STAY, **own)}}))
    pid = "systemctl show -P MainPID netspace-environment-other"
    before = machine.sh(pid)
    outcomes, trouble = stressing.reported(profile, stressed(machine, stressors))
    assert trouble == {}, f"seed {stressing.SEED}"
    assert outcomes.keys() == set(stressors)
    assert machine.sh(pid) == before != "0"
    assert salt("netspace_environment.stop", "web") is True
    assert machine.sh("pgrep -a stress-ng", check=False) == ""
    assert machine.sh("systemctl is-system-running") == "running"


def stressed(machine: Machine, stressors: Sequence[str]) -> Iterator[dict[str, Any]]:
    for first in range(0, len(stressors), AT_ONCE):
        some = stressors[first : first + AT_ONCE]
        yield from python(machine, "stressing", "web", str(AT_ONCE), *some, timeout=400 * len(some))
