"""Grain ``netspace_tcb``, from trees of files by the kernel's documentation, and from this machine's own files."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkout
from support.attestation import boot_entry_forge as forge
from support.attestation import smbios_forge

from netspace.attestation.logs import events
from netspace.attestation.tcb import devices, facts

EFI, TABLES = "sys/firmware/efi/efivars", "sys/firmware/dmi/tables"
SERVER = {
    "sys/devices/system/cpu/cpu0/microcode/version": "0xb000040\n",
    "sys/devices/system/cpu/cpu1/microcode/version": "0xb00003e\n",
    f"{TABLES}/DMI": smbios_forge.table(smbios_forge.bios(), smbios_forge.ipmi()),
    f"{TABLES}/smbios_entry_point": smbios_forge.entry_point(300),
    "sys/devices/platform/ipmi_bmc.0/firmware_revision": "1.47\n",
    "dev/ipmi0": "",
    f"{EFI}/SecureBoot-{events.GLOBAL}": b"\6\0\0\0\1",
    f"{EFI}/SetupMode-{events.GLOBAL}": b"\6\0\0\0\0",
    f"{EFI}/dbx-{events.SECURITY}": b"\x27\0\0\0" + b"revoked",
    f"{EFI}/BootOrder-{events.GLOBAL}": b"\7\0\0\0" + forge.order(1, 3),
    f"{EFI}/Boot0001-{events.GLOBAL}": b"\7\0\0\0" + forge.option(forge.DISK + forge.FILE),
    f"{EFI}/Boot0003-{events.GLOBAL}": b"\7\0\0\0" + forge.option(forge.MAC + forge.IPV4, "PXE \x1b[1m"),
    f"{EFI}/Boot0004-{events.GLOBAL}": b"\7\0\0\0" + forge.option(forge.ROOT, "Shell"),
    f"{EFI}/Boot0005-{events.GLOBAL}": b"\7\0\0\0",
    "sys/firmware/acpi/tables/DMAR": b"DMAR" + bytes(32) + b"\x2d\x05" + bytes(10),
    "sys/class/iommu/dmar0/x": "",
    "sys/kernel/iommu_groups/0/x": "",
    "sys/bus/thunderbolt/devices/domain0/security": "user\n",
    "sys/bus/thunderbolt/devices/domain0/iommu_dma_protection": "1\n",
    "sys/bus/usb/devices/usb1/authorized_default": "0\n",
    "sys/bus/usb/devices/usb2/authorized_default": "1\n",
    "etc/usbguard/usbguard-daemon.conf": "",
    "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
    "sys/class/net/eth0/device/vendor": "0x8086\n",
    "sys/class/net/eth0/device/device": "0x1533\n",
    "sys/class/net/lo/mtu": "65536\n",
    "sys/class/nvme/nvme0/model": "Disk of a Maker\n",
    "sys/class/nvme/nvme0/firmware_rev": "5B2QGXA7\n",
    "sys/class/nvme/nvme0/device/vendor": "0x144d\n",
    "sys/class/nvme/nvme0/device/device": "0xa80a\n",
    "sys/block/sda/device/model": "HDD\n",
    "sys/block/sda/device/rev": "1.0\n",
    "sys/block/loop0/size": "0\n",
}


def tree(root: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def look(root: Path, firmware: Any = lambda name: "3.25") -> dict[str, Any]:
    return facts.facts(root, firmware)


def test_a_host_without_any_of_the_files(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert found["microcode"] is None and found["uefi"] == {"uefi": False} and found["lockdown"] is None
    assert found["bmc"]["present"] is None and "no SMBIOS tables" in found["bmc"]["problem"]
    assert found["iommu"]["on"] is False and found["thunderbolt"] == {"present": False, "security": None}
    assert found["network"] == [] and found["disks"] == [] and found["hsi"] is None


def test_a_server_shows_each_part(tmp_path: Path) -> None:
    found = look(tree(tmp_path, SERVER))
    assert found["microcode"] == "0xb00003e", "the lowest counts"
    assert found["firmware"] == {
        "vendor": "Maker Ltd",
        "version": "1.24.0",
        "date": "07/05/2023",
        "release": "1.24",
    }
    uefi = found["uefi"]
    assert uefi["secure_boot"] is True and uefi["setup_mode"] is False and uefi["dbx"]["bytes"] == 7
    assert uefi["boot_order"] == ["0001", "0003"]
    assert uefi["network_entries"] == ["0003 PXE \\x1b[1m"]
    assert uefi["unclear_entries"] == ["0004 Shell", "0005 (can't be read)"]
    assert found["bmc"] == {"present": True, "interfaces": ["KCS, IPMI 2.0"], "version": "1.47", "problem": None}
    assert found["iommu"] == {"on": True, "units": ["dmar0"], "groups": 1, "opt_in": True, "dma_protection": True}
    assert found["thunderbolt"] == {"present": True, "security": "user"}
    assert found["usb"] == {"controllers": 2, "closed": False, "usbguard": True}
    assert found["lockdown"] == "integrity"
    assert found["network"] == [{"name": "eth0", "driver": None, "pci": "8086:1533", "firmware": "3.25"}]
    assert [(one["name"], one["firmware"], one["pci"]) for one in found["disks"]] == [
        ("nvme0", "5B2QGXA7", "144d:a80a"),
        ("sda", "1.0", None),
    ]


def test_a_controller_is_absent_only_if_the_tables_say_so(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"{TABLES}/DMI": smbios_forge.table(smbios_forge.bios())})
    assert look(root)["bmc"]["present"] is False
    tree(tmp_path, {f"{TABLES}/DMI": b"\1\3"})
    assert look(root)["bmc"]["present"] is None and "smbios:" in look(root)["bmc"]["problem"]
    tree(tmp_path, {"dev/ipmi0": ""})
    assert look(root)["bmc"]["present"] is True, "a device is enough"


def test_a_bad_entry_point_makes_the_tables_unreadable(tmp_path: Path) -> None:
    root = tree(tmp_path, {**SERVER, f"{TABLES}/smbios_entry_point": b"_SM3_" + bytes(30), "dev/ipmi0": ""})
    assert "checksum" in look(root)["bmc"]["problem"]


def test_a_user_sees_the_firmware_without_the_tables(tmp_path: Path) -> None:
    root = tree(tmp_path, {"sys/class/dmi/id/bios_vendor": "Maker\n", "sys/class/dmi/id/bios_version": "7\n"})
    assert look(root)["firmware"] == {"vendor": "Maker", "version": "7", "date": None, "release": None}


def test_microcode_is_read_from_cpuinfo_where_sysfs_has_none(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmicrocode\t: 0xf0\n\nprocessor : 1\nmicrocode : 0xea\n"})
    assert look(root)["microcode"] == "0xea"
    tree(tmp_path, {"proc/cpuinfo": "microcode : 0xffffffffffffffffffffff\n"})
    assert look(root)["microcode"] is None


@pytest.mark.parametrize(
    ("levels", "found"), [(["secure", "none"], "none"), (["dponly"], "dponly"), (["user", "odd"], None), ([], None)]
)
def test_the_lowest_level_of_thunderbolt_counts(tmp_path: Path, levels: list[str], found: str | None) -> None:
    bus = "sys/bus/thunderbolt/devices"
    root = tree(tmp_path, {f"{bus}/domain{at}/security": one for at, one in enumerate(levels)})
    assert look(root)["thunderbolt"]["security"] == found


@pytest.mark.parametrize(
    ("said", "found"), [("HSI:2!", "HSI:2!"), ("HSI:0! (v1.9.3)", "HSI:0! (v1.9.3)"), ("\x1b", None)]
)
def test_the_last_result_of_fwupd_is_read(tmp_path: Path, said: str, found: str | None) -> None:
    folder = tmp_path / "var/lib/fwupd"
    folder.mkdir(parents=True)
    base = sqlite3.connect(folder / "pending.db")
    base.execute("CREATE TABLE hsi_history (timestamp TEXT, hsi_details TEXT, hsi_score TEXT)")
    base.execute("INSERT INTO hsi_history VALUES ('2026-01-01', '', 'HSI:4')")
    base.execute("INSERT INTO hsi_history VALUES ('2026-02-01', '', ?)", (said,))
    base.commit()
    base.close()
    assert look(tmp_path)["hsi"] == found


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_another_database_is_no_result_of_fwupd(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "var/lib/fwupd/pending.db"
    path.parent.mkdir(parents=True)
    if content is None:
        sqlite3.connect(path).execute("CREATE TABLE history (x)").connection.close()
    else:
        path.write_bytes(content)
    assert look(tmp_path)["hsi"] is None


@given(st.sampled_from(sorted(SERVER)), st.binary(max_size=120))
@settings(max_examples=60, deadline=None)
def test_a_file_with_any_content_raises_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    root = tree(tmp_path_factory.mktemp("host"), {**SERVER, name: content})
    assert look(root).keys() == look(root / "nothing").keys()


def test_the_machine_that_runs_this_has_facts() -> None:
    """The grain is made from this machine's own files. Only its form is checked, as the values are unknown."""
    found = facts.facts()
    assert found.keys() == look(Path("/nowhere")).keys()
    assert all(card["name"] for card in found["network"])


def test_a_card_without_a_driver_tells_no_firmware() -> None:
    assert devices.ethtool("lo") is None and devices.ethtool("x" * 16) is None and devices.ethtool("absent0") is None


def test_a_recorded_virtual_machine_has_facts(tmp_path: Path) -> None:
    files = json.loads((checkout.ROOT / "tests/fixtures/bases/virtual-machine.json").read_text())
    found = look(tree(tmp_path, files), lambda name: None)
    assert found["microcode"] == "0x1000065" and found["uefi"] == {"uefi": False}
    assert found["network"] == [{"name": "eth0", "driver": None, "pci": "1af4:0001", "firmware": None}]
    assert found["bmc"]["present"] is None and found["iommu"]["on"] is False
    smbios = bytes.fromhex((checkout.ROOT / "tests/fixtures/bases/qemu-bmc.smbios.hex").read_text())
    assert look(tree(tmp_path, {f"{TABLES}/DMI": smbios}))["bmc"]["interfaces"] == ["KCS, IPMI 2.0"]
