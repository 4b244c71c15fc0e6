"""Boots as a TPM sees them: recorded good ones, and bad ones of many kinds made of them, without end.

A bad boot is told honestly here: each entry has the type and data that firmware, boot loader or systemd would log, and
what was hashed, where whoever caused it knows that. Nothing is forged in this module.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import random
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import boot_forge
import boot_logs

from netspace.attestation import eventlog, events, measurelog
from netspace.attestation.refusals import Refused

SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
IPL, TAG, APPLICATION, AUTHORITY = events.IPL, events.EVENT_TAG, events.APPLICATION, events.VARIABLE_AUTHORITY
SETTING = events.VARIABLE_DRIVER_CONFIG
TAG_INITRD = 0x8F3B22EC
# Where boot loaders, stub and kernel measure what they load.
LOADED = (9, 11, 12)
SECTIONS = ("linux", "osrel", "cmdline", "initrd", "ucode", "splash", "dtb", "uname", "sbat", "pcrsig", "pcrpkey")
FORMS = ("kernel_cmdline: ", "grub_kernel_cmdline ", "grub_cmd: ", "grub_linuxefi ", "module_cmdline: ")


@dataclass(frozen=True)
class Entry:
    """One measurement, and how it is told.

    :param mark: what moves name it by; ``bad`` and a number for what is bad in a boot.
    :param type: of the boot log's event, with its *data*.
    :param content: what was hashed, where it is known.
    :param kind: what systemd's log calls it, with its *text*.
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
    """What a TPM saw in order: *events* from the firmware until the kernel had started, then systemd's *words*.

    :param locality: of the TPM's start, which PCR 0 begins with.
    :param commands: lines that the kernel was started with.
    """

    name: str
    events: tuple[Entry, ...]
    words: tuple[Entry, ...] = ()
    locality: int = 0
    commands: tuple[str, ...] = ()

    def bad(self) -> tuple[Entry, ...]:
        return tuple(one for one in (*self.events, *self.words) if one.mark.startswith("bad"))


def measured(pcr: int, kind: int, data: bytes, content: bytes | None = None, mark: str = "bad") -> Entry:
    """An event of *content*; of its data where that is not given."""
    real = data if content is None else content
    return Entry(mark, pcr, hashlib.sha256(real).digest(), kind, data, real)


def spoken(pcr: int, kind: str, text: str, mark: str) -> Entry:
    """A record of systemd's."""
    raw = text.encode()
    return Entry(mark, pcr, hashlib.sha256(raw).digest(), IPL, raw, raw, kind, text)


def variable(guid: str, name: str, content: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    wide = name.encode("utf-16-le")
    return uuid.UUID(guid).bytes_le + struct.pack("<QQ", len(name), len(content)) + wide + content


def tagged(number: int, text: str) -> bytes:
    """TCG_PCClientTaggedEvent."""
    raw = text.encode() + b"\0"
    return struct.pack("<II", number, len(raw)) + raw


def wide(text: str) -> bytes:
    """UTF-16 with its NUL, as kernels and systemd's stub take a command line."""
    return text.encode("utf-16-le") + b"\0\0"


def _content(event: eventlog.Event) -> bytes | None:
    """What was hashed, where the log alone tells it."""
    digest = event.digests["sha256"]
    after = event.data.partition(b": ")[2]
    read = events.variable(event.data, events.SLACK)
    known = [event.data, event.data[:-1], after, after.removesuffix(b"\0"), read.data if read else b""]
    if event.type == IPL and event.pcr == 11:
        known += [b".%s\0" % one.encode() for one in SECTIONS]
    return next((one for one in known if hashlib.sha256(one).digest() == digest), None)


def _boot(name: str, raw: bytes, systemd: bytes = b"") -> Boot | None:
    """Read a log; None where it can't be one of a whole boot in the SHA-256 bank."""
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
    """The kernel's command line where *entry* is one whose text is known."""
    if entry.type != IPL or entry.content is None or entry.pcr not in (8, 12):
        return None
    if entry.pcr == 8 and entry.data.startswith((b"kernel_cmdline: ", b"grub_kernel_cmdline ")):
        return entry.content.decode(errors="replace").removesuffix("\0")
    if entry.content[1:2] == b"\0":
        return entry.content.decode("utf-16-le", "replace").removesuffix("\0")
    return None


@functools.cache
def recorded() -> tuple[Boot, ...]:
    """Our two boots, and what other kernels and boot loaders would have measured instead."""
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
    older = tuple(one for one in grub.events if not (one.pcr == 9 and one.type == TAG))
    passed = measured(12, IPL, wide(boot_forge.LINE), mark="passed")
    return (
        grub,
        uki,
        dataclasses.replace(grub, name="grub, kernel before 5.18", events=older),
        dataclasses.replace(uki, name="uki, systemd-boot passes a line", events=(*uki.events, passed)),
    )


@functools.cache
def others() -> tuple[Boot, ...]:
    """Boots out of the folder of others' logs; none where there is none."""
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
    """The entry with its content, if that is *content*."""
    hit = entry.content is None and hashlib.sha256(content).digest() == entry.digest
    return dataclasses.replace(entry, content=content) if hit else entry


def values(boot: Boot) -> dict[int, bytes]:
    """What the TPM has in all of its PCRs after *boot*."""
    found = {pcr: b"\xff" * 32 if 17 <= pcr <= 22 else bytes(32) for pcr in range(24)}
    found[0] = bytes((*bytes(31), boot.locality))
    told = (*boot.events, *boot.words)
    return extended(found, ((one.pcr, one.digest) for one in told if one.type != eventlog.NO_ACTION))


def extended(before: Mapping[int, bytes], digests: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """What the TPM has after more was extended."""
    found = dict(before)
    for pcr, digest in digests:
        found[pcr] = hashlib.sha256(found[pcr] + digest).digest()
    return found


# -- kinds of bad boots ----------------------------------------------------------------
Bad = Callable[[random.Random, Boot], "Boot | None"]


def _where(boot: Boot, take: Callable[[Entry], bool]) -> list[int]:
    return [at for at, one in enumerate(boot.events) if take(one)]


def _put(chance: random.Random, boot: Boot, entries: Sequence[Entry], near: Sequence[int], replace: float) -> Boot:
    """Put *entries* in the place of one of the events *near*, before or after it; or at the end."""
    new = [dataclasses.replace(one, mark=f"bad{number}") for number, one in enumerate(entries)]
    told = list(boot.events)
    if not near or chance.random() < 0.2:
        told += new
    else:
        at = chance.choice(near)
        if chance.random() < replace:
            told[at : at + 1] = new
        else:
            at += chance.randrange(2)
            told[at:at] = new
    return dataclasses.replace(boot, events=tuple(told))


def _ended(chance: random.Random, boot: Boot) -> Boot:
    """What is bad may go on as a good boot would, or measure nothing more: a boot loader, an init."""
    how = chance.randrange(3)
    if how == 0:
        return boot
    if how == 1:
        return dataclasses.replace(boot, words=())
    first = min(at for at, one in enumerate(boot.events) if one.mark.startswith("bad"))
    rest = [one for one in boot.events[first:] if one.mark.startswith("bad") or one.type == events.SEPARATOR]
    return dataclasses.replace(boot, events=(*boot.events[:first], *rest), words=())


def image(chance: random.Random) -> bytes:
    """What Authenticode hashes of a program that is nobody's: it begins like a PE file."""
    return b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + chance.randbytes(chance.choice((100, 700)))


def program(chance: random.Random, boot: Boot) -> Boot | None:
    near = _where(boot, lambda one: one.pcr == 4 and one.type == APPLICATION)
    if not near:
        return None
    kind = chance.choice((APPLICATION, APPLICATION, APPLICATION, 0x80000004))
    evil = measured(4, kind, boot.events[chance.choice(near)].data, image(chance))
    return _ended(chance, _put(chance, boot, [evil], near, 0.5))


def signer(chance: random.Random, boot: Boot) -> Boot | None:
    near = _where(boot, lambda one: one.pcr == 7 and one.type == AUTHORITY)
    if not near:
        return None
    certificate = b"\x30\x82\x03\x00" + chance.randbytes(300)
    owner = chance.choice((uuid.UUID(SHIM).bytes_le, bytes(16), chance.randbytes(16)))
    said = chance.choice(
        (
            variable(SHIM, "MokListRT", owner + certificate),
            variable(SHIM, "MokList", certificate),
            variable(SHIM, "Shim", certificate),
            variable(events.SECURITY, "db", owner + certificate),
            variable(events.SECURITY, "db", owner + chance.randbytes(32)),
        )
    )
    found = _put(chance, boot, [measured(7, AUTHORITY, said)], near, 0.4)
    if chance.random() < 0.7:
        run = _where(found, lambda one: one.pcr == 4 and one.type == APPLICATION)
        evil = dataclasses.replace(measured(4, APPLICATION, bytes(32), image(chance)), mark="bad9")
        told = list(found.events)
        told.insert(chance.choice(run) + 1 if run else len(told), evil)
        found = dataclasses.replace(found, events=tuple(told))
    return _ended(chance, found)


def archive(path: str, text: str) -> bytes:
    """A cpio archive with one file; all of it is text."""
    found = b""
    for name, data, mode in ((path, text.encode(), 0o100755), ("TRAILER!!!", b"", 0)):
        numbers = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = ("070701" + "".join(f"{one:08X}" for one in numbers)).encode() + name.encode() + b"\0"
        found += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return found + bytes(-len(found) % 512)


def _script(chance: random.Random) -> bytes:
    """A grub.cfg. GRUB goes on after a command that it doesn't know, so one may begin with any words."""
    evil = f"linux /vmlinuz root=/dev/vda init=/bin/evil{chance.randrange(1000)};initrd /i;boot"
    begin = chance.choice(("", "", "nvpcr-init:hardware:0x1d10200:sha256:;", "file-system:/:ext4:;", "machine-id:0;"))
    begin = chance.choice((begin, begin, "enter-initrd;", "sysinit\n", "Exit Boot Services Invocation;"))
    return (begin + (evil if chance.random() < 0.5 else evil.replace(";", "\n") + "\n")).encode()


def _at_loading(boot: Boot, pcr: int) -> list[int]:
    return _where(boot, lambda one: one.pcr == pcr and one.type in (IPL, TAG))


def file(chance: random.Random, boot: Boot) -> Boot | None:
    """A file that the boot loader reads: GRUB's configuration, a module."""
    near = _at_loading(boot, 9)
    content = _script(chance) if chance.random() < 0.7 else chance.randbytes(200)
    evil = measured(9, IPL, b"(hd0,gpt2)/grub/grub.cfg\0", content)
    return _ended(chance, _put(chance, boot, [evil], near, 0.3)) if near else None


def kernel(chance: random.Random, boot: Boot) -> Boot | None:
    """Another kernel in the place of each copy of the good one, or of one."""
    hits = _where(boot, lambda one: one.pcr in (9, 11) and one.content is None and _is_kernel(one))
    if not hits:
        return None
    evil = image(chance)
    told = list(boot.events)
    for number, at in enumerate(hits if chance.random() < 0.7 else [chance.choice(hits)]):
        told[at] = dataclasses.replace(measured(told[at].pcr, told[at].type, told[at].data, evil), mark=f"bad{number}")
    return _ended(chance, dataclasses.replace(boot, events=tuple(told)))


def _is_kernel(entry: Entry) -> bool:
    said = entry.data.replace(b"\0", b"")
    return b"vmlinuz" in said or b"bzImage" in said or said == b".linux"


def initrd(chance: random.Random, boot: Boot) -> Boot | None:
    """An initrd of GRUB's, or one that systemd's stub makes of what lies beside a UKI."""
    script = f"[Service]\nExecStart=/bin/sh -c evil{chance.randrange(1000)}\n"
    content = archive("etc/systemd/system/evil.service", script)
    if chance.random() < 0.3:
        content = b"\x1f\x8b\x08" + chance.randbytes(300)
    grub = [
        measured(9, IPL, b"/evil.img\0", content),
        measured(9, TAG, tagged(TAG_INITRD, "Linux initrd"), content),
    ]
    if any(one.pcr == 11 for one in boot.events):
        named = measured(11, IPL, ".initrd\0".encode("utf-16-le"), b".initrd\0")
        section = measured(11, IPL, ".initrd\0".encode("utf-16-le"), content)
        beside = measured(12, IPL, wide("Credentials initrd"), content)
        kernel_saw = grub[1]
        choice = chance.choice(([named, section], [section], [beside], [beside, kernel_saw], [kernel_saw]))
    else:
        choice = chance.choice((grub, grub[:1], grub[1:]))
    return _ended(chance, _put(chance, boot, choice, _at_loading(boot, choice[0].pcr), 0.3))


def command_line(chance: random.Random, boot: Boot) -> Boot | None:
    """Another command line, everywhere where it is measured."""
    if not boot.commands:
        return None
    good = chance.choice(boot.commands)
    evil = chance.choice(
        (
            f"{good} init=/bin/evil",
            good.replace("ima_policy=tcb", "ima_policy=").replace("quiet", "init=/bin/evil"),
            f"init=/bin/evil {good.split(' ', 1)[-1]}",
            f"init=/bin/evil\n{good}",
            f"{good}\nrdinit=/bin/evil",
        )
    )
    if evil in boot.commands:
        return None
    told: list[Entry] = []
    section = False
    for one in boot.events:
        new = _other_line(one, evil, section)
        section = one.pcr == 11 and one.content == b".cmdline\0"
        told.append(one if new is None else new)
    changed = dataclasses.replace(boot, events=tuple(told))
    if not changed.bad() or chance.random() < 0.3:
        passed = measured(12, IPL, wide(evil))  # systemd's stub or boot loader was given one
        changed = dataclasses.replace(boot, events=(*told, passed))
    told = [
        dataclasses.replace(one, mark=f"bad{at}") if one.mark.startswith("bad") else one
        for at, one in enumerate(changed.events)
    ]
    return _ended_late(chance, dataclasses.replace(changed, events=tuple(told), commands=(evil,)))


def _other_line(entry: Entry, evil: str, section: bool) -> Entry | None:
    """The entry with *evil* in the place of its command line; None where it is none."""
    if command(entry) is not None and entry.pcr == 8:
        return measured(8, IPL, b"kernel_cmdline: " + evil.encode() + b"\0", evil.encode())
    if entry.pcr == 8 and entry.data.startswith(b"grub_cmd: linux "):
        return measured(8, IPL, b"grub_cmd: linux " + evil.encode() + b"\0", b"linux " + evil.encode())
    if command(entry) is not None:
        return measured(entry.pcr, IPL, wide(evil))
    read = events.tag(eventlog.Event(entry.pcr, entry.type, {}, entry.data))
    if read is not None and read[0] == events.TAG_OPTIONS:
        image = "BOOT_IMAGE=" if evil.startswith("/") else ""
        return measured(entry.pcr, TAG, entry.data, wide(image + evil))
    return measured(11, IPL, entry.data, evil.encode()) if section else None


def _ended_late(chance: random.Random, boot: Boot) -> Boot:
    return dataclasses.replace(boot, words=()) if chance.random() < 0.5 else boot


def _changed(boot: Boot, names: Sequence[str], content: Callable[[bytes], bytes]) -> Boot | None:
    """The boot with another content of one of PCR 7's variables."""
    for at, one in enumerate(boot.events):
        read = events.variable(one.data) if one.pcr == 7 and one.type == SETTING else None
        if read is not None and read.name in names and content(read.data) != read.data:
            told = list(boot.events)
            said = variable(read.guid, read.name, content(read.data))
            told[at] = dataclasses.replace(measured(7, SETTING, said), mark="bad0")
            return dataclasses.replace(boot, events=tuple(told))
    return None


def secure_boot_off(chance: random.Random, boot: Boot) -> Boot | None:
    """Secure Boot is off, its keys are gone, or the firmware is in debug mode."""
    how = chance.randrange(4)
    if how == 3:
        near = _where(boot, lambda one: one.pcr == 7)
        debug = measured(7, events.EFI_ACTION, chance.choice((b"UEFI Debug Mode", b"DMA Protection Disabled")))
        return _put(chance, boot, [debug], near, 0.0) if near else None
    off = chance.choice((b"\0", b""))
    found = _changed(boot, (("SecureBoot",), ("PK",), ("KEK",))[how], lambda _: off if how == 0 else b"")
    if found is not None and chance.random() < 0.6:  # nothing is verified any more
        told = [one for one in found.events if one.type != AUTHORITY]
        found = dataclasses.replace(found, events=tuple(told))
    return found and _ended(chance, found)


def old_dbx(chance: random.Random, boot: Boot) -> Boot | None:
    """A list of revocations from before the last of them, or before all."""
    whole = chance.random() < 0.5
    found = _changed(boot, ("dbx",), lambda data: b"" if whole else shorter(data))
    return found and _ended(chance, found)


def shorter(lists: bytes) -> bytes:
    """Take the last entry out of the first of EFI_SIGNATURE_LISTs, and the lists after it away."""
    total, each = int.from_bytes(lists[16:20], "little"), int.from_bytes(lists[24:28], "little")
    if each < 17 or total - each <= 28:
        return b""
    return lists[:16] + struct.pack("<I", total - each) + lists[20 : total - each]


def shim_insecure(chance: random.Random, boot: Boot) -> Boot | None:
    """Shim with its validation turned off: whatever follows it is verified by nobody (MokSBState, PCR 14)."""
    shims = _where(boot, lambda one: one.type == AUTHORITY and uuid.UUID(SHIM).bytes_le == one.data[:16])
    if not shims:
        return None
    told = list(boot.events)
    run = [at for at, one in enumerate(told) if one.pcr == 4 and one.type == APPLICATION]
    for number, at in enumerate(run[1:]):
        told[at] = dataclasses.replace(measured(4, APPLICATION, told[at].data, image(chance)), mark=f"bad{number + 1}")
    dropped = {at for at in shims if "SbatLevel".encode("utf-16-le") not in told[at].data}
    told = [one for at, one in enumerate(told) if at not in dropped]
    at = max((at for at, one in enumerate(told) if one.pcr == 14), default=len(told) - 1)
    told.insert(at + 1, dataclasses.replace(measured(14, IPL, b"MokSBState\0", b"\1"), mark="bad0"))
    return _ended(chance, dataclasses.replace(boot, events=tuple(told)))


def old_sbat(chance: random.Random, boot: Boot) -> Boot | None:
    """Shim's list of revoked generations from 2021."""
    for at, one in enumerate(boot.events):
        if one.type == AUTHORITY and "SbatLevel".encode("utf-16-le") in one.data[:64]:
            told = list(boot.events)
            body = chance.choice((b"sbat,1,2021030218\n", b"sbat,1,2022052400\ngrub,2\n", b""))
            told[at] = dataclasses.replace(measured(7, AUTHORITY, variable(SHIM, "SbatLevel", body)), mark="bad0")
            return _ended(chance, dataclasses.replace(boot, events=tuple(told)))
    return None


KINDS: dict[str, Bad] = {
    "program": program,
    "signer": signer,
    "file": file,
    "kernel": kernel,
    "initrd": initrd,
    "command line": command_line,
    "Secure Boot off": secure_boot_off,
    "old dbx": old_dbx,
    "shim insecure": shim_insecure,
    "old SBAT": old_sbat,
}
# The rule of a policy that names what is bad, so that such a boot may not be called good.
RULES = {
    "program": "applications",
    "signer": "signers",
    "file": "kernels",
    "kernel": "kernels",
    "initrd": "kernels",
    "command line": "command_lines",
    "Secure Boot off": "secure_boot",
    "old dbx": "dbx",
    "shim insecure": "signers",
    "old SBAT": "sbat",
}
