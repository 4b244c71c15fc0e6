"""The limits of an environment, exceeded on cgroup v2 under systemd."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from support import waiting
from support.hosts.whole_host import all_true, changes
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine

pytestmark = pytest.mark.vm

GROUP = "/sys/fs/cgroup/netspace.slice/netspace-environment-{}.service"


# What has no memory left reads its own program anew, again and again, before it is killed.
until = functools.partial(waiting.until, patience=300, pause=0.5)


def grown(machine: Machine, name: str, file: str, key: str, seconds: float) -> tuple[int, float]:
    """Return a cgroup counter's growth, and the seconds it took (*seconds* or more), by the machine's clock.

    The clock is read before and after, so a delay of the machine makes the time longer, never shorter.
    """
    read = f"cat {GROUP.format(name)}/{file}"
    answer = machine.sh(f"cat /proc/uptime; echo /; {read}; echo /; sleep {seconds}; {read}; echo /; cat /proc/uptime")
    began, before, after, ended = answer.split("/\n")

    def value(text: str) -> int:
        return sum(int(part.split()[0]) for part in text.split(key)[1:])

    return value(after) - value(before), float(ended.split()[0]) - float(began.split()[0])


def test_what_exceeds_its_memory_is_killed_and_said_to_be_out_of_memory(plain: Machine, salt: Salt) -> None:
    # With the machine's swap it would have room for that: it gets none of it.
    plain.sh(
        "dd if=/dev/zero of=/swap bs=1M count=64 status=none && chmod 600 /swap && mkswap -q /swap && swapon /swap"
    )
    # When it was seen to have started.
    hungry = "sleep 15; dd if=/dev/zero of=/tmp/big bs=1M count=50; echo survived; sleep 1000"
    declared = {
        "environments": {
            "hungry": environment(hungry, limits={"memory": "32M", "tmp": "64M"}),
            "neighbour": environment(STAY, limits={"memory": "32M"}),
        }
    }
    all_true(salt.apply(declared))
    until(lambda: plain.sh("systemctl show -P ActiveState netspace-environment-hungry").strip() == "failed")
    assert salt("netspace_environment.inspect", "hungry")["exit"] == "oom"
    planned = salt.apply(declared, "test=True")["netspace environments"]
    assert "environment hungry was last killed for lack of memory (limits:memory 32M)" in planned["comment"]
    listed = salt("netspace_environment.list")
    assert listed["hungry"]["exit"] == "oom"
    assert listed["neighbour"]["state"] == "running"
    assert salt("netspace_environment.logs", "hungry") == []
    found = plain.sh(f"find {GROUP.format('neighbour')} -name memory.swap.max -exec cat {{}} +").split()
    assert "0" in found


def test_processes_files_cpu_time_and_disks_are_bounded(plain: Machine, salt: Salt) -> None:
    # A shell that can't fork ends: the one that stays forks before there are too many.
    forks = "trap 'exit 0' TERM; sleep 100000 & kept=$!; (for i in $(seq 30); do sleep 1000 & done) & wait $kept"
    spins = "trap 'exit 0' TERM; while :; do :; done"
    writes = (
        "trap 'exit 0' TERM; while :; do dd if=/dev/zero of=/data/big bs=65536 count=8 conv=fsync 2>/dev/null; done"
    )
    # Past the page cache, again and again, what each finds or has written.
    direct = "trap 'exit 0' TERM; dd if=/dev/zero of=/data/big bs=65536 count=8 conv=fsync; while :; do dd {}; done"
    reads = direct.format("if=/data/big of=/dev/null bs=65536 iflag=direct 2>/dev/null")
    small = {
        "read_ops": direct.format("if=/data/big of=/dev/null bs=4096 iflag=direct 2>/dev/null"),
        "write_ops": direct.format("if=/dev/zero of=/data/big bs=4096 count=64 oflag=direct conv=notrunc 2>/dev/null"),
    }
    full = {"files": 64, "tmp": "1M", "shm": "1M", "disk": "16M"}
    volume = {"target": "/kept", "size": "16M"}
    all_true(
        salt.apply(
            {
                "environments": {
                    "forks": environment(forks, limits={"pids": 10}),
                    "spins": environment(spins, limits={"cpus": 0.2}),
                    "writes": environment(writes, limits={"io": {"write": "256K"}}),
                    "reads": environment(reads, limits={"io": {"read": "256K"}}),
                    **{key: environment(script, limits={"io": {key: 20}}) for key, script in small.items()},
                    "full": environment(STAY, limits=full, volumes=[volume]),
                }
            }
        )
    )
    group = GROUP.format("forks")
    until(lambda: any("fork" in line for line in salt("netspace_environment.logs", "forks")))
    counts = plain.sh(f"find {group} -name pids.current -exec cat {{}} +").split()
    assert counts and all(int(count) <= 10 for count in counts)

    # Over a second or more; what the machine doesn't get itself can only make it less.
    stat = f"find {GROUP.format('spins')} -name cpu.stat -exec grep -h nr_throttled {{}} +"
    until(lambda: any(int(count) for count in plain.sh(stat).split()[1::2]))
    microseconds, passed = grown(plain, "spins", "cpu.stat", "usage_usec ", 1)
    assert microseconds <= (0.2 * passed * 1.5 + 0.1) * 1e6

    until(lambda: "wbytes" in plain.sh(f"cat {GROUP.format('writes')}/io.stat"))
    written, passed = grown(plain, "writes", "io.stat", "wbytes=", 2)
    assert written <= 256 * 1024 * passed * 1.5 + 1024 * 1024
    assert f"wbps={256 * 1024}" in plain.sh(f"find {GROUP.format('writes')} -name io.max -exec cat {{}} +")

    for name, key, most, more, kept in (
        ("reads", "rbytes=", 256 * 1024, 1024 * 1024, "rbps=262144"),
        ("read_ops", "rios=", 20, 64, "riops=20"),
        ("write_ops", "wios=", 20, 64, "wiops=20"),
    ):
        until(lambda name=name, key=key: key in plain.sh(f"cat {GROUP.format(name)}/io.stat"))  # type: ignore[misc]
        amount, passed = grown(plain, name, "io.stat", key, 2)
        assert amount <= most * passed * 1.5 + more, name
        assert kept in plain.sh(f"find {GROUP.format(name)} -name io.max -exec cat {{}} +")

    # Each shell opens one more and has the next one inherit them.
    opens = "opens() { [ $1 = 0 ] || opens $(($1 - 1)) </bin/busybox; }; (opens 80) && echo all"
    fills = "dd if=/dev/zero of=$i/big bs=65536 count=400 2>&1 | busybox grep -c 'No space'"
    script = f"{opens}; for i in /tmp /dev/shm /data /kept; do {fills}; done"
    done = salt.exec("full", ["/bin/busybox", "sh", "-c", script])
    assert done["stdout"].split() == ["1"] * 4, done
    assert "open" in done["stderr"], done


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
    # It weighs less than the broker and the forwarder, and all of netspace less than the system's services.
    own, whole = GROUP.format("kept"), GROUP.rpartition("/")[0]
    assert plain.sh(f"cat {own}/cpu.weight {whole}/cpu.weight").split() == ["25", "50"]
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
