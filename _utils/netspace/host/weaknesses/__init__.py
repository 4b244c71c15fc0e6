"""Weaknesses of a host: settings of its kernel and processor that weaken the isolation of environments.

``readings`` reads the settings; the other modules are pure and judge the values. The package changes nothing.

A row says for whom the setting matters. Both profiles of system calls (``environment.container.seccomp``) refuse some
calls to programs inside, even if the host allows them. So most of the kernel's switches matter only for the host's own
users. A value that can't be read is ``unknown``, never ``good``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netspace.host.weaknesses import devices, kernel, limits, numbers, processor, readings, sockets, users
from netspace.host.weaknesses.readings import Readings
from netspace.host.weaknesses.row import Matters, Outcome, Row

_ORDER: tuple[Matters, ...] = ("environments", "local users", "host")
_OUTCOMES: tuple[Outcome, ...] = ("good", "weak", "unknown")


# Every sysctl that a row needs.
SYSCTLS = (*(one.name for one in numbers.NUMBERS), *kernel.SYSCTLS, *sockets.SYSCTLS, *users.SYSCTLS)


def look(root: Path = Path("/")) -> list[Row]:
    """Return the rows of this host.

    :param root: the folder with its ``/proc`` and ``/sys``; only tests set it.
    """
    return rows(readings.read(SYSCTLS, root))


def rows(seen: Readings) -> list[Row]:
    """Return a row for each setting; the rows that matter for environments come first."""
    found = [
        kernel.core_pattern(seen.sysctls),
        kernel.compiler(seen.sysctls),
        limits.version(seen),
        limits.controllers(seen),
        *processor.weaknesses(seen.processor),
        processor.threads(seen.threads, seen.processor),
        *numbers.rows(seen.sysctls),
        *sockets.rows(seen.sysctls),
        users.namespaces(seen.sysctls),
        kernel.merging(seen.merging),
        kernel.modules(seen.modules),
        kernel.profiles(seen),
        kernel.lockdown(seen.lockdown),
        devices.iommu(seen),
        devices.usb(seen.usb, seen.virtual),
        devices.xen(seen.xen),
    ]
    return sorted(found, key=lambda row: _ORDER.index(row.matters))


def count(found: Sequence[Row]) -> dict[Outcome, int]:
    """Return how many rows have each outcome."""
    return {outcome: sum(row.outcome == outcome for row in found) for outcome in _OUTCOMES}
