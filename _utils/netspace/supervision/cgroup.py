"""Control groups that a supervisor gives to services, and the host's controllers (cgroups(7))."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netspace.layout import Layout


def booted() -> bool:
    """Return whether systemd is this machine's PID 1 (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def controllers(root: Path = Path("/sys/fs/cgroup")) -> frozenset[str]:
    """Return the cgroup controllers of this host: ``memory``, ``pids``, ``cpu``...

    Without its controller a limit can't be enforced: systemd ignores it silently, and an OCI runtime
    refuses to start. So the caller must leave the limit out, and report that.

    :param root: where the cgroup file systems are mounted; only tests set it.
    """
    try:
        return frozenset((root / "cgroup.controllers").read_text().split())
    except FileNotFoundError:  # version 1: one hierarchy per controller
        return frozenset(
            name for path in root.glob("*/cgroup.procs") for name in path.parent.name.split(",") if name != "unified"
        )


def payload_cgroup(layout: Layout, name: str) -> str:
    """Return the cgroup (from the hierarchy's root) for the program that the service *name* starts detached.

    It is an OCI ``cgroupsPath``. Under systemd it lies in the unit's delegated subtree, so that
    the unit's limits apply to the program and the unit's end ends it.
    """
    return payload_cgroups(layout)(name)


def payload_cgroups(layout: Layout) -> Callable[[str], str]:
    """Return :func:`payload_cgroup` for many services of an instance."""
    instance = layout.instance
    if booted():
        return lambda name: f"/{instance}.slice/{layout.service(name)}.service/payload"
    return lambda name: f"/{instance}/{name}"
