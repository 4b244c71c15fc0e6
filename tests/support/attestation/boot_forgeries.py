"""Forged boots, and the level that they reach."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from netspace.attestation.evidence import Evidence
from netspace.attestation.logs import eventlog, events, systemd
from netspace.attestation.logs import measured as fixed
from netspace.attestation.logs.eventlog import NO_ACTION, Event
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal
from support.attestation import boot_forge, boot_logs
from support.attestation.boot_forge import index, measured, variable, wide

SYSTEMD = boot_logs.read("uki/systemd-tpm2-measure.log")


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def booted(boot: str, edit: Callable[[list[Event]], None] = lambda found: None) -> list[Event]:
    """Return the true measurements of firmware and loaders of *boot* after *edit*, in order."""
    found = list(boot_forge.log(boot).events[1:])
    edit(found)
    return [one for one in found if one.type != NO_ACTION]


def code(
    boot: str,
    told: Sequence[Event],
    rules: dict[str, Any],
    *,
    records: bytes | None = None,
    pcrs: tuple[int, ...] = (),
) -> str:
    """Appraise logs whose replay gives the TPM's values; return the refusal's code, or the level.

    A forger chose all data in the logs except the sequence of digests.
    """
    raw = boot_forge.packed(list(told))
    values = {pcr: bytes(32) for pcr in range(24)} | eventlog.parse(raw).replay("sha256")
    if records is None and boot == "uki":
        records = SYSTEMD
    if records is not None:
        values |= systemd.extend(values, systemd.parse(records), "sha256")
    chosen = {pcr: values[pcr] for pcr in pcrs or boot_forge.PCRS[boot]}
    found = appraisal.appraise(Evidence("tpm", b"", b"", b"", chosen, raw, records), policy.parse(rules), None)
    return found.code if found.level == 3 else f"L{found.level}"


EVIL = sha256(b"evil.efi")


CERTIFICATE = b"\x30\x82" + b"the attacker's certificate" * 20


# Rules for what is loaded left out, as `learn` does where only PCRs 0 to 7 are quoted.
BARE = dict.fromkeys(("kernels", "initrds", "files", "command_lines"))


def bare(boot: str, **rules: Any) -> dict[str, Any]:
    found = boot_forge.policy(boot, **BARE, **rules)
    found["boot"]["unchecked"] += [9]
    return found


# What Authenticode hashes of a program: known bytes, which a log has room for.
PREIMAGE = b"MZ" + b"an evil program, less its checksum and signature" * 20


PROGRAM = Event(4, events.APPLICATION, {"sha256": sha256(PREIMAGE)}, bytes(32))


def run_first(found: list[Event]) -> None:
    found.insert(index(found, 4, events.APPLICATION), PROGRAM)


def cpio(name: str, data: bytes) -> bytes:
    size = (1, 0o100755, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = ("070701" + "".join(f"{one:08X}" for one in size)).encode() + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


TEXTS = {
    "grub.cfg": b"linux /vmlinuz root=/dev/nvme0n1 init=/evil\nboot\n",
    "one line of grub.cfg": b"linux /vmlinuz init=/evil",
    "archive": cpio("etc/init.sh", b"#!/bin/sh\nexec /evil\n") + cpio("TRAILER!!!", b""),
    "options": wide("init=/bin/evil"),
    "like systemd's": b"nvpcr-init:x:0x1:sha256:" + b"ab" * 32 + b"\nlinux /evil",
    "phase and more": b"sysinit\0" + cpio("x", b"y"),
    "file system": b"file-system:x\nlinux /evil",
}


GOOD = f"/vmlinuz {boot_forge.LINE}".encode()


STAR = ["/vmlinuz root=/dev/nvme0n1 * ima_policy=tcb"]


BAD = b"/vmlinuz root=/dev/nvme0n1 init=/bin/evil ima_policy="


def other_line(line: bytes, *, older: bool = True) -> Callable[[list[Event]], None]:
    """Return an edit: GRUB passes the command line *line*; an *older* kernel does not measure its options."""

    def edit(found: list[Event]) -> None:
        for at in range(len(found) - 1, -1, -1):
            tagged = events.tag(found[at])
            if found[at].data.startswith(b"kernel_cmdline: "):
                found[at] = measured(8, events.IPL, b"kernel_cmdline: " + line + b"\0", line)
            elif tagged and tagged[0] == boot_forge.TAG_OPTIONS:
                found[at] = measured(9, found[at].type, found[at].data, wide(f"BOOT_IMAGE={line.decode('latin-1')}"))
                if older:
                    del found[at]

    return edit


def relabelled(told: list[Event], digest: bytes, kind: int, data: bytes) -> list[Event]:
    return [Event(one.pcr, kind, one.digests, data) if one.digests["sha256"] == digest else one for one in told]


SHIM_RULES = dict.fromkeys(("applications", "kernels", "initrds", "files", "command_lines"))


def signed() -> dict[str, Any]:
    """Return a policy with rules only for signers."""
    found = boot_forge.policy("shim-grub", **SHIM_RULES)
    found["boot"]["unchecked"] += [4, 9]
    return found


def level(text: bytes) -> Event:
    return measured(7, events.VARIABLE_AUTHORITY, variable(fixed.SHIM, "SbatLevel", text))


def started(*order: int) -> Callable[[list[Event]], None]:
    """Return an edit that puts the good boot's programs in another order; -1 stands for the next boot entry."""

    def edit(found: list[Event]) -> None:
        run = [one for one in found if one.pcr == 4 and one.type == events.APPLICATION]
        at = found.index(run[0])
        rest = [one for one in found if one not in run]
        call = measured(4, events.EFI_ACTION, b"Returning from EFI Application from Boot Option")
        rest[at:at] = [call if number < 0 else run[number] for number in order]
        found[:] = rest

    return edit
