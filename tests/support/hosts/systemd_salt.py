"""A host under a real systemd as PID 1, driven by Salt inside, and the remains that netspace could leave on it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import waiting
from support.hosts.systemd_host import SystemdHost
from support.hosts.whole_host import CHECKOUT, Salt

SNAPSHOT = f"""
import json, os, sys
sys.path.insert(0, {str(CHECKOUT / "tests")!r})
from support.hosts import snapshot
print(json.dumps(snapshot.host()))
"""
until = functools.partial(waiting.until, patience=60, pause=0.1)


class Inside(Salt):
    """A ``scripts/salt-call`` inside the machine."""

    def __init__(self, pillar: Path, machine: SystemdHost) -> None:
        self.machine = machine
        super().__init__(pillar)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.machine.run(*self.command(*arguments), check=False, timeout=600)


def look(machine: SystemdHost) -> dict[str, Any]:
    """Return all possible remains of netspace, without systemd's own objects."""
    found: dict[str, Any] = json.loads(machine.run(sys.executable, "-c", SNAPSHOT).stdout)
    # systemd's own services come and go, and it keeps a file per unit that it invoked or logs of.
    foreign = ("/run/systemd/", "/run/log/", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/init.scope", "/run/udev")
    for key in ("files", "cgroups", "mounts"):
        found[key] = [entry for entry in found[key] if not entry.startswith(foreign) or "netspace" in entry]
    found["processes"] = [
        line for line in found["processes"] if "/lib/systemd/" not in line and "import snapshot" not in line
    ]
    found["units"] = machine.run(
        "systemctl", "list-units", "--all", "--plain", "--no-legend", "netspace*"
    ).stdout.splitlines()
    return found


def show(machine: SystemdHost, unit: str, key: str) -> str:
    return machine.run("systemctl", "show", "--property", key, "--value", unit).stdout.strip()


def listed(machine: SystemdHost, unit: str) -> list[str]:
    """Return the processes in a unit's cgroup and in the cgroups below it."""
    group = f"/sys/fs/cgroup/netspace.slice/{unit}.service"
    return machine.run("sh", "-c", f"find {group} -name cgroup.procs -exec cat {{}} +").stdout.split()
