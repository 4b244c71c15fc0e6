"""Each stressor of ``stress-ng`` runs in an environment for two seconds; the host is unchanged afterwards.

By default only a sample runs, with another profile and other stressors each day (``NETSPACE_SEED`` sets the day).
``NETSPACE_STRESS=all`` runs each stressor under each profile, in about half an hour; a list
(``NETSPACE_STRESS=fork,pty``) runs the listed stressors. Each stressor that started is printed (``-s``), and appended
as a line of JSON to the file that ``NETSPACE_STRESS_REPORT`` names.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.environments import stressing
from support.environments.environment_host import Host, shell
from support.hosts import host_state, snapshot
from support.waiting import until

from netspace.environment.storage import mounts

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("stress-ng"), reason="no stress-ng here")]

SAMPLE = 6
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
IDLE = shell("while :; do sleep 1; done")


@pytest.fixture(scope="module")
def stressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with stress-ng, its libraries, and a folder to write to."""
    return stressing.fill(tmp_path_factory.mktemp("stressed"))


@pytest.mark.parametrize(("profile", "stressors"), stressing.chosen(SAMPLE))
def test_the_host_is_as_it_was_after_each_stressor(host: Host, stressed: Path, profile: str, stressors: list[str]):
    image = f"dir:{stressed}"
    host.run("other", image=image, command=IDLE)
    host.run("web", image=image, limits=stressing.LIMITS, seccomp=profile, command=IDLE)
    outcomes, trouble = stressing.reported(profile, stressing.each(host.operations, "web", stressors))
    assert trouble == {}, f"seed {stressing.SEED}"
    assert host.kind.list()["other"]["restarts"] == 0
    assert "passed" in outcomes.values()
    host.operations.stop(["web"])
    assert not [
        command for command in snapshot.processes().values() if "stress-ng" in command and "temp-path" in command
    ]


def test_a_stressor_that_ends_its_group_is_found(host: Host, stressed: Path):
    """A check of the tests' own tools: in one run of several stressors, each has an outcome, even if one fails."""
    host.run("web", image=f"dir:{stressed}", limits=stressing.LIMITS, command=IDLE)
    names = ["null", "no-such-stressor", "getrandom"]
    outcomes = stressing.outcomes_of(host.operations, "web", names)
    assert list(outcomes) == names
    assert outcomes.pop("no-such-stressor").startswith("ended: ")
    assert outcomes == dict.fromkeys(("null", "getrandom"), "passed")


def test_what_is_not_as_it_was_is_seen(tmp_path: Path):
    """A check of the test's own tools: each change that a stressor might make to the host is detected."""
    # What the tests before have just ended goes away meanwhile.
    looks = [host_state.look()]

    def alike() -> bool:
        looks.append(host_state.look())
        before, again = looks[-2:]
        return host_state.changed(before, again) == {} and again.bounded["descriptors"] == before.bounded["descriptors"]

    until(alike)
    before = looks[-1]
    libc = ctypes.CDLL(None)
    left = tmp_path / "left"
    left.mkdir()
    mounts.mount("tmpfs", left, "tmpfs")
    segment = libc.shmget(0, 4096, 0o1600)
    watching = [libc.inotify_init1(0) for _ in range(int(INSTANCES.read_text()))]
    opened = [os.open("/", os.O_PATH) for _ in range(host_state.DESCRIPTORS + 1)]
    sleeping = subprocess.Popen(["/bin/sleep", "100"])
    try:
        found = host_state.changed(before, host_state.look())
    finally:
        sleeping.kill()
        sleeping.wait()
        for one in (*opened, *(instance for instance in watching if instance >= 0)):
            os.close(one)
        libc.shmctl(segment, 0, None)
        mounts.unmount(left)
    assert {"mounts", "segments", "shares", "descriptors", "processes"} <= found.keys()
    assert stressing.wrong(before) == {}
