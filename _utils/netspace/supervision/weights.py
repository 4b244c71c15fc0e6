"""Weights of control groups: the share of busy processors and disks that a service gets beside other services.

A limit restricts an environment's use, but gives no other program priority. So all environments together get a lower
weight than one program of the host: applies, the broker and the forwarder go on, however much the environments use. A
weight costs nothing on an idle machine. Written after cgroups(7) and the kernel's cgroup-v2 and sched-design-CFS pages.

Without systemd, the common cgroup of all environments gets the weight. With systemd, all of netspace's services are in
one slice, which gets a weight. In the slice, a drop-in file for the units of environments gives each of them less
weight than the other services.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from netspace.layout import Layout
from netspace.supervision.cgroup import booted

# The usual weight is 100 (version 1: 1024 shares).
WEIGHT = 25
SLICE = 50  # of all of netspace's services with systemd
_SHARES = 256
# Each kernel has some of these files: version 2 and version 1; `bfq` where a disk has that scheduler.
_VALUES = {
    "cpu.weight": str(WEIGHT),
    "io.weight": f"default {WEIGHT}",
    "io.bfq.weight": f"default {WEIGHT}",
    "cpu.shares": str(_SHARES),
    "blkio.bfq.weight": str(WEIGHT),
}
_HIERARCHIES = ("cpu.shares", "blkio.bfq.weight", "blkio.throttle.read_bps_device")


def lower(layout: Layout, root: Path = Path("/sys/fs/cgroup")) -> list[str]:
    """Set the weight of the common cgroup of all environments, on a host without systemd.

    The cgroup is made if it is missing. Nothing is written if the weight is already set, or if the kernel doesn't
    support weights.

    :param root: where the cgroup file systems are mounted; only tests set it.
    :return: the files that were written.
    """
    if root == Path("/sys/fs/cgroup") and booted():
        return []
    return lower_group(layout.instance, root)


def lower_group(cgroup: str, root: Path = Path("/sys/fs/cgroup")) -> list[str]:
    """Give a cgroup in the root of each hierarchy the weight of environments, with or without systemd.

    :param cgroup: its name. The cgroup is not systemd's, and is made if it is missing.
    :param root: as for :func:`lower`.
    :return: the files that were written.
    """
    written = []
    for folder in _folders(root):
        group = folder / cgroup
        with contextlib.suppress(OSError):  # no such controller, or not ours to change: limits hold without a weight
            group.mkdir(exist_ok=True)
        for name, value in _VALUES.items():
            with contextlib.suppress(OSError):
                if _differs(group / name, value):
                    (group / name).write_text(value)
                    written.append(str(group / name))
    return written


def _folders(root: Path) -> list[Path]:
    """Return the root folders of the hierarchies that support a weight."""
    control = root / "cgroup.subtree_control"
    if not control.exists():
        hierarchies = sorted(os.listdir(root)) if root.is_dir() else ()
        return [root / one for one in hierarchies if any(os.path.exists(root / one / name) for name in _HIERARCHIES)]
    for controller in ("cpu", "io"):
        with contextlib.suppress(OSError):
            if controller not in control.read_text().split():
                control.write_text(f"+{controller}")
    return [root]


def _differs(file: Path, value: str) -> bool:
    """Return whether a file of weights has a value other than *value*; False if the file doesn't exist.

    :raises OSError: the file can't be read.
    """
    if not os.path.exists(file):
        return False
    first = file.read_text().splitlines()[:1]
    return first != [value]


def units(layout: Layout, folder: Path, header: str) -> dict[Path, str]:
    """Return the files by which systemd sets the weights: one for the slice, and one drop-in for environments.

    The drop-in's folder has a prefix of the units' names as its name, so systemd applies it to all these units
    (systemd.unit(5)).

    :param folder: systemd's folder of unit files.
    :param header: the files' first line.
    """

    def weights(kind: str, weight: int) -> str:
        return f"{header}\n[{kind}]\nCPUWeight={weight}\nIOWeight={weight}\n"

    return {
        folder / f"{layout.instance}.slice": weights("Slice", SLICE),
        folder / f"{layout.service('environment')}-.service.d" / "weight.conf": weights("Service", WEIGHT),
    }
