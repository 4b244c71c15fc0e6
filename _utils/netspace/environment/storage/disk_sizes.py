"""Sizes of bounded file systems: the declared sizes, and how much content fits into a file system of a size.

Pure: nothing here reads or makes a file system; that is done in :mod:`netspace.environment.storage.disks`.
"""

from __future__ import annotations

from netspace.spec.types import Environment

# The key of the writable layer; a volume's key is its target.
LAYER = "layer"
BLOCK = 4096
BYTES_PER_FILE = 16384
JOURNAL = 4  # MiB, the minimum


def whole(size: int) -> int:
    """Return *size* (bytes) rounded down to whole blocks of a file system."""
    return int(size) // BLOCK * BLOCK


def overfull(size: int, used: int, files: int) -> str:
    """Return why *used* bytes in *files* files don't fit into a file system of *size* bytes; empty if they fit."""
    if used > room(size):
        return f"it holds {used / 1024**2:.1f} MiB already, {size / 1024**2:.4g} MiB are too small for that"
    if files > most_files(size):
        return f"it holds {files} files, {size / 1024**2:.4g} MiB have room for {most_files(size)}"
    return ""


def room(size: int) -> int:
    """Return roughly the bytes for content in a file system of *size* bytes: all but its journal and tables."""
    return size - size * 256 // BYTES_PER_FILE - (JOURNAL + 1) * 1024**2


def most_files(size: int) -> int:
    """Return roughly the greatest number of files in a file system of *size* bytes."""
    return size // BYTES_PER_FILE


def sizes(spec: Environment) -> dict[str, int]:
    """Return the declared sizes of an environment's bounded file systems, in bytes, by key.

    The key is ``layer``, or the volume's target.
    """
    found = {one.target: int(one.size) for one in spec.volumes if one.size is not None}
    if spec.limits.disk is not None and not spec.read_only:
        found[LAYER] = int(spec.limits.disk)
    return found
