"""Stressors of ``stress-ng`` in environments under systemd, on cgroup v2: afterwards the machine is as it was.

Some of them by default, of another profile and others each day; ``NETSPACE_STRESS`` chooses as for
``test_environment_stress.py``. All of them take hours on a machine that is translated.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.environments import stressing
from support.hosts.whole_host import all_true
from vmlab import image
from vmlab.lab import STAY, Salt
from vmlab.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.skipif(not shutil.which("stress-ng"), reason="no stress-ng here")]

SAMPLE = 4
STRESSED = "/srv/stressed"


@pytest.fixture
def stressed(plain: Machine, tmp_path: Path) -> str:
    """Put a root with stress-ng into the machine; return its path there."""
    root = stressing.fill(tmp_path)
    packed = subprocess.run(["tar", "-C", root, "-cz", "."], check=True, capture_output=True).stdout
    plain.put("/var/tmp/stressed.tar.gz", packed)
    plain.sh(f"mkdir {STRESSED} && tar -C {STRESSED} -xzf /var/tmp/stressed.tar.gz && rm /var/tmp/stressed.tar.gz")
    return STRESSED


def rows(machine: Machine, stressors: list[str]) -> Iterator[dict[str, Any]]:
    """Run stressors in the machine, a few at a time, so that its agent is asked now and then."""
    program = "/usr/bin/python3 /srv/netspace/tests/support/environments/stressing.py"
    for at in range(0, len(stressors), SAMPLE):
        some = " ".join(stressors[at : at + SAMPLE])
        told = machine.sh(f"PYTHONPATH={image.SITE} {program} web {some}", timeout=SAMPLE * 600)
        yield from map(json.loads, told.splitlines())


@pytest.mark.parametrize(("profile", "stressors"), stressing.chosen(SAMPLE))
def test_machine_is_as_it_was_after_each_stressor(
    plain: Machine, salt: Salt, stressed: str, profile: str, stressors: list[str]
) -> None:
    common = {"image": f"dir:{stressed}", "command": ["/bin/sh", "-c", STAY], "stop_timeout": 1}
    web = {**common, "limits": stressing.LIMITS, "seccomp": profile}
    all_true(salt.apply({"environments": {"other": common, "web": web}}))
    outcomes, trouble = stressing.reported(f"{profile}, version 2", rows(plain, stressors))
    assert trouble == {}, f"seed {stressing.SEED}"
    assert outcomes.keys() == set(stressors)
    assert salt("netspace_environment.list")["other"]["restarts"] == 0
    assert salt("netspace_environment.stop", "web") is not None
    assert "temp-path" not in plain.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
