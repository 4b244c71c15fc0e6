"""Terms of a policy for what lies below the kernel: each is proved by digests, or gives no L4."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from support.attestation import boot_entry_forge as forge
from support.attestation import boot_forge, boot_logs, tcb_policies
from support.attestation.boot_forge import PCRS, measured
from support.attestation.judged_host import Host

from netspace.attestation import refusals
from netspace.attestation.evidence import Evidence
from netspace.attestation.learning import policy as learning
from netspace.attestation.logs import eventlog, events
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import policy
from netspace.attestation.policy import tcb as terms_of
from netspace.attestation.policy.policy import PolicyError
from netspace.attestation.verifier import appraisal, tcb_rules
from netspace.attestation.verifier.extensions import Extension

GOOD = {"firmware": [tcb_policies.VERSION], "dma_protection": "on"}
ENTRY = forge.option(forge.DISK + forge.FILE)


@pytest.fixture
def terms(either: Host) -> dict[str, Any]:
    return {**GOOD, **tcb_policies.network_boot(either.boot)}


def at_entries(found: list[Event]) -> int:
    return next(at for at, one in enumerate(found) if one.pcr == 1 and one.type == events.VARIABLE_BOOT)


def added(content: bytes, at: Callable[[list[Event]], int] = at_entries, kind: int = events.VARIABLE_BOOT) -> Any:
    """Return an edit by which firmware measures *content* as the content of a boot entry."""
    return lambda found: found.insert(at(found), measured(1, kind, forge.named(7, content), content))


# -- network_boot ------------------------------------------------------------------
def test_real_boots_satisfy_terms_that_are_proved(either: Host, terms: dict[str, Any]) -> None:
    found = either.appraise(tcb_policies.policy(either.boot, terms))
    assert (found.level, found.code) == (4, "ima-policy-none"), found.reason


@pytest.mark.parametrize("path", forge.NETWORK)
@pytest.mark.parametrize("whole", [False, True])
def test_a_boot_entry_to_a_network_gives_no_l4(host: Host, path: str, whole: bool) -> None:
    content = forge.option(forge.NETWORK[path])
    data = forge.named(7, content)
    host.edit(lambda found: found.insert(at_entries(found), measured(1, 0x8000000C, data, data if whole else content)))
    found = host.appraise(tcb_policies.policy(host.boot, tcb_policies.network_boot(host.boot)))
    assert found.level == 3 and found.code == refusals.NetworkBoot.code
    assert host.appraise(tcb_policies.policy(host.boot, GOOD)).level == 4, "a policy without the term judges as before"


def test_an_entry_to_a_network_that_is_listed_is_refused(host: Host) -> None:
    content = forge.option(forge.MAC)
    host.edit(added(content))
    wanted = tcb_policies.network_boot(host.boot)
    wanted["platform"].append(hashlib.sha256(content).hexdigest())
    assert host.appraise(tcb_policies.policy(host.boot, wanted)).code == "tcb-network-boot"


def test_an_entry_to_a_local_disk_needs_no_list(host: Host) -> None:
    host.edit(added(ENTRY))
    assert host.appraise(tcb_policies.policy(host.boot, tcb_policies.network_boot(host.boot))).level == 4


@pytest.mark.parametrize("kind", [0x0A, 0x80000009, events.SEPARATOR, events.IPL])
def test_a_network_entry_under_another_name_gives_no_l4(host: Host, kind: int) -> None:
    """A forger logs a network entry's digest as another kind of event, such as an ACPI table: the level is below L4."""
    content = forge.option(forge.MAC)
    host.edit(lambda found: found.insert(at_entries(found), measured(1, kind, b"ACPI DATA", content)))
    assert host.appraise(tcb_policies.policy(host.boot, tcb_policies.network_boot(host.boot))).code == "tcb-platform"


def test_what_the_platform_does_not_list_is_refused(host: Host) -> None:
    wanted = tcb_policies.network_boot(host.boot)
    del wanted["platform"][0]
    found = host.appraise(tcb_policies.policy(host.boot, wanted))
    assert found.code == refusals.UnknownPlatform.code and "tcb:platform" in found.reason


def test_an_order_after_the_separator_proves_nothing(host: Host) -> None:
    """A boot order that was measured after the separator doesn't count, since root can extend PCR 1 later."""

    def edit(found: list[Event]) -> None:
        order = found.pop(at_entries(found))
        found.append(order)

    host.edit(edit)
    found = host.appraise(tcb_policies.policy(host.boot, tcb_policies.network_boot(host.boot)))
    assert found.code == "tcb-network-boot" and "no boot order before the separator" in found.reason
    wanted = {**tcb_policies.network_boot(host.boot), "network_boot": "no-entry"}
    assert host.appraise(tcb_policies.policy(host.boot, wanted)).level == 4
    entry = forge.option(forge.MAC)
    host.edit(lambda found: found.append(measured(1, events.VARIABLE_BOOT, forge.named(7, entry), entry)))
    assert host.appraise(tcb_policies.policy(host.boot, wanted)).code == "tcb-network-boot"


@pytest.mark.parametrize("pcr", [0, 1, 2, 4])
def test_network_boot_rests_on_firmware_and_programs(host: Host, pcr: int) -> None:
    rules = tcb_policies.policy(host.boot, tcb_policies.network_boot(host.boot))
    rules["boot"]["unchecked"].append(pcr)
    rules["boot"]["pcrs"].pop(str(pcr), None)
    with pytest.raises(PolicyError, match=rf"policy:(tcb:network_boot|boot:.*): only PCR {pcr} proves it"):
        policy.accepted(rules)
    assert host.appraise(rules).code == "policy-uncovered"


# -- firmware and DMA ----------------------------------------------------------------
def test_another_version_of_the_firmware_gives_no_l4(host: Host) -> None:
    version = tcb_policies.version(boot_forge.log(host.boot)) - 1
    host.edit(lambda found: found.__setitem__(version, measured(0, events.CRTM_VERSION, boot_forge.wide("2019.1"))))
    rules = tcb_policies.policy(host.boot, {"firmware": [tcb_policies.VERSION]})
    assert host.appraise(rules).code == "pcr-value" or host.appraise(rules).code == "tcb-firmware"
    rules["boot"]["pcrs"]["0"].append(host.tpm.pcrs[0].hex())  # both firmwares are known, and one is too old
    found = host.appraise(rules)
    assert found.code == refusals.OldFirmware.code and "2019.1" in found.reason
    rules["tcb"]["firmware"] = ["2019.1"]
    assert host.appraise(rules).level == 4


def test_a_version_that_was_added_later_proves_nothing(host: Host) -> None:
    host.edit(lambda found: found.append(measured(0, events.CRTM_VERSION, boot_forge.wide("2026.1"))))
    rules = tcb_policies.policy(host.boot, {"firmware": ["2026.1"]})
    rules["boot"]["pcrs"]["0"] = [host.tpm.pcrs[0].hex()]
    assert host.appraise(rules).code == "tcb-firmware"


@pytest.mark.parametrize("kind", [events.EFI_ACTION, events.SEPARATOR, events.VARIABLE_DRIVER_CONFIG])
@pytest.mark.parametrize("data", [b"DMA Protection Disabled", b"DMA Protection Disabled\0", b"something else"])
def test_a_firmware_without_dma_protection_gives_no_l4(host: Host, kind: int, data: bytes) -> None:
    of = data if data.startswith(b"DMA") else b"DMA Protection Disabled"
    host.edit(lambda found: found.insert(0, measured(7, kind, data, of)))
    rules = tcb_policies.policy(host.boot, {"dma_protection": "on"})
    assert host.appraise(rules).code == refusals.DmaUnprotected.code
    loose = dict.fromkeys(("secure_boot", "dbx", "signers", "sbat"))
    rules = tcb_policies.policy(host.boot, {"dma_protection": "on"}, **loose)
    rules["boot"]["pcrs"]["7"] = [host.tpm.pcrs[7].hex()]  # learned while it was off
    assert host.appraise(rules).code == "tcb-dma"
    assert host.appraise({**rules, "tcb": {"usb": "closed"}}).code == "tcb-told"


# -- what a line proves, and what nothing proves ---------------------------------------
@pytest.mark.parametrize(
    "term",
    [
        {"microcode": ">=0xf0"},
        {"bmc": "absent"},
        {"iommu": "on"},
        {"thunderbolt": "authorized"},
        {"lockdown": "integrity"},
        {"usb": "closed"},
    ],
)
def test_a_term_that_nothing_proves_gives_no_l4(either: Host, term: dict[str, str]) -> None:
    found = either.appraise(tcb_policies.policy(either.boot, {**GOOD, **term}))
    assert (found.level, found.code) == (3, refusals.ToldOnly.code) and next(iter(term)) in found.reason


def spoken(host: Host, line: str) -> None:
    def edit(found: list[Event]) -> None:
        for at, one in enumerate(found):
            tagged = events.tag(one)
            if one.data.startswith(b"kernel_cmdline: "):
                found[at] = measured(8, events.IPL, b"kernel_cmdline: " + line.encode() + b"\0", line.encode())
            elif tagged and tagged[0] == boot_forge.TAG_OPTIONS:
                found[at] = measured(9, one.type, one.data, f"BOOT_IMAGE={line}".encode("utf-16-le"))

    host.edit(edit)


SPOKEN = {"lockdown": "integrity", "usb": "closed"}


def test_terms_on_a_line_need_the_list_that_proves_its_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A term on the command line is proved only by an IMA list, whose first line has the PCRs at the kernel's start.

    Without the list, root could boot without the line, and extend PCR 8 by it later.
    """
    line = f"/vmlinuz {tcb_policies.SPOKEN}"
    spoken(host, line)
    rules = tcb_policies.policy(host.boot, SPOKEN, command_lines=[line])
    found = host.appraise(rules)
    assert (found.level, found.code) == (
        3,
        "tcb-told",
    ) and "may have added the command line after the boot" in found.reason
    monkeypatch.setattr(appraisal, "_programs", lambda *given: appraisal.Appraisal(5, "ok", "", ""))
    assert host.appraise(rules).level == 5
    pattern = line.replace("quiet", "*")
    assert host.appraise(tcb_policies.policy(host.boot, SPOKEN, command_lines=[pattern])).code == "tcb-told"
    both = [line, f"/vmlinuz {boot_forge.LINE}"]
    assert host.appraise(tcb_policies.policy(host.boot, SPOKEN, command_lines=both)).code == "tcb-told"


def test_entries_of_a_firmware_without_a_separator_prove_nothing(host: Host) -> None:
    host.edit(lambda found: found.__setitem__(slice(None), [one for one in found if not separates(one)]))
    for word in ("never", "no-entry"):
        wanted = {**tcb_policies.network_boot(host.boot), "network_boot": word}
        found = host.appraise(tcb_policies.policy(host.boot, wanted))
        assert found.code == "tcb-network-boot" and "no separator" in found.reason


def separates(event: Event) -> bool:
    return event.pcr == 1 and event.type == events.SEPARATOR


def test_a_line_without_a_judged_kernel_proves_no_term(host: Host) -> None:
    line = f"/vmlinuz {tcb_policies.SPOKEN}"
    rules = tcb_policies.policy(host.boot, SPOKEN, command_lines=[line], kernels=None, initrds=None, files=None)
    found = policy.parse(rules).boot
    assert found is not None and tcb_rules.told(found, frozenset((8,))) == ["lockdown", "usb"]
    whole = policy.parse(tcb_policies.policy(host.boot, SPOKEN, command_lines=[line])).boot
    assert whole is not None and tcb_rules.told(whole, frozenset((8,))) == []
    assert tcb_rules.told(whole, frozenset()) == ["lockdown", "usb"], "the line may have been added after the boot"


@pytest.mark.parametrize(
    ("term", "line", "said"),
    [
        ("lockdown", "root=x lockdown=integrity", True),
        ("lockdown", "root=x lockdown=confidentiality", True),
        ("lockdown", "root=x lockdown=none", False),
        ("lockdown", "lockdown=integrity lsm=apparmor", False),
        ("lockdown", "lockdown=integrity lsm=lockdown,apparmor", True),
        ("lockdown", "root=x -- lockdown=integrity", False),
        ("lockdown", 'root="x lockdown=integrity"', False),
        ("lockdown", '"lockdown=integrity"', True),
        ("usb", "usbcore.authorized_default=0", True),
        ("usb", "usbcore.authorized-default=0", True),
        ("usb", "usbcore.authorized_default=0 usbcore.authorized-default=1", False),
        ("usb", "usbcore.authorized_default=2", False),
        ("usb", "usbcore.authorized_default=", False),
        ("usb", "quiet", False),
    ],
)
def test_a_term_is_read_from_a_line_as_the_kernel_reads_it(term: str, line: str, said: bool) -> None:
    assert terms_of.Tcb(lockdown="integrity", usb="closed").said_by(term, line) is said


def test_confidentiality_is_more_than_integrity() -> None:
    wanted = terms_of.Tcb(lockdown="confidentiality")
    assert wanted.said_by("lockdown", "lockdown=confidentiality")
    assert not wanted.said_by("lockdown", "lockdown=integrity")


# -- the section -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("section", "text"),
    [
        ([], "policy:tcb: expected a mapping"),
        ({"colour": "red"}, "policy:tcb:colour: unknown"),
        ({"network_boot": "sometimes"}, "policy:tcb:network_boot: 'sometimes': expected never or no-entry"),
        ({"network_boot": True}, "policy:tcb:network_boot: True: expected never or no-entry"),
        ({"iommu": False}, "policy:tcb:iommu: False: expected on"),
        ({"lockdown": "none"}, "policy:tcb:lockdown: 'none': expected integrity or confidentiality"),
        ({"bmc": ["absent"]}, "policy:tcb:bmc: "),
        ({"platform": []}, "policy:tcb: network_boot is missing"),
        ({"network_boot": "never", "platform": ["ab"]}, "policy:tcb:platform: 'ab': expected 32 bytes"),
        ({"firmware": []}, "policy:tcb:firmware: expected at least one version"),
        ({"firmware": ["x" * 129]}, "policy:tcb:firmware: "),
        ({"firmware": ["a\n"]}, "policy:tcb:firmware: "),
        ({"firmware": "1.0"}, "policy:tcb:firmware: expected a list"),
        ({"microcode": 0xF0}, "policy:tcb:microcode: 240: expected the lowest revision"),
        ({"microcode": ">=240"}, "policy:tcb:microcode: "),
        ({"microcode": ">=0x" + "f" * 17}, "policy:tcb:microcode: "),
    ],
)
def test_a_bad_section_is_refused_with_its_path(section: Any, text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.parse({"version": 1, "boot": {}, "tcb": section})
    assert str(caught.value).startswith(text)


def test_terms_without_a_boot_section_are_refused() -> None:
    with pytest.raises(PolicyError, match="policy:boot is missing"):
        policy.parse({"version": 1, "tcb": {"bmc": "absent"}})


def test_terms_are_no_key_of_the_section_boot() -> None:
    with pytest.raises(PolicyError, match="policy:boot:tcb: unknown"):
        policy.parse({"version": 1, "boot": {"tcb": {"bmc": "absent"}}})


def test_on_is_the_same_in_yaml_and_json() -> None:
    one, other = (policy.parse({"version": 1, "boot": {}, "tcb": {"iommu": on}}) for on in (True, "on"))
    assert one == other and one.boot is not None and one.boot.tcb is not None and one.boot.tcb.iommu == "on"


def test_a_policy_without_terms_is_the_same_policy_as_before() -> None:
    """A policy without ``tcb`` keeps the fingerprint that it had before ``tcb`` existed: results contain it.

    The test has the text whose digest that fingerprint was.
    """
    found = policy.parse({"version": 3, "boot": {"secure_boot": True, "unchecked": [1]}})
    text = b'{"boot":{"secure_boot":true,"unchecked":[1]},"version":3}'
    assert found.fingerprint == hashlib.sha256(text).hexdigest()
    assert found.boot is not None and found.boot.tcb is None and found.boot.judged == frozenset()


# -- other machines --------------------------------------------------------------------
def others() -> list[Any]:
    folder = boot_logs.others()
    found = []
    for path in sorted(folder.rglob("*")) if folder else ():
        if path.suffix in ("", ".bin") and path.is_file() and "own" not in path.parts:
            try:
                log = eventlog.parse(path.read_bytes(), "sha256")
            except refusals.Refused:
                continue
            if "sha256" in log.banks and len(log.events) > 9:
                found.append(pytest.param(log, id=f"{path.parent.name}-{path.name}"))
    return found


@pytest.mark.parametrize("log", others() or [pytest.param(None, marks=pytest.mark.skip("NETSPACE_EVENTLOGS"))])
def test_terms_judge_the_logs_of_real_machines(log: eventlog.EventLog) -> None:
    """Each real log satisfies the terms made from it, with three exceptions.

    These are logs without a separator in PCR 1, with an entry that leads to a network, or with a late boot order.
    """
    told = [one for one in log.events if one.type != eventlog.NO_ACTION]
    extended = [Extension(one.digests["sha256"], one) for one in told if one.pcr == 1]
    early = list(tcb_rules.before_separator(extended))
    separated = len(early) < len(extended)
    ordered = any(entry.kind.name == "ORDER" for one in early if (entry := tcb_rules.entry(one)))
    network = any(entry.kind.name == "NETWORK" for one in extended if (entry := tcb_rules.entry(one)))
    wanted = terms_of.Tcb(network_boot="never", platform=frozenset(tcb_rules.unlisted(extended)))
    loose = dataclasses.replace(wanted, network_boot="no-entry")
    for terms, good in ((wanted, separated and not network and ordered), (loose, separated and not network)):
        try:
            tcb_rules.check({1: extended}, terms)
            accepted = True
        except refusals.NetworkBoot:
            accepted = False
        assert accepted == good
    extended = [Extension(one.digests["sha256"], one) for one in told if one.pcr == 0]
    versions = [one.source for one in extended if one.kind == events.CRTM_VERSION]
    texts = [text for one in versions if isinstance(one, Event) and (text := events.text(one.data))]
    if texts:
        tcb_rules.check({0: extended}, terms_of.Tcb(firmware=tuple(texts)))
        with pytest.raises(refusals.OldFirmware):
            tcb_rules.check({0: extended}, terms_of.Tcb(firmware=("another",)))


# -- learning --------------------------------------------------------------------------
def learned(host: Host, before: dict[str, Any]) -> learning.Learned:
    sent = Evidence("tpm", b"", b"", b"", {pcr: host.tpm.pcrs[pcr] for pcr in PCRS[host.boot]}, host.log)
    return learning.learn(before, {"gold": sent})


def test_learning_lists_what_the_firmware_measures(host: Host) -> None:
    wanted = tcb_policies.network_boot(host.boot)
    unclear = wanted["platform"][-2:]  # two boot entries of QEMU's firmware, whose form does not show where they lead
    before = tcb_policies.policy(host.boot, {"network_boot": "never", "platform": unclear})
    assert host.appraise(before).code == "tcb-platform"
    found = learned(host, before)
    assert set(found.after["tcb"]["platform"]) == set(wanted["platform"]) and not found.notes
    assert "1" not in found.after["boot"]["pcrs"] and host.appraise(found.after).level == 4


def test_learning_leaves_unclear_boot_entries_to_the_operator(host: Host) -> None:
    """Some makers' entries name their network card by a node of their own, so learning must not allow them."""
    before = tcb_policies.policy(host.boot, {"network_boot": "never"})
    host.edit(added(forge.option(forge.node(3, 10, bytes(32)), "PXE BOOT")))
    found = learned(host, before)
    text = "\n".join(found.notes)
    assert "'PXE BOOT'" in text and text.count("its form does not show where it leads") == 3
    assert host.appraise(found.after).code == "tcb-platform"


def test_learning_leaves_hidden_boot_entries_to_the_operator(host: Host) -> None:
    """A host sends an entry's digest with other data, and so hides where the entry leads: learning doesn't allow it."""
    before = tcb_policies.policy(host.boot, {"network_boot": "never"})
    entry = forge.named(7, forge.option(forge.MAC))
    host.edit(lambda found: found.insert(at_entries(found), measured(1, events.VARIABLE_BOOT, b"hidden", entry)))
    found = learned(host, before)
    assert "the log calls it a boot entry, without its content" in "\n".join(found.notes)
    assert hashlib.sha256(entry).hexdigest() not in found.after["tcb"]["platform"]
    assert host.appraise(found.after).code == "tcb-platform"


def test_learning_makes_no_terms(host: Host) -> None:
    sent = Evidence("tpm", b"", b"", b"", {pcr: host.tpm.pcrs[pcr] for pcr in PCRS[host.boot]}, host.log)
    assert "tcb" not in learning.learn(None, {"gold": sent}).after
