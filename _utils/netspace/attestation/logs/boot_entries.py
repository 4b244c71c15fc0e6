"""Boot entries of UEFI firmware, as firmware measures them into PCR 1: the boot order, and where each entry leads.

Firmware measures ``BootOrder`` and each ``Boot####`` that it names (PFP 1.06, 3.3.4.2). Some firmware measures the
whole variable (UEFI_VARIABLE_DATA), other firmware only its content. In the latter case the digest doesn't cover the
variable's name, so the form of the content has to show whether it is an order or an entry. The three forms exclude each
other, so data has the same meaning with any firmware:

- An order is a list of numbers below 0x7000. A load option has an end node (7f ff), which such a list can't contain.
- A variable begins with the GUID of UEFI's own variables. As a load option, these bytes would announce a path of
  37,834 bytes, which is longer than any data that is accepted here.

Sources: UEFI 2.10, 3.1.3 (load options), 3.3 (variables), 10.3 (device paths). All sizes are bounded. Pure; makes no
trust decision.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from netspace.attestation.logs import events
from netspace.text import printable

MAX_DATA = 16 * 1024
MAX_NODES = 64
MAX_NUMBER = 0x7000
MAX_ORDER = 512
_NAME = re.compile(r"Boot[0-9A-F]{4}")
_ORDER = "BootOrder"
_END, _WHOLE, _INSTANCE = 0x7F, 0xFF, 0x01
_HARDWARE, _ACPI, _MESSAGING, _MEDIA, _BBS = 1, 2, 3, 4, 5
# UEFI 2.10, 10.3.4: Fibre Channel, InfiniBand, MAC address, IPv4, IPv6, iSCSI, VLAN, Fibre Channel Ex, URI, Bluetooth,
# Wi-Fi, Bluetooth LE, DNS, REST service, NVMe over Fabrics.
_NETWORK = frozenset((3, 9, 11, 12, 13, 19, 20, 21, 24, 27, 28, 30, 31, 33, 34))
# UEFI 2.10, 10.3.4: ATAPI, SCSI, USB, USB WWID, logical unit, SATA, SAS Ex, NVMe, UFS, SD, eMMC.
_STORAGE = frozenset((1, 2, 5, 16, 17, 18, 22, 23, 25, 26, 29))
_DISK, _FILE = 1, 4
_PARTITION = 38  # size of a hard drive node's body (UEFI 2.10, 10.3.5.1)
# BIOS Boot Specification 1.01, 3.1: an embedded network, and a BEV device (a network card's option ROM).
_BBS_NETWORK = frozenset((0x06, 0x80))


class Kind(Enum):
    """Destination of a boot entry, or the boot order itself."""

    ORDER = "boot order"
    LOCAL = "a file on a disk of this host"
    NETWORK = "a network"
    OTHER = "a place that the entry's form does not show"


class Entry(NamedTuple):
    """The content of ``BootOrder`` or of a boot entry.

    :param path: the device path as printable text; empty for an order.
    :param text: the entry's description as printable text; empty for an order.
    """

    kind: Kind
    path: str = ""
    text: str = ""


class _Node(NamedTuple):
    kind: int
    sub: int
    body: bytes


def read(data: bytes) -> Entry | None:
    """Parse *data* as a boot order or a boot entry; return None for other data.

    :param data: what was measured: UEFI_VARIABLE_DATA, or the content of a variable.
    """
    if len(data) > MAX_DATA:
        return None
    whole = events.variable(data)
    if whole is not None and whole.guid == events.GLOBAL:
        if whole.name == _ORDER:
            return _order(whole.data)
        return _option(whole.data) if _NAME.fullmatch(whole.name) else None
    return _order(data) or _option(data)


def order(data: bytes) -> tuple[int, ...] | None:
    """Return the numbers in the content of ``BootOrder``, each of them once; None for other data."""
    if not data or len(data) % 2 or len(data) > 2 * MAX_ORDER:
        return None
    numbers = tuple(int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2))
    return numbers if len(set(numbers)) == len(numbers) and max(numbers) < MAX_NUMBER else None


def _order(data: bytes) -> Entry | None:
    return None if order(data) is None else Entry(Kind.ORDER)


def _option(data: bytes) -> Entry | None:
    """Return the boot entry in an EFI_LOAD_OPTION; None for other data."""
    size = int.from_bytes(data[4:6], "little")
    end = next((at for at in range(6, len(data) - 1, 2) if data[at : at + 2] == b"\0\0"), None)
    if end is None or not size or end + 2 + size > len(data):
        return None
    listed = data[end + 2 : end + 2 + size]
    paths = _paths(listed)
    if paths is None:
        return None
    kind = Kind.LOCAL if all(map(_local, paths)) else Kind.OTHER
    if any(_networked(node) for path in paths for node in path):
        kind = Kind.NETWORK
    text = data[6:end].decode("utf-16-le", "replace")[: events.MAX_TEXT]
    return Entry(kind, printable(events.device_path(listed)), printable(text))


def _paths(data: bytes) -> list[list[_Node]] | None:
    """Parse a list of device paths; None if the list is incomplete, or has more than ``MAX_NODES`` nodes.

    A device path with several instances counts as several paths.
    """
    found: list[list[_Node]] = [[]]
    ended = False
    for count, node in enumerate(_nodes(data)):
        if node is None or count == MAX_NODES:
            return None
        ended = (node.kind, node.sub) == (_END, _WHOLE)
        if node.kind != _END:
            found[-1].append(node)
        elif node.body or node.sub not in (_WHOLE, _INSTANCE):
            return None
        else:
            found.append([])
    return found[:-1] if ended and found[0] else None


def _nodes(data: bytes) -> Iterator[_Node | None]:
    """Yield the nodes of a device path. The last one is None if it is not whole."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 2 : at + 4], "little")
        if size < 4 or at + size > len(data):
            yield None
            return
        yield _Node(data[at], data[at + 1], data[at + 4 : at + size])
        at += size


def _networked(node: _Node) -> bool:
    if node.kind == _BBS:
        return node.sub == 1 and node.body[:2] in [bytes((one, 0)) for one in _BBS_NETWORK]
    return node.kind == _MESSAGING and node.sub in _NETWORK


def _local(path: list[_Node]) -> bool:
    """Return whether a path leads to a file on a disk's partition, by nodes that the specification defines."""
    kinds = [(node.kind, node.sub) for node in path]
    if (_MEDIA, _DISK) not in kinds:
        return False
    at = kinds.index((_MEDIA, _DISK))
    if len(path[at].body) != _PARTITION:
        return False
    before, after = kinds[:at], kinds[at + 1 :]
    through = all(
        sub == 1 if kind in (_HARDWARE, _ACPI) else kind == _MESSAGING and sub in _STORAGE for kind, sub in before
    )
    return through and bool(after) and set(after) == {(_MEDIA, _FILE)}
