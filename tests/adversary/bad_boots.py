"""Bad boots of many kinds, derived at random from good ones. A policy's rules have to refuse each of them.

Each function takes a good boot and returns a bad boot with an honest log, or None if this boot can't be bad in this
way. The bad entries are marked ``bad``.
"""

from __future__ import annotations

import dataclasses
import random
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence

from support.attestation.boot_forge import TAG_INITRD, TAG_OPTIONS, tagged, variable, wide

from adversary.boots import (
    APPLICATION,
    AUTHORITY,
    IPL,
    SETTING,
    SHIM,
    TAG,
    Boot,
    Entry,
    command,
    measured,
)
from netspace.attestation.logs import eventlog, events

Bad = Callable[[random.Random, Boot], "Boot | None"]


def _where(boot: Boot, take: Callable[[Entry], bool]) -> list[int]:
    return [at for at, one in enumerate(boot.events) if take(one)]


def _put(chance: random.Random, boot: Boot, entries: Sequence[Entry], near: Sequence[int], replace: float) -> Boot:
    """Insert *entries* beside an event whose position is in *near*, or replace that event, or append them."""
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
    """Let a bad program (a boot loader, an init) continue with a good boot's measurements, or with none."""
    how = chance.randrange(3)
    if how == 0:
        return boot
    if how == 1:
        return dataclasses.replace(boot, words=())
    first = min(at for at, one in enumerate(boot.events) if one.mark.startswith("bad"))
    rest = [one for one in boot.events[first:] if one.mark.startswith("bad") or one.type == events.SEPARATOR]
    return dataclasses.replace(boot, events=(*boot.events[:first], *rest), words=())


def image(chance: random.Random) -> bytes:
    """Return the Authenticode hash input of an unknown program. The input begins like a PE file."""
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
    """Return a cpio archive with one file, written as text."""
    found = b""
    for name, data, mode in ((path, text.encode(), 0o100755), ("TRAILER!!!", b"", 0)):
        numbers = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = ("070701" + "".join(f"{one:08X}" for one in numbers)).encode() + name.encode() + b"\0"
        found += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return found + bytes(-len(found) % 512)


def _script(chance: random.Random) -> bytes:
    """Return a grub.cfg. The file may begin with any words, since GRUB continues after an unknown command."""
    evil = f"linux /vmlinuz root=/dev/vda init=/bin/evil{chance.randrange(1000)};initrd /i;boot"
    begin = chance.choice(("", "", "nvpcr-init:hardware:0x1d10200:sha256:;", "file-system:/:ext4:;", "machine-id:0;"))
    begin = chance.choice((begin, begin, "enter-initrd;", "sysinit\n", "Exit Boot Services Invocation;"))
    return (begin + (evil if chance.random() < 0.5 else evil.replace(";", "\n") + "\n")).encode()


def _at_loading(boot: Boot, pcr: int) -> list[int]:
    return _where(boot, lambda one: one.pcr == pcr and one.type in (IPL, TAG))


def file(chance: random.Random, boot: Boot) -> Boot | None:
    """Make the boot loader load a bad file: a configuration of GRUB, or a module."""
    near = _at_loading(boot, 9)
    content = _script(chance) if chance.random() < 0.7 else chance.randbytes(200)
    evil = measured(9, IPL, b"(hd0,gpt2)/grub/grub.cfg\0", content)
    return _ended(chance, _put(chance, boot, [evil], near, 0.3)) if near else None


def kernel(chance: random.Random, boot: Boot) -> Boot | None:
    """Replace each copy of the good kernel, or only one copy, by another kernel."""
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
    """Load a bad initrd: by GRUB, or by systemd's stub from the files beside a UKI."""
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
        extension = measured(13, IPL, wide("System extension initrd"), content)
        choice = chance.choice(([named, section], [section], [beside], [extension], [beside, kernel_saw], [kernel_saw]))
    else:
        choice = chance.choice((grub, grub[:1], grub[1:]))
    return _ended(chance, _put(chance, boot, choice, _at_loading(boot, choice[0].pcr), 0.3))


def command_line(chance: random.Random, boot: Boot) -> Boot | None:
    """Use another command line, in each event that measures it."""
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
    """Return the entry with *evil* as its command line; None if the entry has no command line."""
    if command(entry) is not None and entry.pcr == 8:
        return measured(8, IPL, b"kernel_cmdline: " + evil.encode() + b"\0", evil.encode())
    if entry.pcr == 8 and entry.data.startswith(b"grub_cmd: linux "):
        return measured(8, IPL, b"grub_cmd: linux " + evil.encode() + b"\0", b"linux " + evil.encode())
    if command(entry) is not None:
        return measured(entry.pcr, IPL, wide(evil))
    read = events.tag(eventlog.Event(entry.pcr, entry.type, {}, entry.data))
    if read is not None and read[0] == TAG_OPTIONS:
        image = "BOOT_IMAGE=" if evil.startswith("/") else ""
        return measured(entry.pcr, TAG, entry.data, wide(image + evil))
    return measured(11, IPL, entry.data, evil.encode()) if section else None


def _ended_late(chance: random.Random, boot: Boot) -> Boot:
    return dataclasses.replace(boot, words=()) if chance.random() < 0.5 else boot


def _changed(boot: Boot, names: Sequence[str], content: Callable[[bytes], bytes]) -> Boot | None:
    """Return the boot with other content of one of the variables that PCR 7 measures."""
    for at, one in enumerate(boot.events):
        read = events.variable(one.data) if one.pcr == 7 and one.type == SETTING else None
        if read is not None and read.name in names and content(read.data) != read.data:
            told = list(boot.events)
            said = variable(read.guid, read.name, content(read.data))
            told[at] = dataclasses.replace(measured(7, SETTING, said), mark="bad0")
            return dataclasses.replace(boot, events=tuple(told))
    return None


def secure_boot_off(chance: random.Random, boot: Boot) -> Boot | None:
    """Turn Secure Boot off, remove its keys, or put the firmware into debug mode."""
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
    """Use an older revocation list: without its last entries, or empty."""
    whole = chance.random() < 0.5
    found = _changed(boot, ("dbx",), lambda data: b"" if whole else shorter(data))
    return found and _ended(chance, found)


def shorter(lists: bytes) -> bytes:
    """Return only the first EFI_SIGNATURE_LIST, without its last entry."""
    total, each = int.from_bytes(lists[16:20], "little"), int.from_bytes(lists[24:28], "little")
    if each < 17 or total - each <= 28:
        return b""
    return lists[:16] + struct.pack("<I", total - each) + lists[20 : total - each]


def shim_insecure(chance: random.Random, boot: Boot) -> Boot | None:
    """Turn off the validation of shim (13 or later), so that shim verifies no program.

    Shim measures this into PCRs 14 and 7 (shim: mok.c, MokSBState).
    """
    found = _unverified(chance, boot)
    if found is None:
        return None
    told = list(found.events)
    said = measured(7, AUTHORITY, variable(SHIM, "MokSBState", b"\1"))
    at = max((at for at, one in enumerate(told) if one.pcr == 14), default=len(told) - 1) + 1
    told[at:at] = [
        dataclasses.replace(said, mark="bad8"),
        dataclasses.replace(measured(14, IPL, b"MokSBState\0", b"\1"), mark="bad9"),
    ]
    return _ended(chance, dataclasses.replace(found, events=tuple(told)))


def old_shim(chance: random.Random, boot: Boot) -> Boot | None:
    """Use an old shim by the same signer (12 and older). It measures little or nothing, and starts any program."""
    found = _unverified(chance, boot)
    if found is None or not found.bad():
        return None
    level = "SbatLevel".encode("utf-16-le")
    lists = chance.random() < 0.5
    told = [one for one in found.events if lists or one.pcr != 14]
    told = [one for one in told if not (one.pcr == 7 and level in one.data[:64])]
    return _ended(chance, dataclasses.replace(found, events=tuple(told)))


def _unverified(chance: random.Random, boot: Boot) -> Boot | None:
    """Return the boot with other programs after shim, and without the authorities that shim measured."""
    shims = _where(boot, lambda one: one.type == AUTHORITY and uuid.UUID(SHIM).bytes_le == one.data[:16])
    if not shims:
        return None
    told = list(boot.events)
    run = [at for at, one in enumerate(told) if one.pcr == 4 and one.type == APPLICATION]
    for number, at in enumerate(run[1:]):
        told[at] = dataclasses.replace(measured(4, APPLICATION, told[at].data, image(chance)), mark=f"bad{number}")
    dropped = {at for at in shims if "SbatLevel".encode("utf-16-le") not in told[at].data}
    return dataclasses.replace(boot, events=tuple(one for at, one in enumerate(told) if at not in dropped))


def boot_entry(chance: random.Random, boot: Boot) -> Boot | None:
    """Use a boot entry that makes shim or firmware start the kernel directly, with options (shim: load-options.c).

    A kernel before 5.18 does not measure these options, and GRUB never runs. Firmware measures the entry into PCR 1.
    """
    run = _where(boot, lambda one: one.pcr == 4 and one.type == APPLICATION)
    options = any(one.pcr == 9 and one.type == TAG for one in boot.events)
    if len(run) < 2 or options or not boot.commands:
        return None
    evil = "init=/bin/evil initrd=\\evil.img"
    entry = measured(1, events.VARIABLE_BOOT, variable(events.GLOBAL, "Boot0001", b"\1\0\0\0" + wide(evil)))
    skipped = set(run[1:-1] if len(run) > 2 else run[:-1])
    told = [one for at, one in enumerate(boot.events) if at not in skipped and one.pcr not in (8, 9, 12)]
    at = next((at for at, one in enumerate(told) if one.pcr == 4), 0)
    told.insert(at, dataclasses.replace(entry, mark="bad0"))
    return _ended_late(chance, dataclasses.replace(boot, events=tuple(told), commands=(evil,)))


def grub_command(chance: random.Random, boot: Boot) -> Boot | None:
    """Run a bad command in GRUB: typed at its prompt, or from a changed configuration."""
    near = _at_loading(boot, 8)
    evil = chance.choice(("write_dword 0x1000 0x90909090", "insmod evil", "(hd0,gpt2)/evil", "/evil init=/bin/evil"))
    said = b"grub_cmd: " + evil.encode() + b"\0"
    return _ended_late(chance, _put(chance, boot, [measured(8, IPL, said, evil.encode())], near, 0.3)) if near else None


def driver(chance: random.Random, boot: Boot) -> Boot | None:
    """Load a bad driver by the firmware, before any program; firmware measures it into PCR 2."""
    near = _where(boot, lambda one: one.pcr == 2)
    evil = measured(2, 0x80000004, bytes(32), image(chance))
    return _put(chance, boot, [evil], near, 0.0) if near else None


def old_sbat(chance: random.Random, boot: Boot) -> Boot | None:
    """Use shim's list of revoked generations from 2021."""
    for at, one in enumerate(boot.events):
        if one.type == AUTHORITY and "SbatLevel".encode("utf-16-le") in one.data[:64]:
            bodies = (b"sbat,1,2021030218\n", b"sbat,1,2022052400\ngrub,2\n", b"")
            said = [variable(SHIM, "SbatLevel", body) for body in bodies]
            told = list(boot.events)
            bad = measured(7, AUTHORITY, chance.choice([data for data in said if data != one.data]))
            told[at] = dataclasses.replace(bad, mark="bad0")
            return _ended(chance, dataclasses.replace(boot, events=tuple(told)))
    return None


def older(level: bytes, lowest: Mapping[str, int]) -> bool:
    """Return whether the variable SbatLevel allows a generation lower than *lowest*."""
    read = events.variable(level)
    lines = [line.split(",") for line in (read.data if read else b"").decode("ascii").splitlines()]
    told = {name: int(number) for name, number, *_ in lines}
    return any(told.get(name, 0) < number for name, number in lowest.items())


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
    "old shim": old_shim,
    "boot entry": boot_entry,
    "GRUB command": grub_command,
    "driver": driver,
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
    "old shim": "sbat",
    "boot entry": "command_lines",
    "GRUB command": "command_lines",
    "driver": "applications",
    "old SBAT": "sbat",
    **dict.fromkeys(("network entry", "silent entries", "old firmware", "DMA unprotected"), "tcb"),  # base_boots
}
