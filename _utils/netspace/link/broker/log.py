"""The log of netspace's RabbitMQ node: its length and its last lines."""

from __future__ import annotations

import os

from netspace import files
from netspace.layout import Layout
from netspace.text import printable

TAIL_BYTES = 16384


def size(layout: Layout) -> int:
    """Return the length of the node's log in bytes; 0 before the node has made the file."""
    try:
        return (layout.broker / "log/broker.log").stat().st_size
    except FileNotFoundError:
        return 0


def tail(layout: Layout, lines: int = 20) -> str:
    """Return the end of the node's log; if the log is empty, the end of the node's output."""
    for path in (layout.broker / "log/broker.log", layout.logs / "broker.log"):
        try:
            with files.opened(path) as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = stream.read().decode(errors="replace").strip()
        except OSError:
            continue
        if text:
            return "\n".join(printable(line) for line in text.splitlines()[-lines:])
    return "(it has none)"
