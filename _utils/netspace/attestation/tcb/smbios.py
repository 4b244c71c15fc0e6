"""Strict parser of SMBIOS tables: firmware, and management controllers (BMC).

Source: DMTF DSP0134 3.7, sections 5 (entry points), 6 (structures), 7.1 (type 0), 7.39 (type 38) and 7.43 (type 42).
Linux shows the tables in ``/sys/firmware/dmi/tables`` to root. All integers are little-endian. Sizes and counts are
bounded. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from netspace.attestation.refusals import Malformed
from netspace.text import printable

MAX_TABLE = 256 * 1024
MAX_STRUCTURES = 4096
MAX_STRINGS = 255
MAX_TEXT = 128
BIOS, IPMI, HOST_INTERFACE, END = 0, 38, 42, 127
# 7.39.1: kinds of interface to a BMC.
_INTERFACES = {1: "KCS", 2: "SMIC", 3: "BT", 4: "SSIF"}
# 7.43.1: kinds of interface between host and management controller; 2 to 8 are those of MCTP (DSP0239).
_HOST_INTERFACES = {2: "KCS", 3: "8250 UART", 4: "16450 UART", 5: "16550 UART", 6: "16650 UART", 7: "16750 UART",
                    8: "16850 UART", 0x40: "network", 0xF0: "OEM"}  # fmt: skip


class Structure(NamedTuple):
    """One structure of the SMBIOS tables.

    :param data: the formatted area, with its head of four bytes.
    :param strings: the texts that the formatted area names by number, from 1 on.
    """

    kind: int
    data: bytes
    strings: tuple[str, ...]

    def text(self, offset: int) -> str | None:
        """Return the text whose number stands at *offset*; None if there is none."""
        at = self.data[offset] if offset < len(self.data) else 0
        return self.strings[at - 1] if 0 < at <= len(self.strings) else None


class Firmware(NamedTuple):
    """The platform's firmware (type 0). *release* is its version number, such as ``1.24``, if the maker gives one."""

    vendor: str | None
    version: str | None
    date: str | None
    release: str | None


class Controller(NamedTuple):
    """A management controller (BMC, ILOM): how the host reaches it.

    :param kind: the structure's type, 38 or 42.
    :param interface: such as ``KCS`` or ``network``.
    :param ipmi: the version of IPMI, such as ``2.0``; None in type 42.
    """

    kind: int
    interface: str
    ipmi: str | None


class Tables(NamedTuple):
    """Content of the SMBIOS tables. *firmware* is None if there is no structure of type 0."""

    firmware: Firmware | None
    controllers: tuple[Controller, ...]


def version(entry_point: bytes) -> tuple[int, int]:
    """Return the version of SMBIOS from an entry point, of 32 or 64 bits.

    :raises Malformed: when the anchor, the length or the checksum is wrong.
    """
    if entry_point.startswith(b"_SM3_"):
        length, at, least = 6, 7, 24
    elif entry_point.startswith(b"_SM_"):
        length, at, least = 5, 6, 30
    else:
        raise Malformed("smbios: the entry point begins with neither _SM_ nor _SM3_")
    size = entry_point[length] if len(entry_point) > length else 0
    if not least <= size <= len(entry_point) or sum(entry_point[:size]) % 256:
        raise Malformed("smbios: the entry point has a wrong length or checksum")
    return entry_point[at], entry_point[at + 1]


def read(table: bytes) -> Tables:
    """Return the firmware and the management controllers in the tables.

    :raises Malformed: when a structure is not whole, or when there is no end.
    """
    firmware: Firmware | None = None
    controllers: list[Controller] = []
    for one in structures(table):
        if one.kind == BIOS and firmware is None:
            firmware = _firmware(one)
        elif one.kind == IPMI and len(one.data) > 5:
            ipmi = f"{one.data[5] >> 4}.{one.data[5] & 15}"
            controllers.append(Controller(IPMI, _INTERFACES.get(one.data[4], f"kind {one.data[4]}"), ipmi))
        elif one.kind == HOST_INTERFACE and len(one.data) > 4:
            name = _HOST_INTERFACES.get(one.data[4], f"kind {one.data[4]}")
            controllers.append(Controller(HOST_INTERFACE, name, None))
    return Tables(firmware, tuple(controllers))


def structures(table: bytes) -> Iterator[Structure]:
    """Yield the structures up to the end of the table (type 127). What follows the end is padding.

    :raises Malformed: when a structure is not whole, or when there is no end.
    """
    if len(table) > MAX_TABLE:
        raise Malformed(f"smbios: {len(table)} bytes; at most {MAX_TABLE} are accepted")
    at = 0
    for _ in range(MAX_STRUCTURES):
        if at + 4 > len(table):
            raise Malformed(f"smbios: ends after {len(table)} bytes without a structure of type {END}")
        kind, size = table[at], table[at + 1]
        if size < 4 or at + size > len(table):
            raise Malformed(
                f"smbios: a structure of type {kind} at byte {at}: {size} bytes are too few, or too many for the table"
            )
        strings, after = _strings(table, at + size)
        yield Structure(kind, table[at : at + size], strings)
        if kind == END:
            return
        at = after
    raise Malformed(f"smbios: more than {MAX_STRUCTURES} structures")


def _strings(table: bytes, at: int) -> tuple[tuple[str, ...], int]:
    """Return the strings of a structure, and the offset after them. An empty set of strings is two NULs."""
    end = table.find(b"\0\0", at)
    if end < 0:
        raise Malformed(f"smbios: the strings at byte {at} have no end")
    raw = table[at:end].split(b"\0") if end > at else []
    if len(raw) > MAX_STRINGS:
        raise Malformed(f"smbios: {len(raw)} strings at byte {at}; a structure can name {MAX_STRINGS}")
    return tuple(printable(one.decode("utf-8", "replace"))[:MAX_TEXT].strip() for one in raw), end + 2


def _firmware(one: Structure) -> Firmware:
    """Return the firmware from type 0. A release of 255 means that the maker gives none."""
    release = None
    if len(one.data) >= 0x16 and one.data[0x14] != 0xFF:
        release = f"{one.data[0x14]}.{one.data[0x15]}"
    return Firmware(one.text(4), one.text(5), one.text(8), release)
