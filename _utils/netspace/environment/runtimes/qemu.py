"""``qemu``: a tender that emulates a whole PC, for kernels that boot by multiboot, PVH or Linux's boot protocol.

The console is the first serial port. The disk is a virtio disk. The first NIC is the environment's interface. The last
NIC leads only to ``10.0.2.2``, the environment's own ``lo``, where the guest finds its mailbox at port 5671 or 5672.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from netspace.environment import runtimes
from netspace.errors import MissingError

if TYPE_CHECKING:
    from netspace.environment.runtimes import Guest

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
RUNS = "kernels"
OWN_KERNEL = True
WRITES = False
STOPS = True
LOOKS = False
# QEMU's code, the translated code (below) and devices: measured 46 MiB with a guest of 32 MiB.
RESERVE = 96 * 1024**2
ONE_LINE = True
LEAST = {"pids": 8}  # measured 4 threads, and one more for each pending request to the disk
_TRANSLATED = 32  # MiB
_MAILBOX_MAC = "02:00:00:00:00:02"

_FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios")
_FILES = {
    "pc": ("bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "multiboot_dma.bin", "pvh.bin"),
    "microvm": ("bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"),
}


class Settings(runtimes.Settings, frozen=True):
    """The settings of qemu.

    :param machine: ``pc`` has PCI and all firmware; ``microvm`` has virtio-mmio, and boots faster.
    :param accelerator: ``kvm`` needs a ``/dev/kvm`` that every user may open.
    """

    machine: Literal["pc", "microvm"] = "pc"
    accelerator: Literal["tcg", "kvm"] = "tcg"


def problem(settings: Settings) -> str:
    try:
        files(settings)
    except MissingError as err:
        return str(err)
    if settings.accelerator == "kvm":
        try:
            if os.stat("/dev/kvm").st_mode & 0o006 != 0o006:
                return (
                    "/dev/kvm is not for every user: chmod 666 /dev/kvm (a udev rule keeps that), or accelerator: tcg"
                )
        except OSError as err:
            return f"/dev/kvm: {err.strerror}; use accelerator: tcg"
    return ""


def devices(settings: Settings) -> tuple[str, ...]:
    return ("/dev/kvm",) if settings.accelerator == "kvm" else ()


def files(settings: Settings) -> dict[str, str]:
    found = {}
    for name in _FILES[settings.machine]:
        path = next((path for folder in _FIRMWARE if os.path.exists(path := f"{folder}/{name}")), None)
        if path is None:
            raise MissingError(f"the firmware {name} of qemu", "install it: apt-get install qemu-system-x86")
        found[f"/tender/share/{name}"] = path
    return found


def command(settings: Settings, guest: Guest) -> tuple[str, ...]:
    bus = "pci" if settings.machine == "pc" else "device"
    machine = {"pc": "pc,usb=off,vmport=off", "microvm": "microvm,pit=on,pic=on,rtc=on,isa-serial=on"}
    # KVM in a virtual machine can't give this feature to its guest. A guest without it uses more mitigations, not
    # fewer.
    processor = {"tcg": "max", "kvm": "max,arch-capabilities=off"}
    speed = {"tcg": f"tcg,tb-size={_TRANSLATED}", "kvm": "kvm"}
    rom = ",romfile=" if settings.machine == "pc" else ""
    interface: tuple[str, ...] = ()
    if guest.tap:
        interface = (
            *("-netdev", f"tap,id=interface,ifname={guest.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-{bus},netdev=interface,mac={guest.mac}{rom}"),
        )
    return (
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-L", "/tender/share"),
        *("-machine", machine[settings.machine], "-accel", speed[settings.accelerator]),
        *("-cpu", processor[settings.accelerator], "-smp", "1", "-m", f"{guest.memory // 1024**2}"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-blockdev", f"driver=file,node-name=file,filename={guest.disk},read-only=on,locking=off"),
        *("-blockdev", "driver=raw,node-name=handout,file=file,read-only=on"),
        *("-device", f"virtio-blk-{bus},drive=handout"),
        *interface,
        *("-netdev", "user,id=mailbox,ipv6=off"),
        *("-device", f"virtio-net-{bus},netdev=mailbox,mac={_MAILBOX_MAC}{rom}"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        *("-kernel", guest.kernel, "-append", " ".join(guest.arguments)),
    )
