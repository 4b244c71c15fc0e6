"""Sizes of bounded file systems: the sizes that an environment declares, and the content that fits.

Pure: nothing here reads a file system or makes one (:mod:`netspace.environment.storage.disks`).
"""

from __future__ import annotations

from netspace.spec.types import Environment

# The key of the writable layer; a volume's key is its target.
LAYER = "layer"
BLOCK = 4096
BYTES_PER_FILE = 16384
JOURNAL = 4  # MiB, the minimum


def whole(size: int) -> int:
    """Return the size rounded down to whole blocks of a file system."""
    return int(size) // BLOCK * BLOCK


def overfull(size: int, used: int, files: int) -> str:
    """Return why a file system of *size* can't hold so many bytes and files; empty if it can."""
    if used > room(size):
        return f"it holds {used / 1024**2:.1f} MiB already, {size / 1024**2:.4g} MiB have no room for that"
    if files > most_files(size):
        return f"it holds {files} files, {size / 1024**2:.4g} MiB have room for {most_files(size)}"
    return ""


def room(size: int) -> int:
    """Return roughly the bytes that a file system of *size* has for content: all but its journal and tables."""
    return size - size * 256 // BYTES_PER_FILE - (JOURNAL + 1) * 1024**2


def most_files(size: int) -> int:
    """Return roughly the number of files that a file system of *size* can have."""
    return size // BYTES_PER_FILE


def sizes(spec: Environment) -> dict[str, int]:
    """Return the declared sizes of an environment's own file systems, by their keys."""
    found = {one.target: int(one.size) for one in spec.volumes if one.size is not None}
    if spec.limits.disk is not None and not spec.read_only:
        found[LAYER] = int(spec.limits.disk)
    return found
