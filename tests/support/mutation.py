"""Mutations of genuine inputs, for fuzzers: of bytes, and of values in JSON."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

INTERESTING = [0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF]


def mutate(chance: random.Random, genuine: bytes) -> bytes:
    raw = bytearray(genuine)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(raw) + 1)
        kind = chance.randrange(7)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(raw):
            raw[at] = chance.choice(INTERESTING)
        elif kind == 2:
            del raw[at : at + chance.randrange(1, 9)]
        elif kind == 3:
            raw[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 4:  # a number that a length may be
            raw[at : at + 4] = struct.pack(chance.choice("<>") + "I", chance.choice((0, 1, 0xFFFF, 1 << 31, 2**32 - 1)))
        elif kind == 5:  # a piece of it once more
            raw[at:at] = raw[chance.randrange(len(raw) + 1) :][: chance.randrange(64)]
        else:
            del raw[at:]
    return bytes(raw)


def mutate_json(chance: random.Random, genuine: bytes) -> bytes:
    """Return JSON with one value of *genuine* replaced by another value, mostly of another type."""
    value = json.loads(genuine)
    places: list[tuple[Any, Any]] = []

    def find(inner: Any) -> None:
        for key, below in inner.items() if isinstance(inner, dict) else enumerate(inner):
            places.append((inner, key))
            if isinstance(below, dict | list):
                find(below)

    find(value)
    inner, key = chance.choice(places)
    inner[key] = chance.choice(
        [None, True, -1, 2**64, 1e308, "", "x\x9b2J\u202e", "\ud800", [], {}, [[]], [{}], {"a": [1]}, [inner[key]] * 2]
    )
    return json.dumps(value).encode()
