"""Attacks that once succeeded inside an environment are refused or bounded under each runtime."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
from support.environments import attackers
from support.environments.environment_host import Host
from support.waiting import until

from netspace.environment import runtimes

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def attacking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("attacking")
    return root, attackers.fill(root)


def shares() -> dict[str, int]:
    """Return how many inotify instances and timers root gets of 16 each."""
    libc = ctypes.CDLL(None, use_errno=True)
    instances = [libc.inotify_init1(0) for _ in range(16)]
    for one in instances:
        if one >= 0:
            os.close(one)
    made = [ctypes.c_int() for _ in range(16)]
    timers = [libc.syscall(222, 1, None, ctypes.byref(one)) for one in made]
    for one, result in zip(made, timers, strict=True):
        if result == 0:
            libc.syscall(226, one)
    return {"inotify": sum(one >= 0 for one in instances), "timers": timers.count(0)}


@pytest.mark.parametrize("runtime", runtimes.running("images"))
def test_what_once_succeeded_is_refused_under_each_runtime(host: Host, attacking, runtime: str) -> None:
    if why := runtimes.look(runtime, {}).error:
        pytest.skip(f"{runtime}: {why}")
    root, command = attacking
    before = shares()
    host.namespace("web")
    subprocess.run(["nsenter", f"--net={host.layout.netns('web')}", "ip", "link", "set", "lo", "up"], check=True)
    host.run("web", **attackers.declared(root, command, runtime))
    until(lambda: attackers.found(host.operations.logs("web")["lines"]) is not None, patience=240)
    outcomes = attackers.found(host.operations.logs("web")["lines"])
    print(f"{runtime}: {outcomes}")
    allowed = attackers.ALLOWED if Path("/sys/fs/cgroup/cgroup.controllers").exists() else attackers.VERSION_1
    assert attackers.succeeded(outcomes or {}, allowed[runtime]) == {}
    # The attacker holds its booty. Under runc it is counted for root (docs/limits.md).
    if runtime != "runc":
        assert shares() == before == {"inotify": 16, "timers": 16}
