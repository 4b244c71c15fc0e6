"""Forgeries that once reached L4: each by its name, with its variants. ``test_boot_checks`` removes the checks.

The attacker is root on an enrolled host with a genuine TPM. He boots any programs, extends PCRs afterwards, and writes
both logs. He can't sign. ``code`` returns the level that he reaches, or the reason of the refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.attestation import boot_forge
from support.attestation.boot_forge import index, measured, record, variable
from support.attestation.boot_forgeries import (
    BAD,
    CERTIFICATE,
    EVIL,
    GOOD,
    PREIMAGE,
    PROGRAM,
    STAR,
    SYSTEMD,
    TEXTS,
    bare,
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

from netspace.attestation.logs import eventlog, events
from netspace.attestation.logs import measured as fixed
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import policy

BOOTS = ("shim-grub", "uki")


@pytest.mark.parametrize("boot", BOOTS)
def test_the_honest_boots_reach_l4(boot: str) -> None:
    assert code(boot, booted(boot), boot_forge.policy(boot)) == "L4"


# -- A1: what is moved into the other log ---------------------------------------------


MOK = variable(fixed.SHIM, "MokListRT", bytes(16) + CERTIFICATE)


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
    """The attacker boots a loader that his MOK allows, and moves its events to systemd's log; this is refused."""
    told = booted("shim-grub", lambda found: found.extend((measured(7, events.VARIABLE_AUTHORITY, MOK), PROGRAM)))
    assert code("shim-grub", told, bare("shim-grub")) == "boot-signer"
    kept = [one for one in told if one not in told[-2:]]
    moved = record(7, sha256(MOK), "sysinit") + record(4, PROGRAM.digests["sha256"], "ready")
    assert code("shim-grub", kept, bare("shim-grub"), records=moved) == "boot-event"


# -- A2: a program under another name -------------------------------------------------
KINDS = (events.EFI_ACTION, events.ACTION, events.SEPARATOR, events.IPL, events.EVENT_TAG, 0x80000008, 0x77777777)


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
    """A bad GRUB command with the text of an allowed command line is refused.

    A bad command line with the text of a GRUB command is refused, too.
    """
    rules = boot_forge.policy("shim-grub", command_lines=["* ima_policy=tcb"])
    line = b"insmod x ima_policy=tcb"
    told = booted("shim-grub", lambda found: found.append(measured(8, events.IPL, b"grub_cmd: " + line, line)))
    assert code("shim-grub", told, rules) == "boot-file"
    assert code("shim-grub", booted("shim-grub", other_line(line)), rules) == "command-line"


def test_a4_an_empty_command_line_is_no_empty_file() -> None:
    """A boot entry without a command line is refused, although the policy lists an empty file with the same digest."""
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
    """A policy is refused if one of its rules depends on a PCR that nothing judges.

    Such a PCR is in ``unchecked``, or it has no value in ``pcrs`` and no other rule judges it. The error names the PCR
    and what to give. If an older version stored such a policy, no host satisfies it.
    """
    alone = {rule: SAMPLES.get(rule, ["ab" * 32])}
    values = {str(other): ["00" * 32] for other in RESTS[rule] if other != pcr}
    for boot in ({**alone, "pcrs": values, "unchecked": [pcr]}, {**alone, "pcrs": values}):
        judged = pcr in policy.parse({"version": 1, "boot": boot}).boot.judged  # type: ignore[union-attr]
        if "unchecked" not in boot and judged:
            continue
        with pytest.raises(
            policy.PolicyError, match=f"policy:boot:.*PCR {pcr} proves it, and (that PCR is unchecked|no rule judges)"
        ):
            policy.accepted({"version": 1, "boot": boot})
        stored = {"version": 1, "boot": {**boot, "unchecked": sorted({*range(16)} - {int(one) for one in values})}}
        assert code("shim-grub", booted("shim-grub"), stored, pcrs=tuple(range(16))) == "policy-uncovered"
    whole = {**alone, "pcrs": {**values, str(pcr): ["00" * 32]}}
    assert policy.accepted({"version": 1, "boot": whole})
    with pytest.raises(policy.PolicyError, match=f"only PCR {pcr} proves it, and hosts don't quote that PCR"):
        policy.accepted({"version": 1, "boot": whole}, quoted={*range(16)} - {pcr})


def test_a7_a_kernel_that_root_adds_where_the_loader_never_measures() -> None:
    """GRUB boots any kernel, and root then extends PCR 11 with a good kernel's digest; this is refused."""
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


@pytest.mark.parametrize("order", [(0, 2), (0, 2, 1), (2, 0, 1), (0, 1, -1, 2), (1, 2), (2,), (0, 1, 0, 2)])
def test_f1_a_kernel_that_no_boot_loader_started(order: tuple[int, ...]) -> None:
    """Shim starts the kernel without GRUB, and root adds GRUB's measurements; refused because of the events' order."""
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
    """An option ROM runs before the separator, as with old firmware; without a listed signer it is refused."""
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
    """The digest of empty data is refused as a signer, even if the policy has learned it as a signer."""
    rules = boot_forge.policy("shim-grub")
    rules["boot"]["signers"].append(fixed.NOTHING.hex())
    short = variable(events.SECURITY, "db", b"x" * 16)
    told = booted("shim-grub", lambda found: found.append(measured(7, events.VARIABLE_AUTHORITY, short)))
    assert code("shim-grub", told, rules) == "boot-event"
