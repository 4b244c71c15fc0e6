"""Limits of an image's size. An image that exceeds them is refused before it is built.

An image source is untrusted. A small archive can unpack to a huge one, and these limits keep it from filling the host's
disk or memory. They are far above the needs of programs.
"""

from __future__ import annotations

from netspace.errors import NetspaceError
from netspace.text import harmless

BYTES = 16 * 1024**3
"""Bytes that come out of an image's archives, all layers together."""
ENTRIES = 500_000
"""Members of an image's archives, all layers together; files of a folder."""
DEPTH = 100
"""Folders above a file."""
PATH = 4095
"""Bytes of a path, and of a symbolic link's target."""
NAME = 255
"""Bytes of one name in a path."""
LAYERS = 128
"""Layers of an OCI image."""
RATIO = 250
"""The most unpacked bytes for each byte of a compressed stream, once more than ``UNRATED`` bytes are unpacked."""
UNRATED = 64 * 1024**2
"""Bytes that may come out of a compressed stream before ``RATIO`` counts."""
HEADER = 256 * 1024
"""Bytes of one member's extended headers (long names, extended attributes)."""
NAMES = 128 * 1024**2
"""Bytes of all names, symbolic links' targets and ``user.*`` attributes together: they are kept in memory."""
ID = 2**32 - 2
"""Largest user or group id."""
TIME = 2**33
"""Latest file time, in seconds since 1970. A later time becomes this one, a time before 1970 becomes 1970."""
JSON = 4 * 1024**2
"""Bytes of an OCI index, manifest or configuration."""
LOOKUPS = 1_000_000
"""The most symbolic links that are followed to find the folder of an archive's member."""
DICTIONARY = 128 * 1024**2
"""Bytes of memory that a compressed stream may ask for."""


class Budget:
    """The amounts that one image has used of its limits.

    :param where: the image's source as the operator named it; every error text begins with it.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._bytes = 0
        self._entries = 0
        self._lookups = 0
        self._names = 0

    def refuse(self, message: str) -> NetspaceError:
        """Return the error to raise. Control characters in texts from the image are escaped."""
        return NetspaceError(f"image source {self.where}: {harmless(message)}")

    def take_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > BYTES:
            raise self.refuse(f"unpacks to more than {BYTES // 1024**3} GiB")

    def take_entry(self) -> None:
        self._entries += 1
        if self._entries > ENTRIES:
            raise self.refuse(f"more than {ENTRIES} files")

    def take_names(self, count: int) -> None:
        self._names += count
        if self._names > NAMES:
            raise self.refuse(f"its names, links and attributes are more than {NAMES // 1024**2} MiB")

    def take_lookup(self) -> None:
        self._lookups += 1
        if self._lookups > LOOKUPS:
            raise self.refuse("its files lie behind too many symbolic links")

    def rate(self, packed: int, unpacked: int) -> None:
        if unpacked > UNRATED and unpacked > packed * RATIO:
            raise self.refuse(f"unpacks to more than {RATIO} times its size: a decompression bomb")
