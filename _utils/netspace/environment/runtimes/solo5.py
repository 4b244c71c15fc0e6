"""``solo5``: the tender solo5-spt, which runs MirageOS's and other Solo5 kernels as a process; it needs no KVM.

No distribution has solo5-spt, so the setting ``program`` must name its path. A kernel's manifest names its devices. A
network device gets the interface's tap device; a block device gets the disk with the kernel's files. The tender handles
no signal, so it is killed at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from netspace.environment import runtimes
from netspace.errors import NetspaceError
from netspace.layout import TAP

if TYPE_CHECKING:
    from netspace.environment.runtimes import Guest

PROGRAM = "solo5-spt"
PACKAGE = ""
RUNS = "kernels"
OWN_KERNEL = True
WRITES = True
STOPS = False
LOOKS = True
RESERVE = 8 * 1024**2
ONE_LINE = False
LEAST = {"pids": 2}  # as for crun, which starts the tender
Settings = runtimes.Settings

# solo5/mft_abi.h and elf_abi.h: the note "Solo5" of this type holds version, number of entries, and the entries.
_NOTE, _MANIFEST, _VERSION = b"Solo5\0", 0x3154464D, 1
_ENTRY, _NAME, _KIND_AT = 104, 68, 68
_BLOCK, _NETWORK = 1, 2
_NET = "--net:"
_MOST = 64
_MOST_NOTES = 1000  # of all program headers, which may point to the same ones
_PADDING = 4  # the manifest is aligned to 8 within its note, whose head has 20 bytes
_PT_NOTE = 4


def devices(settings: runtimes.Settings) -> tuple[str, ...]:
    return ()


def files(settings: runtimes.Settings) -> dict[str, str]:
    return {}


def reads(kernel: str, disk: str) -> tuple[str, ...]:
    """Return the tender's arguments that attach the devices of a kernel's manifest.

    :raises NetspaceError: when the file is not a Solo5 kernel, or its manifest names more than one device of a kind.
    """
    found: dict[int, list[str]] = {_BLOCK: [], _NETWORK: []}
    for kind, name in manifest(Path(kernel).read_bytes(), kernel):
        if kind in found:
            found[kind].append(name)
    for kind, what in ((_BLOCK, "block device (its files)"), (_NETWORK, "network device (its interface)")):
        if len(found[kind]) > 1:
            raise NetspaceError(f"{kernel} wants {', '.join(found[kind])}: there is only one {what}")
    return (
        *(f"--block:{name}={disk}" for name in found[_BLOCK]),
        *(f"{_NET}{name}={TAP}" for name in found[_NETWORK]),
    )


def manifest(content: bytes, path: str) -> list[tuple[int, str]]:
    """Return the devices in a kernel's manifest, each as a pair: kind and name.

    :raises NetspaceError: when the file has no manifest, or an invalid one.
    """
    try:
        for note in _notes(content):
            version, count = struct.unpack_from("<II", note, 0)
            if version != _VERSION or count > _MOST:
                raise ValueError(f"manifest of version {version} with {count} entries")
            entries = note[8:]
            if len(entries) < count * _ENTRY:
                raise ValueError("its manifest is cut off")
            found = []
            for at in range(0, count * _ENTRY, _ENTRY):
                name = entries[at : at + _NAME].split(b"\0", 1)[0].decode("ascii")
                (kind,) = struct.unpack_from("<I", entries, at + _KIND_AT)
                if kind in (_BLOCK, _NETWORK) and not name.isalnum():
                    raise ValueError(f"a device has the invalid name {name!r}")
                found.append((kind, name))
            return found
    except (struct.error, ValueError, OverflowError) as err:
        raise NetspaceError(f"{path} is not a kernel for solo5-spt: {err}") from err
    raise NetspaceError(f"{path} is not a kernel for solo5-spt: it has no Solo5 manifest")


def _notes(content: bytes) -> Iterator[bytes]:
    """Yield the Solo5 manifests in an ELF file's notes (elf(5))."""
    if content[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    if size < 56 or count > _MOST:
        raise ValueError(
            f"{count} program headers of {size} bytes each: expected at most {_MOST}, of at least 56 bytes"
        )
    left = _MOST_NOTES
    for at in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", content, at)
        end = offset + length
        while kind == _PT_NOTE and offset + 12 <= min(end, len(content)):
            left -= 1
            if left < 0:
                raise ValueError(f"more than {_MOST_NOTES} notes")
            name, held, type_ = struct.unpack_from("<III", content, offset)
            start = offset + 12 + (name + 3 & ~3)
            if type_ == _MANIFEST and content[offset + 12 : offset + 12 + name] == _NOTE:
                yield content[start + _PADDING : start + held]
            offset = start + (held + 3 & ~3)


def command(settings: runtimes.Settings, guest: Guest) -> tuple[str, ...]:
    memory = guest.memory // 1024**2
    networks = [one[len(_NET) :].partition("=")[0] for one in guest.found if one.startswith(_NET)]
    # Without this option, the tender chooses a random address, and no packet gets through.
    macs = tuple(f"--net-mac:{name}={guest.mac}" for name in networks if guest.mac)
    return (f"--mem={memory}", *guest.found, *macs, "--", guest.kernel, *guest.arguments)
