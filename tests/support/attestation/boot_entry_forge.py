"""Boot entries of UEFI firmware for tests: device paths, load options, and entries that lead to a network."""

from __future__ import annotations

import random
import struct
import uuid

from netspace.attestation.logs import events
from support.attestation.boot_forge import variable, wide


def node(kind: int, sub: int, body: bytes = b"") -> bytes:
    """Return a node of a device path (UEFI 2.10, 10.3.1)."""
    return struct.pack("<BBH", kind, sub, 4 + len(body)) + body


END = node(0x7F, 0xFF)
ROOT, CARD = node(2, 1, bytes.fromhex("d041030a00000000")), node(1, 1, b"\0\2")
NVME = node(3, 23, struct.pack("<I8x", 1))
DISK = node(4, 1, struct.pack("<IQQ16sBB", 1, 2048, 4096, uuid.UUID(int=7).bytes_le, 2, 2))
FILE = node(4, 4, wide("\\EFI\\debian\\shimx64.efi"))
MAC = node(3, 11, bytes(32) + b"\1")
IPV4, IPV6 = node(3, 12, bytes(23)), node(3, 13, bytes(56))
URI = node(3, 24, b"http://192.0.2.1/x.efi")
BEV = node(5, 1, struct.pack("<HH", 0x80, 0) + b"PXE\0")
NETWORK = {
    "PXE, IPv4": ROOT + CARD + MAC + IPV4,
    "PXE, IPv6": ROOT + CARD + MAC + IPV6,
    "HTTP": ROOT + CARD + MAC + IPV4 + URI,
    "HTTP, short": URI,
    "iSCSI": ROOT + CARD + MAC + IPV4 + node(3, 19, bytes(14) + b"iqn.x\0") + DISK + FILE,
    "NVMe over Fabrics": ROOT + node(3, 34, bytes(17) + b"nqn.x\0") + DISK + FILE,
    "BIOS, a card's ROM": BEV,
}


def option(path: bytes, text: str = "debian", attributes: int = 1, data: bytes = b"") -> bytes:
    """Return an EFI_LOAD_OPTION whose list has the one device path *path*."""
    return struct.pack("<IH", attributes, len(path + END)) + wide(text) + path + END + data


def order(*numbers: int) -> bytes:
    """Return the content of ``BootOrder``."""
    return b"".join(number.to_bytes(2, "little") for number in numbers)


def named(number: int, content: bytes) -> bytes:
    """Return the variable ``Boot####``, as UEFI_VARIABLE_DATA."""
    return variable(events.GLOBAL, f"Boot{number:04X}", content)


def ordered(*numbers: int) -> bytes:
    """Return the variable ``BootOrder``, as UEFI_VARIABLE_DATA."""
    return variable(events.GLOBAL, "BootOrder", order(*numbers))


def networked(chance: random.Random) -> bytes:
    """Return a load option that leads to a network."""
    return option(chance.choice(list(NETWORK.values())), f"entry {chance.randrange(10**6)}")
