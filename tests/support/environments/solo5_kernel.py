"""Files that have only the manifest of a Solo5 kernel, and a stand-in for Solo5's tender."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel") / "tender.c"
BLOCK, NETWORK = 1, 2
FIRST = (1 << 30, b"")


def elf(entries: list[tuple[int, bytes]], version: int = 1, cut: int = 0) -> bytes:
    """Return an ELF file with one note: a manifest of these devices, in the form of Solo5's elftool."""
    held = struct.pack("<II", version, len(entries))
    for kind, name in entries:
        held += name.ljust(68, b"\0") + struct.pack("<I", kind) + bytes(32)
    held = bytes(4) + held[: len(held) - cut]
    note = struct.pack("<III", 6, len(held), 0x3154464D) + b"Solo5\0\0\0" + held
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1) + bytes(6)
    assert len(head) == 64
    return head + struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(note), 0, 4) + note


def stand_in(target: Path) -> Path:
    """Build a program that takes arguments and devices like solo5-spt; return *target*."""
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", target, SOURCE], check=True)
    return target
