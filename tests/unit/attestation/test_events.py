"""A boot log is shown to people, with marks at the parts that were really measured."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import boot_logs

from netspace.attestation.logs import eventlog, events
from netspace.attestation.logs.eventlog import Event

SHIM = eventlog.parse(boot_logs.read("shim-grub/binary_bios_measurements"))
LINE = "/vmlinuz root=/dev/nvme0n1 rootfstype=ext4 rw console=ttyS0 quiet systemd.show_status=0 ima_policy=tcb"


def shown(**wanted: object) -> list[dict]:
    found = [events.describe(event) for event in SHIM.events]
    return [one for one in found if wanted.items() <= one.items()]


def test_a_whole_log() -> None:
    report = events.report(SHIM)
    values = boot_logs.values("shim-grub")
    assert {int(pcr): value for pcr, value in report["banks"]["sha256"].items()} == {
        pcr: values[pcr].hex() for pcr in (*range(10), 14)
    }
    assert set(report["banks"]) == {"sha1", "sha256", "sha384", "sha512"}
    assert len(report["events"]) == len(SHIM.events)
    assert all(one.get("matches", True) for one in report["events"])


def test_variables_paths_and_command_lines() -> None:
    (boot,) = shown(variable="SecureBoot")
    assert boot["data"] == "01" and boot["guid"] == events.GLOBAL and boot["matches"] is True
    (db, authority) = shown(variable="db")
    assert db["certificates"][1] == authority["certificate"]
    (dbx,) = shown(variable="dbx")
    assert dbx["digests_listed"] == 1
    (option,) = shown(variable="Boot0001")
    assert option["text"] == "UEFI Misc Device" and option["path"] == "ACPI(d041030a,0)/PCI(2,0)"
    assert shown(type="EV_EFI_BOOT_SERVICES_APPLICATION")[1]["path"] == "\\EFI\\BOOT\\grubx64.efi"
    assert shown(text=f"kernel_cmdline: {LINE}")
    assert shown(tag="0x8f3b22ec", text="Linux initrd", pcr=9)


def test_a_command_line_is_one_by_its_claim_and_matches_by_its_digest() -> None:
    lines = [event for event in SHIM.events if events.is_command_line(event)]
    assert [events.text(event.data) for event in lines] == [f"kernel_cmdline: {LINE}"]
    (event,) = lines
    assert events.describe(event)["matches"] is True
    forged = Event(event.pcr, event.type, event.digests, event.data.replace(b"quiet", b"debug"))
    assert events.is_command_line(forged) and events.describe(forged)["matches"] is False
    wide = "root=/dev/vda ro\0".encode("utf-16-le")
    stub = Event(12, events.IPL, {"sha256": hashlib.sha256(wide).digest()}, wide)
    assert events.is_command_line(stub) and events.text(wide) == "root=/dev/vda ro"


def test_data_that_is_not_what_was_measured_is_told() -> None:
    action = Event(4, events.EFI_ACTION, {"sha256": hashlib.sha256(b"x").digest()}, b"y")
    assert events.describe(action)["matches"] is False


def test_text_is_bounded_and_harmless() -> None:
    long = events.describe(Event(5, events.ACTION, {}, b"a" * 5000))
    assert len(long["text"]) == events.MAX_TEXT + 3
    assert "text" not in events.describe(Event(5, events.ACTION, {}, b"\x1b[31mred"))
    assert events.describe(Event(5, 0x12345678, {}, b"\xff" * 100))["type"] == "0x12345678"


@pytest.mark.parametrize("data", [b"", b"\0" * 31, bytes(16) + b"\xff" * 16, bytes(32) + b"x"])
def test_variables_that_are_none(data: bytes) -> None:
    assert events.variable(data) is None
    assert "data" in events.describe(Event(7, events.VARIABLE_DRIVER_CONFIG, {}, data)) or data == b""


def test_signature_lists_that_are_none() -> None:
    head = bytes(16) + (76).to_bytes(4, "little") + bytes(4)
    assert events.signatures(b"") == ([], [])
    assert events.signatures(head + (48).to_bytes(4, "little") + bytes(48)) == ([], [])  # of another kind
    for bad in (b"x", head + (0).to_bytes(4, "little") + bytes(48), head + (48).to_bytes(4, "little") + bytes(47)):
        assert events.signatures(bad) is None


def test_device_paths_end() -> None:
    assert events.device_path(b"\x04\x04\x00\x00" * 4).endswith("...")
    assert events.device_path(b"\x09\x09\x04\x00" * 1000).count("9.9") == events.MAX_LIST
    assert events.device_path(b"") == "..."


@settings(max_examples=500, deadline=None)
@given(kind=st.sampled_from([*events.TYPES, 0xFFFF]), pcr=st.integers(0, 23), data=st.data())
def test_any_data_is_described(kind: int, pcr: int, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([event.data for event in SHIM.events])))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    event = Event(pcr, kind, {"sha256": bytes(32)}, bytes(raw))
    assert events.describe(event)["pcr"] == pcr
    assert len(str(events.describe(event))) < 20_000
    events.is_command_line(event)
    events.tag(event)
