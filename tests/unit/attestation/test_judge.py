"""Levels of real boots, and the finding for each deviation. Each test is a threat or a mistake."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from support.attestation import boot_forge, boot_logs
from support.attestation.boot_forge import PCRS, index, measured
from support.attestation.judged_host import (
    BOOTS,
    SYSTEMD,
    Host,
)

from netspace.attestation import refusals
from netspace.attestation.evidence import Context
from netspace.attestation.logs import events, systemd
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import policy
from netspace.attestation.verifier import boot_rules, extensions, platform_rules, verifier
from netspace.attestation.verifier.verifier import Expected


def test_real_boots_reach_l4(either: Host) -> None:
    found = either.appraise(boot_forge.policy(either.boot))
    assert (found.level, found.code) == (4, "ima-policy-none"), found


def test_the_policy_of_one_boot_is_not_that_of_the_other(either: Host) -> None:
    other = next(boot for boot in BOOTS if boot != either.boot)
    assert either.appraise(boot_forge.policy(other, unchecked=list(range(24)))).level == 3


def test_an_empty_policy_allows_nothing(host: Host) -> None:
    assert host.appraise({"version": 1}).code == "policy-none"
    assert host.appraise({"version": 1, "boot": {}}).code == "policy-uncovered"


def test_every_quoted_pcr_needs_a_rule(host: Host) -> None:
    rules = boot_forge.policy("shim-grub", unchecked=[0, 1, 3, 5, 6])
    found = host.appraise(rules)
    assert found.code == "policy-uncovered" and "PCRs 14" in found.reason
    value = host.tpm.pcrs[14]
    assert host.appraise(rules, references={14: [value]}).level == 4
    assert host.appraise(rules, references={14: []}).code == "pcr-value"
    rules["boot"]["pcrs"]["14"] = [value.hex()]
    assert host.appraise(rules).level == 4
    rules["boot"]["pcrs"]["14"] = []
    assert host.appraise(rules).code == "pcr-value"


@pytest.mark.parametrize(
    ("pcr", "rule"),
    [
        *((7, "secure_boot"), (2, "applications"), (4, "applications"), (8, "command_lines")),
        *((9, "kernels"), (11, "kernels"), (12, "kernels")),
    ],
)
def test_a_rule_whose_pcr_is_not_quoted_is_not_satisfied(host: Host, pcr: int, rule: str) -> None:
    rules = boot_forge.policy("shim-grub")
    pcrs = tuple(one for one in PCRS["shim-grub"] if one != pcr)
    found = host.appraise(rules, pcrs=pcrs)
    assert found.code == "policy-uncovered" and f"{rule}: only PCR {pcr} proves it" in found.reason
    with pytest.raises(
        policy.PolicyError, match=f"policy:boot:{rule}.*PCR {pcr} proves it, and hosts don't quote that PCR"
    ):
        policy.accepted(rules, quoted=pcrs)


def test_a_plain_value_of_a_pcr_that_is_not_quoted(host: Host) -> None:
    rules = boot_forge.policy("shim-grub")
    rules["boot"]["pcrs"]["13"] = ["00" * 32]
    found = host.appraise(rules)
    assert found.code == "policy-uncovered" and "PCR 13 is not quoted" in found.reason


def test_a_boot_without_a_log(host: Host) -> None:
    evidence = host.tpm.evidence(host.context, PCRS["shim-grub"])
    expected = Expected(host.context, PCRS["shim-grub"], None, None, policy.parse(boot_forge.policy("shim-grub")))
    assert verifier.verify_quote(evidence, host.bound, expected).code == refusals.NoBootLog.code == "log-none"


def secure_boot(value: bytes) -> Callable[[list[Event]], None]:
    def edit(found: list[Event]) -> None:
        at = index(found, 7, events.VARIABLE_DRIVER_CONFIG, "SecureBoot")
        found[at] = measured(7, events.VARIABLE_DRIVER_CONFIG, found[at].data[:-1] + value)

    return edit


def test_secure_boot_turned_off(host: Host) -> None:
    host.edit(secure_boot(b"\0"))
    assert host.appraise(boot_forge.policy("shim-grub")).code == "secure-boot"


def test_secure_boot_on_in_the_log_alone(host: Host) -> None:
    """The TPM measured Secure Boot as off, and the log says on, with the measured digest; this is refused."""
    host.edit(secure_boot(b"\0"))
    at = host.log.index("SecureBoot".encode("utf-16-le")) + 20
    assert host.log[at] == 0
    host.log = host.log[:at] + b"\1" + host.log[at + 1 :]
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_secure_boot_measured_again_by_what_was_booted(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        on = found[index(found, 7, events.VARIABLE_DRIVER_CONFIG, "SecureBoot")]
        secure_boot(b"\0")(found)
        found.append(on)

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_secure_boot_measured_twice_before_the_separator(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        at = index(found, 7, events.VARIABLE_DRIVER_CONFIG, "SecureBoot")
        found.insert(at, found[at])

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_setup_mode(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        at = index(found, 7, events.VARIABLE_DRIVER_CONFIG, "PK")
        head = found[at].data[:24] + bytes(8) + "PK".encode("utf-16-le")
        found[at] = measured(7, events.VARIABLE_DRIVER_CONFIG, head)

    host.edit(edit)
    found = host.appraise(boot_forge.policy("shim-grub"))
    assert found.code == "secure-boot" and "setup mode" in found.reason


def test_firmware_in_debug_mode(host: Host) -> None:
    host.edit(lambda found: found.insert(5, measured(7, events.EFI_ACTION, b"UEFI Debug Mode")))
    found = host.appraise(boot_forge.policy("shim-grub"))
    assert found.code == "secure-boot" and "UEFI Debug Mode" in found.reason


@pytest.mark.parametrize("data", [bytes(4), b"\1\0\0\0"])
def test_a_second_separator_or_one_of_an_error(host: Host, data: bytes) -> None:
    host.edit(lambda found: found.insert(5, measured(7, events.SEPARATOR, data)))
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_a_second_separator_at_the_end(host: Host) -> None:
    host.edit(lambda found: found.append(measured(7, events.SEPARATOR, bytes(4))))
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_secure_boot_that_was_measured_by_what_was_booted_alone(host: Host) -> None:
    """Secure Boot was measured only after the separator, where any booted program could claim it; this is refused."""

    def edit(found: list[Event]) -> None:
        found.append(found.pop(index(found, 7, events.VARIABLE_DRIVER_CONFIG, "SecureBoot")))

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_no_separator(host: Host) -> None:
    host.edit(lambda found: found.pop(index(found, 7, events.SEPARATOR)) and None)
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_an_unknown_event_in_pcr_7(host: Host) -> None:
    host.edit(lambda found: found.append(measured(7, events.IPL, b"x")))
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_an_old_revocation_list(host: Host) -> None:
    rules = boot_forge.policy("shim-grub")
    assert len(rules["boot"]["dbx"]) == 1
    rules["boot"]["dbx"].append("aa" * 32)
    found = host.appraise(rules)
    assert found.code == "dbx-old" and "aaaa" in found.reason


def test_another_signer(host: Host) -> None:
    rules = boot_forge.policy("shim-grub")
    for left in rules["boot"]["signers"]:
        changed = {"version": 1, "boot": {**rules["boot"], "signers": [left]}}
        assert host.appraise(changed).code == "boot-signer"


def test_an_old_shim_measures_more_than_it_fills_and_logs_a_byte_more(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        at = index(found, 7, events.VARIABLE_AUTHORITY, "MokListRT")
        data = found[at].data + bytes(5)
        found[at] = measured(7, events.VARIABLE_AUTHORITY, data + b"\xaf", data)
        assert events.describe(found[at])["matches"] is True and "certificate" in events.describe(found[at])

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).level == 4


@pytest.mark.skipif(boot_logs.others() is None, reason="there is no folder of others' logs (NETSPACE_EVENTLOGS)")
def test_secure_boots_of_others() -> None:
    """PCRs 4 and 7 of other machines, with firmware and shims of several makers, satisfy rules made from their logs."""
    from netspace.attestation.logs import eventlog

    folder = boot_logs.others()
    assert folder is not None
    understood = 0
    for path in (*folder.glob("go-*/*eventlog*"), *folder.glob("go-tpm-tools/*.bin"), *folder.glob("*/binary_*")):
        log = eventlog.parse(path.read_bytes())
        told = [event for event in log.events if event.type != eventlog.NO_ACTION]
        if "sha256" not in log.banks or len(told) < 10:
            continue
        found = [events.variable(one.data, events.SLACK) for one in told if one.type == events.VARIABLE_AUTHORITY]
        signers = [hashlib.sha256(events.certificate(one.data)).hexdigest() for one in found if one]
        applications = [one.digests["sha256"].hex() for one in told if one.type == events.APPLICATION]
        rules = {"secure_boot": True, "signers": signers, "applications": applications}
        boot = policy.parse({"version": 1, "boot": rules}).boot
        assert boot is not None and boot.applications is not None
        extended = extensions.of(log, (), (4, 7))
        boot_rules._applications(extended[4], boot.applications, {})
        try:
            platform_rules.check(extended[7], boot)
            understood += 1
        except refusals.SecureBootOff:
            pass
    assert understood >= 9


def test_nothing_was_verified(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        found[:] = [one for one in found if one.type != events.VARIABLE_AUTHORITY]

    host.edit(edit)
    found = host.appraise(boot_forge.policy("shim-grub"))
    assert found.code == "boot-signer" and "verified nothing" in found.reason


def test_a_program_that_db_allows_by_its_digest(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        digest = found[index(found, 4, events.APPLICATION)].digests["sha256"]
        guid, name = uuid.UUID(events.SECURITY).bytes_le, "db".encode("utf-16-le")
        data = guid + struct.pack("<QQ", 2, 48) + name + bytes(16) + digest
        found[index(found, 7, events.VARIABLE_AUTHORITY)] = measured(7, events.VARIABLE_AUTHORITY, data)

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).level == 4
    rest = dict.fromkeys(("applications", "kernels", "initrds", "files", "command_lines"))
    rules = boot_forge.policy("shim-grub", **rest)
    rules["boot"]["unchecked"] += [4, 9]
    assert host.appraise(rules).code == "boot-signer"


def test_another_program(host: Host) -> None:
    host.edit(lambda found: found.append(measured(4, events.APPLICATION, b"path", b"shell.efi")))
    found = host.appraise(boot_forge.policy("shim-grub"))
    assert found.code == "boot-application"


def test_no_program_at_all(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        found[:] = [one for one in found if one.type != events.APPLICATION]

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-application"


@pytest.mark.parametrize("kind", [events.IPL, events.EFI_ACTION])
def test_a_program_under_the_name_of_another_event(host: Host, kind: int) -> None:
    host.edit(lambda found: found.append(measured(4, kind, b"path", b"shell.efi")))
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-event"


def test_another_initrd(either: Host) -> None:
    def edit(found: list[Event]) -> None:
        for at, one in enumerate(found):
            if one.digests.get("sha256", b"").hex() == boot_forge.INITRD:
                found[at] = measured(one.pcr, one.type, one.data, b"another initrd")

    either.edit(edit)
    if either.boot == "uki":  # systemd measured into PCR 11 afterwards
        from netspace.attestation.logs import eventlog, systemd

        led = systemd.extend(eventlog.parse(either.log).replay("sha256"), systemd.parse(SYSTEMD), "sha256")
        either.tpm.pcrs.update(led)
    assert either.appraise(boot_forge.policy(either.boot)).code == "boot-file"


def test_an_older_kernel(host: Host) -> None:
    """The policy knows all loaded files, but no longer allows this kernel; the boot is refused."""
    rules = boot_forge.policy("shim-grub", kernels=["aa" * 32])
    rules["boot"]["files"].append(boot_forge.KERNEL)
    found = host.appraise(rules)
    assert found.code == "boot-file" and "none of the policy's kernels" in found.reason


def test_a_kernel_that_is_named_like_an_allowed_one(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        found[:] = [one for one in found if one.digests.get("sha256", b"").hex() != boot_forge.KERNEL]
        found.append(measured(9, events.IPL, b"/vmlinuz\0", b"evil"))

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-file"


def lines(text: str) -> Callable[[list[Event]], None]:
    """Return a change of a boot: GRUB passes another command line, and the log shows this truthfully."""

    def edit(found: list[Event]) -> None:
        for at, one in enumerate(found):
            if one.data.startswith(b"kernel_cmdline: "):
                found[at] = measured(8, events.IPL, b"kernel_cmdline: " + text.encode() + b"\0", text.encode())
            tagged = events.tag(one)
            if tagged and tagged[0] == boot_forge.TAG_OPTIONS:
                found[at] = measured(9, one.type, one.data, f"BOOT_IMAGE={text}".encode("utf-16-le"))

    return edit


def test_a_changed_command_line(host: Host) -> None:
    text = "/vmlinuz root=/dev/nvme0n1 init=/bin/sh"
    host.edit(lines(text))
    found = host.appraise(boot_forge.policy("shim-grub"))
    assert found.code == "command-line" and "init=/bin/sh" in found.reason
    assert host.appraise(boot_forge.policy("shim-grub", command_lines=[text])).level == 4
    assert host.appraise(boot_forge.policy("shim-grub", command_lines=["* init=*", "x"])).level == 4


def test_a_command_line_that_the_log_retouches(host: Host) -> None:
    host.edit(lines("/vmlinuz root=/dev/nvme0n1 evil"))
    host.log = host.log.replace(b"/vmlinuz root=/dev/nvme0n1 evil", b"/vmlinuz root=/dev/nvme0n1 fine")
    found = host.appraise(boot_forge.policy("shim-grub", command_lines=["/vmlinuz root=/dev/nvme0n1 fine"]))
    assert found.code == "command-line" and "not what was measured" in found.reason


def test_a_command_line_that_grub_measured_and_the_kernel_got_another(host: Host) -> None:
    def edit(found: list[Event]) -> None:
        for at, one in enumerate(found):
            tagged = events.tag(one)
            if tagged and tagged[0] == boot_forge.TAG_OPTIONS:
                found[at] = measured(9, one.type, one.data, b"init=/bin/sh")

    host.edit(edit)
    assert host.appraise(boot_forge.policy("shim-grub")).code == "boot-file"


@pytest.mark.parametrize("pattern", [f"/vmlinuz {boot_forge.LINE}", "/vmlinuz root=/dev/nvme0n1 * ima_policy=tcb"])
def test_a_command_line_where_pcr_8_is_known_by_its_value(host: Host, pattern: str) -> None:
    rules = boot_forge.policy("shim-grub", grub_commands=None, command_lines=[pattern])
    assert host.appraise(rules).code == "boot-file", "GRUB's commands are neither listed nor known by the value"
    rules["boot"]["pcrs"]["8"] = [host.tpm.pcrs[8].hex()]
    assert host.appraise(rules).level == 4
    # The kernel's own measurement of it is known by the text, too.
    options = boot_forge.log("shim-grub").events
    (digest,) = [
        one.digests["sha256"].hex() for one in options if (tag := events.tag(one)) and tag[0] == boot_forge.TAG_OPTIONS
    ]
    rules["boot"]["files"].remove(digest)
    assert host.appraise(rules).level == 4
    rules["boot"]["command_lines"] = ["root=/dev/vda"]
    assert host.appraise(rules).level == 3
    host.edit(lines("/vmlinuz init=/bin/sh ima_policy=tcb"))
    rules["boot"]["command_lines"] = ["/vmlinuz * ima_policy=tcb", "/vmlinuz init=/bin/sh ima_policy=tcb"]
    assert host.appraise(rules).code == "pcr-value"


def test_an_embedded_command_line_is_known_by_its_digest_alone(fake_tpm, context: Context) -> None:
    host = Host(fake_tpm, context, "uki")
    found = host.appraise(boot_forge.policy("uki", command_lines=["root=*"]))
    assert found.code == "command-line"


@pytest.mark.parametrize(
    ("text", "measured", "code"),
    [("other", "sysinit", "ima-policy-none"), ("other", "other", "boot-event"), ("sysinit", "other", "boot-event")],
)
def test_systemds_phases_are_known_by_their_digest(
    fake_tpm: Any, context: Context, text: str, measured: str, code: str
) -> None:
    """The log's label of a phase is ignored, and a phase with a digest other than systemd's own is refused."""
    host = Host(fake_tpm, context, "uki")
    digest = hashlib.sha256(measured.encode()).hexdigest()
    log = SYSTEMD.replace(b'"string":"sysinit"', b'"string":"%s"' % text.encode())
    log = log.replace(hashlib.sha256(b"sysinit").hexdigest().encode(), digest.encode())
    values = boot_forge.log("uki").replay("sha256")
    host.tpm.pcrs = {**host.tpm.pcrs, **systemd.extend(values, systemd.parse(log), "sha256")}
    evidence = dataclasses.replace(host.tpm.evidence(context, PCRS["uki"]), boot_log=host.log, systemd_log=log)
    expected = Expected(context, PCRS["uki"], None, None, policy.parse(boot_forge.policy("uki")))
    assert verifier.verify_quote(evidence, host.bound, expected).code == code


def test_a_pcr_that_no_log_explains(host: Host) -> None:
    host.tpm.pcrs = {**host.tpm.pcrs, 11: b"\1" * 32}
    found = host.appraise(boot_forge.policy("shim-grub"))
    assert found.code == "log-mismatch" and "PCR 11" in found.reason


def test_references_alone_still_do(host: Host) -> None:
    references = {pcr: [host.tpm.pcrs[pcr]] for pcr in PCRS["shim-grub"]}
    assert host.appraise(None, references=references).code == "ima-policy-none"
    del references[14]
    assert host.appraise(None, references=references).code == "pcr-value"


def test_a_tpm_without_a_chain_stays_at_l2(host: Host) -> None:
    host.bound = dataclasses.replace(host.bound, level=2)
    found = host.appraise(boot_forge.policy("shim-grub"))
    assert (found.level, found.code) == (2, refusals.NoChain.code) and found.code == "ek-untrusted"
