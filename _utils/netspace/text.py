"""Text that others chose, made fit for a terminal."""

from __future__ import annotations


def printable(text: str, kept: str = "") -> str:
    """Escape characters that aren't printable (controls, marks of direction) as Python does, except those *kept*."""
    return "".join(one if one.isprintable() or one in kept else repr(one)[1:-1] for one in text)
