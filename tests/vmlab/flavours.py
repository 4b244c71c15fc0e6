"""Flavours of machines: the way each is booted, and its means of attestation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OVMF = Path("/usr/share/OVMF")


@dataclass(frozen=True)
class Flavour:
    """The way a machine is booted.

    :param tpm: it has a TPM 2.0 (swtpm).
    :param secure_boot: UEFI, Secure Boot with Microsoft's keys, shim, GRUB; else QEMU starts the kernel.
    :param firmware: QEMU's ``-bios`` where it isn't UEFI: qboot measures nothing, so there is no event log.
    """

    name: str
    tpm: bool
    secure_boot: bool = False
    firmware: str = ""


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("measured", tpm=True, secure_boot=True),
        Flavour("unlogged", tpm=True, firmware="qboot.rom"),
        Flavour("plain", tpm=False),
    )
}
