"""Devices that reach the host's memory, or that the kernel trusts as soon as they are plugged in. Pure.

Sources: the kernel's admin-guide/kernel-parameters (``intel_iommu``, ``amd_iommu``) and usb/authorization.rst.
"""

from __future__ import annotations

from collections.abc import Mapping

from netspace.host.weaknesses.readings import Reading, Readings
from netspace.host.weaknesses.row import Outcome, Row, number, row, said

_UNITS, _GROUPS, _BUS = "/sys/class/iommu", "/sys/kernel/iommu_groups", "/sys/bus/usb/devices"


def iommu(seen: Readings) -> Row:
    """Return the row on the IOMMU, which bounds the memory that a device can reach (DMA).

    In a virtual machine, devices belong to the hypervisor, which can read all memory of the machine anyway.
    """
    outcome: Outcome = "unknown"
    if seen.iommus and seen.iommu_groups:
        outcome = "good"
    elif seen.iommus is not None and seen.virtual is False:
        outcome = "weak"
    found = ", ".join(seen.iommus or ()) or f"nothing is in {_UNITS}"
    return row(
        "iommu",
        outcome,
        f"{found}; groups of devices: {seen.iommu_groups}",
        expected="an IOMMU, and groups of devices",
        matters="host",
        why="A device that was taken over or plugged in (PCIe, Thunderbolt) reads and writes all memory.",
        remedy="switch VT-d or AMD-Vi on in the firmware, boot with `intel_iommu=on` on Intel's processors, and reboot",
        unseen=f"list {_UNITS} and {_GROUPS}; in a virtual machine, ask whoever runs its host",
    )


def xen(modes: Mapping[str, tuple[int, int]] | None) -> Row:
    """Return the row on Xen's devices: a process that opens one can control the hypervisor like dom0.

    Source: the kernel's drivers/xen/privcmd.c, which checks no right beyond that of opening ``/dev/xen/privcmd``.

    :param modes: permission bits and owner of each device, by name; None: unknown.
    """
    loose = {name: one for name, one in sorted((modes or {}).items()) if one[0] & 0o077 or one[1] != 0}
    found = ", ".join(f"/dev/xen/{name}: mode {mode:o}, owner {owner}" for name, (mode, owner) in loose.items())
    return row(
        "xen devices",
        "unknown" if modes is None else "weak" if loose else "good",
        found or (f"{len(modes)} devices, all root's alone" if modes else "nothing is in /dev/xen"),
        expected="each device in /dev/xen is root's alone (mode 600), or there is none",
        matters="local users",
        why="Whoever opens one of these devices reads and changes the memory of all of Xen's domains, dom0 included.",
        remedy="chown root:root and chmod 600 these devices, and remove the udev rule that opened them",
        unseen="list /dev/xen",
    )


def usb(defaults: Mapping[str, Reading], virtual: bool | None) -> Row:
    """Return the row on USB: whether the kernel uses a new device before somebody has authorized it."""
    values = {name: number(reading) for name, reading in sorted(defaults.items())}
    open_ones = [name for name, value in values.items() if value == 1]
    outcome: Outcome = "unknown"
    if open_ones and virtual is False:
        outcome = "weak"
    elif values and all(value in (0, 2) for value in values.values()):
        outcome = "good"
    found = ", ".join(f"{name}: {said(reading)}" for name, reading in sorted(defaults.items()))
    return row(
        "usb",
        outcome,
        found or f"nothing is in {_BUS}",
        expected="0 on each controller; 2 also allows devices within the case",
        matters="host",
        why="Whoever plugs a device in types as a keyboard, becomes a network card, or attacks a driver of the kernel.",
        remedy="boot with `usbcore.authorized_default=0` (2 if a keyboard is built in), or install usbguard with rules",
        unseen=f"read {_BUS}/usb*/authorized_default; in a virtual machine, ask whoever runs its host",
    )
