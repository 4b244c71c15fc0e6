"""Fuzzer of all data that the host reads from an environment or an image: each input soon gives a value or a refusal.

``python tests/support/environments/reader_fuzz.py [COUNT] [SEED]``: try COUNT inputs (default 1,000,000), spread over
all readers (``host_readers``). It prints how many inputs each reader accepted and refused, and the slowest input. A
finding ends the run with a traceback and the input in hex. Small runs are part of the tests. Every text that an
operator would see, also of a refusal, must be harmless to a terminal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "_utils"))

from netspace.errors import NetspaceError
from netspace.text import harmless
from support import fuzzing
from support.environments.host_readers import Reader, Refused, targets
from support.fuzzing import Tally
from support.mutation import mutate, mutate_json

SLOW = 2.0
"""Seconds of processor time that no input may take: they are a few kilobytes at most."""

# The slow ones, which make folders or connections, get a part of the inputs.
_SHARE = {"layer": 8, "index of an image": 8, "manifest of an image": 8, "settings of an image": 8,
          "letters over AMQP": 8, "dead letters": 8, "tar": 2}  # fmt: skip


def one(read: Reader, raw: bytes) -> bool:
    """Give one input to a reader; return whether the reader accepted it.

    :raises AssertionError: the reader did a forbidden thing.
    """
    start = time.process_time()
    try:
        shown, accepted = list(read(raw) or ()), True
    except (NetspaceError, Refused) as err:
        shown, accepted = [str(err)], False
    except BaseException as err:
        raise AssertionError(f"{type(err).__name__}: {err}") from err
    for text in shown:
        if harmless(text) != text:
            raise AssertionError(f"a text that isn't harmless: {text!r:.200}")
    if time.process_time() - start > SLOW:
        raise AssertionError("it took too long")
    return accepted


def damaged(chance: random.Random, genuine: bytes) -> bytes:
    """Return a genuine input after one or a few changes."""
    if genuine[:1] in (b"[", b"{") and chance.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError):
            return mutate_json(chance, genuine)
    return mutate(chance, genuine)


def run(count: int, seed: int) -> dict[str, Tally]:
    """Try *count* inputs.

    :raises AssertionError: when a reader does a forbidden thing; the error has the input.
    """
    chance = random.Random(seed)
    found: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        readers = targets(Path(folder))
        parts = sum(1 / _SHARE.get(name, 1) for name in readers)
        for name, (read, seeds) in readers.items():
            tally = found[name] = Tally()
            for _ in range(int(count / parts / _SHARE.get(name, 1)) + 1):
                tally.give(name, damaged(chance, chance.choice(seeds)), functools.partial(one, read))
    return found


if __name__ == "__main__":
    fuzzing.main(run, "no unexpected exception, no harmful text")
