"""Texts and paths of a declaration that are safe to pass on: to the kernel, into a configuration."""

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
    """Return whether *text* can be given to the kernel: bounded, no NUL, and Unicode (YAML's "\\ud800" is not)."""
    try:
        return "\0" not in text and len(text.encode()) <= most
    except UnicodeEncodeError:
        return False


def clean(path: str) -> bool:
    """Return whether *path* is absolute and normal, without a character that ends a line or steers a terminal."""
    return (
        path.startswith("/")
        and not path.startswith("//")
        and plain(path)
        and not any(unicodedata.category(one) in _UNPRINTABLE for one in path)
        and posixpath.normpath(path) == path
    )


def bare(path: str) -> bool:
    """Return whether *path* is clean and needs no quoting in any configuration: no blank, quote or variable."""
    return clean(path) and not any(one.isspace() or one in _MEANT for one in path)
