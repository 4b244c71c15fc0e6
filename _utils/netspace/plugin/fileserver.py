"""Salt's file server, for image sources with a ``salt://`` URL, with or without a master.

The caller passes Salt's functions (``__salt__``); the module imports nothing of Salt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netspace.errors import NetspaceError

_HEX = re.compile(r"[0-9a-f]{64}")


class SaltFiles:
    """Access to Salt's file server.

    :param functions: Salt's execution functions, by name.
    :param opts: Salt's configuration, which shows whether there is a master.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], opts: Mapping[str, Any]) -> None:
        self._functions = functions
        self._local = opts.get("file_client") == "local"

    def here(self, url: str) -> Path | None:
        """Return the path of the file in ``file_roots`` if there is no master; return None if there is one.

        Without a master, Salt doesn't copy the file to its cache.

        :param url: the ``salt://`` URL of the file.
        :raises NetspaceError: Salt's file server has no such file, or failed.
        """
        if not self._local:
            return None
        path = self._call("cp.cache_file", url)
        if not path:
            raise NetspaceError(f"{url}: Salt's file server has no such file")
        return Path(path)

    def hash(self, url: str) -> str:
        """Return the file's hash (``sha256:<hex>``) from Salt's file server, without fetching the file.

        :raises NetspaceError: the server has no such file, or doesn't hash files by SHA-256.
        """
        found = self._call("cp.hash_file", url)
        if not found:
            raise NetspaceError(f"{url}: Salt's file server has no such file")
        kind, digest = found.get("hash_type"), str(found.get("hsum"))
        if kind != "sha256" or not _HEX.fullmatch(digest):
            raise NetspaceError(f"{url}: Salt hashes files by {kind}: set 'hash_type: sha256' on master and minion")
        return f"sha256:{digest}"

    def fetch(self, url: str, folder: Path) -> Path:
        """Fetch the file into *folder* and return its path there. Salt's cache, a second copy, isn't used."""
        target = folder / "fetched"
        if not self._call("cp.get_file", url, str(target)) or not target.is_file():
            raise NetspaceError(f"{url}: Salt could not fetch it")
        return target

    def _call(self, function: str, *arguments: str) -> Any:
        try:
            return self._functions[function](*arguments)
        except Exception as err:  # Salt raises many types, for example for its transport or the disk
            raise NetspaceError(f"{arguments[0]}: {function}: {err or type(err).__name__}") from err
