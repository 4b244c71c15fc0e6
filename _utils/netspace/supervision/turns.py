"""Weights of environments by their use of processors: the more one uses, the later it gets a busy processor.

If all environments had the same weight and one of them computed, a program of another one would often wait for the
kernel's next tick (4 ms) when it wakes up. Beside a smaller weight it seldom waits. So the supervisor measures how much
of the processors each environment uses, and lowers the weight of those that use much. While a processor is free, a
lower weight has no effect.

While all environments together use little, :meth:`Turns.look` reads only one file.
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
"""The most times that a weight is halved."""
KEPT = 0.5
"""The weight of earlier use in the average of use; the use since the last look has the rest (1 - KEPT)."""


class _Files(NamedTuple):
    """The files of a control group with its use of processors and its weight, for one version of cgroups.

    :param used: the folder of the hierarchy with the file *used_file*.
    :param used_file: the file with the processor time used.
    :param word: the word before the number in this file; empty if there is none.
    :param unit: the unit of the number, in seconds.
    :param weights: the folder of the hierarchy with the file *weight_file*.
    :param weight_file: the file with the weight.
    :param full: the default weight.
    """

    used: str
    used_file: str
    word: bytes
    unit: float
    weights: str
    weight_file: str
    full: int


def halved(use: float) -> int:
    """Return how many times the weight of an environment is halved. Pure.

    If one environment uses twice as much as another, its weight is a sixteenth. So the kernel prefers the one that uses
    less, even if the difference is small.

    :param use: the number of processors that the environment uses.
    """
    times = 0
    while times < MOST and use > FREE * 2 ** (times / 4):
        times += 1
    return times


class Turns:
    """The weights of an instance's environments, on a host without systemd.

    :param common: the control group that contains the groups of all environments, relative to the hierarchy's root.
    :param root: where the cgroup file systems are mounted; only tests set it.
    """

    def __init__(self, common: str, root: str = "/sys/fs/cgroup") -> None:
        self._common = common
        self._files = (
            _Files(root, "cpu.stat", b"usage_usec", 1e-6, root, "cpu.weight", 100)
            if os.path.exists(f"{root}/cgroup.controllers")
            else _Files(f"{root}/cpuacct", "cpuacct.usage", b"", 1e-9, f"{root}/cpu", "cpu.shares", 1024)
        )
        # By group: time of the last look, seconds used until then, number of the group's folder.
        self._seen: dict[str, tuple[float, float, int]] = {}
        self._use: dict[str, float] = {}  # processors, by environment
        self._lowered: set[str] | None = None  # the environments without their full weight; None: not known

    def look(self, now: float) -> bool:
        """Set the weights by the use since the last call; return whether any weight is lowered.

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
        """Return how many processors a group has used since the last call for this group; 0 at the first call.

        If the group was made anew since, its counter began at 0 again.
        """
        files = self._files
        said, folder = file_value(f"{files.used}{group}/{files.used_file}", files.word), 0
        with contextlib.suppress(OSError):
            folder = os.stat(f"{files.used}{group}").st_ino
        if not said:
            self._seen.pop(group, None)
            return 0.0
        seconds = int(said) * files.unit
        then, before, known = self._seen.get(group, (now, seconds, folder))
        self._seen[group] = (now, seconds, folder)
        spent = max(0.0, seconds - before) if folder == known else seconds
        return spent / (now - then) if now > then else 0.0

    def _weigh(self, name: str, times: int) -> None:
        """Write the weight of an environment, halved so many *times*, if it isn't set already."""
        files = self._files
        path, value = f"{files.weights}{self._common}/{name}/{files.weight_file}", str(max(1, files.full >> times))
        if (file_value(path) or value.encode()).strip() != value.encode():  # absent without the controller
            with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as stream:
                stream.write(value)
