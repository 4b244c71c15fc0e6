"""First start of the broker's node, in which it makes its tables.

If the node is killed during this start, some tables are missing, and RabbitMQ never starts again ("table_missing"). So
a mark exists until the node has answered once. While the mark exists, no environment has an account yet, so the data
contain no mail, and can be deleted before the next start.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from netspace import files
from netspace.layout import Layout


def data(layout: Layout) -> Path:
    """Return the folder of the node's own data: accounts, objects and mail."""
    return layout.broker / "data/mnesia"


def _mark(layout: Layout) -> Path:
    return layout.broker / "first-start"


def begin(layout: Layout) -> None:
    """Write the mark if the node has no data yet."""
    if not data(layout).exists():
        files.write(_mark(layout), b"")


def unfinished(layout: Layout) -> bool:
    """Return whether a first start has begun and the node has not answered yet."""
    return _mark(layout).exists()


def undo(layout: Layout) -> None:
    """Delete the data of an unfinished first start. The node must be stopped."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(data(layout))


def finish(layout: Layout) -> None:
    """Remove the mark: from now on the data are kept. Call it before an environment gets an account."""
    files.remove(_mark(layout))
