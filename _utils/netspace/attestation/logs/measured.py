"""Known measurements: digests of constants that a specification defines, and grammars of data that is not constant.

The label of a digest in a log proves nothing about the measured data. The measured data is certain only in two cases:
the digest is that of a known constant (a separator, the name of an action or a section, or a string of systemd in
``WORDS``), or the data in the log matches the digest and a strict grammar that no program, script or archive satisfies.

Sources: TCG PC Client Platform Firmware Profile (PFP) 1.06, 3.3.4 and 10.4; systemd, "TPM2 PCR Measurements Made by
systemd" and systemd-pcrphase.service(8); systemd-stub(7); shim, ``mok.c``. Pure; makes no trust decision.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import uuid
from collections.abc import Mapping

SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"


def digest(data: bytes) -> bytes:
    """Return the digest with which a PCR of the SHA-256 bank is extended for *data*."""
    return hashlib.sha256(data).digest()


NOTHING = digest(b"")
# Separators of PCRs 0 to 7 (PFP 10.4.1): 0 if firmware had no error (PCR 7 requires this one); -1 in older logs.
SEPARATOR = digest(bytes(4))
SEPARATORS = frozenset((SEPARATOR, digest(b"\xff" * 4)))
# PFP 10.4.1, EV_EFI_ACTION, and 3.3.4.5: actions of the firmware on boot options; these are no programs.
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
# PFP 3.3.4.8: firmware in debug mode measures this into PCR 7. Then Secure Boot proves nothing.
DEBUG_MODE = digest(b"UEFI Debug Mode")
# PFP 3.3.4.8: firmware whose protection against DMA (IOMMU) is switched off measures this into PCR 7.
DMA_UNPROTECTED = frozenset(digest(b"DMA Protection Disabled" + end) for end in (b"", b"\0"))
# Sections whose name systemd's stub measures into PCR 11 before the content (UAPI.5, unified kernel image).
_SECTIONS = (
    *(".profile", ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat"),
    *(".pcrsig", ".pcrpkey", ".dtbauto", ".hwids", ".efifw"),
)
SECTION_NAMES = frozenset(digest(name.encode() + b"\0") for name in _SECTIONS)
COMMAND_LINE_SECTION = digest(b".cmdline\0")
# Strings that systemd measures after the boot loader has ended: all later extensions of that PCR come from user space.
_OS_SEPARATOR = digest(b"os-separator")
_PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final")
WORDS: Mapping[int, frozenset[bytes]] = {
    **{pcr: frozenset((_OS_SEPARATOR,)) for pcr in (*range(8), 12, 13, 14)},
    9: frozenset((_OS_SEPARATOR, digest(b"nvpcr-separator"))),
    11: frozenset(digest(word.encode()) for word in (*_PHASES, "factory-reset", "storage-target-mode")),
}
_NVPCR = re.compile(rb"nvpcr-init:[A-Za-z0-9._-]{1,64}:0x[0-9a-f]{1,8}:([a-z0-9-]{1,16}:)?[0-9a-f]{32,136}", re.ASCII)
# shim measures the content of its variables into PCR 14. It writes an empty list of keys as a list of the digest 0.
EMPTY_KEY_LIST = digest(
    uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
    + b"".join(size.to_bytes(4, "little") for size in (76, 0, 48))
    + uuid.UUID(SHIM).bytes_le
    + bytes(32)
)
FALSE, TRUE = digest(b"\0"), digest(b"\1")
# PFP 3.3.4.8 and UEFI 2.10, 32.3: the variables of Secure Boot's configuration that firmware measures.
SETTINGS = frozenset(("SecureBoot", "PK", "KEK", "SetupMode", "AuditMode", "DeployedMode"))
KEY_LISTS = frozenset(("db", "dbx", "dbt", "dbr"))
_SBAT = re.compile(rb"sbat,[0-9]{1,9},[0-9]{1,16}\n((?:[A-Za-z0-9._+-]{1,64},[0-9]{1,9}\n)*)\0?", re.ASCII)
# A word of a command line, as the kernel reads it: it may contain quoted text (next_arg in lib/cmdline.c).
_WORD = re.compile(r'(?:"[^"]*(?:"|\Z)|[^\s"])+', re.ASCII)  # only ASCII blanks separate words for the kernel
# x86 and arm64 cut off a command line after 2,048 bytes. The last 48 are left for the boot loader's prefix.
_MAX_LINE = 2000


def nvpcr(data: bytes) -> bool:
    """Return whether *data* has the form of systemd's measurements into PCR 9 about PCRs in NV indices."""
    return _NVPCR.fullmatch(data) is not None


def sbat(data: bytes) -> Mapping[str, int] | None:
    """Parse shim's ``SbatLevel``: the lowest generation of each component that may run. Return None for other data."""
    return _sbat(data) if len(data) <= 4096 else None


@functools.lru_cache(64)
def _sbat(data: bytes) -> Mapping[str, int] | None:
    """Parse data of bounded size. The result is cached, because all hosts have the same few levels."""
    found = _SBAT.fullmatch(data)
    if found is None:
        return None
    parts = [line.split(b",") for line in found[1].splitlines()]
    return {name.decode(): int(number) for name, number in parts}


def line_forms(pcr: int, line: str) -> tuple[bytes, ...]:
    """Return the digests with which boot programs may extend *pcr* for a kernel's command line.

    - PCR 8: GRUB measures the text.
    - PCR 9: Linux's EFI stub measures the loader's line in UTF-16. GRUB puts ``BOOT_IMAGE=`` before it.
    - PCR 11: systemd-stub measures the section ``.cmdline``.
    - PCR 12 (8 before systemd v251): systemd measures the line in UTF-16.
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


def version_forms(version: str) -> tuple[bytes, ...]:
    """Return the digests with which firmware may extend PCR 0 for its version (PFP 10.4.1, EV_S_CRTM_VERSION)."""
    wide, plain = version.encode("utf-16-le", "surrogatepass"), version.encode("utf-8", "surrogatepass")
    return tuple(digest(form) for form in (wide, wide + b"\0\0", plain, plain + b"\0"))


def starts_with_path(line: str) -> bool:
    """Return whether *line* begins with a path, as a kernel's command line from GRUB does.

    GRUB's own commands never begin with a path.
    """
    return line[:1] in ("/", "(")


def line_words(line: str) -> list[str]:
    """Return the words of a kernel's command line, with their quotes.

    Words after ``--`` are left out, since the kernel passes them to process 1.
    """
    return list(itertools.takewhile(lambda word: word.strip('"') != "--", _WORD.findall(line)))


def plain_line(line: str, pattern: str) -> bool:
    """Return whether the part of a command line that ``*`` matches can't change the meaning of the other parts.

    The caller has matched *line* with *pattern*.

    A quotation mark or the word ``--`` changes the meaning of the text after it. The kernel cuts off a line that is too
    long. Text that is not printable may not be a command line at all.
    """
    return (
        len(line) <= _MAX_LINE
        and line.isascii()
        and line.isprintable()
        and line.count('"') == pattern.count('"')
        and line.split().count("--") == pattern.split().count("--")
    )
