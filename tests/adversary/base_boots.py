"""Boots on a bad base, derived at random from good ones; the base is what lies below the kernel.

There are also worlds whose policies have terms for the base.

The terms of a policy's section ``tcb`` have to refuse each of these boots. The values of PCRs 0 and 7 allow the bad
boots, too, as in a fleet whose operator recorded them, so that nothing but the terms refuses them.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

from support.attestation import boot_entry_forge, boot_forge, tcb_policies
from support.attestation.boot_entry_forge import named, ordered

from adversary import boots, policies, worlds
from adversary.bad_boots import Bad
from adversary.boots import Boot, Entry, measured
from adversary.claims import Knowledge
from adversary.worlds import BootWorld
from netspace.attestation.logs import events
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal

VERSIONS = ("2019.05-1", "1.0", "N3VET01W ")


def _put(boot: Boot, entries: list[Entry], at: int, replaced: int = 0) -> Boot:
    told = list(boot.events)
    told[at : at + replaced] = [dataclasses.replace(one, mark=f"bad{number}") for number, one in enumerate(entries)]
    return dataclasses.replace(boot, events=tuple(told))


def network_entry(chance: random.Random, boot: Boot) -> Boot | None:
    """Give the firmware a boot entry that leads to a network.

    Firmware measures whole variables or their contents. A root user chose the entry's number and description.
    """
    at = next((at for at, one in enumerate(boot.events) if one.pcr == 1 and one.type == events.VARIABLE_BOOT), None)
    if at is None:
        return None
    content, number = boot_entry_forge.networked(chance), chance.randrange(0x7000)
    kind = chance.choice((events.VARIABLE_BOOT, events.VARIABLE_BOOT2))
    order = ordered(1, 0, number)
    whole = chance.random() < 0.5
    told = [
        measured(1, kind, order, None if whole else boot_entry_forge.order(1, 0, number)),
        measured(1, kind, named(number, content), None if whole else content),
    ]
    return _put(boot, told, at, 1)


def old_firmware(chance: random.Random, boot: Boot) -> Boot | None:
    """Boot by an old firmware, which measures its own version."""
    at = next((at for at, one in enumerate(boot.events) if one.type == events.CRTM_VERSION), None)
    if at is None:
        return None
    data = boot_forge.wide(chance.choice(VERSIONS))
    return _put(boot, [measured(0, events.CRTM_VERSION, data)], at, 1)


def dma_unprotected(chance: random.Random, boot: Boot) -> Boot | None:
    """Switch the firmware's protection against DMA off; it measures that before the separator."""
    end = chance.choice((b"", b"\0"))
    return _put(boot, [measured(7, events.EFI_ACTION, b"DMA Protection Disabled" + end)], 0)


def silent_entries(chance: random.Random, boot: Boot) -> Boot | None:
    """Boot by a firmware that measures none of its boot entries. One of them may lead to a network."""
    told = tuple(one for one in boot.events if not (one.pcr == 1 and one.type == events.VARIABLE_BOOT))
    return None if len(told) == len(boot.events) else dataclasses.replace(boot, events=told)


KINDS: dict[str, Bad] = {
    "network entry": network_entry,
    "silent entries": silent_entries,
    "old firmware": old_firmware,
    "DMA unprotected": dma_unprotected,
}
TERMS: dict[str, dict[str, Any]] = {
    "network entry": {"network_boot": "never"},
    "silent entries": {"network_boot": "never"},
    "old firmware": {"firmware": [tcb_policies.VERSION]},
    "DMA unprotected": {"dma_protection": "on"},
}
CODES = {
    "network entry": "tcb-network-boot",
    "silent entries": "tcb-network-boot",
    "old firmware": "tcb-firmware",
    "DMA unprotected": "tcb-dma",
}


class BaseWorld(BootWorld):
    """A boot on a bad base. The terms of ``tcb`` are judged before everything else but the replay."""

    def progress(self, refusal: str) -> int:
        return 0 if refusal.startswith("tcb-") else 1 + super().progress(refusal)


@functools.cache
def _platform(boot: str) -> list[str]:
    return tcb_policies.platform(boot_forge.log(boot))


def make(chance: random.Random, kinds: tuple[str, ...] = tuple(KINDS), told: bool = False) -> BootWorld | str:
    """Return a random world; if the draw permits none, return the reason.

    :param told: whether the policy also gets a term that no measurement proves, only the host's own claim.
    """
    good = chance.choice(boots.recorded()[:4])
    own = "uki" if good.name.startswith("uki") else "shim-grub"
    kind = chance.choice(kinds)
    boot = KINDS[kind](chance, good)
    if boot is None:
        return f"{kind}: not possible with this boot"
    terms = {**TERMS[kind], **({"bmc": "absent"} if told else {})}
    if kind == "network entry":
        terms["network_boot"] = chance.choice(("never", "no-entry"))
    if "network_boot" in terms:
        terms["platform"] = _platform(own)
    keys = chance.random() < 0.5 and kind != "DMA unprotected"
    rules = tcb_policies.policy(
        own, terms, **({} if keys else dict.fromkeys(("secure_boot", "signers", "dbx", "sbat")))
    )
    bad, before, pcrs = boots.values(boot), boots.values(good), boot_forge.PCRS[own]
    rules["boot"]["pcrs"]["0"] = sorted({before[0].hex(), bad[0].hex()})
    if not keys:
        rules["boot"]["pcrs"]["7"] = sorted({before[7].hex(), bad[7].hex()})
    if good not in boots.recorded()[:2]:  # variants of the boots measure less, or more, than the policy's own boot
        rules["boot"]["unchecked"] += [8, 9, 11, 12]
        for key in ("kernels", "initrds", "files", "command_lines", "grub_commands"):
            rules["boot"].pop(key, None)
    parsed = policy.parse(rules).boot
    assert parsed is not None
    found = appraisal.appraise(policies.evidence(good, pcrs), policy.Policy(1, worlds.FINGERPRINT, parsed, None), None)
    if found.boot is None and not told:
        return f"the good boot is refused: {found.reason}"
    lines = tuple(sorted({*good.commands, *(one.text for one in parsed.command_lines or ())}))
    allowed = (parsed.kernels, parsed.initrds, parsed.files, parsed.applications, parsed.tcb and parsed.tcb.platform)
    digests = tuple(sorted({digest for one in allowed for digest in one or ()}))
    remembered = found.boot or appraisal.GoodBoot("", frozenset())
    return BaseWorld(kind, boot, Knowledge(good, digests, lines, pcrs), parsed, remembered, f"{own}, {sorted(terms)}")
