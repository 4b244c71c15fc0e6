"""Grain ``netspace_tcb``: firmware and hardware below this host's kernel, read from files. No process is started.

The facts are the host's claims about itself. They serve only for display and targeting, and never raise a trust level.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netspace.attestation.kernel_files import names, read, text, there
from netspace.attestation.refusals import Malformed
from netspace.attestation.tcb import devices, efi, smbios

_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}")
_HSI = re.compile(r"HSI:[0-9]{1,2}[!A-Za-z0-9.() -]{0,40}")


def facts(root: Path = Path("/"), firmware: Callable[[str], str | None] = devices.ethtool) -> dict[str, Any]:
    """Return the facts. A value is None if the files don't show it.

    Example::

        {"microcode": "0xf0",
         "firmware": {"vendor": "LENOVO", "version": "N40ET41W", "date": "07/05/2023", "release": "1.23"},
         "uefi": {"uefi": True, "secure_boot": True, "setup_mode": False, "dbx": {...}, "boot_order": ["0001"],
                  "network_entries": [], "unclear_entries": []},
         "bmc": {"present": True, "interfaces": ["KCS, IPMI 2.0"], "version": "1.47", "problem": None},
         "iommu": {"on": True, "units": ["dmar0"], "groups": 14, "opt_in": True, "dma_protection": None},
         "thunderbolt": {"present": False, "security": None},
         "usb": {"controllers": 4, "closed": False, "usbguard": False},
         "lockdown": "integrity",
         "network": [{"name": "eth0", "driver": "igb", "pci": "8086:1533", "firmware": "3.25"}],
         "disks": [{"name": "nvme0", "model": "...", "pci": "144d:a80a", "firmware": "5B2QGXA7"}],
         "hsi": "HSI:2!"}

    :param root: the host's root folder, ``/``; another folder in tests.
    :param firmware: returns the firmware's version of a network interface.
    """
    tables, problem = _tables(root)
    return {
        "microcode": _microcode(root),
        "firmware": _firmware(root, tables),
        "uefi": efi.variables(root),
        "bmc": _controller(root, tables, problem),
        "iommu": devices.iommu(root),
        "thunderbolt": devices.thunderbolt(root),
        "usb": devices.usb(root),
        "lockdown": _lockdown(root),
        "network": devices.network(root, firmware),
        "disks": devices.disks(root),
        "hsi": _security_id(root),
    }


def _tables(root: Path) -> tuple[smbios.Tables | None, str | None]:
    """Return the SMBIOS tables, or the reason why they can't be read."""
    folder = root / "sys/firmware/dmi/tables"
    table, entry = read(folder / "DMI"), read(folder / "smbios_entry_point")
    if table is None:
        known = there(folder)
        return None, "only root can read the SMBIOS tables" if known else "the firmware gives no SMBIOS tables"
    try:
        if entry is not None:
            smbios.version(entry)
        return smbios.read(table), None
    except Malformed as err:
        return None, str(err)


def _microcode(root: Path) -> str | None:
    """Return the lowest microcode revision of all processors. It is text, because YAML would turn it into a number."""
    folder = root / "sys/devices/system/cpu"
    told = [
        found
        for name in names(folder)
        if re.fullmatch(r"cpu\d+", name) and (found := text(folder / name / "microcode/version"))
    ]
    told = told or re.findall(r"^microcode\s*:\s*(\S+)$", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    revisions = [int(one, 16) for one in told if _HEX.fullmatch(one)]
    return f"{min(revisions):#x}" if revisions else None


def _firmware(root: Path, tables: smbios.Tables | None) -> dict[str, str | None]:
    """Return the firmware's vendor, version, date and release: from the SMBIOS tables, or without them from sysfs."""
    if tables is not None and tables.firmware is not None:
        return tables.firmware._asdict()
    folder = root / "sys/class/dmi/id"
    parts = {"vendor": "bios_vendor", "version": "bios_version", "date": "bios_date", "release": "bios_release"}
    return {name: devices.short(folder / file) for name, file in parts.items()}


def _controller(root: Path, tables: smbios.Tables | None, problem: str | None) -> dict[str, Any]:
    """Return whether there is a management controller (BMC, ILOM).

    It is present if the tables or the kernel show one. It is absent only if the tables can be read and show none.
    """
    platform = root / "sys/devices/platform"
    versions = [
        found
        for name in names(platform)
        if name.startswith("ipmi_bmc") and (found := devices.short(platform / name / "firmware_revision"))
    ]
    devs = [name for name in names(root / "dev") if re.fullmatch(r"ipmi\d+", name)]
    interfaces = [
        one.interface + (f", IPMI {one.ipmi}" if one.ipmi else "") for one in (tables.controllers if tables else ())
    ]
    seen = bool(interfaces or versions or devs)
    return {
        "present": True if seen else None if tables is None else False,
        "interfaces": interfaces[: devices.MAX_DEVICES],
        "version": versions[0] if versions else None,
        "problem": problem,
    }


def _lockdown(root: Path) -> str | None:
    found = re.search(r"\[(none|integrity|confidentiality)\]", text(root / "sys/kernel/security/lockdown") or "")
    return found[1] if found else None


def _security_id(root: Path) -> str | None:
    """Return the Host Security ID that fwupd recorded last; None without fwupd.

    This function doesn't call fwupd, because a call would start it. It reads fwupd's database (table ``hsi_history`` in
    src/fu-history.c).
    """
    path = root / "var/lib/fwupd/pending.db"
    if not there(path):
        return None
    import sqlite3

    try:
        base = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        try:
            row = base.execute("SELECT hsi_score FROM hsi_history ORDER BY timestamp DESC LIMIT 1").fetchone()
        finally:
            base.close()
    except sqlite3.Error:
        return None
    found = str(row[0]) if row and isinstance(row[0], str) else ""
    return found if _HSI.fullmatch(found) else None
