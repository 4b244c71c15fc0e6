"""The files that an environment finds under ``/run/netspace``: its card and its credentials.

They are kept twice: in the state folder, root's alone, from which a reboot restores them, and
in the folder that is mounted (read-only) into the environment, there owned by its user with
mode 0400 in a folder of 0500. A change is a rename within that folder, so a running
environment sees it at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_FILE_MODE = 0o400
_FOLDER_MODE = 0o500


def digests(handed: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 of each file's content: tells a change without telling a secret."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(handed.items())}


def _kept(layout: Layout, name: str) -> Path:
    return layout.environment(name) / "handout"


def write(layout: Layout, name: str, handed: Mapping[str, bytes], owner: int) -> None:
    """Make the environment's files be exactly *handed*, both kept and seen inside.

    :param owner: host id of the environment's user.
    """
    for file in handed:
        if not _NAME.fullmatch(file):
            raise NetspaceError(f"environment {name}: {file!r} can't be the name of a file under /run/netspace")
    kept = _kept(layout, name)
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    _fill(kept, handed, None)
    inside = layout.inside(name)
    inside.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
    _fill(inside, handed, owner)
    info = inside.stat()
    if (info.st_uid, info.st_gid) != (owner, owner):
        os.chown(inside, owner, owner)
    if stat.S_IMODE(info.st_mode) != _FOLDER_MODE:
        inside.chmod(_FOLDER_MODE)


def _fill(folder: Path, handed: Mapping[str, bytes], owner: int | None) -> None:
    for file, content in handed.items():
        files.write(folder / file, content, mode=_FILE_MODE, owner=None if owner is None else (owner, owner))
    for entry in os.scandir(folder):
        if entry.name not in handed:
            os.unlink(entry.path)


def read(layout: Layout, name: str) -> dict[str, bytes]:
    """The kept files."""
    return _read(_kept(layout, name))


def observe(layout: Layout, name: str) -> dict[str, str] | None:
    """Digests of what is seen inside; None unless it is the same as what is kept."""
    inside = digests(_read(layout.inside(name)))
    return inside if inside == digests(read(layout, name)) else None


def _read(folder: Path) -> dict[str, bytes]:
    try:
        return {entry.name: Path(entry.path).read_bytes() for entry in os.scandir(folder)}
    except FileNotFoundError:
        return {}
