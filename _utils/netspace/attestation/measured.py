"""The closed lists: digests whose meaning a specification fixes, and texts that only one form of data can have.

A digest in a PCR may be of any data, whatever a log calls it. A digest has a meaning of its own only where it is that
of a known constant: a separator, an action's name, the name of a section, a word of systemd's. Data that is not
constant is known by its form: a strict grammar that no program, script or archive satisfies.

Sources: TCG PC Client Platform Firmware Profile 1.06, 3.3.4 and 10.4; systemd, "TPM2 PCR Measurements Made by systemd"
and systemd-pcrphase.service(8); systemd-stub(7); shim, ``mok.c``. Pure: decides nothing about a host.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping

SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"


def digest(data: bytes) -> bytes:
    """Return the value that a PCR of the SHA-256 bank is extended with for *data*."""
    return hashlib.sha256(data).digest()


NOTHING = digest(b"")
# Separators of PCRs 0 to 7 (PFP 10.4.1): 0 for firmware without error, required in PCR 7; -1 in older logs.
SEPARATOR = digest(bytes(4))
SEPARATORS = frozenset((SEPARATOR, digest(b"\xff" * 4)))
# PFP 10.4.1, EV_EFI_ACTION, and 3.3.4.5: what firmware does with boot options, which is no program.
CALLS = frozenset(
    digest(text)
    for text in (
        b"Calling EFI Application from Boot Option",
        b"Returning from EFI Application from Boot Option",
    )
)
ACTIONS = CALLS | frozenset(
    digest(text)
    for text in (
        b"Exit Boot Services Invocation",
        b"Exit Boot Services Returned with Success",
        b"Exit Boot Services Returned with Failure",
    )
)
# PFP 3.3.4.8: firmware measures this into PCR 7 when Secure Boot proves nothing.
DEBUG_MODE = digest(b"UEFI Debug Mode")
# Sections whose name systemd's stub measures into PCR 11 before the content (UAPI.5, unified kernel image).
_SECTIONS = (
    *(".profile", ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat"),
    *(".pcrsig", ".pcrpkey", ".dtbauto", ".hwids", ".efifw"),
)
SECTION_NAMES = frozenset(digest(name.encode() + b"\0") for name in _SECTIONS)
COMMAND_LINE_SECTION = digest(b".cmdline\0")
# Words that systemd measures after the boot loader has ended: later extensions of that PCR are user space's.
_OS_SEPARATOR = digest(b"os-separator")
_PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final")
WORDS: Mapping[int, frozenset[bytes]] = {
    **{pcr: frozenset((_OS_SEPARATOR,)) for pcr in (*range(8), 12, 13, 14)},
    9: frozenset((_OS_SEPARATOR, digest(b"nvpcr-separator"))),
    11: frozenset(digest(word.encode()) for word in (*_PHASES, "factory-reset", "storage-target-mode")),
}
_NVPCR = re.compile(rb"nvpcr-init:[A-Za-z0-9._-]{1,64}:0x[0-9a-f]{1,8}:([a-z0-9-]{1,16}:)?[0-9a-f]{32,136}", re.ASCII)
# shim measures the content of its variables into PCR 14. An empty list of keys is one that allows the digest 0.
EMPTY_KEY_LIST = digest(
    uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
    + b"".join(size.to_bytes(4, "little") for size in (76, 0, 48))
    + uuid.UUID(SHIM).bytes_le
    + bytes(32)
)
FALSE, TRUE = digest(b"\0"), digest(b"\1")
# PFP 3.3.4.8 and UEFI 2.10, 32.3: what is measured of Secure Boot's configuration, by the variable's namespace.
SETTINGS = frozenset(("SecureBoot", "PK", "KEK", "SetupMode", "AuditMode", "DeployedMode"))
KEY_LISTS = frozenset(("db", "dbx", "dbt", "dbr"))
_SBAT = re.compile(rb"sbat,[0-9]{1,9},[0-9]{1,16}\n((?:[A-Za-z0-9._+-]{1,64},[0-9]{1,9}\n)*)\0?", re.ASCII)
# x86 and arm64 cut off a line after 2,048 bytes; the boot loader may put text of its own before the line.
_MAX_LINE = 2000


def nvpcr(data: bytes) -> bool:
    """Return whether *data* is what systemd measures into PCR 9 for each PCR that it keeps in an NV index."""
    return _NVPCR.fullmatch(data) is not None


def sbat(data: bytes) -> dict[str, int] | None:
    """Read shim's ``SbatLevel``: the lowest generation of each component that may run; None for other data."""
    found = _SBAT.fullmatch(data) if len(data) <= 4096 else None
    if found is None:
        return None
    parts = [line.split(b",") for line in found[1].splitlines()]
    return {name.decode(): int(number) for name, number in parts}


def line_forms(pcr: int, line: str) -> tuple[bytes, ...]:
    """Return the digests that a kernel's command line has in *pcr*.

    PCR 8: GRUB, as text. PCR 9: Linux's EFI stub, in UTF-16 as it comes from the loader (GRUB puts ``BOOT_IMAGE=``
    before it). PCR 11: the section ``.cmdline``. PCR 12 (8 before v251): systemd, in UTF-16.
    """
    found: list[bytes] = []
    forms = [line, line.strip()]
    if pcr == 9 and starts_with_path(line):
        forms.append(f"BOOT_IMAGE={line}")
    for form in dict.fromkeys(forms):
        wide, plain = form.encode("utf-16-le", "surrogatepass"), form.encode("utf-8", "surrogatepass")
        if pcr in (8, 9, 12):
            found += (wide, wide + b"\0\0")
        if pcr == 11:
            found += (plain, plain + b"\0", plain + b"\n")
        if pcr == 8 and starts_with_path(line):
            found.append(plain)
    return tuple(digest(one) for one in found)


def starts_with_path(line: str) -> bool:
    """Return whether *line* begins with a file, as GRUB names the kernel.

    No GRUB command does, so none is taken for a line.
    """
    return line[:1] in ("/", "(")


def plain_line(line: str, pattern: str) -> bool:
    """Return whether the text in place of each ``*`` of *pattern* leaves the reading of the rest of *line* unchanged.

    The kernel would read the text after a quote, or after a word ``--``, as something else, and cuts off a line that
    is too long. Text that is not printable may not be a line at all.
    """
    return (
        len(line) <= _MAX_LINE
        and line.isascii()
        and line.isprintable()
        and line.count('"') == pattern.count('"')
        and line.split().count("--") == pattern.split().count("--")
    )
