"""Policies that a good boot satisfies: learned from that boot, written here, or with rules removed."""

from __future__ import annotations

import copy
import functools
import hashlib
import random
from typing import Any

from support.attestation import boot_forge

from adversary import boots, claims
from adversary.boots import Boot
from netspace.attestation.evidence import Evidence
from netspace.attestation.learning import policy as learning
from netspace.attestation.policy import policy
from netspace.attestation.policy.policy import PolicyError

# What is quoted by default, and what by those who think of more or of less.
SETS = (
    tuple(range(8)),
    tuple(range(10)),
    (*range(10), 14),
    (*range(10), 11, 15),
    (*range(10), 11, 12, 15),
    (*range(10), 11, 12, 13, 14, 15),
    (*range(8), 9, 11, 12),
    (0, 2, 4, 7),
    (7,),
    (4, 7, 9),
    (0, 7, 11),
)
GROUPS = (
    ("dbx",),
    ("signers",),
    ("applications", "started_by"),
    ("kernels", "initrds", "files", "command_lines", "grub_commands"),
)
SHORTER = (*GROUPS, ("command_lines", "grub_commands"), ("initrds",), ("secure_boot",), ("sbat",))


# Of MokListTrusted or MokSBState, which no list may name.
TRUE = hashlib.sha256(b"\1").hexdigest()


class Unfit(Exception):
    """Error: no such policy can be made; the text has the reason."""


def evidence(boot: Boot, pcrs: tuple[int, ...]) -> Evidence:
    """Return an honest host's evidence, without the signature."""
    claim, values = claims.honest(boot), boots.values(boot)
    quoted = {pcr: values[pcr] for pcr in pcrs}
    return Evidence("tpm", b"", b"", b"", quoted, claim.boot_log(), claim.systemd_log() if boot.words else None)


@functools.cache
def learned(names: tuple[str, ...], pcrs: tuple[int, ...]) -> dict[str, Any]:
    """Return the policy that is learned from the boots called *names*, if *pcrs* are quoted.

    :raises Unfit: no policy can be learned from them.
    """
    known = {one.name: one for one in (*boots.recorded(), *boots.others())}
    try:
        found = learning.learn(None, {name: evidence(known[name], pcrs) for name in names})
    except PolicyError as err:
        raise Unfit("no policy can be learned") from err
    return found.after


def make(chance: random.Random, boot: Boot, without: tuple[str, ...] = ()) -> tuple[str, policy.Boot, tuple[int, ...]]:
    """Return a policy for *boot*, with its name and the PCRs that are quoted.

    :raises Unfit: no such policy can be made, or the library refuses the policy as unsafe.
    """
    pcrs = chance.choice(SETS)
    own = "uki" if boot.name.startswith("uki") else "shim-grub"
    hows = ["learned"]
    if boot in boots.recorded():
        hows += ["fleet"] if boot.name.startswith("systemd-boot") else ["fleet", "written", "written"]
    how = chance.choice(hows)
    if how == "written":
        rules = boot_forge.policy(own)["boot"]
        if chance.random() < 0.6:
            pcrs = boot_forge.PCRS[own]
    else:
        names = tuple(sorted({boot.name, *([one.name for one in boots.recorded()] if how == "fleet" else [])}))
        rules = copy.deepcopy(learned(names, pcrs).get("boot", {}))
    for key in without:
        rules.pop(key, None)
    if "applications" not in rules:
        rules.pop("started_by", None)
    if "signers" in rules and "applications" not in rules:  # then shim's word in PCR 14 is demanded
        pcrs = tuple(sorted({*pcrs, 14}))
        rules["unchecked"] = [pcr for pcr in rules.get("unchecked", []) if pcr != 14]
        rules["mok"] = sorted({one.digest.hex() for one in boot.events if one.pcr == 14} - {TRUE})
    name = f"{how}, PCRs {','.join(map(str, pcrs))}"
    if chance.random() < 0.5:
        name += f", {_shortened(chance, rules, boot)}"
    return name, _filled(chance, rules, boot, pcrs), pcrs


def _shortened(chance: random.Random, rules: dict[str, Any], boot: Boot) -> str:
    """Remove a rule, or make one accept more; return a description."""
    if "command_lines" in rules and chance.random() < 0.3:
        line = chance.choice(boot.commands or ("quiet",))
        first, _, last = line.rpartition(" ")
        rules["command_lines"] = [chance.choice((line, f"{first} *", f"* {last}", f"*{line}"))]
        return f"command line {rules['command_lines'][0]!r}"
    if chance.random() < 0.3 and rules.get("pcrs"):
        pcr = chance.choice(sorted(rules["pcrs"]))
        del rules["pcrs"][pcr]
        rules["unchecked"] = [*rules.get("unchecked", []), int(pcr)]
        return f"PCR {pcr} unchecked"
    gone = chance.choice(SHORTER)
    for key in gone:
        rules.pop(key, None)
    return f"without {gone[0]}"


def _filled(chance: random.Random, rules: dict[str, Any], boot: Boot, pcrs: tuple[int, ...]) -> policy.Boot:
    """Give a value to each quoted PCR without a rule, or leave it unchecked; remove PCRs that are not quoted."""
    values = boots.values(boot)
    rules["pcrs"] = {pcr: one for pcr, one in rules.get("pcrs", {}).items() if int(pcr) in pcrs}
    rules["unchecked"] = [pcr for pcr in rules.get("unchecked", []) if pcr in pcrs]
    found = _parsed(rules)
    loose = chance.random() < 0.5
    for pcr in set(pcrs) - found.judged - found.unchecked - found.pcrs.keys():
        if loose:
            rules["unchecked"].append(pcr)
        else:
            rules["pcrs"][str(pcr)] = [values[pcr].hex()]
    return _parsed(rules)


def _parsed(rules: dict[str, Any]) -> policy.Boot:
    try:
        found = policy.parse({"version": 1, "boot": rules}).boot
    except PolicyError as err:
        raise Unfit("the policy is refused as unsafe") from err
    assert found is not None
    return found
