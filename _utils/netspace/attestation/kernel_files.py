"""Readers of small files of the kernel, below a root folder. They raise no error: an unreadable value is None."""

from __future__ import annotations

import os
import re
from pathlib import Path

MAX_FILE = 256 * 1024
MAX_NAMES = 4096


def read(path: Path) -> bytes | None:
    """Return the first ``MAX_FILE`` bytes of a file."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_FILE)
    except (OSError, ValueError):
        return None


def text(path: Path) -> str | None:
    """Return a file's text without white space around it."""
    raw = read(path)
    return None if raw is None else raw.decode(errors="replace").strip()


def number(path: Path) -> int | None:
    """Return the decimal number in a file."""
    found = text(path) or ""
    return int(found) if re.fullmatch(r"[0-9]{1,18}", found) else None


def there(path: Path) -> bool:
    """Return whether something is at *path*."""
    try:
        return path.exists()
    except OSError:
        return False


def names(path: Path) -> list[str]:
    """Return the sorted names in a folder; an empty list if the folder can't be read."""
    try:
        return sorted(os.listdir(path))[:MAX_NAMES]
    except OSError:
        return []


def link(path: Path) -> str | None:
    """Return the last name of a symbolic link's target."""
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None
