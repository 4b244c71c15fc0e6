"""Helpers for tests of an audit, which makes a temporary twin of an environment: the remains that it must not leave."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from netspace.environment import user_ids
from netspace.environment.storage import mounts
from netspace.layout import Layout


def bare_root(root: Path) -> Path:
    """Make an image with one static program, without Python or a C library."""
    root.chmod(0o755)
    (root / "bin").mkdir()
    (root / "var/tmp").mkdir(parents=True)
    (root / "var/tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    return root


def traces() -> list[str]:
    """Return all remains of an audit's twins on this host."""
    layout = Layout()
    places = [layout.state, layout.run, Path("/run/netns"), Path("/sys/class/net")]
    found = [str(path) for place in places for path in place.rglob("*audit-*")]
    found += [target for target in mounts.table() if "audit-" in target]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob("**/netspace-audit*")]
    tables = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return found + [line for line in tables.splitlines() if "audit-" in line]


def users() -> set[int]:
    """Return the processes that run as the user of an environment."""
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.stat(f"/proc/{entry}").st_uid >= user_ids.FIRST:
                    found.add(int(entry))
            except FileNotFoundError:
                pass
    return found
