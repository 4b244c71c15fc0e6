"""Health of environments, for the process that answers environments' requests to their host.

The service that watches health makes a mark file for an environment. This process learns only whether a file of a given
name exists: it may neither list the folder of these files nor read one.
"""

from __future__ import annotations

import os
from typing import Literal

from netspace.environment.health import record
from netspace.layout import Layout
from netspace.link import host_peer

Health = Literal["healthy", "unhealthy", "starting"]


class Marks:
    """The folder of the mark files, opened while the process still has root's rights."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        folder = record.folder(layout)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(folder, 0, host_peer.ids(layout))
        folder.chmod(0o710)
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def of(self, name: str) -> Health | None:
        """Return the health of an environment that has a health check; None if it can't be seen."""
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
    """Take the access to the folder of the marks away from the peer's group. Only root has access after this."""
    folder = record.folder(layout)
    if folder.is_dir():
        folder.chmod(0o700)
        os.chown(folder, 0, 0)
