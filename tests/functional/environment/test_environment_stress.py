"""Each stressor of ``stress-ng`` in an environment, for two seconds; afterwards the host is as it was.

A sample by default, of another profile and other stressors each day (``NETSPACE_SEED`` chooses
the day). ``NETSPACE_STRESS=all`` runs each of them under each profile, in about half an hour;
a list (``NETSPACE_STRESS=fork,pty``) runs those. What started is printed (``-s``), and appended, a line
of JSON for each, to the file that ``NETSPACE_STRESS_REPORT`` names.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.environments.environment_host import Host, shell
from support.hosts import host_state, snapshot
from support.waiting import until

from netspace.environment.storage import mounts
from netspace.errors import NetspaceError

pytestmark = [pytest.mark.root, pytest.mark.skipif(not shutil.which("stress-ng"), reason="no stress-ng here")]

WANTED = os.environ.get("NETSPACE_STRESS", "sample")
SEED = int(os.environ.get("NETSPACE_SEED") or time.time() // 86400)
REPORT = os.environ.get("NETSPACE_STRESS_REPORT", "")
PROFILES = ("strict", "standard")
SAMPLE = 10
SECONDS = 2
PATIENCE = 20.0  # seconds after which a stressor that doesn't end is killed
LIMITS = {"memory": "192M", "cpus": 1, "pids": 128, "disk": "64M"}
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
IDLE = shell("while :; do sleep 1; done")


def known() -> list[str]:
    done = subprocess.run(["stress-ng", "--stressors"], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def chosen() -> list[tuple[str, list[str]]]:
    """Return the profiles to try, each with the stressors to run under it."""
    if WANTED == "all":
        return [(profile, known()) for profile in PROFILES]
    if WANTED != "sample":
        return [(profile, WANTED.split(",")) for profile in PROFILES]
    return [(PROFILES[SEED % len(PROFILES)], sorted(random.Random(SEED).sample(known(), SAMPLE)))]


@pytest.fixture(scope="module")
def stressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with stress-ng, what it loads, and a folder to write to."""
    root = tmp_path_factory.mktemp("stressed")
    root.chmod(0o755)
    program = shutil.which("stress-ng") or ""
    loaded = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = [program, *sorted(set(re.findall(r"(/\S+\.so[.\d]*)", loaded)))]
    archive = subprocess.run(["tar", "-C", "/", "-chf", "-", *(path[1:] for path in paths)], stdout=-1, check=True)
    subprocess.run(["tar", "-C", root, "-xf", "-"], input=archive.stdout, check=True)
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "work").mkdir()
    (root / "work").chmod(0o777)
    return root


def stress(host: Host, stressor: str) -> str:
    """Run one stressor in two processes of ``web``; return how it went, in a few words."""
    options = ["-t", str(SECONDS), "--temp-path", "/work", "--oomable", "--no-rand-seed"]
    command = ["/usr/bin/stress-ng", f"--{stressor}", "2", *options]
    try:
        done = host.operations.exec("web", command, timeout=PATIENCE)
    except NetspaceError:  # the last one left as many processes behind as web may have
        host.operations.restart(["web"])
        done = host.operations.exec("web", command, timeout=PATIENCE)
    for outcome in ("passed", "failed", "skipped"):
        if re.search(rf"{outcome}: [1-9]", done["stdout"] + done["stderr"]):
            return outcome
    return "killed: it came to no end" if done["timed_out"] else f"ended: {done['retcode']}"


@pytest.mark.parametrize(("profile", "stressors"), chosen())
def test_the_host_is_as_it_was_after_each_stressor(host: Host, stressed: Path, profile: str, stressors: list[str]):
    image = f"dir:{stressed}"
    host.run("other", image=image, command=IDLE)
    host.run("web", image=image, limits=LIMITS, seccomp=profile, command=IDLE)
    outcomes: dict[str, str] = {}
    trouble: dict[str, Any] = {}
    before = host_state.look()
    for stressor in stressors:
        outcomes[stressor] = stress(host, stressor)
        # Whatever the stressor left behind is the environment's, and ends with it.
        state = host.kind.list()["web"]
        if state["state"] != "running" or outcomes[stressor].startswith("killed"):
            host.operations.restart(["web"])
        if found := wrong(before):
            trouble[stressor] = found
            before = host_state.look()
        if REPORT:
            row = {"profile": profile, "stressor": stressor, "outcome": outcomes[stressor], "trouble": found}
            with open(REPORT, "a") as stream:
                stream.write(json.dumps(row) + "\n")
    print(f"{profile}, seed {SEED}: {json.dumps(outcomes, indent=1)}")
    assert trouble == {}, f"seed {SEED}"
    assert host.kind.list()["other"]["restarts"] == 0
    assert "passed" in outcomes.values()
    host.operations.stop(["web"])
    assert not [
        command for command in snapshot.processes().values() if "stress-ng" in command and "temp-path" in command
    ]


def test_what_is_not_as_it_was_is_seen(tmp_path: Path):
    """A test of the test: each of these changes is one that a stressor could make, if it could."""
    before = host_state.look()
    again = host_state.look()
    assert again.bounded["descriptors"] == before.bounded["descriptors"]
    assert host_state.changed(before, again) == {}
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
    assert wrong(before) == {}


def wrong(before: host_state.State) -> dict[str, Any]:
    """Return what differs on the host from *before*, once that which takes its time has had it."""
    found: dict[str, Any] = {}

    def same() -> bool:
        found.clear()
        found.update(host_state.changed(before, host_state.look()))
        return not found

    try:
        until(same, patience=5)
    except AssertionError:
        return found
    return {}
