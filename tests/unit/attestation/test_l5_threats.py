"""Forgeries that once reached L5, and the conditions that rules for boots and for lists impose on each other."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import pytest
from support.attestation import boot_forge
from support.attestation.boot_forge import measured, record
from support.attestation.boot_forgeries import (
    BAD,
    EVIL,
    STAR,
    SYSTEMD,
    bare,
    booted,
    other_line,
    sha256,
)

from netspace.attestation.evidence import Evidence, Measurements
from netspace.attestation.logs import eventlog, events, ima, systemd
from netspace.attestation.logs import measured as fixed
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import boot as boot_policy
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal


def test_l5_rests_on_the_kernel_that_measures_and_its_command_line() -> None:
    rules = boot_forge.policy("uki")
    policy.founded(policy.parse({**rules, **ALLOWED}), boot_forge.PCRS["uki"])
    for boot, pcrs, problem in (
        (
            {**rules["boot"], "command_lines": ["root=x"]},
            boot_forge.PCRS["uki"],
            "does not demand ima_policy=tcb",
        ),
        ({"unchecked": list(range(16))}, tuple(range(16)), "PCR 2 is not judged"),
        ({**rules["boot"], "command_lines": STAR}, boot_forge.PCRS["uki"], "give the whole line"),
        ({**rules["boot"], "command_lines": ["x ima_policy=tcb*"]}, boot_forge.PCRS["uki"], "does not demand"),
        (rules["boot"], tuple(one for one in boot_forge.PCRS["uki"] if one != 3), "PCR 3 is not quoted"),
        ({**bare("uki")["boot"]}, boot_forge.PCRS["uki"], "PCR 8 is not judged"),
    ):
        weak = {"version": 1, "boot": boot, **ALLOWED}
        with pytest.raises(policy.PolicyError, match=f"policy:ima: L5 needs proof of the boot: .*{problem}"):
            policy.founded(policy.parse(weak), pcrs)


def listed(told: list[Event], records: bytes | None = None) -> Evidence:
    """Return a boot after which root wrote a measurement list.

    Its first line matches PCRs 0 to 9, as the kernel's would.
    """
    raw = boot_forge.packed(told)
    values = {pcr: bytes(32) for pcr in range(24)} | eventlog.parse(raw).replay("sha256")
    first = sha256(b"".join(values[pcr] for pcr in range(10)))
    if records is not None:
        values |= systemd.extend(values, systemd.parse(records), "sha256")
    lines = b""
    for path, digest in ((b"boot_aggregate", first), (b"/usr/lib/systemd/systemd", EVIL)):
        data = ima.line(path, b"sha256:\0" + digest)
        lines += struct.pack("<I20sI6sI", 10, hashlib.sha1(data).digest(), 6, b"ima-ng", len(data)) + data
    *_, value = ima.replay(ima.parse(lines))
    brought = Measurements(b"", b"", value, 0, lines)
    return Evidence("tpm", b"", b"", b"", {pcr: values[pcr] for pcr in range(16) if pcr != 10}, raw, records, brought)


ALLOWED = {"ima": {"exclude": ["/usr/*"]}}


def test_l5_is_not_given_where_the_boot_is_left_unchecked() -> None:
    rules = {"version": 1, "boot": {"unchecked": list(range(16))}, **ALLOWED}
    found = appraisal.appraise(listed(booted("shim-grub", other_line(BAD))), policy.parse(rules), None)
    assert (found.level, found.code) == (4, "ima-unfounded") and "PCR 2" in found.reason
    assert found.ima is None, "what rests on nothing is not remembered"


@pytest.mark.parametrize(
    ("pattern", "level"),
    [
        (f"/vmlinuz {boot_forge.LINE}", 5),
        ("/vmlinuz root=/dev/nvme0n1 * ima_policy=tcb", 4),
        (f"/vmlinuz {boot_forge.LINE.replace(' ima_policy=tcb', '')}*", 4),
    ],
)
def test_l5_wants_the_whole_command_line_and_ima_in_it(pattern: str, level: int) -> None:
    rules = boot_forge.policy("shim-grub", command_lines=[pattern])
    rules["boot"]["unchecked"] += [13, 15]
    found = appraisal.appraise(listed(booted("shim-grub")), policy.parse({**rules, **ALLOWED}), None)
    assert (found.level, found.code) == (level, "ok" if level == 5 else "ima-unfounded"), found


@pytest.mark.parametrize(
    ("line", "measures"),
    [
        ("ro ima_policy=tcb", True),
        ('ro ima_policy="tcb|secure_boot" quiet', True),
        ("ro ima_policy=secure_boot|tcb", True),
        ("ro ima_policy=critical_data", False),
        ("ro ima_policy=tcbx", False),
        ("ro xima_policy=tcb", False),
        ("ro ima_policy=", False),
        # The kernel ends at this word: the rest is for process 1.
        ("ro -- ima_policy=tcb", False),
        ('ro "--" ima_policy=tcb', False),
        ("ro\u2003ima_policy=tcb", False),
        ("ro ima_policy=tcb -- quiet", True),
        # Within another option's value, also where the quote is never closed.
        ('ro a="x ima_policy=tcb y"', False),
        ('ro a="x ima_policy=tcb', False),
        ('ro a="x y" ima_policy=tcb', True),
    ],
)
def test_l5_what_has_ima_measure(line: str, measures: bool) -> None:
    values = {str(pcr): ["00" * 32] for pcr in (2, 4, 8, 9, 11, 12)}
    boot = policy.parse({"version": 1, "boot": {"command_lines": [line], "pcrs": values}}).boot
    assert (boot_policy.ima_gaps(boot) == []) == measures


def test_l5_a_command_line_that_pcr_12_alone_proves_may_have_been_added_later() -> None:
    """A command line that only PCR 12 proves gives no L5, since root may have extended PCR 12 later.

    The boot entry of systemd-boot has no options, so systemd-boot measures none.
    """

    def edit(found: list[Event]) -> None:
        found[:] = [one for one in found if one.digests.get("sha256") not in lines]
        found.append(measured(12, events.IPL, boot_forge.LINE.encode("utf-16-le")))

    lines = {form for pcr in (9, 11) for form in fixed.line_forms(pcr, boot_forge.LINE)}
    rules = boot_forge.policy("uki")
    rules["boot"]["unchecked"] += [13, 14]
    found = appraisal.appraise(listed(booted("uki"), SYSTEMD), policy.parse({**rules, **ALLOWED}), None)
    assert found.level == 5, found
    found = appraisal.appraise(listed(booted("uki", edit), SYSTEMD), policy.parse({**rules, **ALLOWED}), None)
    assert (found.level, found.code) == (4, "ima-unfounded") and "only PCR 11 or 12" in found.reason


UKI_LINE = {form for pcr in (8, 9, 11, 12) for form in fixed.line_forms(pcr, boot_forge.LINE)}


def without_line(found: list[Event]) -> None:
    """Change a boot so that it measures no command line: no options in the boot entry, a kernel before 5.18."""
    found[:] = [one for one in found if one.digests.get("sha256") not in UKI_LINE]


def uki_rules(**rules: Any) -> policy.Policy:
    found = boot_forge.policy("uki", **rules)
    found["boot"]["unchecked"] += [13, 14]
    return policy.parse({**found, **ALLOWED})


@pytest.mark.parametrize("told_by", ["the boot log", "systemd's log"])
@pytest.mark.parametrize("pcr", [8, 9, 12])
def test_l5_a_line_added_later_is_no_line_in_either_log(pcr: int, told_by: str) -> None:
    """Root later extends a PCR with a command line and logs it; the list's first line has the old PCR values."""
    told = booted("uki", without_line)
    real = listed(told, SYSTEMD)
    form = fixed.line_forms(pcr, boot_forge.LINE)[0]
    values = {**real.pcrs, pcr: sha256(real.pcrs[pcr] + form)}
    if told_by == "the boot log":
        late = [*told, measured(pcr, events.IPL, boot_forge.LINE.encode("utf-16-le"))]
        forged = dataclasses.replace(real, boot_log=boot_forge.packed(late), pcrs=values)
    else:
        forged = dataclasses.replace(real, systemd_log=SYSTEMD + record(pcr, form, "x"), pcrs=values)
    found = appraisal.appraise(forged, uki_rules(), None)
    assert found.level < 5 and found.code in ("ima-aggregate", "ima-unfounded"), found


def test_l5_words_of_systemds_may_follow_the_kernels_start() -> None:
    """Extensions of PCR 9 by systemd after the list's first line are accepted."""
    told, word = booted("uki"), b"nvpcr-init:hardware:0x1d10200:sha256:" + b"ab" * 32
    real = listed(told, SYSTEMD)
    values = {**real.pcrs, 9: sha256(real.pcrs[9] + sha256(word))}
    later = SYSTEMD + record(9, sha256(word), word.decode())
    found = appraisal.appraise(dataclasses.replace(real, systemd_log=later, pcrs=values), uki_rules(), None)
    assert found.level == 5, found


def test_l5_kernels_without_a_line_that_is_proved() -> None:
    """Without rules for command lines, L5 is reached only if the kernel image's section .cmdline proves the line."""
    files = sorted({*boot_forge.policy("uki")["boot"]["files"], *(one.hex() for one in UKI_LINE)})
    rules = boot_forge.policy("uki", command_lines=None, files=files)
    rules["boot"]["unchecked"] = [0, 1, 3, 5, 6, 13, 14, 15]
    rules["boot"]["pcrs"]["8"] = ["00" * 32]
    made = policy.accepted({**rules, **ALLOWED})
    assert appraisal.appraise(listed(booted("uki"), SYSTEMD), made, None).level == 5
    found = appraisal.appraise(listed(booted("uki", without_line), SYSTEMD), made, None)
    assert (found.level, found.code) == (4, "ima-unfounded"), found


def test_l5_a_line_in_pcr_11_counts_before_a_phase_alone() -> None:
    def late(found: list[Event]) -> None:
        without_line(found)
        found.append(measured(11, events.IPL, boot_forge.LINE.encode()))

    found = appraisal.appraise(listed(booted("uki", late)), uki_rules(), None)
    assert (found.level, found.code) == (4, "ima-unfounded"), found


def test_a7_values_of_what_is_loaded_rest_on_who_started_it() -> None:
    """A policy with values for loaded files is refused if it doesn't say which program started the kernel.

    Without such a rule, shim could start a listed kernel with other options, and root could extend to the known values
    later.
    """
    good = listed(booted("shim-grub"))
    rules = boot_forge.policy("shim-grub", kernels=None, command_lines=None, started_by=None, initrds=None, files=None)
    rules["boot"]["unchecked"] = [0, 1, 3, 5, 6, 13, 14, 15]
    rules["boot"]["pcrs"].update({str(pcr): [good.pcrs[pcr].hex()] for pcr in (8, 9, 11, 12)})
    with pytest.raises(policy.PolicyError, match="pcrs: a kernel that the firmware or shim starts"):
        policy.accepted({**rules, **ALLOWED})
    assert appraisal.appraise(good, policy.parse({**rules, **ALLOWED}), None).code == "policy-uncovered"
    rules["boot"]["started_by"] = boot_forge.policy("shim-grub")["boot"]["started_by"]
    assert appraisal.appraise(good, policy.accepted({**rules, **ALLOWED}), None).level == 5


def test_a4_a_line_without_a_file_is_not_known_after_a_boot_loaders_word() -> None:
    """``BOOT_IMAGE=root=/dev/vda`` is not a form of the line ``root=/dev/vda``, since the kernel would find no root."""
    told = sha256("BOOT_IMAGE=root=/dev/vda".encode("utf-16-le"))
    assert told not in fixed.line_forms(9, "root=/dev/vda")
    assert sha256("BOOT_IMAGE=/vmlinuz ro".encode("utf-16-le")) in fixed.line_forms(9, "/vmlinuz ro")


def test_d2_a_pcr_that_is_unchecked_need_not_follow_its_log() -> None:
    told = booted("shim-grub")
    raw = boot_forge.packed(told)
    values = {pcr: bytes(32) for pcr in range(24)} | eventlog.parse(raw).replay("sha256") | {0: b"\7" * 32}
    evidence = Evidence("tpm", b"", b"", b"", {pcr: values[pcr] for pcr in boot_forge.PCRS["shim-grub"]}, raw)
    rules = boot_forge.policy("shim-grub")
    assert appraisal.appraise(evidence, policy.parse(rules), None).level == 4
    rules["boot"]["unchecked"].remove(0)
    rules["boot"]["pcrs"]["0"] = [values[0].hex()]
    found = appraisal.appraise(evidence, policy.parse(rules), None)
    assert found.code == "log-mismatch" and "PCR 0" in found.reason and "'unchecked'" in found.reason
