"""Rules learned from golden hosts describe a good boot, and the verifier accepts the boot by these rules."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from support.attestation import boot_forge, boot_logs

from netspace.attestation.evidence import Evidence
from netspace.attestation.learning import policy as learning
from netspace.attestation.logs import eventlog, events
from netspace.attestation.policy import policy
from netspace.attestation.refusals import Refused
from netspace.attestation.verifier import appraisal

RULES = {"secure_boot", "dbx", "signers", "applications", "kernels", "initrds", "files"}


def booted(boot: str, edit: Any = lambda found: None) -> Evidence:
    log, pcrs = boot_forge.edited(boot, edit)
    chosen = {pcr: pcrs[pcr] for pcr in boot_forge.PCRS[boot]}
    systemd = boot_logs.read("uki/systemd-tpm2-measure.log") if boot == "uki" else None
    return Evidence("tpm", b"", b"", b"", chosen, log, systemd)


def code(data: dict[str, Any], evidence: Evidence) -> str:
    try:
        appraisal.judged_boot(evidence, policy.parse(data).boot, None)
    except Refused as err:
        return err.code
    return "ok"


@pytest.mark.parametrize("boot", ["shim-grub", "uki"])
def test_a_golden_host_gives_rules_and_they_take_it(boot: str) -> None:
    evidence = booted(boot)
    found = learning.learn(None, {"gold": evidence})
    rules = found.after["boot"]
    assert found.before is None and found.after["version"] == 1
    assert rules.keys() >= RULES and rules["secure_boot"] is True
    expected = boot_forge.policy(boot)["boot"]
    assert rules["kernels"] == [boot_forge.KERNEL] and boot_forge.INITRD in rules["initrds"]
    assert rules["dbx"] == expected["dbx"] and rules["signers"] == expected["signers"]
    assert rules["applications"] == list(dict.fromkeys(expected["applications"]))
    # What a rule judges has no plain value; what none judges has.
    ruled = {"4", "7", "9", "11", "12"} | ({"8"} if boot == "shim-grub" else set())
    assert set(rules["pcrs"]) == {str(pcr) for pcr in evidence.pcrs} - ruled
    assert policy.accepted(found.after, quoted=evidence.pcrs)
    assert code(found.after, evidence) == "ok"
    again = learning.learn(found.after, {"gold": evidence})
    assert again.after == again.before == found.after and not again.notes


def test_a_command_line_that_is_logged_is_a_rule_and_another_one_is_not_taken() -> None:
    found = learning.learn(None, {"gold": booted("shim-grub")})
    assert found.after["boot"]["command_lines"] == [f"/vmlinuz {boot_forge.LINE}"] and not found.notes

    def other(told: list[Any]) -> None:
        at = next(n for n, one in enumerate(told) if one.pcr == 8 and one.data.startswith(b"kernel_cmdline"))
        line = b"/vmlinuz root=/dev/nvme0n1 init=/bin/sh"
        told[at] = boot_forge.measured(8, events.IPL, b"kernel_cmdline: " + line, line)

    assert code(found.after, booted("shim-grub", other)) == "command-line"


def test_where_only_its_digest_is_known_the_line_is_pinned_by_it() -> None:
    found = learning.learn(None, {"gold": booted("uki")})
    assert "command_lines" not in found.after["boot"] and "command_lines" in " ".join(found.notes)

    def other(told: list[Any]) -> None:
        at = next(n for n, one in enumerate(told) if one.pcr == 9 and events.tag(one))
        told[at] = told[at]._replace(digests={"sha256": bytes(32)})

    assert code(found.after, booted("uki", other)) == "boot-file"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("kernel", "boot-file"),
        ("loader", "boot-application"),
        ("secure boot", "secure-boot"),
    ],
)
def test_what_was_learned_refuses_what_differs(edit: str, expected: str) -> None:
    def change(told: list[Any]) -> None:
        if edit == "kernel":
            for at, one in enumerate(told):
                if one.pcr == 9 and one.digests["sha256"].hex() == boot_forge.KERNEL:
                    told[at] = one._replace(digests={"sha256": bytes(32)})
        elif edit == "loader":
            at = boot_forge.index(told, 4, events.APPLICATION, number=1)
            told[at] = told[at]._replace(digests={"sha256": bytes(32)})
        else:
            at = boot_forge.index(told, 7, events.VARIABLE_DRIVER_CONFIG, "SecureBoot")
            told[at] = boot_forge.measured(7, events.VARIABLE_DRIVER_CONFIG, told[at].data[:-1] + b"\0")

    found = learning.learn(None, {"gold": booted("shim-grub")})
    assert code(found.after, booted("shim-grub", change)) == expected


def test_a_set_has_what_any_of_it_has_and_the_dbx_that_all_have() -> None:
    def more(told: list[Any]) -> None:
        """Change a recorded boot: a newer kernel, and an older list of revoked programs (dbx)."""
        for at, one in enumerate(told):
            if one.digests["sha256"].hex() == boot_forge.KERNEL:
                told[at] = one._replace(digests={"sha256": b"\7" * 32})
        at = boot_forge.index(told, 7, events.VARIABLE_DRIVER_CONFIG, "dbx")
        head = told[at].data
        read = events.variable(head)
        assert read is not None
        emptied = head[: len(head) - len(read.data)]
        emptied = emptied[:24] + bytes(8) + emptied[32:]
        told[at] = boot_forge.measured(7, events.VARIABLE_DRIVER_CONFIG, emptied)

    one, two = booted("shim-grub"), booted("shim-grub", more)
    found = learning.learn(None, {"one": one, "two": two})
    assert sorted(found.after["boot"]["kernels"]) == sorted([boot_forge.KERNEL, "07" * 32])
    assert "dbx" not in found.after["boot"] and found.after["boot"]["secure_boot"] is True
    assert code(found.after, one) == code(found.after, two) == "ok"

    # A policy that demands more than the second host has is not lowered by learning from it.
    strict = learning.learn(None, {"one": one})
    later = learning.learn(strict.after, {"two": two})
    assert later.after["boot"]["dbx"] == strict.after["boot"]["dbx"] and later.after["version"] == 2
    assert any("[dbx-old]" in note for note in later.notes)
    assert set(later.after["boot"]["kernels"]) == {boot_forge.KERNEL, "07" * 32}


def test_without_secure_boot_pcr_7_is_known_by_its_value() -> None:
    def off(told: list[Any]) -> None:
        at = boot_forge.index(told, 7, events.VARIABLE_DRIVER_CONFIG, "SecureBoot")
        told[at] = boot_forge.measured(7, events.VARIABLE_DRIVER_CONFIG, told[at].data[:-1] + b"\0")

    evidence = booted("shim-grub", off)
    found = learning.learn(None, {"gold": evidence})
    assert "secure_boot" not in found.after["boot"] and "7" in found.after["boot"]["pcrs"]
    assert any("secure_boot" in note for note in found.notes) and code(found.after, evidence) == "ok"


def test_a_rule_that_would_not_take_the_boot_is_left_out() -> None:
    def odd(told: list[Any]) -> None:
        """Change a recorded boot: the firmware measures additional data into PCR 4."""
        at = boot_forge.index(told, 4, events.SEPARATOR)
        told.insert(at, boot_forge.measured(4, events.IPL, b"vendor"))

    evidence = booted("shim-grub", odd)
    found = learning.learn(None, {"gold": evidence})
    assert "applications" not in found.after["boot"] and "4" in found.after["boot"]["pcrs"]
    assert any("no rules for applications" in note and "[boot-event]" in note for note in found.notes)
    assert code(found.after, evidence) == "ok"


@pytest.mark.parametrize("log", [None, b"\0", "other"])
def test_without_a_log_that_leads_to_the_values_there_are_values_alone(log: Any) -> None:
    evidence = booted("shim-grub")
    brought = booted("uki").boot_log if log == "other" else log
    found = learning.learn(None, {"gold": dataclasses.replace(evidence, boot_log=brought)})
    assert found.after["boot"].keys() == {"pcrs"} and any("only plain values" in note for note in found.notes)
    assert set(found.after["boot"]["pcrs"]) == {str(pcr) for pcr in evidence.pcrs}


def test_a_policy_by_values_keeps_its_form() -> None:
    evidence = booted("shim-grub")
    before = {"version": 4, "boot": {"pcrs": {str(pcr): ["00" * 32] for pcr in evidence.pcrs}, "unchecked": [1]}}
    given = copy.deepcopy(before)
    found = learning.learn(before, {"gold": evidence})
    assert before == given and found.after["version"] == 5
    assert found.after["boot"].keys() == {"pcrs", "unchecked"} and code(found.after, evidence) == "ok"
    assert found.after["boot"]["pcrs"]["7"] == ["00" * 32, evidence.pcrs[7].hex()]


@pytest.mark.parametrize("half", ["secure_boot", "signers"])
def test_a_pcr_that_half_of_its_rule_would_not_judge_keeps_its_value(half: str) -> None:
    evidence = booted("shim-grub")
    whole = boot_forge.policy("shim-grub")
    rules = {half: whole["boot"][half], "unchecked": [0, 1]}
    found = learning.learn({"version": 1, "boot": rules}, {"gold": evidence})
    assert "7" in found.after["boot"]["pcrs"] and "1" not in found.after["boot"]["pcrs"]
    assert code(found.after, evidence) == "ok"


def test_no_mutation_of_a_log_is_learned_as_good_and_none_breaks_it() -> None:
    """Policies are learned from mutated logs: each accepts its boot, or the notes say that it doesn't."""
    import random

    chance = random.Random(7)
    genuine = list(boot_forge.log("shim-grub").events[1:])
    for _ in range(120):
        told = list(genuine)
        for _ in range(chance.choice((1, 2, 5))):
            at = chance.randrange(len(told))
            kind = chance.randrange(4)
            if kind == 0:
                del told[at]
            elif kind == 1:
                told.insert(at, chance.choice(genuine))
            elif kind == 2:
                told[at] = told[at]._replace(pcr=chance.choice((4, 7, 8, 9, 11, 12)))
            else:
                told[at] = told[at]._replace(data=chance.randbytes(chance.randrange(80)))
        raw = boot_forge.packed(told)
        values = eventlog.parse(raw).replay("sha256")
        pcrs = {pcr: values.get(pcr, bytes(32)) for pcr in range(15)}
        evidence = Evidence("tpm", b"", b"", b"", pcrs, raw)
        found = learning.learn(None, {"gold": evidence})
        assert (code(found.after, evidence) == "ok") != any("L4 is not reached" in one for one in found.notes)


def test_what_an_old_policy_left_open_is_closed_by_learning() -> None:
    """Learning repairs an old policy that leaves needed PCRs unchecked.

    Such a policy can't be set any more, and no host satisfies it.
    """
    evidence = booted("shim-grub")
    whole = boot_forge.policy("shim-grub")["boot"]
    kept = ("secure_boot", "dbx", "signers", "applications", "kernels", "initrds", "files", "command_lines")
    old = {key: whole[key] for key in kept} | {"unchecked": [0, 1, 2, 3, 5, 6, 8, 14]}
    before = {"version": 3, "boot": old}
    with pytest.raises(policy.PolicyError, match="PCR 2 proves it, and that PCR is unchecked"):
        policy.accepted(before)
    assert code(before, evidence) == "policy-uncovered"
    found = learning.learn(before, {"gold": evidence})
    assert found.after["boot"]["unchecked"] == [0, 1, 3, 5, 6, 14]
    assert [note for note in found.notes if "removed from 'unchecked'" in note] == [
        "PCR 2 was removed from 'unchecked', because applications rests on it",
        "PCR 8 was removed from 'unchecked', because command_lines rests on it",
    ]
    assert policy.accepted(found.after, quoted=evidence.pcrs) and code(found.after, evidence) == "ok"
    assert "sbat" not in found.after["boot"], "what a policy demands is the operator's"


def test_firmware_whose_log_does_not_lead_to_pcr_0_is_left_unchecked_there() -> None:
    evidence = booted("shim-grub")
    odd = dataclasses.replace(evidence, pcrs={**evidence.pcrs, 0: b"\7" * 32})
    found = learning.learn(None, {"gold": odd})
    assert found.after["boot"]["unchecked"] == [0] and "0" not in found.after["boot"]["pcrs"]
    assert any("does not explain the values of PCRs 0: these stay unchecked" in note for note in found.notes)
    assert policy.accepted(found.after, quoted=odd.pcrs) and code(found.after, odd) == "ok"
    for pcr in (2, 4, 7, 8, 9):  # what rules rest on is not left out
        odd = dataclasses.replace(evidence, pcrs={**evidence.pcrs, pcr: b"\7" * 32})
        found = learning.learn(None, {"gold": odd})
        assert found.after["boot"].keys() == {"pcrs"} and any("only plain values" in note for note in found.notes)


def test_a_boot_loader_that_logs_no_paths_is_learned() -> None:
    """A policy is learned from GRUB of RHEL 8, which logs special names and another word before the command line."""

    def edit(told: list[Any]) -> None:
        for at, one in enumerate(told):
            digest = one.digests["sha256"].hex()
            if one.pcr == 9 and digest in (boot_forge.KERNEL, boot_forge.INITRD) and not events.tag(one):
                name = b"grub_linuxefi Kernel" if digest == boot_forge.KERNEL else b"grub_linuxefi Initrd"
                told[at] = one._replace(data=name)
            elif one.data.startswith(b"kernel_cmdline: "):
                told[at] = one._replace(data=one.data.replace(b"kernel_cmdline: ", b"grub_kernel_cmdline "))

    evidence = booted("shim-grub", edit)
    found = learning.learn(None, {"gold": evidence})
    assert found.after["boot"]["kernels"] == [boot_forge.KERNEL]
    assert found.after["boot"]["initrds"] == [boot_forge.INITRD]
    assert found.after["boot"]["command_lines"] == [f"/vmlinuz {boot_forge.LINE}"]
    assert code(found.after, evidence) == "ok"


@pytest.mark.parametrize("line", ["/vmlinuz root=* ro", "/vmlinuz " + "x" * 5000])
def test_a_command_line_that_is_no_pattern_of_its_own_is_pinned_by_its_digest(line: str) -> None:
    def edit(told: list[Any]) -> None:
        for at, one in enumerate(told):
            if one.data.startswith(b"kernel_cmdline: "):
                told[at] = boot_forge.measured(8, events.IPL, b"kernel_cmdline: " + line.encode(), line.encode())
            elif events.tag(one) and events.tag(one)[0] == boot_forge.TAG_OPTIONS:  # type: ignore[index]
                wide = f"BOOT_IMAGE={line}".encode("utf-16-le")
                told[at] = boot_forge.measured(9, one.type, one.data, wide)

    evidence = booted("shim-grub", edit)
    found = learning.learn(None, {"gold": evidence})
    why = "a '*'" if "*" in line else "more than"
    assert "command_lines" not in found.after["boot"] and any(f"line has {why}" in note for note in found.notes)
    assert code(found.after, evidence) == "ok" and code(found.after, booted("shim-grub")) == "boot-file"
