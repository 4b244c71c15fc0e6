"""SMBIOS tables for tests. **They are synthetic**: built by the specification (DMTF DSP0134), of no real machine."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def structure(kind: int, body: bytes, strings: Sequence[str] = (), handle: int = 0) -> bytes:
    """Return a structure: its head, its formatted area and its strings (DSP0134, 6.1)."""
    texts = b"".join(one.encode() + b"\0" for one in strings) + b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + (texts if strings else b"\0\0")


def bios(
    vendor: str = "Maker Ltd", version: str = "1.24.0", date: str = "07/05/2023", release: tuple[int, int] = (1, 24)
) -> bytes:
    """Return the firmware (type 0, 7.1), with the fields of version 2.4."""
    body = struct.pack("<BBHBBQ2sBBBB", 1, 2, 0xE000, 3, 0xFF, 0, b"\3\r", *release, 255, 255)
    return structure(0, body, (vendor, version, date))


def ipmi(interface: int = 1, version: int = 0x20) -> bytes:
    """Return a BMC (type 38, 7.39)."""
    return structure(38, struct.pack("<BBBBQ", interface, version, 0x20, 0xFF, 0xCA2))


def host_interface(interface: int = 0x40) -> bytes:
    """Return a host interface of a management controller (type 42, 7.43), without its protocols."""
    return structure(42, bytes((interface, 0, 0)))


END = structure(127, b"")


def table(*structures: bytes) -> bytes:
    return b"".join(structures) + END


def _summed(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes(((-sum(raw)) % 256,)) + raw[at + 1 :]


def entry_point(size: int, version: tuple[int, int] = (3, 2)) -> bytes:
    """Return an entry point of 64 bits (5.2.2)."""
    raw = b"_SM3_" + struct.pack("<BBBBBBBIQ", 0, 24, *version, 0, 1, 0, size, 0x7F000000)
    return _summed(raw, 5)


def old_entry_point(size: int, version: tuple[int, int] = (2, 8)) -> bytes:
    """Return an entry point of 32 bits (5.2.1)."""
    head = b"_SM_" + struct.pack("<BBBBHB5x", 0, 31, *version, 200, 0)
    inner = b"_DMI_" + struct.pack("<BHIHB", 0, size, 0x7F000000, 9, 0x28)
    return _summed(head + _summed(inner, 5), 4)
