"""Names that a program may give itself (comm, proc(5)): any bytes except NUL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMM = Path("/proc/self/comm")


@contextmanager
def named(name: bytes) -> Iterator[None]:
    """Give this process a name during the context."""
    before = COMM.read_bytes()
    COMM.write_bytes(name)
    try:
        yield
    finally:
        COMM.write_bytes(before.rstrip(b"\n"))
