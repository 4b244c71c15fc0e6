"""Stressors of ``stress-ng`` in an environment, on cgroup v2 under systemd; the host is unchanged afterwards.

By default only a sample runs, with another profile and other stressors each day. ``NETSPACE_STRESS`` chooses others, as
for ``test_environment_stress.py``; here ``all`` takes half an hour of processor time. Each stressor that started is
printed (``-s``), and appended as a line of JSON to the file that ``NETSPACE_STRESS_REPORT`` names.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from support.environments import stressing
from support.hosts.whole_host import all_true
from vmlab.lab import STAY, Salt, environment, program
from vmlab.machine import Machine, unpack

pytestmark = [pytest.mark.vm, pytest.mark.skipif(not shutil.which("stress-ng"), reason="no stress-ng here")]

SAMPLE = 6
NAME = "{} on version 2"
STRESSED = "/srv/stressed"
AT_ONCE = 6  # stressors between two looks at the host
PATIENCE = 3600.0  # seconds for one call, in which each stressor may come to no end


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A root with this machine's stress-ng and its libraries, as a compressed archive."""
    root = stressing.fill(tmp_path_factory.mktemp("stressed"))
    return subprocess.run(["tar", "-C", root, "-cz", "."], check=True, capture_output=True).stdout


def rows(machine: Machine, stressors: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run stressors in the machine; yield the rows of ``stressing.each`` from there."""
    for first in range(0, len(stressors), AT_ONCE):
        some = stressors[first : first + AT_ONCE]
        yield from program(machine, "stressing", "web", str(AT_ONCE), *some, timeout=PATIENCE)


@pytest.mark.parametrize(("profile", "stressors"), stressing.chosen(SAMPLE, NAME))
def test_the_host_is_as_it_was_after_each_stressor_on_version_2(
    plain: Machine, salt: Salt, packed: bytes, profile: str, stressors: list[str]
) -> None:
    unpack(plain, packed, STRESSED)
    common = environment(STAY, image=f"dir:{STRESSED}")
    web = {**common, "limits": stressing.LIMITS, "seccomp": profile, "restart": "on-failure"}
    all_true(salt.apply({"environments": {"web": web, "other": {**common, "restart": "on-failure"}}}))
    neighbour = plain.sh("systemctl show -P MainPID netspace-environment-other")
    outcomes, trouble = stressing.reported(NAME.format(profile), rows(plain, stressors))
    assert trouble == {}, f"seed {stressing.SEED}"
    assert outcomes.keys() == set(stressors)
    assert plain.sh("systemctl show -P MainPID netspace-environment-other") == neighbour
    assert "passed" in outcomes.values()
    assert salt("netspace_environment.stop", "web") is True
    assert "temp-path" not in plain.sh("ps ax -o args | grep '[s]tress-ng'", check=False)
    assert plain.sh("systemctl is-system-running") == "running"
