"""Image sources on a file server, such as ``tar:salt://images/shop.tar``.

This module decides which files to fetch. The caller passes a :class:`Remote`, which fetches them. A fetched file is
used only if its hash matches, and is kept only until the image is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from netspace.environment.images import sources
from netspace.errors import NetspaceError

SCHEME = "salt://"


class Remote(Protocol):
    """Interface to a file server."""

    def here(self, url: str) -> Path | None:
        """Return the path of a file that is on this host already; None for other files.

        For a file on this host, no other method is called.

        :raises NetspaceError: when the file should be on this host, but is missing.
        """
        ...

    def hash(self, url: str) -> str:
        """Return ``sha256:<hex>`` of the server's present file.

        :raises NetspaceError: when the server doesn't give the hash.
        """
        ...

    def fetch(self, url: str, folder: Path) -> Path:
        """Fetch the file into *folder*, which is empty; return its path.

        :raises NetspaceError: when the fetch fails.
        """
        ...


class Located(msgspec.Struct, frozen=True):
    """The place of a source: either a location on this host, or a URL.

    :param rest: the part of the declared location after the URL.
    """

    location: str
    url: str = ""
    rest: str = ""


def locate(source: sources.Source, location: str, remote: Remote | None) -> Located:
    """Return the place of a declared location.

    :raises NetspaceError: when this kind of source can't be fetched.
    """
    if not location.startswith(SCHEME):
        return Located(location)
    parts = getattr(source, "split", None)
    if parts is None:
        raise NetspaceError(f"{location}: this source is not a file, so it can't be fetched")
    url, rest = parts(location)
    path = remote.here(url) if remote is not None else None
    return Located(location, url, rest) if path is None else Located(f"{path}{rest}")
