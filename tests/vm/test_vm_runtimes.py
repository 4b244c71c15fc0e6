"""One declaration under each OCI runtime, by a real systemd on cgroup v2: limits, stop, and restart after a crash."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest
from support import waiting
from support.hosts.whole_host import all_true
from vmlab.lab import STAY, Salt, environment
from vmlab.machine import Machine

from netspace.environment import runtimes

pytestmark = pytest.mark.vm

NAMES = runtimes.running("images")
# gVisor translates every system call, on a machine that is translated itself: all that it does takes long.
until = functools.partial(waiting.until, patience=240, pause=1)

LIVES = f"trap 'echo told to stop; exit 0' TERM; echo started; {STAY.partition('; ')[2]}"
# When it was seen to have started. In large pieces: each system call costs gVisor milliseconds there.
EATS = "echo started; sleep 15; dd if=/dev/zero of=/tmp/big bs=1M count=200; echo survived; sleep 100000"
LIMITS = {"memory": "96M", "pids": 64, "tmp": "256M"}


def declared() -> dict[str, Any]:
    own = {"limits": LIMITS, "stop_timeout": 60}
    there: dict[str, Any] = {}
    for name in NAMES:
        there[f"lives-{name}"] = environment(LIVES, runtime=name, **{**own, "restart": "on-failure"})
        there[f"eats-{name}"] = environment(EATS, runtime=name, **own)
    return {"environments": there}


def test_the_same_declaration_lives_is_bounded_and_stops_under_each(plain: Machine, salt: Salt) -> None:
    all_true(salt.apply(declared()))
    lives, eats = ([f"{what}-{name}" for name in NAMES] for what in ("lives", "eats"))

    def show(names: Iterable[str], key: str) -> list[str]:
        units = " ".join(f"netspace-environment-{name}" for name in names)
        return plain.sh(f"systemctl show -P {key} {units}").split()

    def log(*names: str) -> list[str]:
        chosen = " ".join(f"-t netspace-environment-{name}" for name in names)
        return plain.sh(f"journalctl -q -o cat {chosen}").splitlines()

    # Whatever the runtime, what takes more memory than it may is killed for it, and nobody else is.
    until(lambda: set(show(eats, "ActiveState")) == {"failed"})
    rows = salt("netspace_environment.list")
    assert {name: row["runtime"] for name, row in rows.items()} == {name: name.split("-")[1] for name in rows}
    assert {name: rows[name]["exit"] for name in eats} == dict.fromkeys(eats, "oom")
    assert {name: rows[name]["state"] for name in lives} == dict.fromkeys(lives, "running")
    assert "survived" not in log(*eats)
    for name in lives:
        group = f"/sys/fs/cgroup/netspace.slice/netspace-environment-{name}.service"
        assert str(96 * 1024**2) in plain.sh(f"find {group} -name memory.max -exec cat {{}} +").split()
    for name in lives[1:]:  # by crun other tests do
        assert salt.exec(name, ["/bin/id", "-u"])["stdout"] == "1000\n"

    # A crash: each comes back by itself.
    before = show(lives, "MainPID")
    plain.sh("kill -9 " + " ".join(before))
    until(lambda: not {"0", *before} & set(show(lives, "MainPID")))
    until(lambda: log(*lives).count("started") == 2 * len(lives))
    assert show(lives, "NRestarts") == ["1"] * len(lives)

    # A stop: the program is told, and ends by itself.
    assert salt("netspace_environment.stop", *lives) is True
    until(lambda: {name: log(name)[-1] for name in lives} == dict.fromkeys(lives, "told to stop"))
    assert set(show(lives, "ActiveState")) == {"inactive"}
    assert plain.sh("ps ax -o comm | grep -E '^(runsc|exe|busybox)'", check=False) == ""
