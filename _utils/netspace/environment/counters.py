"""The kernel's counters of environments' cgroups: their use, and how often a limit stopped them. Reads only."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from netspace.environment.container.cgroups import ROOT, Hierarchies

USE = ("memory", "processor_seconds", "processes")
HITS = ("memory_hits", "process_hits", "throttled_seconds")
"""The counters that tell of limits: a :class:`Counters` has them only if they are asked for."""


class Counters(NamedTuple):
    """The counters of one environment; None for one that this host doesn't keep, or while nothing runs.

    :param memory: bytes now.
    :param processor_seconds: processor time so far.
    :param processes: processes and threads now.
    :param memory_hits: how often it was at its memory limit.
    :param process_hits: how often it got no new process because of its limit.
    :param throttled_seconds: time for which it had to wait because of its limit of processor time.
    """

    memory: float | None = None
    processor_seconds: float | None = None
    processes: float | None = None
    memory_hits: float | None = None
    process_hits: float | None = None
    throttled_seconds: float | None = None


class _Place(NamedTuple):
    """A counter's file, the word before the number (empty: there is just the number), and its unit."""

    folder: str
    file: str
    word: bytes = b""
    unit: float = 1.0


class Reader:
    """Reads the counters of many environments; finds the hierarchies once."""

    def __init__(self, hierarchies: Hierarchies) -> None:
        self._places = _unified() if hierarchies.unified else _separate(hierarchies)

    def read(self, cgroup: str, wanted: Collection[str] = USE) -> Counters:
        """Return the counters of a cgroup.

        :param cgroup: its path from the root of each hierarchy.
        """
        found = {}
        for key in wanted:
            if (place := self._places.get(key)) is not None:
                value = _value(f"{place.folder}{cgroup}/{place.file}", place.word)
                found[key] = None if value is None else value * place.unit
        return Counters(**found)


def _unified() -> dict[str, _Place]:
    return {
        "memory": _Place(ROOT, "memory.current"),
        "processor_seconds": _Place(ROOT, "cpu.stat", b"usage_usec", 1e-6),
        "processes": _Place(ROOT, "pids.current"),
        "memory_hits": _Place(ROOT, "memory.events", b"max"),
        "process_hits": _Place(ROOT, "pids.events", b"max"),
        "throttled_seconds": _Place(ROOT, "cpu.stat", b"throttled_usec", 1e-6),
    }


def _separate(hierarchies: Hierarchies) -> dict[str, _Place]:
    """Return the places of cgroup version 1, which has a hierarchy for each controller."""
    files = {
        "memory": ("memory", "memory.usage_in_bytes", b"", 1.0),
        "processor_seconds": ("cpuacct", "cpuacct.usage", b"", 1e-9),
        "processes": ("pids", "pids.current", b"", 1.0),
        "memory_hits": ("memory", "memory.failcnt", b"", 1.0),
        "process_hits": ("pids", "pids.events", b"max", 1.0),
        "throttled_seconds": ("cpu", "cpu.stat", b"throttled_time", 1e-9),
    }
    folders = hierarchies.folders
    return {
        key: _Place(folders[controller], file, word, unit)
        for key, (controller, file, word, unit) in files.items()
        if controller in folders
    }


def _value(path: str, word: bytes) -> float | None:
    """Return the number in a file, or that after *word*; None if there is none. Files of cgroups are short."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = os.read(fd, 4096)
    except OSError:  # the cgroup was removed
        return None
    finally:
        os.close(fd)
    try:
        if not word:
            return float(content)
        return next(float(line.split()[1]) for line in content.splitlines() if line.split()[:1] == [word])
    except (ValueError, IndexError, StopIteration):
        return None
