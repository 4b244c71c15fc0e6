"""Devices that reach a host's memory or start its programs: their drivers and firmware, and the rules for new ones.

Everything is read from files, except the version of a network card's firmware, for which the kernel has only the ioctl
SIOCETHTOOL (ethtool's ``ETHTOOL_GDRVINFO``, include/uapi/linux/ethtool.h).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netspace.attestation.kernel_files import link, names, number, read, text, there
from netspace.text import printable

MAX_DEVICES = 64
MAX_TEXT = 80
_SIOCETHTOOL, _GDRVINFO = 0x8946, 3
# struct ethtool_drvinfo: the command, then five texts of 32 bytes, of which the third is the firmware; 196 bytes.
_DRVINFO, _FIRMWARE = 196, slice(68, 100)
_PCI = re.compile(r"0x([0-9a-f]{4})")
_OPT_IN = 0x4  # DMA_CTRL_PLATFORM_OPT_IN_FLAG: Intel VT-d 4.1, 8.1


def short(path: Path) -> str | None:
    """Return a file's text for people: printable, and at most ``MAX_TEXT`` characters."""
    found = text(path)
    return printable(found)[:MAX_TEXT] if found else None


def pci(device: Path) -> str | None:
    """Return vendor and device of a PCI function, such as ``8086:1533``; None for other devices."""
    parts = [_PCI.fullmatch(text(device / name) or "") for name in ("vendor", "device")]
    return ":".join(one[1] for one in parts if one) if all(parts) else None


def network(root: Path, firmware: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """Return the network cards: ``name``, ``driver``, ``pci`` and ``firmware``. Virtual interfaces are left out.

    :param firmware: returns the firmware's version of an interface, such as :func:`ethtool`.
    """
    folder = root / "sys/class/net"
    cards = [name for name in names(folder) if there(folder / name / "device")][:MAX_DEVICES]
    return [
        {
            "name": name,
            "driver": link(folder / name / "device/driver"),
            "pci": pci(folder / name / "device"),
            "firmware": firmware(name),
        }
        for name in cards
    ]


def disks(root: Path) -> list[dict[str, Any]]:
    """Return the disks with a controller of their own: NVMe, and SCSI or SATA. Serial numbers are left out."""
    found = []
    folder = root / "sys/class/nvme"
    for name in names(folder)[:MAX_DEVICES]:
        place = folder / name
        found.append(
            {
                "name": name,
                "model": short(place / "model"),
                "pci": pci(place / "device"),
                "firmware": short(place / "firmware_rev"),
            }
        )
    folder = root / "sys/block"
    for name in [one for one in names(folder) if re.fullmatch(r"sd[a-z]+", one)][:MAX_DEVICES]:
        place = folder / name / "device"
        found.append({"name": name, "model": short(place / "model"), "pci": None, "firmware": short(place / "rev")})
    return found


def iommu(root: Path) -> dict[str, Any]:
    """Return the IOMMUs in use, and the number of groups of devices that they keep apart.

    ``opt_in`` is true if the firmware asks the system to keep protection against DMA on (Intel's DMAR table, which only
    root can read). ``dma_protection`` is true if the kernel relies on the IOMMU for Thunderbolt
    (Documentation/admin-guide/thunderbolt.rst).
    """
    table = read(root / "sys/firmware/acpi/tables/DMAR") or b""
    bus = root / "sys/bus/thunderbolt/devices"
    told = [number(bus / name / "iommu_dma_protection") for name in names(bus) if name.startswith("domain")]
    units = names(root / "sys/class/iommu")[:MAX_DEVICES]
    groups = len(names(root / "sys/kernel/iommu_groups"))
    return {
        "on": bool(units) and groups > 0,
        "units": units,
        "groups": groups,
        "opt_in": bool(table[37] & _OPT_IN) if len(table) > 37 and table[:4] == b"DMAR" else None,
        "dma_protection": all(one == 1 for one in told) if told else None,
    }


def thunderbolt(root: Path) -> dict[str, Any]:
    """Return whether there is a Thunderbolt controller, and its lowest security level.

    With ``none``, any device gets PCIe at once; with ``user`` and ``secure`` somebody has to authorize it; with
    ``dponly``, ``usbonly`` and ``nopcie`` no device gets PCIe.
    """
    bus = root / "sys/bus/thunderbolt/devices"
    levels = [short(bus / name / "security") for name in names(bus) if name.startswith("domain")]
    order = ("none", "user", "secure", "dponly", "usbonly", "nopcie")
    known = [one for one in levels if one in order]
    lowest = min(known, key=order.index) if known and len(known) == len(levels) else None
    return {"present": bool(levels), "security": lowest}


def usb(root: Path) -> dict[str, Any]:
    """Return the number of USB controllers, and whether a new device has to be authorized on each of them.

    ``closed`` is true if no controller accepts a new device by itself: the kernel's ``authorized_default`` is 0 for
    each (1: it accepts any device, 2: devices within the case; Documentation/usb/authorization.rst). ``usbguard`` is
    true if usbguard is configured.
    """
    bus = root / "sys/bus/usb/devices"
    defaults = [number(bus / name / "authorized_default") for name in names(bus) if re.fullmatch(r"usb\d+", name)]
    return {
        "controllers": len(defaults),
        "closed": all(one == 0 for one in defaults) if None not in defaults else None,
        "usbguard": there(root / "etc/usbguard/usbguard-daemon.conf"),
    }


def ethtool(name: str) -> str | None:
    """Return the version of a network card's firmware; None if the driver reports none."""
    import ctypes
    import fcntl
    import socket
    import struct

    raw = name.encode()
    if len(raw) > 15:
        return None
    answer = ctypes.create_string_buffer(_DRVINFO)
    struct.pack_into("=I", answer, 0, _GDRVINFO)
    request = struct.pack("16sP16x", raw, ctypes.addressof(answer))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            fcntl.ioctl(end, _SIOCETHTOOL, request)
    except OSError:
        return None
    said = answer.raw[_FIRMWARE].split(b"\0")[0].decode(errors="replace")
    found = printable(said)[:MAX_TEXT].strip()
    return found if found and found != "N/A" else None
