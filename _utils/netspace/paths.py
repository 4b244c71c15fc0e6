"""Programs and paths: where a program is, and whether a user other than root can replace the target of a path.

Reads only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def program(name: str, places: str) -> str | None:
    """Return the path of the program *name* in the first of these places that has it; None if none has it.

    It is ``shutil.which`` without ``shutil``, which takes 2 ms to import.

    :param places: folders, separated by colons, as in ``PATH``.
    """
    found = (os.path.join(place, name) for place in places.split(":"))
    return next((path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def loose(path: Path) -> Path | None:
    """Return the folder above *path* in which a user other than root may rename entries; None if there is none.

    A file in a folder that only root can enter is safe, even if another user owns it. Files that don't exist yet, which
    root will make, are safe, too.
    """
    for folder in reversed(path.parents):
        if not os.path.lexists(folder):
            return None
        info = folder.stat()
        others = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # In a sticky folder only root can rename root's entries: look at the next folder, too.
        if others and info.st_mode & stat.S_ISVTX:
            others = folder == path.parent and not (path.exists() and _own(path.stat()))
        if not _own(info) or others:
            return folder
        if private(folder):
            return None
    return None


def straight(path: Path) -> bool:
    """Return whether *path* is absolute, without links and ``..``. :func:`loose` needs such a path."""
    return path.is_absolute() and os.path.realpath(path) == str(path)


def private(folder: Path) -> bool:
    """Return whether only root can enter *folder*."""
    info = folder.stat()
    return _own(info) and not info.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _own(info: os.stat_result) -> bool:
    return info.st_uid in (0, os.geteuid())
