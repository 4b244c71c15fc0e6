"""Disturbances, drawn by a seed: when each begins, what it disturbs, and how long it lasts. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

# For how many seconds at most. A kill has no length: its process is started again.
KINDS: Mapping[str, float] = {"kill": 0.0, "pause": 6.0, "cut": 12.0}
WEIGHTS = {"client": 6, "forwarder": 3, "broker": 2, "cable": 2, "lo": 2}


class Target(NamedTuple):
    """A program, service or network that can be disturbed.

    :param kind: ``broker``, ``forwarder`` (of a host), ``client`` (a program), ``cable`` (between hosts), or ``lo`` (of
        an environment).
    :param name: the host or the environment; empty for the cable.
    """

    kind: str
    name: str

    def ways(self) -> tuple[str, ...]:
        return ("cut",) if self.kind in ("cable", "lo") else ("kill", "pause")


class Disturbance(NamedTuple):
    """One disturbance of a target.

    :param after: seconds since the beginning of the disturbance before it.
    :param how: ``kill``, ``pause`` or ``cut``.
    :param seconds: how long it lasts.
    """

    after: float
    target: Target
    how: str
    seconds: float

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.how} {self.target.kind} {self.target.name}".rstrip() + lasting


def schedule(seed: int, targets: Sequence[Target], mean: float) -> Iterator[Disturbance]:
    """Yield disturbances without end; the same for the same arguments.

    :param mean: seconds between two, on average.
    """
    chance = random.Random(seed)
    weights = [WEIGHTS[one.kind] / sum(other.kind == one.kind for other in targets) for one in targets]
    while True:
        target = chance.choices(targets, weights)[0]
        how = chance.choice(target.ways())
        seconds = round(chance.uniform(0.2, KINDS[how]), 1) if KINDS[how] else 0.0
        yield Disturbance(round(chance.expovariate(1 / mean), 2), target, how, seconds)
