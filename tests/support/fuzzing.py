"""Long runs of a fuzzer from the command line, and counts of accepted and refused inputs."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

COUNT = 1_000_000
"""Inputs of a long run, unless another number is given."""


@dataclass
class Tally:
    """The numbers of inputs that one target accepted and refused, and the slowest inputs in milliseconds."""

    read: int = 0
    refused: int = 0
    slowest_ms: float = 0.0

    def give(self, name: str, raw: bytes, read: Callable[[bytes], bool]) -> None:
        """Give one input to a target, and count it.

        :param read: returns whether the target accepted the input; a refusal is a normal result.
        :raises AssertionError: *read* raised an exception; the error has the input.
        """
        start = time.perf_counter()
        try:
            accepted = read(raw)
        except BaseException as err:
            why = str(err) if isinstance(err, AssertionError) else f"{type(err).__name__}: {err}"
            raise AssertionError(f"{name}: {why}: {raw.hex()}") from err
        if accepted:
            self.read += 1
        else:
            self.refused += 1
        self.slowest_ms = max(self.slowest_ms, round((time.perf_counter() - start) * 1000, 2))


def main(run: Callable[[int, int], Mapping[str, Tally]], nothing: str) -> None:
    """Run a fuzzer with the arguments ``[COUNT] [SEED]``; print each target's counts, the seed and the time.

    :param nothing: a text for the end of a run without a finding.
    """
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
    start = time.monotonic()
    found = run(count, seed)
    for name, tally in found.items():
        print(f"{name:26} {tally}")
    tried = sum(tally.read + tally.refused for tally in found.values())
    print(f"{tried} inputs, seed {seed}, {time.monotonic() - start:.0f} s: {nothing}")
