"""Checks whether texts and paths in a declaration are safe for the kernel and in a configuration file."""

from __future__ import annotations

import posixpath
import unicodedata

MAX_TEXT = 4096
_UNPRINTABLE = ("Cc", "Cf", "Zl", "Zp")
"""Unicode's categories of invisible characters: controls, marks of direction, ends of lines."""
_MEANT = frozenset("\"'\\$#`")
"""Characters with a meaning of their own in the configuration of some program."""
PLAINLY = "without blanks, quotes or control characters"


def plain(text: str, most: int = MAX_TEXT) -> bool:
    r"""Return whether *text* is safe for the kernel: bounded, no NUL, valid Unicode (not YAML's "\ud800")."""
    try:
        return "\0" not in text and len(text.encode()) <= most
    except UnicodeEncodeError:
        return False


def clean(path: str) -> bool:
    """Return whether *path* is absolute, normalized, and without control characters."""
    return (
        path.startswith("/")
        and not path.startswith("//")
        and plain(path)
        and not any(unicodedata.category(one) in _UNPRINTABLE for one in path)
        and posixpath.normpath(path) == path
    )


def bare(path: str) -> bool:
    """Return whether *path* is clean and needs no quoting in any configuration file: no blank, quote or variable."""
    return clean(path) and not any(one.isspace() or one in _MEANT for one in path)
