"""Checks that texts and paths of a declaration are safe to pass to the kernel and to write into configuration files."""

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
    r"""Return whether the kernel can take *text*: bounded, no NUL, valid Unicode (YAML's "\ud800" isn't).

    :param most: the greatest length, in bytes.
    """
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
    """Return whether *path* is :func:`clean` and needs no quotes in configuration files.

    It contains no blank, no quote, and no character that marks a variable or a comment.
    """
    return clean(path) and not any(one.isspace() or one in _MEANT for one in path)
