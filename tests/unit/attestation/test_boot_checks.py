"""Each check of a boot is necessary: when it is removed, the forgery against it gets further."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.attestation import boot_forge
from support.attestation.boot_forge import index, measured, record, variable
from support.attestation.boot_forgeries import (
    BAD,
    CERTIFICATE,
    GOOD,
    PREIMAGE,
    PROGRAM,
    STAR,
    TEXTS,
    booted,
    code,
    level,
    other_line,
    relabelled,
    run_first,
    sha256,
    signed,
    started,
)

from netspace.attestation.logs import events
from netspace.attestation.logs import measured as fixed
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import boot as boot_policy
from netspace.attestation.verifier import boot_rules, platform_rules


class Everything(frozenset[bytes]):
    """A list that contains every value."""

    def __contains__(self, item: object) -> bool:
        return True


def _nothing(*_: Any) -> None:
    """Do nothing, in place of a removed check."""


def a2() -> str:
    told = [
        Event(4, events.EFI_ACTION, one.digests, PREIMAGE) if one is PROGRAM else one
        for one in booted("uki", run_first)
    ]
    return code("uki", told, boot_forge.policy("uki"))


def a3() -> str:
    text = TEXTS["like systemd's"].decode()
    forged = record(9, sha256(text.encode()), text)
    return code("shim-grub", booted("shim-grub"), boot_forge.policy("shim-grub"), records=forged)


def a4() -> str:
    told = relabelled(booted("shim-grub", other_line(BAD)), sha256(BAD), events.ACTION, b"x")
    told.append(measured(8, events.IPL, b"kernel_cmdline: " + GOOD + b"\0", GOOD))
    return code("shim-grub", told, boot_forge.policy("shim-grub"))


def a4_quote() -> str:
    line = b'/vmlinuz root=/dev/nvme0n1 x=" ima_policy=tcb'
    rules = boot_forge.policy("shim-grub", command_lines=STAR)
    return code("shim-grub", booted("shim-grub", other_line(line)), rules)


def a6() -> str:
    told = booted("shim-grub", lambda found: found.append(measured(14, events.IPL, b"MokSBState", b"\1")))
    return code("shim-grub", told, signed())


def a6_sbat() -> str:
    told = booted("shim-grub")
    told[index(told, 7, events.VARIABLE_AUTHORITY, "SbatLevel")] = level(b"sbat,1,2021030218\n")
    return code("shim-grub", told, boot_forge.policy("shim-grub"))


def a7() -> str:
    told = booted("uki", lambda found: found.append(measured(12, events.IPL, "init=/bin/evil".encode("utf-16-le"))))
    pcrs = tuple(pcr for pcr in boot_forge.PCRS["uki"] if pcr != 12)
    return code("uki", told, boot_forge.policy("uki"), pcrs=pcrs)


def f1() -> str:
    rules = boot_forge.policy("shim-grub", started_by=None)
    return code("shim-grub", booted("shim-grub", started(0, 2, 1)), rules)


def a8() -> str:
    told = booted("shim-grub")
    told.insert(0, measured(7, events.VARIABLE_DRIVER_CONFIG, variable(fixed.SHIM, "Shim", bytes(16) + CERTIFICATE)))
    return code("shim-grub", told, boot_forge.policy("shim-grub"))


@pytest.mark.parametrize(
    ("forged", "where", "name", "without"),
    [
        (a2, fixed, "ACTIONS", Everything()),
        (a3, fixed, "nvpcr", lambda data: True),
        (a4, boot_rules, "_refuse", _nothing),
        (a4_quote, fixed, "plain_line", lambda line, pattern: True),
        (a6, platform_rules, "check_shim", _nothing),
        (a6_sbat, platform_rules, "_sbat", _nothing),
        (a7, boot_policy, "gaps", lambda *_: []),
        (f1, boot_policy, "gaps", lambda *_: []),
        (a8, platform_rules, "_NAMESPACES", {**platform_rules._NAMESPACES, fixed.SHIM: Everything()}),
    ],
)
def test_without_its_check_each_forgery_gets_further(
    forged: Callable[[], str], where: Any, name: str, without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not forged().startswith("L")
    monkeypatch.setattr(where, name, without)
    assert forged() == "L4"
