"""Environments that run ``attacks`` as their program, under each runtime, and the outcomes that are permitted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from netspace.environment.audit import interpreter
from support.environments import attacks

LIMITS = {"memory": "64M", "pids": 64}
# By runtime, rows that may succeed (docs/runtimes.md, docs/isolation.md).
ALLOWED = {
    "crun": set[str](),
    "runc": set[str](),
    "runsc": {"4 inotify instances", "5 timers"},  # on gVisor's kernel, within `memory`
}
VERSION_1 = {**ALLOWED, "runc": {"8 unread data"}}  # which runc can't bound


def fill(root: Path) -> list[str]:
    """Make *root* a root with this host's Python and the attacks; return the command that runs them."""
    kit = root / "kit"
    kit.mkdir(parents=True)
    packed = interpreter.pack(kit, attacks.MODULES)
    shutil.copy(attacks.__file__, kit / "attacks.py")
    for path in (root, kit, *kit.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    (root / "work").mkdir()
    (root / "work").chmod(0o777)
    variables = dict(one.split("=", 1) for one in packed.variables("/kit"))
    (root / "variables.json").write_text(json.dumps(variables))
    return packed.command("/kit", "/kit/attacks.py")


def declared(root: Path, command: list[str], runtime: str) -> dict[str, Any]:
    """Return the declaration of an attacker."""
    env = json.loads((root / "variables.json").read_text())
    own = {"image": f"dir:{root}", "command": command, "env": env, "limits": LIMITS, "runtime": runtime}
    return {**own, "restart": "never", "stop_timeout": 1}


def found(lines: Iterable[str]) -> dict[str, str] | None:
    """Return the outcomes that an attacker printed; None: nothing is printed yet."""
    told = [line.removeprefix(attacks.MARK) for line in lines if line.startswith(attacks.MARK)]
    return dict(json.loads(told[-1])) if told else None


def succeeded(outcomes: Mapping[str, str], allowed: Collection[str]) -> dict[str, str]:
    """Return the rows that succeeded although they may not."""
    assert outcomes.keys() == attacks.ROWS.keys()
    return {
        row: told
        for row, told in outcomes.items()
        if not told.startswith(("refused", "bounded")) and row not in allowed
    }
