"""Image sources that are not on this host yet: ``tar:salt://images/shop.tar``.

Whoever knows how to fetch is handed in; here it is only decided what is asked of it, and
what comes is believed only as far as its hash goes. A fetched file is kept no longer
than the image takes to be built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from netspace.environment.images import sources
from netspace.errors import NetspaceError

SCHEME = "salt://"


class Remote(Protocol):
    """A server of files, by URL."""

    def here(self, url: str) -> Path | None:
        """Where the file lies, if it is on this host already; then nothing else is asked for it.

        :raises NetspaceError: when it should be, and isn't.
        """
        ...

    def hash(self, url: str) -> str:
        """``sha256:<hex>`` of the file as it is there now. :raises NetspaceError: when it can't be told."""
        ...

    def fetch(self, url: str, folder: Path) -> Path:
        """Bring the file into *folder*, which is empty; return where it is.

        :raises NetspaceError: when that fails.
        """
        ...


class Located(msgspec.Struct, frozen=True):
    """Where a source is: at a location on this host, or behind a URL with *rest* after it."""

    location: str
    url: str = ""
    rest: str = ""


def locate(source: sources.Source, location: str, remote: Remote | None) -> Located:
    """Tell where a declared location is.

    :raises NetspaceError: when it can't be fetched.
    """
    if not location.startswith(SCHEME):
        return Located(location)
    parts = getattr(source, "split", None)
    if parts is None:
        raise NetspaceError(f"{location}: this source is no file, so it can't be fetched")
    url, rest = parts(location)
    path = remote.here(url) if remote is not None else None
    return Located(location, url, rest) if path is None else Located(f"{path}{rest}")
