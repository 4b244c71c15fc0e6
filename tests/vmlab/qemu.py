"""Command lines of QEMU: the board of a machine, its disks, and how it boots."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from vmlab.flavours import OVMF, Flavour
from vmlab.image import Image

# All that QEMU can do, but for what costs much where it is translated: a fifth level of page tables, copying in
# instructions that go byte by byte, opening and closing the programs' memory to the kernel, and large registers
# that are saved at each change of programs. And only one: nothing has to be atomic then.
PROCESSOR = "max,la57=off,erms=off,fsrm=off,fsrs=off,fzrm=off,smap=off,smep=off,pku=off,umip=off,xsave=off"
TRANSLATED = ("-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "1")
"""A processor that QEMU translates, which works everywhere."""
NATIVE = ("-accel", "kvm", "-cpu", "host", "-smp", "2")
"""Processors of the machine itself, where it has KVM."""


def board(flavour: Flavour, *, processor: tuple[str, ...] = TRANSLATED, memory: int = 1024) -> list[str]:
    """Return the arguments for a machine without disks and cables.

    :param memory: its memory in MiB.
    """
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        *processor, "-m", str(memory), "-rtc", "base=utc",
        "-machine", "q35,smm=" + ("on" if flavour.secure_boot else "off"),
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


def disk(folder: Path, name: str) -> list[str]:
    """Return the arguments for the disk in ``NAME.qcow2``. If QEMU is killed, what was written is kept."""
    return [
        "-drive", f"if=none,id={name},file={folder}/{name}.qcow2,format=qcow2,cache=unsafe,discard=unmap",
        "-device", f"virtio-blk-pci,drive={name}",
    ]  # fmt: skip


def boot(image: Image, flavour: Flavour, folder: Path, command_line: str) -> list[str]:
    """Return the arguments for firmware, kernel and TPM.

    :param folder: folder with the firmware's variables, the boot partition and the TPM's socket.
    :param command_line: the kernel's command line, if the flavour has no boot partition.
    """
    if flavour.secure_boot:
        arguments = [
            "-global", "driver=cfi.pflash01,property=secure,value=on",
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.secboot.fd",
            "-drive", f"if=pflash,unit=1,format=raw,file={folder}/vars.fd",
            "-drive", f"if=none,id=esp,file={folder}/esp.img,format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=esp,bootindex=1",
        ]  # fmt: skip
    else:
        arguments = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", command_line]
        if flavour.firmware:
            arguments += ["-bios", flavour.firmware]
    if flavour.tpm:
        arguments += [
            "-chardev", f"socket,id=tpm,path={folder}/tpm.sock",
            "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm",
        ]  # fmt: skip
    return arguments


def firmware_variables(folder: Path) -> None:
    """Give a machine the variables with which its firmware leaves the factory, if it has none yet."""
    if not (folder / "vars.fd").exists():
        aside = folder / "vars.new"
        shutil.copyfile(OVMF / "OVMF_VARS_4M.ms.fd", aside)
        aside.rename(folder / "vars.fd")


def overlay(base: Path, form: str, target: Path) -> None:
    """Make a disk that begins as *base*. Only differences are written into *target*."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base.resolve()), "-F", form, str(target)]
    subprocess.run(command, check=True)
