"""The limits of an environment, exceeded on cgroup v2 under systemd."""

from __future__ import annotations

import functools
import time
from typing import Any

import pytest
import waiting
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine
from whole_host import all_true, changes

pytestmark = pytest.mark.vm

GROUP = "/sys/fs/cgroup/netspace.slice/netspace-environment-{}.service"


until = functools.partial(waiting.until, patience=120, pause=0.5)


def test_what_exceeds_its_memory_is_killed_and_said_to_be_out_of_memory(plain: Machine, salt: Salt) -> None:
    hungry = "sleep 1; x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo survived"
    all_true(
        salt.apply(
            {
                "environments": {
                    "hungry": environment(hungry, limits={"memory": "32M"}),
                    "neighbour": environment(STAY, limits={"memory": "32M"}),
                }
            }
        )
    )
    until(lambda: salt("netspace_environment.list")["hungry"]["state"] != "running")
    listed = salt("netspace_environment.list")
    assert listed["hungry"]["exit"] == "oom"
    assert listed["neighbour"]["state"] == "running"
    assert salt("netspace_environment.logs", "hungry") == []
    # No swap either.
    group = GROUP.format("neighbour")
    found = plain.sh(f"find {group} -name memory.swap.max -exec cat {{}} +").split()
    assert "0" in found


def test_processes_and_cpu_time_are_bounded(plain: Machine, salt: Salt) -> None:
    # A shell that can't fork ends: the one that stays forks before there are too many.
    forks = "trap 'exit 0' TERM; sleep 100000 & kept=$!; (for i in $(seq 30); do sleep 1000 & done) & wait $kept"
    spins = "trap 'exit 0' TERM; while :; do :; done"
    all_true(
        salt.apply(
            {
                "environments": {
                    "forks": environment(forks, limits={"pids": 10}),
                    "spins": environment(spins, limits={"cpus": 0.2}),
                }
            }
        )
    )
    group = GROUP.format("forks")
    until(lambda: any("fork" in line for line in salt("netspace_environment.logs", "forks")))
    counts = plain.sh(f"find {group} -name pids.current -exec cat {{}} +").split()
    assert counts and all(int(count) <= 10 for count in counts)

    def used() -> int:
        lines = plain.sh(f"cat {GROUP.format('spins')}/cpu.stat").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec"))

    before, began = used(), time.monotonic()
    time.sleep(3)
    share = (used() - before) / 1e6 / (time.monotonic() - began)
    assert 0 < share < 0.4


def test_limits_change_while_it_runs_and_a_disk_grows(plain: Machine, salt: Salt) -> None:
    writes = ["/bin/sh", "-c", "dd if=/dev/zero of=/data/big bs=1M count=40 2>&1"]

    def declared(**limits: Any) -> dict[str, Any]:
        return {"environments": {"kept": environment(STAY, limits=limits)}}

    def pid() -> str:
        return plain.sh("systemctl show --property MainPID --value netspace-environment-kept")

    def setting(file: str) -> list[str]:
        return plain.sh(f"find {GROUP.format('kept')} -name {file} -exec cat {{}} +").splitlines()

    all_true(salt.apply(declared(memory="64M", cpus=0.5, disk="32M")))
    before = pid()
    full = salt.exec("kept", writes)
    assert "No space left on device" in full["stdout"]

    states = salt.apply(declared(memory="96M", cpus=0.75, disk="96M", io={"write": "50M"}))
    all_true(states)
    assert set(states["netspace environments"]["changes"]["kept"]) == {
        "limits:memory",
        "limits:cpus",
        "limits:disk",
        "limits:io:write",
    }
    assert pid() == before
    assert str(96 * 1024**2) in setting("memory.max") and str(64 * 1024**2) not in setting("memory.max")
    assert any(
        line.split()[0] == str(round(0.75 * int(line.split()[1]))) for line in setting("cpu.max") if line[0] != "m"
    )
    assert any(f"wbps={50 * 1024**2}" in line for line in setting("io.max"))
    assert salt.exec("kept", writes)["retcode"] == 0
    assert changes(salt.apply(declared(memory="96M", cpus=0.75, disk="96M", io={"write": "50M"}))) == {}
