"""Records of children: one file for each taken place, written before the child's start and removed after its end.

A *place* is an environment that waits for a child (:mod:`netspace.host.children`). A place without a file is free. If a
record has no ``begun``, netspace was killed during the child's start. Such a child is ended, because no answer has told
its parent that it runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from netspace import files
from netspace.layout import Layout, below
from netspace.supervision import process
from netspace.supervision.cgroup import payload_cgroup

KIND = "children"
_MEMBERS = 64
_TICKS = os.sysconf("SC_CLK_TCK")


class Run(msgspec.Struct, frozen=True):
    """One run of an environment's program, identified by the oldest process of that run.

    :param boot: the kernel's id of the boot in which it runs.
    :param ticks: the start time of the process in clock ticks since that boot.
    """

    boot: str
    pid: int
    ticks: int

    def lasts(self) -> bool:
        """Return whether the process still runs."""
        return self.boot == files.boot_id() and process.alive(self.pid, self.ticks)

    @property
    def began(self) -> float:
        """Start time of the process, in seconds since the boot."""
        return self.ticks / _TICKS

    def kill(self) -> None:
        """Kill the process. The kernel then kills all others in its PID namespace (pid_namespaces(7))."""
        with contextlib.suppress(OSError):  # it has ended
            fd = os.pidfd_open(self.pid)
            try:
                if self.lasts():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


class Child(msgspec.Struct, frozen=True):
    """Record of one child: an environment that its parent started from a template.

    :param parent: the name of its parent.
    :param template: the name of its template.
    :param name: the name that its parent chose.
    :param values: its values: those of the template, replaced by those that the parent gave.
    :param until: the end of its lifetime, in seconds since 1970, as in the answer to its parent.
    :param ends: the same in seconds since the boot (:func:`now`). Only this value is enforced, because somebody may set
        the wall clock.
    :param within: the run of its parent's program that requested it.
    :param begun: its own run; None: its start isn't complete.
    """

    parent: str
    template: str
    name: str
    values: dict[str, Any]
    until: float
    ends: float
    within: Run
    begun: Run | None = None


def now() -> float:
    """Return the seconds since the boot, including time in suspend (``CLOCK_BOOTTIME``, clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def run_of(layout: Layout, name: str) -> Run | None:
    """Return the present run of an environment's program; None if it doesn't run."""
    from netspace.environment.container import oci_runtime

    group = payload_cgroup(layout, oci_runtime.service_name(name))
    found = []
    for pid in process.members(group)[:_MEMBERS]:
        there = process.stat(int(pid))
        if there is not None and there.ticks > 0 and there.state not in "ZX":
            found.append((there.ticks, int(pid)))
    return Run(files.boot_id(), min(found)[1], min(found)[0]) if found else None


def _path(layout: Layout, place: str) -> Path:
    return below(layout.records(KIND), f"{place}.json")


def places(layout: Layout, among: Iterable[str] | None = None) -> set[str]:
    """Return the places that are taken."""
    return files.record_names(layout.records(KIND), among)


def read(layout: Layout, place: str) -> Child | None:
    """Return the record of the child that runs in a place; None if the place is free, or the record is damaged."""
    try:
        return msgspec.json.decode(files.read(_path(layout, place)), type=Child)
    except (OSError, ValueError):
        return None


def write(layout: Layout, place: str, child: Child) -> None:
    """Write the record of a child."""
    files.write(_path(layout, place), msgspec.json.encode(child))


def remove(layout: Layout, place: str) -> None:
    """Remove the record of a child that is gone, and the folder of such records if it was the last."""
    files.remove(_path(layout, place))
    folder = layout.records(KIND)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def ended(layout: Layout, place: str) -> bool:
    """Return whether the program of the child that runs in a place (an environment made for children) has ended."""
    child = read(layout, place)
    return child is not None and child.begun is not None and not child.begun.lasts()


PARENT_ENDED, OVER = "its parent has ended", "its lifetime is over"


def due(layout: Layout, place: str) -> str:
    """Return why the child at a place must end; empty if it may go on. Changes nothing."""
    child = read(layout, place)
    return "its record is damaged" if child is None else over(layout, place, child)


def over(layout: Layout, place: str, child: Child) -> str:
    """Return why *child*, read from the record of its place, must end; empty if it may go on."""
    from netspace.environment import record as records

    if child.begun is None:
        return "its start was interrupted"
    if not child.within.lasts():
        return PARENT_ENDED
    if not child.begun.lasts():
        return "its program has ended"
    if now() >= child.ends:
        return OVER
    path = records.path(layout, child.parent)
    known = _templates(layout, child.parent, files.stamp(path)) if path.exists() else frozenset()
    if known is not None and child.template not in known:
        return "its template is gone"
    return "" if records.path(layout, place).exists() else "its environment is gone"


@functools.lru_cache(maxsize=64)
def _templates(layout: Layout, parent: str, stamp: tuple[int, int, int]) -> frozenset[str] | None:
    """Return the templates in an environment's record; None if the record is damaged.

    :param stamp: the stamp of the record's file. The record is read again only when the stamp has changed.
    """
    from netspace.environment import record as records

    found, damaged = records.read_each(layout, [parent])
    if damaged:
        return None
    return frozenset(found[parent].spec.spawns) if parent in found else frozenset()
