"""Tests of the table about what lies below a host's kernel (firmware, microcode, boot settings).

It shows the source of each fact and the policy's terms (``tcb``). Some hosts lie in their grains, or send noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import salt.utils.minions
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import boot_entry_forge as forge
from support.attestation import boot_forge, runner_bus, small_fleet, tcb_policies
from support.attestation.boot_forge import measured
from support.attestation.honest_minion import Minion

from netspace.attestation.evidence import Evidence
from netspace.attestation.fleet import base_report
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.logs import events
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy.tcb import Tcb
from netspace.attestation.tcb import report
from netspace.attestation.tcb.report import TOLD, Row
from netspace.plugin import base_view, tables, views

GRAIN: dict[str, Any] = {
    "microcode": "0xf0",
    "firmware": {"vendor": "Maker", "version": "1.24.0", "date": "07/05/2023", "release": "1.24"},
    "uefi": {"uefi": True, "secure_boot": True, "setup_mode": False, "network_entries": ["0003 PXE"]},
    "bmc": {"present": True, "interfaces": ["KCS, IPMI 2.0"], "version": "1.47", "problem": None},
    "iommu": {"on": True, "units": ["dmar0"], "groups": 14},
    "thunderbolt": {"present": True, "security": "user"},
    "usb": {"controllers": 2, "closed": False, "usbguard": True},
    "lockdown": "integrity",
    "network": [{"name": "eth0", "driver": "igb", "pci": "8086:1533", "firmware": "3.25"}],
    "disks": [{"name": "nvme0", "model": "Disk", "pci": "144d:a80a", "firmware": None}],
    "hsi": "HSI:2!",
}


def sent(boot: str = "shim-grub", edit: Any = lambda found: None, pcrs: Any = range(8)) -> Evidence:
    log, values = boot_forge.edited(boot, edit)
    return Evidence("tpm", b"", b"", b"", {pcr: values[pcr] for pcr in pcrs}, log)


def by_part(found: list[Row], measured: bool) -> dict[str, Row]:
    return {row.part: row for row in found if (row.source != TOLD) is measured}


# -- what is measured ------------------------------------------------------------------
def test_a_real_boot_shows_what_is_measured() -> None:
    found = by_part(report.rows(None, sent(), None), True)
    assert found["firmware version"][1:3] == (tcb_policies.VERSION, "measured in PCR 0")
    assert found["boot order"].value == "known"
    assert found["network boot entries"][1:3] == ("none", "measured in PCR 1")
    assert found["unclear boot entries"].value == "2: UEFI Misc Device, UiApp"
    assert found["Secure Boot"][1:3] == ("on", "measured in PCR 7") and found["dbx"].value == "1 digest"
    assert found["protection against DMA"].value == "not reported as off"
    assert all(row.term == "" and row.holds is None for row in found.values())


def test_terms_are_compared_with_what_is_measured() -> None:
    platform = frozenset(map(bytes.fromhex, tcb_policies.platform(boot_forge.log("shim-grub"))))
    terms = Tcb(network_boot="never", dma_protection="on", firmware=(tcb_policies.VERSION,), platform=platform)

    def edit(found: list[Event]) -> None:
        entry = forge.option(forge.MAC, "PXE")
        at = next(at for at, one in enumerate(found) if one.type == events.VARIABLE_BOOT)
        found.insert(at, measured(1, events.VARIABLE_BOOT, forge.named(3, entry), entry))
        found.insert(0, measured(7, events.EFI_ACTION, b"DMA Protection Disabled"))
        found[tcb_policies.version(boot_forge.log("shim-grub"))] = measured(
            0, events.CRTM_VERSION, boot_forge.wide("1")
        )

    good, bad = (by_part(report.rows(None, one, terms), True) for one in (sent(), sent(edit=edit)))
    for part in ("firmware version", "network boot entries", "protection against DMA"):
        assert good[part].holds is True and bad[part].holds is False and good[part].term == bad[part].term != ""
    assert bad["network boot entries"].value == "1: PXE" and bad["firmware version"].value == "1"
    assert bad["Secure Boot"].value == "on", "the firmware's word on DMA hides nothing else"


def test_what_a_log_does_not_prove_is_not_shown_as_measured() -> None:
    told = sent()
    values = {**told.pcrs, 0: bytes(32), 1: bytes(32)}
    found = report.rows(None, Evidence("tpm", b"", b"", b"", values, told.boot_log), None)
    parts = by_part(found, True)
    assert "does not lead" in parts["PCR 0"].value and "does not lead" in parts["PCR 1"].value
    assert "firmware version" not in parts and "boot order" not in parts and parts["Secure Boot"].value == "on"
    parts = by_part(report.rows(None, sent(pcrs=(0,)), None), True)
    assert parts["PCR 7"].value == "it is not quoted" and parts["firmware version"].value == tcb_policies.VERSION


def test_a_version_that_the_log_only_claims_is_not_shown() -> None:
    def edit(found: list[Event]) -> None:
        at = tcb_policies.version(boot_forge.log("shim-grub")) - 1
        found[at] = measured(0, events.CRTM_VERSION, boot_forge.wide("new"), b"old")
        found.append(measured(0, events.CRTM_VERSION, boot_forge.wide("later")))

    found = by_part(report.rows(None, sent(edit=edit), None), True)
    assert found["firmware version"].value == "measured, but the version is not a text"


def test_evidence_without_a_log_shows_why() -> None:
    found = report.rows(None, Evidence("tpm", b"", b"", b"", {0: bytes(32)}), None)
    assert found[0].part == "boot log" and "no boot log" in found[0].value


# -- what the host tells ----------------------------------------------------------------
def test_what_the_host_tells_is_marked_as_told() -> None:
    found = by_part(report.rows(GRAIN, None, None), False)
    assert len(found) == 13 and {row.source for row in found.values()} == {TOLD}
    assert found["management controller"].value == "present (KCS, IPMI 2.0, 1.47)"
    assert found["network card eth0"].value == "igb, 8086:1533, firmware 3.25"
    assert found["disk nvme0"].value == "Disk, 144d:a80a, firmware unknown"
    assert found["firmware"].value == "Maker, 1.24.0, 07/05/2023" and found["fwupd"].value == "HSI:2!"


@pytest.mark.parametrize(
    ("terms", "part", "holds"),
    [
        (Tcb(microcode=0xF0), "microcode", True),
        (Tcb(microcode=0xF1), "microcode", False),
        (Tcb(bmc="absent"), "management controller", False),
        (Tcb(iommu="on"), "IOMMU", True),
        (Tcb(usb="closed"), "USB closed", False),
        (Tcb(lockdown="integrity"), "lockdown", True),
        (Tcb(lockdown="confidentiality"), "lockdown", False),
        (Tcb(thunderbolt="authorized"), "Thunderbolt", True),
        (Tcb(thunderbolt="absent"), "Thunderbolt", False),
    ],
)
def test_a_term_is_compared_with_the_host_s_word(terms: Tcb, part: str, holds: bool) -> None:
    found = by_part(report.rows(GRAIN, None, terms), False)
    assert found[part].holds is holds and found[part].term
    assert by_part(report.rows({}, None, terms), False)[part].holds is None, "what is not told is not known"


def test_a_host_without_the_grain_says_so() -> None:
    assert "sync the grains" in report.rows(None, None, None)[0].value


def noise() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.floats()
    return st.recursive(
        leaves, lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=9), one), max_leaves=8
    )


@given(st.dictionaries(st.sampled_from(sorted(GRAIN)), noise()), noise())
@settings(max_examples=200, deadline=None)
def test_a_hostile_grain_gives_rows_and_a_table(parts: dict[str, Any], whole: Any) -> None:
    terms = Tcb(microcode=1, bmc="absent", iommu="on", usb="closed", lockdown="integrity", thunderbolt="absent")
    for told in ({**GRAIN, **parts}, whole):
        rows = report.rows(told, None, terms)
        assert all(row.value.isprintable() and len(row.value) <= report.MAX_VALUE + 20 for row in rows)
        assert len(rows) <= 11 + 2 * report.MAX_ROWS
        lines = shown({"web1": {"rows": report.shown(rows), "measured": None, "note": ""}})
        assert all(tables.columns(line) <= tables.WIDTH and line.isprintable() for line in lines)


# -- the table --------------------------------------------------------------------------
def shown(hosts: Any) -> list[str]:
    found = views.render({"tcb_of": hosts}, views.Screen(1_000_000.0, tables.plain))
    assert found is not None
    return found


def test_the_table_begins_with_terms_that_do_not_hold() -> None:
    rows = report.shown(report.rows(GRAIN, sent(), Tcb(bmc="absent", microcode=1)))
    lines = shown({"web1": {"rows": rows, "measured": 999_940.0, "note": ""}})
    assert lines[0].strip() == "web1: measured 1 min ago" and lines[1].split() == ["PART", "VALUE", "SOURCE", "TERM"]
    assert "management controller" in lines[2] and "bmc: absent" in lines[2] and "told" in lines[2]
    assert "the term bmc: absent does not hold" in lines[3] and "microcode" in lines[4]
    assert any("firmware version" in line and "PCR 0" in line for line in lines)
    assert all(tables.columns(line) <= tables.WIDTH for line in lines)


@pytest.mark.parametrize(
    "hosts", [None, [], {"web1": None}, {"web1": {"rows": 3}}, {"web1": {"rows": [1], "measured": 0}}]
)
def test_a_return_of_another_form_is_no_table(hosts: Any) -> None:
    with pytest.raises(views.MALFORMED):
        base_view.lines({"tcb_of": hosts}, 1.0, tables.plain)


# -- the fleet and its runner -------------------------------------------------------------
def test_the_fleet_s_last_evidence_is_what_is_measured(made: Fleet, minion: Minion, logged: bytes) -> None:
    assert "no genuine quote" in base_report.of_host(made, "web1", GRAIN)["note"]
    small_fleet.judged(made, minion, logged)
    assert "does not chain" in base_report.of_host(made, "web1", GRAIN)["note"]
    small_fleet.trusted(made, minion)
    pcrs = {str(pcr): [minion.tpm.pcrs[pcr].hex()] for pcr in range(8)}
    made.policies.put("web", {"version": 2, "boot": {"pcrs": pcrs}, "tcb": {"dma_protection": "on", "bmc": "absent"}})
    record = small_fleet.judged(made, minion, logged)
    assert record["code"] == "tcb-told" and record["level"] == 3
    found = base_report.of_host(made, "web1", GRAIN)
    assert found["note"] == "" and found["measured"]
    terms = {row["part"]: row["holds"] for row in found["rows"] if row["term"]}
    assert terms == {"protection against DMA": True, "management controller": False}


def test_the_runner_shows_hosts_that_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = runner_bus.load(tmp_path, {})
    monkeypatch.setattr(
        runner, "_known", lambda fleet, pattern: [one for one in ("web1", "web2") if pattern in (one, "*")]
    )
    told = {"web1": {"netspace_tcb": GRAIN}, "web2": None}
    monkeypatch.setattr(salt.utils.minions, "get_minion_data", lambda minion, opts: (minion, told[minion], None))
    found = runner.tcb()
    assert "retcode" not in found and set(found["tcb_of"]) == {"web1", "web2"}
    assert any(row["part"] == "microcode" and row["value"] == "0xf0" for row in found["tcb_of"]["web1"]["rows"])
    assert "sync the grains" in found["tcb_of"]["web2"]["rows"][0]["value"]
    assert set(runner.tcb("web2")["tcb_of"]) == {"web2"}
    assert runner.tcb("absent")["code"] == "input"
    boot = {"pcrs": {str(pcr): [] for pcr in range(8)}}
    runner._fleet().policies.put("default", {"version": 1, "boot": boot, "tcb": {"bmc": "absent"}})
    assert runner.tcb("web1")["retcode"] == 1
