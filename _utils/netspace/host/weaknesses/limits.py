"""Control groups, by which the kernel enforces the limits of environments (cgroups(7)). Pure."""

from __future__ import annotations

from netspace.environment.container import cgroups
from netspace.host.weaknesses.readings import Readings
from netspace.host.weaknesses.row import Outcome, Row, row, said

_UNSEEN = "make sure that cgroups are mounted at /sys/fs/cgroup"


def version(seen: Readings) -> Row:
    """Return the row on the host's version of cgroups."""
    names = _names(seen)
    outcome: Outcome = "unknown"
    found = said(seen.controllers)
    if not seen.controllers.error:
        outcome, found = "good", "version 2"
    elif names:
        outcome, found = "weak", "version 1, hybrid" if "unified" in names else "version 1"
    return row(
        "cgroup version",
        outcome,
        found,
        expected="version 2",
        matters="environments",
        why="Under version 1, no limit covers delayed writes to disks, nor (under runc) the memory of unread data in "
        "sockets. A lack of memory kills one process of an environment, not the whole environment.",
        remedy="with systemd, boot with `systemd.unified_cgroup_hierarchy=1`; else mount cgroup2, alone, at "
        "/sys/fs/cgroup",
        unseen=_UNSEEN,
    )


def controllers(seen: Readings) -> Row:
    """Return the row on the cgroup controllers that netspace needs for limits."""
    names = _names(seen)
    wanted = set(cgroups.CONTROLLERS.values())
    have = cgroups.limits(names)
    outcome: Outcome = "unknown"
    found = said(seen.controllers)
    if names or not seen.controllers.error:
        outcome = "good" if have == wanted else "weak"
        found = ", ".join(sorted(have)) or "none"
    missing = ", ".join(sorted(wanted - have))
    return row(
        "cgroup controllers",
        outcome,
        found,
        expected=", ".join(sorted(wanted)),
        matters="environments",
        why="A limit without its controller is left out: the environment runs without it.",
        remedy=f"boot a kernel that has {missing}, without `cgroup_disable=` for it; under version 2, make "
        "sure that no hierarchy of version 1 has it",
        unseen=_UNSEEN,
    )


def _names(seen: Readings) -> list[str]:
    """Return the names of the controllers; under version 1 also the names of hierarchies without a controller."""
    if seen.controllers.error:
        return [name for one in seen.hierarchies for name in one.split(",")]
    return seen.controllers.text.split()
