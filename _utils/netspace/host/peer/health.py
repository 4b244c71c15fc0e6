"""Health of environments for the peer: marks that the watch of health makes, and nothing else of what the watch knows.

The folder of the marks lets the peer's group look for a file by its name. It can't list the folder or read a file.
"""

from __future__ import annotations

import os
from typing import Literal

from netspace.environment.health import record
from netspace.layout import Layout
from netspace.link import host_peer

Health = Literal["healthy", "unhealthy", "starting"]


class Marks:
    """The marks, opened while the process still has root's rights."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        folder = record.folder(layout)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(folder, 0, host_peer.ids(layout))
        folder.chmod(0o710)
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def of(self, name: str) -> Health | None:
        """Return the health of an environment that has a check; None: it can't be seen."""
        try:
            if self._there(record.up(self._layout, name).name):
                return "healthy"
            return "unhealthy" if self._there(record.ill(self._layout, name).name) else "starting"
        except OSError:
            return None

    def _there(self, file: str) -> bool:
        try:
            os.stat(file, dir_fd=self._folder)
        except FileNotFoundError:
            return False
        return True


def withdraw(layout: Layout) -> None:
    """Make the folder of the marks root's alone again."""
    folder = record.folder(layout)
    if folder.is_dir():
        folder.chmod(0o700)
        os.chown(folder, 0, 0)
