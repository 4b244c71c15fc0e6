"""Weights of environments by their use: who computes much goes last while a processor is short.

All environments start with the same weight. If one computes, another one's program that wakes up may have to wait for
the kernel's next tick (4 ms), at each step of an answer. Beside a smaller weight, it seldom has to. So the supervisor
watches how much of the processors each environment uses, and lowers the weight of whoever uses much. A lower weight
takes nothing from a program while a processor is free.

While all environments together use little, a look reads one file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from netspace.supervision.cgroup import file_value

FREE = 0.25
"""Processors that an environment may use at its full weight."""
MOST = 6
"""How often a weight is halved at most."""
KEPT = 0.5
"""How much of the use that was seen before counts beside the use since the last look."""


class _Files(NamedTuple):
    """The files of a control group for the use of processors and for its weight, in one version of the kernel's."""

    used: str  # the path of the file up to the group's, and from it
    used_file: str
    word: bytes  # before the number
    unit: float  # of a second
    weights: str
    weight_file: str
    full: int


def halved(use: float) -> int:
    """Return how often the weight of an environment that uses so many processors is halved. Pure.

    Twice the use is a sixteenth of the weight. So the kernel prefers whoever uses less, even if it is not much less.
    """
    times = 0
    while times < MOST and use > FREE * 2 ** (times / 4):
        times += 1
    return times


class Turns:
    """The weights of the environments of an instance, on a host without systemd.

    :param common: the control group that holds those of all environments, from the hierarchy's root.
    :param root: where the cgroup file systems are mounted; only tests set it.
    """

    def __init__(self, common: str, root: str = "/sys/fs/cgroup") -> None:
        self._common = common
        self._files = (
            _Files(root, "cpu.stat", b"usage_usec", 1e-6, root, "cpu.weight", 100)
            if os.path.exists(f"{root}/cgroup.controllers")
            else _Files(f"{root}/cpuacct", "cpuacct.usage", b"", 1e-9, f"{root}/cpu", "cpu.shares", 1024)
        )
        self._seen: dict[str, tuple[float, float]] = {}  # by group: when, and the processor's seconds until then
        self._use: dict[str, float] = {}  # processors, by environment
        self._lowered: set[str] | None = None  # the environments without their full weight; None: not known

    def look(self, now: float) -> bool:
        """Set the weights by what was used since the last look; return whether any of them is lowered.

        :param now: seconds of a clock that never goes back.
        """
        together = self._used(self._common, now)
        if together <= FREE and self._lowered is not None and not self._lowered:
            return False
        known, self._lowered = self._lowered, set()
        before, self._use = self._use, {}
        for name in self._environments():
            use = self._used(f"{self._common}/{name}", now)
            self._use[name] = KEPT * before.get(name, use) + (1 - KEPT) * use
            times = halved(self._use[name])
            if times:
                self._lowered.add(name)
            if times or known is None or name in known:
                self._weigh(name, times)
        for group in self._seen.keys() - {self._common, *(f"{self._common}/{name}" for name in self._use)}:
            del self._seen[group]
        return bool(self._lowered)

    def _environments(self) -> Iterator[str]:
        with contextlib.suppress(OSError), os.scandir(self._files.weights + self._common) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name

    def _used(self, group: str, now: float) -> float:
        """Return how many processors a group has used since the last look at it; 0 at the first."""
        files = self._files
        said = file_value(f"{files.used}{group}/{files.used_file}", files.word)
        if not said:
            self._seen.pop(group, None)
            return 0.0
        seconds = int(said) * files.unit
        then, before = self._seen.get(group, (now, seconds))
        self._seen[group] = (now, seconds)
        return max(0.0, seconds - before) / (now - then) if now > then else 0.0

    def _weigh(self, name: str, times: int) -> None:
        """Write an environment's weight, unless it has it."""
        files = self._files
        path, value = f"{files.weights}{self._common}/{name}/{files.weight_file}", str(max(1, files.full >> times))
        if (file_value(path) or value.encode()).strip() != value.encode():  # not there: without that controller
            with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as stream:
                stream.write(value)
