"""Forgeries that once reached L4 or L5: each by its name, with variants, and with the check whose removal reopens it.

The attacker is root on an enrolled host with a genuine TPM. He boots any programs, extends PCRs afterwards, and writes
both logs. He can't sign. ``forge`` gives the level that he reaches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.attestation import boot_forge, boot_logs
from support.attestation.boot_forge import index, measured, record, variable, wide

from netspace.attestation.evidence import Evidence, Measurements
from netspace.attestation.logs import eventlog, events, ima, systemd
from netspace.attestation.logs import measured as fixed
from netspace.attestation.logs.eventlog import NO_ACTION, Event
from netspace.attestation.policy import boot as boot_policy
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal, boot_rules, platform_rules

SYSTEMD = boot_logs.read("uki/systemd-tpm2-measure.log")
BOOTS = ("shim-grub", "uki")


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def booted(boot: str, edit: Callable[[list[Event]], None] = lambda found: None) -> list[Event]:
    """Return the true measurements of firmware and loaders, in order."""
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
    """Judge logs that lead to the TPM's values: the sequence of digests is genuine, all else is the sender's claim."""
    raw = boot_forge.packed(list(told))
    values = {pcr: bytes(32) for pcr in range(24)} | eventlog.parse(raw).replay("sha256")
    if records is None and boot == "uki":
        records = SYSTEMD
    if records is not None:
        values |= systemd.extend(values, systemd.parse(records), "sha256")
    chosen = {pcr: values[pcr] for pcr in pcrs or boot_forge.PCRS[boot]}
    found = appraisal.appraise(Evidence("tpm", b"", b"", b"", chosen, raw, records), policy.parse(rules), None)
    return found.code if found.level == 3 else f"L{found.level}"


@pytest.mark.parametrize("boot", BOOTS)
def test_the_honest_boots_reach_l4(boot: str) -> None:
    assert code(boot, booted(boot), boot_forge.policy(boot)) == "L4"


# -- A1: what is moved into the other log ---------------------------------------------
EVIL = sha256(b"evil.efi")
CERTIFICATE = b"\x30\x82" + b"the attacker's certificate" * 20


MOK = variable(fixed.SHIM, "MokListRT", bytes(16) + CERTIFICATE)


# Rules for what is loaded left out, as `learn` does where only PCRs 0 to 7 are quoted.
BARE = dict.fromkeys(("kernels", "initrds", "files", "command_lines"))


def bare(boot: str, **rules: Any) -> dict[str, Any]:
    found = boot_forge.policy(boot, **BARE, **rules)
    found["boot"]["unchecked"] += [9]
    return found


@pytest.mark.parametrize("boot", BOOTS)
@pytest.mark.parametrize("text", ["sysinit", "os-separator", "machine-id:" + "ab" * 16])
@pytest.mark.parametrize(
    ("pcr", "digest", "rules"),
    [
        *((pcr, EVIL, boot_forge.policy) for pcr in (4, 8, 9, 11, 12)),
        *((4, EVIL, bare), (7, sha256(MOK), bare), (7, sha256(MOK), boot_forge.policy)),
    ],
)
def test_a1_what_is_moved_into_systemds_log_is_judged_alike(
    boot: str, text: str, pcr: int, digest: bytes, rules: Callable[[str], dict[str, Any]]
) -> None:
    forged = record(pcr, digest, text)
    both = forged if boot == "shim-grub" else SYSTEMD + forged
    assert code(boot, booted(boot), rules(boot), records=both) == "boot-event"


def test_a1_the_whole_tail_of_a_pcr_moved_into_systemds_log() -> None:
    """The default group has a policy by `learn`; a MOK of the attacker vouches for an evil loader."""
    told = booted("shim-grub", lambda found: found.extend((measured(7, events.VARIABLE_AUTHORITY, MOK), PROGRAM)))
    assert code("shim-grub", told, bare("shim-grub")) == "boot-signer"
    kept = [one for one in told if one not in told[-2:]]
    moved = record(7, sha256(MOK), "sysinit") + record(4, PROGRAM.digests["sha256"], "ready")
    assert code("shim-grub", kept, bare("shim-grub"), records=moved) == "boot-event"


# -- A2: a program under another name -------------------------------------------------
# What Authenticode hashes of a program: known bytes, which a log has room for.
PREIMAGE = b"MZ" + b"an evil program, less its checksum and signature" * 20
PROGRAM = Event(4, events.APPLICATION, {"sha256": sha256(PREIMAGE)}, bytes(32))
KINDS = (events.EFI_ACTION, events.ACTION, events.SEPARATOR, events.IPL, events.EVENT_TAG, 0x80000008, 0x77777777)


def run_first(found: list[Event]) -> None:
    found.insert(index(found, 4, events.APPLICATION), PROGRAM)


@pytest.mark.parametrize("boot", BOOTS)
@pytest.mark.parametrize("rules", [boot_forge.policy, bare])
@pytest.mark.parametrize("kind", KINDS)
def test_a2_a_program_under_another_type_with_its_preimage(boot: str, rules: Any, kind: int) -> None:
    told = booted(boot, run_first)
    assert code(boot, told, rules(boot)) == "boot-application"
    told = [Event(4, kind, one.digests, PREIMAGE) if one is PROGRAM else one for one in told]
    assert code(boot, told, rules(boot)) == "boot-event"


@pytest.mark.parametrize("pcr", [8, 9, 11, 12])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boot", BOOTS)
def test_a2_the_same_trick_in_the_pcrs_of_what_is_loaded(boot: str, kind: int, pcr: int) -> None:
    told = booted(boot, lambda found: found.append(Event(pcr, kind, PROGRAM.digests, PREIMAGE)))
    assert code(boot, told, boot_forge.policy(boot)) in ("boot-file", "command-line")


@pytest.mark.parametrize("pcr", [9, 11, 12])
@pytest.mark.parametrize("data", [bytes(4), b"\xff" * 4])
def test_a2_separators_have_a_place_in_pcrs_0_to_7_alone(pcr: int, data: bytes) -> None:
    told = booted("shim-grub", lambda found: found.append(measured(pcr, events.SEPARATOR, data)))
    assert code("shim-grub", told, boot_forge.policy("shim-grub")) in ("boot-file", "command-line")


# -- A3: what was loaded passes as a word of systemd's ---------------------------------
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


@pytest.mark.parametrize("boot", BOOTS)
@pytest.mark.parametrize("pcr", [8, 9, 11, 12])
@pytest.mark.parametrize("name", TEXTS)
def test_a3_text_that_was_loaded_is_no_word_of_systemds(boot: str, pcr: int, name: str) -> None:
    text = TEXTS[name]
    told = booted(boot, lambda found: found.append(measured(pcr, events.IPL, b"/evil", text)))
    assert code(boot, told, boot_forge.policy(boot)) in ("boot-file", "command-line")
    for told in (booted(boot), booted(boot, lambda found: found.append(measured(pcr, events.ACTION, text)))):
        forged = record(pcr, sha256(text), text.decode())
        both = forged if boot == "shim-grub" else forged + SYSTEMD
        assert code(boot, told, boot_forge.policy(boot), records=both) in ("boot-event", "boot-file", "command-line")


def test_a3_what_systemd_does_measure_is_allowed() -> None:
    words = [(9, "nvpcr-init:hardware:0x1d10200:sha256:" + "de" * 32), (9, "nvpcr-separator"), (9, "os-separator")]
    words += [(4, "os-separator"), (7, "os-separator"), (12, "os-separator"), (11, "shutdown"), (11, "final")]
    log = SYSTEMD + b"".join(record(pcr, sha256(text.encode()), text) for pcr, text in words)
    assert code("uki", booted("uki"), boot_forge.policy("uki"), records=log) == "L4"
    for pcr, text in ((11, "os-separator"), (8, "os-separator"), (9, "sysinit"), (11, "nvpcr-separator")):
        wrong = SYSTEMD + record(pcr, sha256(text.encode()), text)
        assert code("uki", booted("uki"), boot_forge.policy("uki"), records=wrong) == "boot-event"


# -- A4: the command line ---------------------------------------------------------------
GOOD = f"/vmlinuz {boot_forge.LINE}".encode()
STAR = ["/vmlinuz root=/dev/nvme0n1 * ima_policy=tcb"]
BAD = b"/vmlinuz root=/dev/nvme0n1 init=/bin/evil ima_policy="


def other_line(line: bytes, *, older: bool = True) -> Callable[[list[Event]], None]:
    """Return an edit: GRUB passes *line*; an *older* kernel does not measure its options."""

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


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(
    ("kind", "data"),
    [(events.ACTION, b"x"), (events.IPL, b"grub_cmd: " + BAD + b"\0"), (events.IPL, b"grub_cmd: echo hello\0"),
     (events.SEPARATOR, bytes(4)), (events.IPL, BAD)],
)  # fmt: skip
def test_a4_a_bad_command_line_relabelled_and_a_good_one_added(older: bool, kind: int, data: bytes) -> None:
    told = booted("shim-grub", other_line(BAD, older=older))
    assert code("shim-grub", told, boot_forge.policy("shim-grub")) == "command-line"
    told = relabelled(told, sha256(BAD), kind, data)
    told.append(measured(8, events.IPL, b"kernel_cmdline: " + GOOD + b"\0", GOOD))  # tpm2_pcrextend
    assert code("shim-grub", told, boot_forge.policy("shim-grub")) in ("boot-file", "command-line")


@pytest.mark.parametrize(
    "line",
    [
        '/vmlinuz root=/dev/nvme0n1 x=" ima_policy=tcb',
        "/vmlinuz root=/dev/nvme0n1 -- ima_policy=tcb",
        "/vmlinuz root=/dev/nvme0n1 " + "x" * 2000 + " ima_policy=tcb",
        "/vmlinuz root=/dev/nvme0n1 a\n ima_policy=tcb",
        "/vmlinuz root=/dev/nvme0n1 \u3700 ima_policy=tcb",
    ],
    ids=["quote", "end of options", "cut off", "second line", "not ascii"],
)
def test_a4_what_a_star_stands_for_hides_nothing_from_the_kernel(line: str) -> None:
    rules = boot_forge.policy("shim-grub", command_lines=STAR)
    assert code("shim-grub", booted("shim-grub", other_line(line.encode())), rules) == "command-line"
    fine = "/vmlinuz root=/dev/nvme0n1 quiet ima_policy=tcb"
    assert code("shim-grub", booted("shim-grub", other_line(fine.encode())), rules) == "L4"


def test_a4_a_command_of_grubs_is_no_command_line_and_the_other_way_round() -> None:
    """A kernel from a server has the name of a command, so its command line is the text of an allowed command."""
    rules = boot_forge.policy("shim-grub", command_lines=["* ima_policy=tcb"])
    line = b"insmod x ima_policy=tcb"
    told = booted("shim-grub", lambda found: found.append(measured(8, events.IPL, b"grub_cmd: " + line, line)))
    assert code("shim-grub", told, rules) == "boot-file"
    assert code("shim-grub", booted("shim-grub", other_line(line)), rules) == "command-line"


def test_a4_an_empty_command_line_is_no_empty_file() -> None:
    """systemd-boot measures no line for an entry without one; the kernel measures the empty line."""
    rules = boot_forge.policy("uki")
    rules["boot"]["files"].append(fixed.NOTHING.hex())
    told = booted("uki", lambda found: found.append(measured(9, events.EVENT_TAG, b"LOADED_IMAGE::LoadOptions", b"")))
    assert code("uki", told, rules) == "command-line"


def test_a4_nothing_but_the_end_of_the_boot_is_no_command_line() -> None:
    def without(found: list[Event]) -> None:
        found[:] = [one for one in found if one.digests.get("sha256") not in line_digests]

    rules = boot_forge.policy("uki")
    line_digests = {form for pcr in (9, 11) for form in fixed.line_forms(pcr, boot_forge.LINE)}
    rules["boot"]["files"] = [one for one in rules["boot"]["files"] if bytes.fromhex(one) not in line_digests]
    assert code("uki", booted("uki"), rules) == "L4"
    assert code("uki", booted("uki", without), rules) == "command-line"
    (good,) = {one.digests["sha256"] for one in booted("uki") if one.pcr == 11} & line_digests
    late = SYSTEMD + record(11, good, boot_forge.LINE)
    assert code("uki", booted("uki", without), rules, records=late) == "command-line", "after systemd's phases"


# -- A6: shim ---------------------------------------------------------------------------
SHIM_RULES = dict.fromkeys(("applications", "kernels", "initrds", "files", "command_lines"))


def signed() -> dict[str, Any]:
    """Return a policy that judges only signers."""
    found = boot_forge.policy("shim-grub", **SHIM_RULES)
    found["boot"]["unchecked"] += [4, 9]
    return found


@pytest.mark.parametrize("pcr", [7, 14])
@pytest.mark.parametrize("rules", [signed, lambda: boot_forge.policy("shim-grub")], ids=["signers", "programs"])
def test_a6_shim_that_verifies_nothing(pcr: int, rules: Callable[[], dict[str, Any]]) -> None:
    def edit(found: list[Event]) -> None:
        at = next(n for n, one in enumerate(found) if one.pcr == 14 and one.data.startswith(b"MokListTrusted"))
        state = variable(fixed.SHIM, "MokSBState", b"\1")
        how = (
            measured(7, events.VARIABLE_AUTHORITY, state)
            if pcr == 7
            else measured(14, events.IPL, b"MokSBState", b"\1")
        )
        found.insert(at, how)

    listed = "applications" in rules()["boot"]
    assert code("shim-grub", booted("shim-grub"), rules()) == "L4"
    assert code("shim-grub", booted("shim-grub", edit), rules()) == (
        "L4" if pcr == 14 and listed else "shim-insecure"
    ), "where each program is listed, it is no matter what shim verifies"


def test_a6_another_key_that_shim_trusts() -> None:
    def edit(found: list[Event]) -> None:
        at = next(n for n, one in enumerate(found) if one.pcr == 14 and one.data.startswith(b"MokList\0"))
        found[at] = measured(14, events.IPL, b"MokList", b"a list with a key of the attacker's")

    assert code("shim-grub", booted("shim-grub", edit), signed()) == "boot-signer"


def level(text: bytes) -> Event:
    return measured(7, events.VARIABLE_AUTHORITY, variable(fixed.SHIM, "SbatLevel", text))


LEVEL = b"sbat,1,2025021800\nshim,4\ngrub,5\n"


@pytest.mark.parametrize("late", [None, LEVEL, b"sbat,1,2026010100\nshim,9\ngrub,9\n"])
@pytest.mark.parametrize("text", [b"sbat,1,2021030218\n", b"sbat,1,2024010900\nshim,4\ngrub,4\n", b""])
def test_a6_revocations_set_back_and_better_ones_added_later(text: bytes, late: bytes | None) -> None:
    def edit(found: list[Event]) -> None:
        at = index(found, 7, events.VARIABLE_AUTHORITY, "SbatLevel")
        found[at : at + 1] = [level(text)] if text else []
        found += [] if late is None else [level(late)]

    assert code("shim-grub", booted("shim-grub", edit), boot_forge.policy("shim-grub")) == "sbat-old"


# -- A7: what a rule rests on -----------------------------------------------------------
RESTS = {
    "secure_boot": (7,),
    "dbx": (7,),
    "signers": (7, 14),
    "sbat": (2, 4, 7),
    "mok": (14,),
    "applications": (2, 4),
    "kernels": (2, 4, 9, 11, 12),
    "command_lines": (2, 4, 8, 9, 11, 12),
}
SAMPLES: dict[str, Any] = {
    "secure_boot": True,
    "sbat": {"shim": 4},
    "command_lines": ["/vmlinuz *"],
}


@pytest.mark.parametrize(("rule", "pcr"), [(rule, pcr) for rule, pcrs in RESTS.items() for pcr in pcrs])
def test_a7_a_rule_that_rests_on_what_is_not_judged_is_refused(rule: str, pcr: int) -> None:
    """Such a policy can't be set, and the error names the missing rule. No host satisfies an older stored one."""
    alone = {rule: SAMPLES.get(rule, ["ab" * 32])}
    values = {str(other): ["00" * 32] for other in RESTS[rule] if other != pcr}
    for boot in ({**alone, "pcrs": values, "unchecked": [pcr]}, {**alone, "pcrs": values}):
        judged = pcr in policy.parse({"version": 1, "boot": boot}).boot.judged  # type: ignore[union-attr]
        if "unchecked" not in boot and judged:
            continue
        with pytest.raises(policy.PolicyError, match=f"policy:boot:.*PCR {pcr}, which (is unchecked|nothing judges)"):
            policy.accepted({"version": 1, "boot": boot})
        stored = {"version": 1, "boot": {**boot, "unchecked": sorted({*range(16)} - {int(one) for one in values})}}
        assert code("shim-grub", booted("shim-grub"), stored, pcrs=tuple(range(16))) == "policy-uncovered"
    whole = {**alone, "pcrs": {**values, str(pcr): ["00" * 32]}}
    assert policy.accepted({"version": 1, "boot": whole})
    with pytest.raises(policy.PolicyError, match=f"PCR {pcr}, which is not quoted"):
        policy.accepted({"version": 1, "boot": whole}, quoted={*range(16)} - {pcr})


def test_a7_a_kernel_that_root_adds_where_the_loader_never_measures() -> None:
    """GRUB boots any kernel, and root then extends PCR 11 by the digest of a good one."""
    kernel = bytes.fromhex(boot_forge.KERNEL)

    def edit(found: list[Event]) -> None:
        for at, one in enumerate(found):
            if one.pcr == 9 and one.digests["sha256"] == kernel:
                found[at] = measured(9, one.type, one.data, b"another kernel")
        found.append(Event(11, events.IPL, {"sha256": kernel}, b".linux\0"))

    rules = boot_forge.policy("shim-grub")
    assert code("shim-grub", booted("shim-grub", edit), rules) == "boot-file"
    free = {**rules["boot"], "unchecked": [*rules["boot"]["unchecked"], 9]}
    assert code("shim-grub", booted("shim-grub", edit), {"version": 1, "boot": free}) == "policy-uncovered"


def test_a7_a_driver_is_a_program_too() -> None:
    driver = Event(2, 0x80000004, {"sha256": EVIL}, bytes(32))
    told = booted("shim-grub", lambda found: found.insert(3, driver))
    assert code("shim-grub", told, boot_forge.policy("shim-grub")) == "pcr-value"


# -- F1: who started what -----------------------------------------------------------------
def started(*order: int) -> Callable[[list[Event]], None]:
    """Return an edit that puts the good boot's programs in another order; -1: the firmware's next boot entry."""

    def edit(found: list[Event]) -> None:
        run = [one for one in found if one.pcr == 4 and one.type == events.APPLICATION]
        at = found.index(run[0])
        rest = [one for one in found if one not in run]
        call = measured(4, events.EFI_ACTION, b"Returning from EFI Application from Boot Option")
        rest[at:at] = [call if number < 0 else run[number] for number in order]
        found[:] = rest

    return edit


@pytest.mark.parametrize("order", [(0, 2), (0, 2, 1), (2, 0, 1), (0, 1, -1, 2), (1, 2), (2,), (0, 1, 0, 2)])
def test_f1_a_kernel_that_no_boot_loader_started(order: tuple[int, ...]) -> None:
    """Shim starts the kernel directly, with options that it does not measure; root adds GRUB's measurements."""
    assert len({one.digests["sha256"] for one in booted("shim-grub") if one.type == events.APPLICATION}) == 3
    assert code("shim-grub", booted("shim-grub", started(0, 1, 2)), boot_forge.policy("shim-grub")) == "L4"
    assert code("shim-grub", booted("shim-grub", started(*order)), boot_forge.policy("shim-grub")) == "boot-application"


def test_f1_a_program_of_which_is_left_open_who_starts_it() -> None:
    rules = boot_forge.policy("shim-grub")
    rules["boot"]["started_by"].popitem()
    with pytest.raises(policy.PolicyError, match=r"give started_by for .* or PCR 4's values"):
        policy.accepted(rules)
    assert code("shim-grub", booted("shim-grub"), rules) == "policy-uncovered"
    value = eventlog.parse(boot_forge.packed(booted("shim-grub"))).replay("sha256")[4]
    rules["boot"]["pcrs"]["4"] = [value.hex()]
    assert policy.accepted(rules) and code("shim-grub", booted("shim-grub"), rules) == "L4"


@pytest.mark.parametrize("pcr", [16, 23])
def test_f6_a_pcr_that_anybody_resets_has_no_value(pcr: int) -> None:
    rules = boot_forge.policy("shim-grub")
    rules["boot"]["pcrs"][str(pcr)] = ["00" * 32]
    with pytest.raises(policy.PolicyError, match=f"PCR {pcr} may be reset"):
        policy.accepted(rules)


# -- A8: a variable's name ----------------------------------------------------------------
@pytest.mark.parametrize("name", ["Shim", "MokListRT", "db", "dbx", "Boot0000", "SecureBoot"])
@pytest.mark.parametrize("guid", [events.GLOBAL, events.SECURITY, fixed.SHIM])
@pytest.mark.parametrize("kind", [events.VARIABLE_DRIVER_CONFIG, events.VARIABLE_AUTHORITY, events.SEPARATOR])
@pytest.mark.parametrize("boot", BOOTS)
def test_a8_an_authority_before_the_separator_is_no_setting(boot: str, name: str, guid: str, kind: int) -> None:
    """Old firmware runs option ROMs before the separator; their authority has to be a listed signer."""
    data = variable(guid, name, bytes(16) + CERTIFICATE)
    at = next(n for n, one in enumerate(booted(boot)) if one.digests["sha256"] == fixed.SEPARATOR and one.pcr == 7)
    told = booted(boot)
    told.insert(at, measured(7, kind, data))
    assert code(boot, told, boot_forge.policy(boot)) in ("boot-event", "boot-signer")


def test_a8_a_signers_authority_before_the_separator_is_fine() -> None:
    told = booted("shim-grub")
    known = told[index(told, 7, events.VARIABLE_AUTHORITY, "db")]
    at = next(n for n, one in enumerate(told) if one.digests["sha256"] == fixed.SEPARATOR and one.pcr == 7)
    told.insert(at, known)
    assert code("shim-grub", told, boot_forge.policy("shim-grub")) == "L4"


def test_an_authority_without_a_certificate_vouches_for_nothing() -> None:
    """The digest of empty data is not a signer, even if it was learned as one."""
    rules = boot_forge.policy("shim-grub")
    rules["boot"]["signers"].append(fixed.NOTHING.hex())
    short = variable(events.SECURITY, "db", b"x" * 16)
    told = booted("shim-grub", lambda found: found.append(measured(7, events.VARIABLE_AUTHORITY, short)))
    assert code("shim-grub", told, rules) == "boot-event"


# -- L5: what IMA's list rests on -----------------------------------------------------------
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
    """Return a boot after which root typed a list; its first line is of PCRs 0 to 9, like a kernel's."""
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
    """An entry of systemd-boot without options is not measured, so root can add a good line later."""

    def edit(found: list[Event]) -> None:
        found[:] = [one for one in found if one.digests.get("sha256") not in lines]
        found.append(measured(12, events.IPL, boot_forge.LINE.encode("utf-16-le")))

    lines = {form for pcr in (9, 11) for form in fixed.line_forms(pcr, boot_forge.LINE)}
    rules = boot_forge.policy("uki")
    rules["boot"]["unchecked"] += [13, 14]
    found = appraisal.appraise(listed(booted("uki"), SYSTEMD), policy.parse({**rules, **ALLOWED}), None)
    assert found.level == 5, found
    found = appraisal.appraise(listed(booted("uki", edit), SYSTEMD), policy.parse({**rules, **ALLOWED}), None)
    assert (found.level, found.code) == (4, "ima-unfounded") and "PCR 11 or 12 alone" in found.reason


# -- what the rules for boots and for lists owe each other ----------------------------------------
UKI_LINE = {form for pcr in (8, 9, 11, 12) for form in fixed.line_forms(pcr, boot_forge.LINE)}


def without_line(found: list[Event]) -> None:
    """Make the boot measure no command line: a boot entry without options, and a kernel before 5.18."""
    found[:] = [one for one in found if one.digests.get("sha256") not in UKI_LINE]


def uki_rules(**rules: Any) -> policy.Policy:
    found = boot_forge.policy("uki", **rules)
    found["boot"]["unchecked"] += [13, 14]
    return policy.parse({**found, **ALLOWED})


@pytest.mark.parametrize("told_by", ["the boot log", "systemd's log"])
@pytest.mark.parametrize("pcr", [8, 9, 12])
def test_l5_a_line_added_later_is_no_line_in_either_log(pcr: int, told_by: str) -> None:
    """The list's first line has the former PCRs 0 to 9; no log can hide a later extension."""
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
    """Extensions of PCR 9 by systemd come after the list's first line, and are no reason to refuse it."""
    told, word = booted("uki"), b"nvpcr-init:hardware:0x1d10200:sha256:" + b"ab" * 32
    real = listed(told, SYSTEMD)
    values = {**real.pcrs, 9: sha256(real.pcrs[9] + sha256(word))}
    later = SYSTEMD + record(9, sha256(word), word.decode())
    found = appraisal.appraise(dataclasses.replace(real, systemd_log=later, pcrs=values), uki_rules(), None)
    assert found.level == 5, found


def test_l5_kernels_without_a_line_that_is_proved() -> None:
    """With rules only for kernels, the section .cmdline of a unified kernel image proves its line."""
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
    """Shim starts a listed kernel by its load options: GRUB never runs, and root later extends to the known values."""
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
    """In ``BOOT_IMAGE=root=/dev/vda`` the kernel would find no root."""
    told = sha256("BOOT_IMAGE=root=/dev/vda".encode("utf-16-le"))
    assert told not in fixed.line_forms(9, "root=/dev/vda")
    assert sha256("BOOT_IMAGE=/vmlinuz ro".encode("utf-16-le")) in fixed.line_forms(9, "/vmlinuz ro")


# -- D2: firmware that logs less than it measures -------------------------------------------
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


# -- what each check is for ---------------------------------------------------------------------
class Everything(frozenset[bytes]):
    """A list that contains everything."""

    def __contains__(self, item: object) -> bool:
        return True


def _nothing(*_: Any) -> None:
    """Stand for a check that is not made."""


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
