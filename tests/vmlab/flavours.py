"""Flavours of machines: how each flavour boots, and its means of attestation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OVMF = Path("/usr/share/OVMF")


@dataclass(frozen=True)
class Flavour:
    """A way to boot a machine.

    :param tpm: whether it has a TPM 2.0 (swtpm).
    :param secure_boot: whether it has UEFI, Secure Boot with Microsoft's keys, shim and GRUB; otherwise QEMU starts the
        kernel.
    :param firmware: QEMU's ``-bios`` without UEFI. qboot measures nothing, so there is no event log.
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
