"""Text that others chose, made fit for a terminal."""

from __future__ import annotations


def printable(text: str, kept: str = "") -> str:
    """Escape what isn't printable (controls, marks of direction) as Python writes it, but for what is *kept*."""
    return "".join(one if one.isprintable() or one in kept else repr(one)[1:-1] for one in text)
