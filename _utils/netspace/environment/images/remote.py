"""Image sources that are not on this host yet: ``tar:salt://images/shop.tar``.

Whoever knows how to fetch is handed in; here it is only decided what is asked of it, and
what comes is believed only as far as its hash goes. A fetched file is kept no longer
than the image takes to be built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from netspace.environment.images import sources
from netspace.errors import NetspaceError

SCHEME = "salt://"


class Remote(Protocol):
    """A server of files, by URL."""

    def hash(self, url: str) -> str:
        """``sha256:<hex>`` of the file as it is there now. :raises NetspaceError: when it can't be told."""
        ...

    def fetch(self, url: str, folder: Path) -> Path:
        """Bring the file here: into *folder*, which is empty, unless it is here already; return where it is.

        :raises NetspaceError: when that fails.
        """
        ...


def split(source: sources.Source, location: str) -> tuple[str, str]:
    """The URL of the file that a location names, and what follows it; no URL where it is on this host."""
    if not location.startswith(SCHEME):
        return "", ""
    parts = getattr(source, "split", None)
    if parts is None:
        raise NetspaceError(f"{location}: this source is no file, so it can't be fetched")
    url, rest = parts(location)
    return str(url), str(rest)
