"""Reader of a program's ELF headers (elf(5)), which name the program's loader. Runs nothing."""

from __future__ import annotations

import struct
from typing import IO

_PT_INTERP = 3
_LARGEST = 64 * 1024


def interpreter(program: IO[bytes]) -> str:
    """Return the path of the loader that a program names; empty if the program is linked statically.

    :param program: the program's file, open at the beginning.
    :raises ValueError: when the file is no 64-bit little-endian ELF file, or is damaged.
    :raises OSError: when the file can't be read.
    """
    try:
        head = program.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit little-endian ELF file")
        (table,) = struct.unpack_from("<Q", head, 32)
        entry, count = struct.unpack_from("<HH", head, 54)
        program.seek(table)
        if entry < 56:
            raise ValueError(f"program headers of {entry} bytes each: expected at least 56")
        headers = program.read(min(entry * count, _LARGEST))
        for at in range(0, entry * count, entry):
            kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", headers, at)
            if kind == _PT_INTERP:
                program.seek(offset)
                return program.read(min(size, 4096)).rstrip(b"\0").decode()
    except (struct.error, OverflowError) as err:
        raise ValueError(str(err)) from err
    return ""
