"""Decoder of the event data in boot logs, for display to operators and for policies.

Decodes UEFI variables, signature databases, device paths, command lines and tagged events. Most data is a comment by
the writer of the log. A policy may rely on data only if its digest was measured (:func:`proved`). All sizes are
bounded. Data of an unexpected form becomes hex and raises no error. This module makes no trust decision.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from netspace.attestation.logs.eventlog import NO_ACTION, Event, EventLog

MAX_TEXT = 1024
MAX_LIST = 64
SLACK = 8

# TCG PC Client Platform Firmware Profile 1.06, 10.4.1
SEPARATOR, ACTION, EVENT_TAG, CRTM_VERSION, IPL = 0x4, 0x5, 0x6, 0x8, 0xD
VARIABLE_DRIVER_CONFIG, VARIABLE_BOOT, APPLICATION = 0x80000001, 0x80000002, 0x80000003
EFI_ACTION, VARIABLE_BOOT2, VARIABLE_AUTHORITY = 0x80000007, 0x8000000C, 0x800000E0
TYPES = {
    0x00: "EV_PREBOOT_CERT",
    0x01: "EV_POST_CODE",
    0x03: "EV_NO_ACTION",
    0x04: "EV_SEPARATOR",
    0x05: "EV_ACTION",
    0x06: "EV_EVENT_TAG",
    0x07: "EV_S_CRTM_CONTENTS",
    0x08: "EV_S_CRTM_VERSION",
    0x09: "EV_CPU_MICROCODE",
    0x0A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0B: "EV_TABLE_OF_DEVICES",
    0x0C: "EV_COMPACT_HASH",
    0x0D: "EV_IPL",
    0x0E: "EV_IPL_PARTITION_DATA",
    0x0F: "EV_NONHOST_CODE",
    0x10: "EV_NONHOST_CONFIG",
    0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x13: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}
_IMAGES = frozenset(range(0x80000003, 0x80000006))
# Events whose digest is over their whole data. If digest and data differ, the data is false.
_OF_DATA = frozenset(
    (SEPARATOR, ACTION, CRTM_VERSION, EFI_ACTION, VARIABLE_DRIVER_CONFIG, VARIABLE_AUTHORITY, 0x80000006)
)
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
# UEFI 2.10, 32.4.1: kinds of signature lists.
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
_SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
# Labels that GRUB logs before a kernel's command line. It measures only the line.
GRUB = (b"kernel_cmdline: ", b"grub_kernel_cmdline ")
# The lengths of name and data in UEFI_VARIABLE_DATA.
_SIZES = struct.Struct("<QQ")


class Variable(NamedTuple):
    """A measured UEFI variable (UEFI_VARIABLE_DATA)."""

    guid: str
    name: str
    data: bytes


def type_name(kind: int) -> str:
    return TYPES.get(kind, f"{kind:#010x}")


def proved(event: Event, bank: str, data: bytes | None = None) -> bool:
    """Return whether the event's digest in *bank* matches its data (or *data*).

    Without a match, the data was not measured.
    """
    expected: bytes = getattr(hashlib, bank)(event.data if data is None else data).digest()
    return event.digests.get(bank) == expected


def measured_data(event: Event, bank: str) -> bytes | None:
    """Return the event's data if the event's digest in *bank* matches the data; else None.

    For an authority, old shims log one byte more than they measure. This byte is not returned.
    """
    if proved(event, bank):
        return event.data
    if event.type == VARIABLE_AUTHORITY and proved(event, bank, event.data[:-1]):
        return event.data[:-1]
    return None


def variable(data: bytes, slack: int = 0) -> Variable | None:
    """Return the variable in UEFI_VARIABLE_DATA; None for other data.

    :param slack: number of bytes that may follow the variable. Old shims measure up to ``SLACK`` bytes after its
        content.
    """
    if len(data) < 32:
        return None
    characters, size = _SIZES.unpack_from(data, 16)
    start = 32 + 2 * characters
    if characters > MAX_TEXT or not 0 <= len(data) - start - size <= slack:
        return None
    return Variable(*_named(data[:16], data[32:start]), data[start : start + size])


@functools.lru_cache(256)
def _named(guid: bytes, name: bytes) -> tuple[str, str]:
    """Return a variable's GUID and name as text. Cached, since all logs have the same few variables."""
    return str(uuid.UUID(bytes_le=guid)), name.decode("utf-16-le", "replace")


def certificate(data: bytes) -> bytes:
    """Return the certificate or digest in an authority's content, without the owner that may precede it.

    The owner is the first field of EFI_SIGNATURE_DATA.
    """
    return data if data[:2] == b"\x30\x82" else data[16:]


def signatures(data: bytes) -> tuple[list[bytes], list[bytes]] | None:
    """Return the certificates (DER) and SHA-256 digests in EFI_SIGNATURE_LISTs; None for other data.

    Lists of other kinds are skipped.
    """
    certificates: list[bytes] = []
    digests: list[bytes] = []
    at = 0
    while at < len(data):
        if at + 28 > len(data):
            return None
        kind = data[at : at + 16]
        total, head, each = (int.from_bytes(data[at + n : at + n + 4], "little") for n in (16, 20, 24))
        body = total - 28 - head
        if at + total > len(data) or body < 0 or each < 17 or body % each:
            return None
        for start in range(at + 28 + head, at + total, each):
            value = data[start + 16 : start + each]
            if kind == _X509:
                certificates.append(value)
            elif kind == _SHA256 and each == 48:
                digests.append(value)
        at += total
    return certificates, digests


def text(data: bytes) -> str | None:
    """Return a string that a boot loader logged (UTF-16 or UTF-8), without its final NUL; None for other data."""
    if len(data) >= 2 and len(data) % 2 == 0 and data[1] == 0:
        try:
            found = data.decode("utf-16-le")
        except UnicodeDecodeError:
            return None
        found = found.removesuffix("\0")
    else:
        try:
            found = data.decode()
        except UnicodeDecodeError:
            return None
        found = found.removesuffix("\0")
    return found if all(sign.isprintable() or sign in "\t\n\r" for sign in found) else None


def is_command_line(event: Event) -> bool:
    """Return whether *event* claims to be a kernel's command line. The claim need not be proved."""
    if event.type != IPL:
        return False
    return event.pcr == 12 or (event.pcr == 8 and (event.data.startswith(GRUB) or event.data[1:2] == b"\0"))


def tag(event: Event) -> tuple[int, str] | None:
    """Return the id and text of a TCG_PCClientTaggedEvent; None for other events."""
    if event.type != EVENT_TAG or len(event.data) < 8:
        return None
    size = int.from_bytes(event.data[4:8], "little")
    if size != len(event.data) - 8:
        return None
    return int.from_bytes(event.data[:4], "little"), text(event.data[8:]) or ""


def describe(event: Event) -> dict[str, Any]:
    """Return *event* in readable form: ``pcr``, ``type``, ``digests``, ``matches`` and the decoded data.

    ``matches`` is true if the digests match the data. Events that measure other data than they log have no ``matches``.
    """
    found: dict[str, Any] = {"pcr": event.pcr, "type": type_name(event.type)}
    if event.type != NO_ACTION:
        found["digests"] = {bank: digest.hex() for bank, digest in event.digests.items()}
    matches = _matches(event)
    if matches is not None:
        found["matches"] = matches
    found.update(_said(event))
    return found


def _matches(event: Event) -> bool | None:
    if event.type == VARIABLE_BOOT:  # older firmware measures only the variable's content
        read = variable(event.data)
        return all(proved(event, bank) or (read and proved(event, bank, read.data)) for bank in event.digests) or False
    if event.type == IPL and event.pcr in (8, 12):
        after = event.data.partition(b": ")[2].removesuffix(b"\0")
        return all(proved(event, bank) or proved(event, bank, after) for bank in event.digests)
    if event.type not in _OF_DATA:
        return None
    return all(measured_data(event, bank) is not None for bank in event.digests)


def _said(event: Event) -> dict[str, Any]:
    data = event.data
    if event.type in (VARIABLE_DRIVER_CONFIG, VARIABLE_BOOT, VARIABLE_BOOT2, VARIABLE_AUTHORITY):
        read = variable(data, SLACK if event.type == VARIABLE_AUTHORITY else 0)
        return {"data": _hex(data)} if read is None else _variable(read, event.type)
    if event.type in _IMAGES:
        if len(data) >= 32 and int.from_bytes(data[24:32], "little") == len(data) - 32:
            return {"path": device_path(data[32:])}
        return {"data": _hex(data)}
    if event.type == NO_ACTION:
        return {"text": _bounded(data[:16].split(b"\0")[0].decode("ascii", "replace")), "size": len(data)}
    tagged = tag(event)
    if tagged is not None:
        return {"tag": f"{tagged[0]:#010x}", "text": _bounded(tagged[1])}
    if event.type == 0x80000006 and len(data) >= 100:
        return {
            "disk": str(uuid.UUID(bytes_le=data[56:72])),
            "partitions": int.from_bytes(data[92:100], "little"),
        }
    said = text(data) if event.type != SEPARATOR and data else None
    return {"data": _hex(data)} if said is None else {"text": _bounded(said)}


def _variable(read: Variable, kind: int) -> dict[str, Any]:
    found: dict[str, Any] = {"variable": _bounded(read.name), "guid": read.guid}
    if kind == VARIABLE_AUTHORITY and b"\x30\x82" in (read.data[:2], read.data[16:18]):
        found["certificate"] = hashlib.sha256(certificate(read.data)).hexdigest()
        return found
    lists = signatures(read.data) if read.name in ("PK", "KEK", "db", "dbx", "dbr", "dbt") else None
    if lists is not None:
        found["certificates"] = [hashlib.sha256(one).hexdigest() for one in lists[0][:MAX_LIST]]
        found["digests_listed"] = len(lists[1])
    elif kind in (VARIABLE_BOOT, VARIABLE_BOOT2) and read.name.startswith("Boot") and len(read.name) == 8:
        found.update(_load_option(read.data))
    else:
        found["data"] = _hex(read.data)
    return found


def _load_option(data: bytes) -> dict[str, Any]:
    """Return an EFI_LOAD_OPTION (UEFI 2.10, 3.1.3) in readable form: its name and its device path."""
    end = 6
    while end + 2 <= len(data) and data[end : end + 2] != b"\0\0":
        end += 2
    if end + 2 > len(data):
        return {"data": _hex(data)}
    size = int.from_bytes(data[4:6], "little")
    name = data[6:end].decode("utf-16-le", "replace")
    return {"text": _bounded(name), "path": device_path(data[end + 2 : end + 2 + size])}


def device_path(data: bytes) -> str:
    """Return a device path (UEFI 2.10, 10.3) as text: files, disks and PCI functions by name, other nodes by number."""
    nodes: list[str] = []
    at = 0
    while at + 4 <= len(data) and len(nodes) < MAX_LIST:
        kind, sub, size = data[at], data[at + 1], int.from_bytes(data[at + 2 : at + 4], "little")
        body = data[at + 4 : at + size]
        if size < 4 or at + size > len(data):
            break
        at += size
        if (kind, sub) == (0x7F, 0xFF):
            return _bounded("/".join(nodes))
        if (kind, sub) == (4, 4):
            nodes.append(body.decode("utf-16-le", "replace").removesuffix("\0"))
        elif (kind, sub) == (4, 1) and len(body) == 38:
            nodes.append(f"HD({int.from_bytes(body[:4], 'little')},{uuid.UUID(bytes_le=body[20:36])})")
        elif (kind, sub) == (2, 1) and len(body) == 8:
            nodes.append(f"ACPI({body[:4].hex()},{int.from_bytes(body[4:], 'little')})")
        elif (kind, sub) == (1, 1) and len(body) == 2:
            nodes.append(f"PCI({body[1]},{body[0]})")
        elif kind == 4 and sub in (6, 7) and len(body) == 16:
            nodes.append(f"Fv({uuid.UUID(bytes_le=body)})")
        else:
            nodes.append(f"{kind}.{sub}({body[:32].hex()})")
    return _bounded("/".join([*nodes, "..."]))


def report(log: EventLog) -> dict[str, Any]:
    """Return a log in readable form: ``{banks: {bank: {pcr: hex}}, events: [...]}``."""
    banks: Mapping[str, Mapping[int, bytes]] = {bank: log.replay(bank) for bank in log.banks}
    return {
        "banks": {
            bank: {str(pcr): value.hex() for pcr, value in sorted(values.items())} for bank, values in banks.items()
        },
        "events": [describe(event) for event in log.events],
    }


def _bounded(said: str) -> str:
    return said if len(said) <= MAX_TEXT else f"{said[:MAX_TEXT]}..."


def _hex(data: bytes) -> str:
    return data.hex() if len(data) <= 64 else f"{data[:64].hex()}... ({len(data)} bytes)"
