"""Reader of the kernel's counters for environments' cgroups: their usage, and how often a limit was hit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from netspace.environment.container.cgroups import ROOT, Hierarchies
from netspace.environment.storage import mounts
from netspace.supervision.cgroup import file_value, values

Counter = Literal["memory", "processor_seconds", "processes", "memory_hits", "process_hits", "throttled_seconds"]
"""
``memory``: bytes now. ``processor_seconds``: processor time so far. ``processes``: processes and threads now.
``memory_hits``: times at the memory limit. ``process_hits``: processes refused for the limit of processes.
``throttled_seconds``: time of waiting for the limit of processor time.
"""
COUNTERS: tuple[Counter, ...] = get_args(Counter)


class _Place(NamedTuple):
    """The place of a counter: a file, the word before the number, and the unit.

    The word is empty if the file has only the number.
    """

    folder: str
    file: str
    word: bytes = b""
    unit: float = 1.0


class Reader:
    """Reader of the counters of many environments. It looks up the cgroup hierarchies only once."""

    def __init__(self) -> None:
        # With version 2, the table of mounts isn't read: a thousand environments have thousands of mounts.
        unified = os.path.exists(f"{ROOT}/cgroup.controllers")
        self._places = _unified() if unified else _separate(Hierarchies(mounts.table(), ()))

    def read(self, counter: Counter, cgroup: str) -> float | None:
        """Return a counter of a cgroup; None if this host doesn't have the counter or the cgroup.

        :param cgroup: the cgroup's path from the root of each hierarchy.
        """
        place = self._places.get(counter)
        if place is None:
            return None
        value = _value(f"{place.folder}{cgroup}/{place.file}", place.word)
        return None if value is None else value * place.unit

    def read_all(self, counter: Counter, cgroups: Sequence[str]) -> Iterator[float | None]:
        """Yield the value of one counter (as :meth:`read` returns it) for each cgroup."""
        place = self._places.get(counter)
        if place is None:
            yield from (None for _ in cgroups)
            return
        unit = place.unit
        for content in values(place.folder, cgroups, place.file, place.word):
            try:
                yield None if content is None else int(content) if unit == 1.0 else float(content) * unit
            except ValueError:
                yield None


def _unified() -> dict[Counter, _Place]:
    return {
        "memory": _Place(ROOT, "memory.current"),
        "processor_seconds": _Place(ROOT, "cpu.stat", b"usage_usec", 1e-6),
        "processes": _Place(ROOT, "pids.current"),
        "memory_hits": _Place(ROOT, "memory.events", b"max"),
        "process_hits": _Place(ROOT, "pids.events", b"max"),
        "throttled_seconds": _Place(ROOT, "cpu.stat", b"throttled_usec", 1e-6),
    }


def _separate(hierarchies: Hierarchies) -> dict[Counter, _Place]:
    """Return the counters' places in cgroup version 1, which has a separate hierarchy for each controller."""
    files: dict[Counter, tuple[str, str, bytes, float]] = {
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
    """Return the number in a file, or the number after *word*; None if there is no number."""
    return _number(file_value(path, word))


def _number(content: bytes | None) -> float | None:
    try:
        return None if content is None else float(content)
    except ValueError:
        return None
