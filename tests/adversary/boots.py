"""Boots from a TPM's point of view: recorded good boots, and bad boots of many kinds, derived from them at random.

In this module, the log of a bad boot is honest: each entry has the type and data that firmware, boot loader or systemd
would log, and the hashed content, if the attacker knows it. Nothing is forged.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from support.attestation import boot_forge, boot_logs
from support.attestation.boot_forge import TAG_OPTIONS, wide

from netspace.attestation.logs import eventlog, events
from netspace.attestation.logs import systemd as measurelog
from netspace.attestation.refusals import Refused

SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
IPL, TAG, APPLICATION, AUTHORITY = events.IPL, events.EVENT_TAG, events.APPLICATION, events.VARIABLE_AUTHORITY
SETTING = events.VARIABLE_DRIVER_CONFIG
# Where boot loaders, stub and kernel measure what they load.
LOADED = (9, 11, 12)
SECTIONS = ("linux", "osrel", "cmdline", "initrd", "ucode", "splash", "dtb", "uname", "sbat", "pcrsig", "pcrpkey")
FORMS = ("kernel_cmdline: ", "grub_kernel_cmdline ", "grub_cmd: ", "grub_linuxefi ", "module_cmdline: ")


@dataclass(frozen=True)
class Entry:
    """One measurement, and its record in a log.

    :param mark: the entry's name for moves; ``bad`` and a number for the bad entries of a boot.
    :param type: type of the boot log's event; *data* is the event's data.
    :param content: the hashed content, if it is known.
    :param kind: the type in systemd's log; *text* is the text of that record.
    """

    mark: str
    pcr: int
    digest: bytes
    type: int = IPL
    data: bytes = b""
    content: bytes | None = None
    kind: str = "phase"
    text: str = ""


@dataclass(frozen=True)
class Boot:
    """The measurements that a TPM saw, in order: *events* until the kernel started, then systemd's records, *words*.

    :param locality: locality of the TPM's start: the initial value of PCR 0.
    :param commands: the kernel's command lines.
    """

    name: str
    events: tuple[Entry, ...]
    words: tuple[Entry, ...] = ()
    locality: int = 0
    commands: tuple[str, ...] = ()

    def bad(self) -> tuple[Entry, ...]:
        return tuple(one for one in (*self.events, *self.words) if one.mark.startswith("bad"))


def measured(pcr: int, kind: int, data: bytes, content: bytes | None = None, mark: str = "bad") -> Entry:
    """Return an event that measures *content*, or the event's own data if no content is given."""
    real = data if content is None else content
    return Entry(mark, pcr, hashlib.sha256(real).digest(), kind, data, real)


def spoken(pcr: int, kind: str, text: str, mark: str) -> Entry:
    """Return a record of systemd's log."""
    raw = text.encode()
    return Entry(mark, pcr, hashlib.sha256(raw).digest(), IPL, raw, raw, kind, text)


def _content(event: eventlog.Event) -> bytes | None:
    """Return the hashed content, if the event's data contains it; else None."""
    digest = event.digests["sha256"]
    after = event.data.partition(b": ")[2]
    read = events.variable(event.data, events.SLACK)
    known = [event.data, event.data[:-1], after, after.removesuffix(b"\0"), read.data if read else b""]
    if event.type == IPL and event.pcr == 11:
        known += [b".%s\0" % one.encode() for one in SECTIONS]
    return next((one for one in known if hashlib.sha256(one).digest() == digest), None)


def _boot(name: str, raw: bytes, systemd: bytes = b"") -> Boot | None:
    """Parse a log; return None if it isn't the log of a whole boot in the SHA-256 bank."""
    try:
        log = eventlog.parse(raw)
        records = measurelog.parse(systemd) if systemd else ()
    except Refused:
        return None
    told = [one for one in log.events[1:] if one.type != eventlog.NO_ACTION]
    if "sha256" not in log.banks or len(told) < 10 or not any(one.type == APPLICATION for one in told):
        return None
    found = []
    commands = []
    for number, one in enumerate(log.events[1:]):
        if one.type == eventlog.NO_ACTION:
            found.append(Entry(f"n{number}", one.pcr, bytes(32), one.type, one.data))
            continue
        entry = Entry(f"e{number}", one.pcr, one.digests["sha256"], one.type, one.data, _content(one))
        line = command(entry)
        if line is not None:
            commands.append(line)
        found.append(entry)
    words = [spoken(one.pcr, one.kind, one.text, f"w{number}") for number, one in enumerate(records)]
    return Boot(name, tuple(found), tuple(words), log.locality, tuple(dict.fromkeys(commands)))


def command(entry: Entry) -> str | None:
    """Return the kernel's command line if *entry* is one, and its text is known."""
    if entry.type != IPL or entry.content is None or entry.pcr not in (8, 12):
        return None
    if entry.pcr == 8 and entry.data.startswith((b"kernel_cmdline: ", b"grub_kernel_cmdline ")):
        return entry.content.decode(errors="replace").removesuffix("\0")
    if entry.content[1:2] == b"\0":
        return entry.content.decode("utf-16-le", "replace").removesuffix("\0")
    return None


@functools.cache
def recorded() -> tuple[Boot, ...]:
    """Return the two recorded boots of this repository, and variants with other kernels and boot loaders."""
    found = []
    for name in ("shim-grub", "uki"):
        systemd = boot_logs.read("uki/systemd-tpm2-measure.log") if name == "uki" else b""
        boot = _boot(name, boot_logs.read(f"{name}/binary_bios_measurements"), systemd)
        assert boot is not None
        found.append(boot)
    grub, uki = found
    uki = dataclasses.replace(uki, commands=(boot_forge.LINE,))
    line = next(one for one in grub.commands)
    grub = dataclasses.replace(grub, events=tuple(_named(one, wide(f"BOOT_IMAGE={line}")) for one in grub.events))
    section = boot_forge.LINE.encode("utf-8")
    known = (section, section + b"\0", section + b"\n", wide(boot_forge.LINE), wide(boot_forge.LINE)[:-2])
    for content in known:
        uki = dataclasses.replace(uki, events=tuple(_named(one, content) for one in uki.events))
    passed = measured(12, IPL, wide(boot_forge.LINE), mark="passed")
    entry = _entry(uki, passed)
    return (
        grub,
        uki,
        dataclasses.replace(grub, name="grub, kernel before 5.18", events=_older(grub)),
        dataclasses.replace(uki, name="uki, systemd-boot passes a line", events=(*uki.events, passed)),
        dataclasses.replace(entry, name="systemd-boot"),
        dataclasses.replace(entry, name="systemd-boot, kernel before 5.18", events=_older(entry)),
    )


def _older(boot: Boot) -> tuple[Entry, ...]:
    """Return the boot's events with a kernel that measures neither options nor initrd."""
    return tuple(one for one in boot.events if not (one.pcr == 9 and one.type == TAG))


def _entry(uki: Boot, passed: Entry) -> Boot:
    """Return a boot by an entry of systemd-boot: a separate kernel, which gets its command line from the entry."""
    program = Entry("kernel", 4, hashlib.sha256(b"kernel").digest(), APPLICATION, bytes(32))
    told = []
    for one in uki.events:
        if one.pcr == 11:
            continue
        options = events.tag(eventlog.Event(one.pcr, one.type, {}, one.data))
        if one.pcr == 9 and options is not None and options[0] == TAG_OPTIONS:
            told += [program, passed, measured(9, TAG, one.data, wide(boot_forge.LINE), one.mark)]
        else:
            told.append(one)
    return dataclasses.replace(uki, events=tuple(told))


@functools.cache
def others() -> tuple[Boot, ...]:
    """Return the boots in the folder of other machines' logs; empty if there is no such folder."""
    folder = boot_logs.others()
    found: list[Boot] = []
    patterns = ("go-*/*eventlog*", "go-tpm-tools/*.bin", "keylime/binary*", "keylime/*.b64", "*/event*.bin", "*/uefi*")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)} if folder else ()):
        raw = path.read_bytes()
        if path.suffix == ".b64":
            raw = base64.b64decode(raw)
        boot = _boot(path.name, raw)
        if boot is not None:
            found.append(boot)
    return tuple(found)


def _named(entry: Entry, content: bytes) -> Entry:
    """Return the entry with *content* if its digest is *content*'s hash; else return it unchanged."""
    hit = entry.content is None and hashlib.sha256(content).digest() == entry.digest
    return dataclasses.replace(entry, content=content) if hit else entry


def values(boot: Boot) -> dict[int, bytes]:
    """Return the values of all PCRs after *boot*."""
    found = {pcr: b"\xff" * 32 if 17 <= pcr <= 22 else bytes(32) for pcr in range(24)}
    found[0] = bytes((*bytes(31), boot.locality))
    told = (*boot.events, *boot.words)
    return extended(found, ((one.pcr, one.digest) for one in told if one.type != eventlog.NO_ACTION))


def extended(before: Mapping[int, bytes], digests: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """Return the values of PCRs after further extensions."""
    found = dict(before)
    for pcr, digest in digests:
        found[pcr] = hashlib.sha256(found[pcr] + digest).digest()
    return found
