"""Data of boot events, and edits of boot logs by a forger, who also corrects the digests where he can.

The module also makes policies that the repository's two recorded boots satisfy.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from netspace.attestation.logs import eventlog, events
from netspace.attestation.logs import measured as measured_data
from netspace.attestation.logs.eventlog import NO_ACTION, Event, EventLog
from support.attestation import boot_logs

LINE = "root=/dev/nvme0n1 rootfstype=ext4 rw console=ttyS0 quiet systemd.show_status=0 ima_policy=tcb"
KERNEL = "fd09ba2d352b222ed9dc5e5446d434b821d5b7eae0ba030cdd078e903a85cfb9"
INITRD = "748ff81ed5b6823e3a2e3fa200e52ecc17566c4a7512162c60b8fa6ef142d68a"
# Tags of Linux's EFI stub (drivers/firmware/efi/libstub): an initrd, and its command line.
TAG_INITRD, TAG_OPTIONS = 0x8F3B22EC, 0x8F3B22ED
PCRS = {"shim-grub": (*range(10), 11, 12, 14), "uki": (*range(10), 11, 12, 15)}


def log(boot: str) -> EventLog:
    return eventlog.parse(boot_logs.read(f"{boot}/binary_bios_measurements"))


def packed(found: list[Event]) -> bytes:
    """Return a boot log of the events in *found*, with digests of the SHA-256 bank only."""
    header = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHH", 1, 0x000B, 32) + b"\0"
    raw = struct.pack("<II20xI", 0, NO_ACTION, len(header)) + header
    for event in found:
        raw += struct.pack("<IIIH", event.pcr, event.type, 1, 0x000B) + event.digests.get("sha256", bytes(32))
        raw += struct.pack("<I", len(event.data)) + event.data
    return raw


def measured(pcr: int, kind: int, data: bytes, of: bytes | None = None) -> Event:
    """Return an event with the digest of *of*, or of *data* if *of* isn't given."""
    return Event(pcr, kind, {"sha256": hashlib.sha256(data if of is None else of).digest()}, data)


def variable(guid: str, name: str, content: bytes) -> bytes:
    """Return UEFI_VARIABLE_DATA."""
    told = name.encode("utf-16-le")
    return uuid.UUID(guid).bytes_le + struct.pack("<QQ", len(name), len(content)) + told + content


def tagged(number: int, text: str) -> bytes:
    """Return a TCG_PCClientTaggedEvent."""
    raw = text.encode() + b"\0"
    return struct.pack("<II", number, len(raw)) + raw


def wide(text: str) -> bytes:
    """Return UTF-16 with a NUL at the end, the form in which kernels and systemd's stub take a command line."""
    return text.encode("utf-16-le") + b"\0\0"


def record(pcr: int, digest: bytes, text: str, kind: str = "phase") -> bytes:
    """Return a record of systemd's log that claims *text* for *digest*."""
    found = {
        "pcr": pcr,
        "digests": [{"hashAlg": "sha256", "digest": digest.hex()}],
        "content_type": "systemd",
        "content": {"string": text, "eventType": kind},
    }
    return b"\x1e" + json.dumps(found).encode() + b"\n"


def edited(boot: str, edit: Callable[[list[Event]], None]) -> tuple[bytes, dict[int, bytes]]:
    """Return *boot* changed by *edit*: its log and the resulting PCR values."""
    found = list(log(boot).events[1:])
    edit(found)
    raw = packed(found)
    values = boot_logs.values(boot)
    before = log(boot).replay("sha256")
    for pcr, value in eventlog.parse(raw).replay("sha256").items():
        if before.get(pcr) != value:
            values[pcr] = value
    return raw, values


def index(found: list[Event], pcr: int, kind: int, name: str = "", number: int = 0) -> int:
    """Return the index of the *number*-th event of *kind* in *pcr*, or of the event of the UEFI variable *name*."""
    hits = []
    for at, event in enumerate(found):
        read = events.variable(event.data) if name else None
        if (event.pcr, event.type) == (pcr, kind) and (not name or (read and read.name == name)):
            hits.append(at)
    return hits[number]


def _starters(told: Sequence[Event]) -> dict[str, list[str]]:
    run = [event.digests["sha256"].hex() for event in told if event.type == events.APPLICATION]
    found: dict[str, list[str]] = {}
    for program, before in zip(run, ["firmware", *run], strict=False):
        found.setdefault(program, []).append(before)
    return found


def policy(boot: str, **rules: Any) -> dict[str, Any]:
    """Return a policy that *boot* satisfies, with *rules* changed; a rule with the value None is left out."""
    told = log(boot).events
    files = [event.digests["sha256"].hex() for event in told if event.pcr in (9, 11) and event.type != NO_ACTION]
    commands = [
        event.digests["sha256"].hex()
        for event in told
        if event.pcr == 8 and not event.data.startswith(b"kernel_cmdline")
    ]
    certificates = []
    for event in told:
        if event.type == events.VARIABLE_AUTHORITY:
            read = events.variable(event.data)
            if read and read.name != "SbatLevel":
                certificates.append(hashlib.sha256(read.data[16:]).hexdigest())
    dbx = next(
        read for event in told if (read := events.variable(event.data)) and read.name == "dbx" and event.pcr == 7
    )
    level = next((read for e in told if (read := events.variable(e.data)) and read.name == "SbatLevel"), None)
    without = {key for key in ("applications", "kernels", "command_lines") if rules.get(key, 1) is None}
    unchecked = {0, 1, 3, 5, 6, 14 if boot == "shim-grub" else 15}
    unchecked |= ({11, 12} if "kernels" in without else set()) | ({8} if "command_lines" in without else set())
    if "applications" in without:
        unchecked -= {14}
    found: dict[str, Any] = {
        "secure_boot": True,
        "dbx": [digest.hex() for digest in (events.signatures(dbx.data) or ([], []))[1]],
        "signers": certificates,
        "applications": [e.digests["sha256"].hex() for e in told if e.type == events.APPLICATION],
        "started_by": None if "applications" in without else _starters(told),
        "kernels": [KERNEL],
        "initrds": [INITRD],
        "files": [one for one in files if one not in (KERNEL, INITRD)],
        "sbat": None if "applications" in without else {} if level is None else measured_data.sbat(level.data),
        "grub_commands": None if "command_lines" in without else commands,
        "command_lines": [f"/vmlinuz {LINE}" if boot == "shim-grub" else LINE],
        "pcrs": {"2": [boot_logs.values(boot)[2].hex()]},
        "mok": [e.digests["sha256"].hex() for e in told if e.pcr == 14][:2] if "applications" in without else None,
        "unchecked": sorted(unchecked),
        **rules,
    }
    once = {key: list(dict.fromkeys(value)) if isinstance(value, list) else value for key, value in found.items()}
    return {"version": 1, "boot": {key: value for key, value in once.items() if value is not None}}
