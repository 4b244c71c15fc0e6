"""Storms: loads that make other programs wait, but hold no units of a pool. ``exhaust.py`` repeats a storm in a loop.

This file uses only the standard library and ``pools.py``, because the audit copies it into a twin.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable

from netspace.environment.audit.pools import MIB, unnamed


def _spin(folder: str) -> None:
    sum(range(100_000))


def _fork(folder: str) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _touch(folder: str) -> None:
    with mmap.mmap(-1, 4 * MIB) as block:
        for offset in range(0, 4 * MIB, 4096):
            block[offset] = 1


def _sync(folder: str) -> None:
    opened = unnamed()
    try:
        os.write(opened, bytes(256 * 1024))
        os.fsync(opened)
    finally:
        os.close(opened)


def _send(folder: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        for _ in range(200):
            sender.sendto(bytes(60_000), sender.getsockname())


def _names(folder: str) -> None:
    for number in range(100):
        path = f"{folder}/{os.getpid()}-{number}"
        os.mkdir(path)
        os.rmdir(path)


STORMS: dict[str, Callable[[str], None]] = {
    "processors": _spin, "forks": _fork, "memory": _touch, "synced writes": _sync, "packets": _send, "names": _names,
}  # fmt: skip
