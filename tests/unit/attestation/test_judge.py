"""Levels of real boots, and the finding when one differs. Each test is a threat or a mistake."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from support.attestation import boot_forge, boot_logs
from support.attestation.boot_forge import PCRS, index, measured

from netspace.attestation import refusals
from netspace.attestation.evidence import Context
from netspace.attestation.logs import events, ima, systemd
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal, attestation_keys, boot_rules, extensions, platform_rules, verifier
from netspace.attestation.verifier.verifier import Expected

NOW = 1_700_000_000.0
SYSTEMD = boot_logs.read("uki/systemd-tpm2-measure.log")
BOOTS = ["shim-grub", "uki"]


class Host:
    """A fake TPM after a boot, whose quotes are genuine; its endorsement counts as certified."""

    def __init__(self, tpm: Any, context: Context, boot: str = "shim-grub") -> None:
        self.tpm, self.context, self.boot = tpm, context, boot
        self.log = boot_logs.read(f"{boot}/binary_bios_measurements")
        self.tpm.pcrs = boot_logs.values(boot)
        self.lines = boot_logs.read(f"{boot}/ima_binary_runtime_measurements")
        made = attestation_keys.challenge(tpm.enrolment(), context, roots=[], pinned=None, now=NOW)
        bound = made.redeem(context.activation(tpm.activate(made.blob, made.encrypted), made._key.name), NOW)
        self.bound = dataclasses.replace(bound, level=3)

    def edit(self, edit: Callable[[list[Event]], None]) -> None:
        self.log, self.tpm.pcrs = boot_forge.edited(self.boot, edit)

    def appraise(self, rules: dict | None, *, pcrs: tuple[int, ...] | None = None, references: Any = None,
                 first: int | None = None, start: ima.State | None = None) -> verifier.Verified:  # fmt: skip
        chosen = PCRS[self.boot] if pcrs is None else pcrs
        evidence = dataclasses.replace(
            self.tpm.evidence(self.context, chosen),
            boot_log=self.log,
            systemd_log=SYSTEMD if self.boot == "uki" else None,
        )
        if first is not None:
            skipped = ima.parse(self.lines)[:first] if first else []
            start_at = sum(28 + len(one.template) + 4 + len(one.data) for one in skipped)
            measurements = self.tpm.measurements(self.context, self.lines[start_at:], first)
            evidence = dataclasses.replace(evidence, ima=measurements)
        expected = Expected(
            self.context, chosen, None, references, policy.parse(rules) if rules is not None else None, start
        )
        return verifier.verify_quote(evidence, self.bound, expected)


@pytest.fixture
def host(fake_tpm, context: Context) -> Host:
    return Host(fake_tpm, context)


@pytest.fixture(params=BOOTS)
def either(request: pytest.FixtureRequest, fake_tpm, context: Context) -> Host:
    return Host(fake_tpm, context, request.param)


def allowed(lines: bytes, **rules: Any) -> dict[str, Any]:
    """Return the IMA policy that *lines* satisfy."""
    files: dict[str, list[str]] = {}
    for entry in ima.parse(lines):
        file = ima.file(entry)
        if file is not None and file.path != b"boot_aggregate":
            algorithm, _, digest = file.digest.partition(b":\0")
            files.setdefault(file.path.decode(), []).append(f"{algorithm.decode()}:{digest.hex()}")
    return {"files": files, **rules}


# -- boot ---------------------------------------------------------------------------
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
    assert found.code == "policy-uncovered" and f"{rule}: its proof lies in PCR {pcr}" in found.reason
    with pytest.raises(policy.PolicyError, match=f"policy:boot:{rule}.*PCR {pcr}, which is not quoted"):
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
    """The TPM saw 0; the log says 1 and keeps the digest that was measured."""
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
    """Firmware that measures no variable: whatever was booted says that Secure Boot was on."""

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
    """Firmware and shims of several makers and years: what they measure into PCRs 4 and 7 is understood."""
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
    """All that was loaded is known, but the kernel is not one of those that may run."""
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
    """GRUB passes another command line, and says so."""

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
    """The log's label of a phase does not count; a word that is not systemd's is refused."""
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


# -- IMA ----------------------------------------------------------------------------
def whole(host: Host, **rules: Any) -> dict[str, Any]:
    return {**boot_forge.policy(host.boot), "ima": allowed(host.lines, **rules)}


def test_a_list_that_the_policy_allows_gives_l5(either: Host) -> None:
    found = either.appraise(whole(either), first=0)
    assert (found.level, found.code, found.remedy) == (5, "ok", ""), found
    assert found.ima is not None and found.ima.value == either.tpm.pcrs[10] and found.ima.refused is None


def test_without_a_list(host: Host) -> None:
    found = host.appraise(whole(host))
    assert (found.level, found.code, found.ima) == (4, "ima-none", None)


def test_increments_continue_and_lines_ahead_wait(host: Host) -> None:
    rules = whole(host)
    values = list(ima.replay(ima.parse(host.lines)))
    host.tpm.pcrs[10] = values[199]
    first = host.appraise(rules, first=0)
    assert first.level == 5 and first.ima is not None and first.ima.lines == 200
    host.tpm.pcrs[10] = values[299]
    second = host.appraise(rules, first=200, start=first.ima)
    assert second.level == 5 and second.ima is not None and second.ima.lines == 300
    third = host.appraise(rules, first=300, start=second.ima)  # nothing happened since
    assert third.level == 5 and third.ima == second.ima
    again = host.appraise(rules, first=0, start=second.ima)
    assert again.level == 5 and again.ima == second.ima
    assert appraisal.ask_from(policy.parse(rules), second.ima) == 300
    assert appraisal.ask_from(policy.parse({**rules, "version": 2}), second.ima) == 0
    assert appraisal.ask_from(policy.parse(rules), None) == 0


@pytest.mark.parametrize("change", ["another first line", "another boot", "another policy", "no state"])
def test_lines_that_do_not_continue(host: Host, change: str) -> None:
    rules = whole(host)
    values = list(ima.replay(ima.parse(host.lines)))
    host.tpm.pcrs[10] = values[199]
    start = host.appraise(rules, first=0).ima
    host.tpm.pcrs[10] = values[299]
    first = 200
    if change == "another first line":
        first = 199
    elif change == "another boot":
        host.tpm.clock = (1000, 6, 0, 1)
    elif change == "another policy":
        rules = {**rules, "version": 2}
    else:
        start = None
    assert host.appraise(rules, first=first, start=start).code == "ima-gap"


def test_a_program_that_is_not_allowed(host: Host) -> None:
    rules = whole(host)
    del rules["ima"]["files"]["/bin/busybox"]
    found = host.appraise(rules, first=0)
    assert (found.level, found.code) == (4, "ima-file")
    assert "line 2" in found.reason and "/bin/busybox" in found.reason and found.remedy


def test_what_was_run_once_is_not_forgotten_by_the_next_increment(host: Host) -> None:
    rules = whole(host)
    del rules["ima"]["files"]["/bin/busybox"]
    values = list(ima.replay(ima.parse(host.lines)))
    host.tpm.pcrs[10] = values[199]
    first = host.appraise(rules, first=0)
    assert first.ima is not None and first.ima.refused is not None
    host.tpm.pcrs[10] = values[299]
    second = host.appraise(rules, first=200, start=first.ima)
    assert (second.level, second.code) == (4, "ima-file") and "/bin/busybox" in second.reason


def test_an_allowed_program_with_other_content(host: Host) -> None:
    rules = whole(host)
    rules["ima"]["files"]["/bin/busybox"] = ["sha256:" + "aa" * 32]
    assert host.appraise(rules, first=0).code == "ima-file"


def test_a_list_with_a_line_left_out(host: Host) -> None:
    rules = whole(host)
    entries = ima.parse(host.lines)
    size = 28 + len(entries[0].template) + 4 + len(entries[0].data)
    second = size + 28 + len(entries[1].template) + 4 + len(entries[1].data)
    host.lines = host.lines[:size] + host.lines[second:]
    assert host.appraise(rules, first=0).code == "ima-mismatch"


def test_a_list_that_is_cut(host: Host) -> None:
    rules = whole(host)
    host.lines = host.lines[:-1]
    assert host.appraise(rules, first=0).code == "ima-malformed"


def test_the_list_of_another_boot(host: Host) -> None:
    """Its quote is genuine: an attacker replayed the list into PCR 10 after booting something else."""
    host.lines = boot_logs.read("uki/ima_binary_runtime_measurements")
    host.tpm.pcrs[10] = list(ima.replay(ima.parse(host.lines)))[-1]
    found = host.appraise(whole(host), first=0)
    assert found.code == "ima-aggregate" and "another boot" in found.reason


def test_a_list_of_a_kernel_that_measures_no_programs(host: Host) -> None:
    """Secure Boot alone has modules measured: a short list in which nothing is wrong."""
    entries = ima.parse(host.lines)
    modules = [entry for entry in entries if (found := ima.file(entry)) and found.path.endswith(b".ko")]
    host.lines = b"".join(
        struct.pack("<I20sI", 10, one.digest, len(one.template)) + one.template + ima._sized(one.data)
        for one in (entries[0], *modules)
    )
    host.tpm.pcrs[10] = list(ima.replay(ima.parse(host.lines)))[-1]
    assert modules
    found = host.appraise(whole(host), first=0)
    assert (found.level, found.code) == (4, "ima-unmeasured") and "ima_policy=tcb" in found.remedy


def line(path: bytes, digest: bytes, signature: bytes | None = None, name: bytes = b"ima-sig") -> bytes:
    data = struct.pack("<I", len(digest)) + digest + struct.pack("<I", len(path) + 1) + path + b"\0"
    data += struct.pack("<I", len(signature or b"")) + (signature or b"")
    head = struct.pack("<I", 10) + hashlib.sha1(data).digest() + struct.pack("<I", len(name)) + name
    return head + struct.pack("<I", len(data)) + data


def add(host: Host, raw: bytes) -> None:
    host.lines += raw
    host.tpm.pcrs[10] = list(ima.replay(ima.parse(host.lines)))[-1]


CONTENT = b"sha256:\0" + hashlib.sha256(b"program").digest()


def signature(key: Any, digest: bytes = hashlib.sha256(b"program").digest(), algorithm: int = 4) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[-4:]
    if isinstance(key, rsa.RSAPrivateKey):
        raw = key.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    else:
        raw = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    return bytes((3, 2, algorithm)) + identifier + struct.pack(">H", len(raw)) + raw


def pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


@pytest.fixture(scope="module", params=["rsa", "ecc"])
def signer(request: pytest.FixtureRequest) -> Any:
    return rsa.generate_private_key(65537, 2048) if request.param == "rsa" else ec.generate_private_key(ec.SECP256R1())


def test_a_signed_file_is_allowed_by_its_key(host: Host, signer: Any) -> None:
    rules = whole(host, keys=[pem(signer)])
    add(host, line(b"/usr/bin/new", CONTENT, signature(signer)))
    assert host.appraise(rules, first=0).code == "ok"
    assert host.appraise(whole(host, keys=[]) | {"ima": {**rules["ima"], "keys": []}}, first=0).code == "ima-file"


@pytest.mark.parametrize("change", ["other content", "other key", "hash", "cut", "long", "version", "no signature"])
def test_signatures_that_do_not_count(host: Host, signer: Any, change: str) -> None:
    rules = whole(host, keys=[pem(signer)])
    digest, made = CONTENT, signature(signer)
    if change == "other content":
        digest = b"sha256:\0" + hashlib.sha256(b"another").digest()
    elif change == "other key":
        other = ec.generate_private_key(ec.SECP256R1())
        made = signature(other)[:3] + made[3:7] + signature(other)[7:]
    elif change == "hash":
        made = made[:2] + b"\2" + made[3:]
    elif change == "cut":
        made = made[:-1]
    elif change == "long":
        made += b"\0"
    elif change == "version":
        made = b"\3\3" + made[2:]
    else:
        made = b""
    add(host, line(b"/usr/bin/new", digest, made))
    assert host.appraise(rules, first=0).code == "ima-file"


def test_exclusions_are_by_path(host: Host) -> None:
    rules = whole(host, exclude=["/var/cache/*", "/tmp/*.o"])
    add(host, line(b"/var/cache/x", CONTENT))
    assert host.appraise(rules, first=0).code == "ok"
    add(host, line(b"/var/lib/x", CONTENT))
    assert host.appraise(rules, first=0).code == "ima-file"


def test_a_violation_under_an_excluded_name(host: Host) -> None:
    """The path in a violation is not measured: anybody may write another one there."""
    raw = line(b"/var/cache/x", b"sha256:\0" + bytes(32))
    rules = whole(host, exclude=["/var/cache/*"])
    add(host, raw[:4] + bytes(20) + raw[24:])
    assert host.appraise(rules, first=0).code == "ima-violation"
    rules["ima"]["violations"] = "ignore"
    assert host.appraise(rules, first=0).code == "ok"


def test_a_file_passed_off_as_a_violation(host: Host) -> None:
    """The digest is wiped, so that the line would be skipped: but then it leads elsewhere."""
    rules = whole(host, violations="ignore")
    raw = line(b"/usr/bin/evil", CONTENT)
    add(host, raw)
    host.lines = host.lines[: -len(raw)] + raw[:4] + bytes(20) + raw[24:]
    assert host.appraise(rules, first=0).code == "ima-mismatch"


def test_an_unknown_template_is_known_by_its_digest(host: Host) -> None:
    raw = line(b"whatever", CONTENT, name=b"d-ng|n-ng|mine")
    rules = whole(host)
    add(host, raw)
    found = host.appraise(rules, first=0)
    assert found.code == "ima-file" and "unknown template" in found.reason
    rules["ima"]["entries"] = [ima.measured(ima.parse(raw)[0]).hex()]
    assert host.appraise(rules, first=0).code == "ok"


def test_a_list_begun_without_a_tpm(host: Host) -> None:
    rules = whole(host)
    host.lines = b""
    add(host, line(b"boot_aggregate", b"sha256:\0" + bytes(32)))
    found = host.appraise(rules, first=0)
    assert found.code == "ima-aggregate" and "no TPM" in found.reason
    host.lines = b""
    add(host, line(b"/init", CONTENT))
    assert host.appraise(rules, first=0).code == "ima-aggregate"


# -- the quote of PCR 10 ------------------------------------------------------------
def forged(host: Host, **changes: Any) -> verifier.Verified:
    made = host.tpm.measurements(host.context, host.lines)
    evidence = dataclasses.replace(
        host.tpm.evidence(host.context, PCRS["shim-grub"]),
        boot_log=host.log,
        ima=dataclasses.replace(made, **changes),
    )
    expected = Expected(host.context, PCRS["shim-grub"], None, None, policy.parse(whole(host)))
    return verifier.verify_quote(evidence, host.bound, expected)


def test_pcr_10_with_another_value_than_quoted(host: Host) -> None:
    with pytest.raises(refusals.WrongDigest):
        forged(host, value=bytes(32))


def test_pcr_10_by_a_quote_of_other_pcrs(host: Host) -> None:
    for pcrs in ((7,), (7, 10), ()):
        attest = host.tpm.attest(host.context.qualifying(), pcrs)
        with pytest.raises(refusals.WrongSelection):
            forged(host, attest=attest, signature=host.tpm.sign(attest))


def test_pcr_10_by_an_old_quote(host: Host) -> None:
    attest = host.tpm.attest(dataclasses.replace(host.context, nonce=bytes(32)).qualifying(), (10,))
    with pytest.raises(refusals.WrongQualifyingData):
        forged(host, attest=attest, signature=host.tpm.sign(attest))


def test_pcr_10_by_another_key(host: Host) -> None:
    other = type(host.tpm)()
    other.pcrs = host.tpm.pcrs
    made = other.measurements(host.context, host.lines)
    with pytest.raises(refusals.WrongSignature):
        forged(host, attest=made.attest, signature=made.signature)


def test_pcr_10_from_another_boot(host: Host) -> None:
    host_clock = host.tpm.clock
    host.tpm.clock = (900, 4, 0, 1)
    old = host.tpm.attest(host.context.qualifying(), (10,))
    host.tpm.clock = host_clock
    with pytest.raises(refusals.OtherBoot):
        forged(host, attest=old, signature=host.tpm.sign(old))
