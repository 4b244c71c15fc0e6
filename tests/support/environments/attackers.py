"""Environments that run ``attacks`` as their program, under each runtime, and the permitted outcomes.

This file is also a program for a host, which may be a virtual machine. ``python attackers.py`` prints how many units of
two kernel resources root gets. ``python attackers.py FOLDER`` makes the folder a root with the attacks, and prints how
to run them.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "_utils"))

from netspace.environment.audit import interpreter
from support.environments import attacks

LIMITS = {"memory": "64M", "pids": 64}
SECRET = "--an-operator-s-secret"  # an argument of what the host runs inside
# By runtime, rows that may succeed (docs/runtimes.md, docs/isolation.md).
ALLOWED = {
    "crun": set[str](),
    "runc": set[str](),
    "runsc": {"4 inotify instances", "5 timers"},  # on gVisor's kernel, within `memory`
}
VERSION_1 = {**ALLOWED, "runc": {"8 unread data", "8 unread datagrams"}}  # which runc can't bound


class Kit(NamedTuple):
    """A root with the attacks: its path, the command that runs the attacks, and that command's variables."""

    root: str
    command: list[str]
    env: dict[str, str]


def fill(root: Path) -> Kit:
    """Copy this host's Python and the attacks to *root*."""
    kit = root / "kit"
    kit.mkdir(parents=True)
    packed = interpreter.pack(kit, attacks.MODULES)
    shutil.copy(attacks.__file__, kit / "attacks.py")
    for path in (root, kit, *kit.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    (root / "work").mkdir()
    (root / "work").chmod(0o777)
    env = dict(one.split("=", 1) for one in packed.variables("/kit"))
    return Kit(str(root), packed.command("/kit", "/kit/attacks.py"), env)


def declared(kit: Kit, runtime: str, *arguments: str, **keys: Any) -> dict[str, Any]:
    """Return the declaration of an attacker, with further *keys*."""
    command = [*kit.command, *arguments]
    own = {"image": f"dir:{kit.root}", "command": command, "env": kit.env, "limits": LIMITS, "runtime": runtime}
    # After an end of the whole environment, the attacks go on.
    # Under systemd the runtime's cleanup has this time, too: a translated machine is slow.
    return {**own, "restart": "on-failure", "stop_timeout": 60, **keys}


def found(lines: Iterable[str]) -> dict[str, str] | None:
    """Return the outcomes that an attacker printed; None: nothing was printed yet."""
    told = [line.removeprefix(attacks.MARK) for line in lines if line.startswith(attacks.MARK)]
    return dict(json.loads(told[-1])) if told else None


def succeeded(outcomes: Mapping[str, str], allowed: Collection[str]) -> dict[str, str]:
    """Return the attacks that succeeded although they must not."""
    assert outcomes.keys() == attacks.ROWS.keys()
    return {
        row: told
        for row, told in outcomes.items()
        if not told.startswith(("refused", "bounded")) and row not in allowed
    }


def reached(told: str) -> dict[str, Any]:
    """Return the successes of ``attacks.py watch`` against the host's processes that entered its environment.

    :param told: the line that ``watch`` printed. The processes entered to run a program with the argument
        :data:`SECRET`.
    :return: ``succeeded`` (ways of attack), ``programs`` and ``arguments`` of host processes that the attacker saw.
    """
    found = json.loads(told)
    print(f"arguments: {found['arguments']}")
    assert found["other"].keys() == found["own"].keys() == attacks.TRIES.keys()
    # What a program may do to itself shows that the try is a good one. Two are refused to all.
    assert {name for name, why in found["own"].items() if why} <= {"tracing", "its descriptor 0"}
    succeeded = sorted(name for name, why in found["other"].items() if not why)
    arguments = [one for one in found["arguments"] if SECRET in one]
    return {"succeeded": succeeded, "programs": found["programs"], "arguments": arguments}


NOTHING: dict[str, Any] = {"succeeded": [], "programs": [], "arguments": []}


def shares() -> dict[str, int]:
    """Return how many inotify instances and timers root gets when it requests 16 of each."""
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


ALL = {"inotify": 16, "timers": 16}


if __name__ == "__main__":
    print(json.dumps(fill(Path(sys.argv[1])) if sys.argv[1:] else shares()))
