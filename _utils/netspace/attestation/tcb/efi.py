"""Variables of UEFI firmware that matter for trust, read from efivarfs.

A file has four bytes of attributes, and then the variable's content (Documentation/filesystems/efivarfs.rst).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from netspace.attestation.kernel_files import names, read, there
from netspace.attestation.logs import boot_entries, events
from netspace.attestation.logs.boot_entries import Kind
from netspace.text import printable

MAX_ENTRIES = 64
MAX_TEXT = 80
_FOLDER = "sys/firmware/efi/efivars"
_ENTRY = re.compile(rf"Boot([0-9A-F]{{4}})-{events.GLOBAL}")


def variables(root: Path) -> dict[str, Any]:
    """Return the state of Secure Boot, the revocation list, and the boot entries that lead to a network.

    Example::

        {"uefi": True, "secure_boot": True, "setup_mode": False, "dbx": {"bytes": 17836, "sha256": "..."},
         "boot_order": ["0001", "0000"], "network_entries": ["0003 PXE IPv4"], "unclear_entries": ["0000 UiApp"]}

    All boot entries count, not only those in the boot order, since an entry can also be used once (``BootNext``). A
    value is None if the file can't be read.
    """
    if not there(root / "sys/firmware/efi"):
        return {"uefi": False}
    folder = root / _FOLDER
    dbx = _content(folder, "dbx", events.SECURITY)
    order = boot_entries.order(_content(folder, "BootOrder", events.GLOBAL) or b"")
    listed = names(folder)
    entries = [match for name in listed if (match := _ENTRY.fullmatch(name))][:MAX_ENTRIES]
    leading: dict[Kind, list[str]] = {Kind.NETWORK: [], Kind.OTHER: []}
    for match in entries:
        found = boot_entries.read(_content(folder, f"Boot{match[1]}", events.GLOBAL) or b"")
        if found is None:
            leading[Kind.OTHER].append(f"{match[1]} (can't be read)")
        elif found.kind in leading:
            leading[found.kind].append(f"{match[1]} {printable(found.text)[:MAX_TEXT]}".strip())
    return {
        "uefi": True,
        "secure_boot": _flag(folder, "SecureBoot"),
        "setup_mode": _flag(folder, "SetupMode"),
        "dbx": None if dbx is None else {"bytes": len(dbx), "sha256": hashlib.sha256(dbx).hexdigest()},
        "boot_order": None if order is None else [f"{number:04X}" for number in order],
        "network_entries": leading[Kind.NETWORK] if listed else None,
        "unclear_entries": leading[Kind.OTHER] if listed else None,
    }


def _content(folder: Path, name: str, guid: str) -> bytes | None:
    raw = read(folder / f"{name}-{guid}")
    return None if raw is None or len(raw) < 4 else raw[4:]


def _flag(folder: Path, name: str) -> bool | None:
    """Return a variable of one byte, 0 or 1; None for other content."""
    content = _content(folder, name, events.GLOBAL)
    return None if content not in (b"\0", b"\1") else content == b"\1"
