"""Boot entries: where each leads, in the forms in which firmware measures them; and the limits of the parser."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import boot_entry_forge as forge
from support.attestation import boot_logs
from support.attestation.boot_forge import variable, wide

from netspace.attestation.logs import boot_entries, eventlog, events
from netspace.attestation.logs.boot_entries import Kind, read
from netspace.attestation.verifier import tcb_rules
from netspace.attestation.verifier.extensions import Extension

LOCAL = {
    "a partition alone": forge.DISK + forge.FILE,
    "a whole path": forge.ROOT + forge.CARD + forge.NVME + forge.DISK + forge.FILE,
    "two file nodes": forge.DISK + forge.FILE + forge.FILE,
}
OTHER = {
    "a card alone": forge.ROOT + forge.CARD,
    "a file on any disk": forge.FILE,
    "a partition without a file": forge.DISK,
    "a maker's node": forge.node(3, 10, bytes(32)),
    "a maker's node before a partition": forge.node(1, 4, bytes(16)) + forge.DISK + forge.FILE,
    "a program of the firmware": forge.node(4, 7, bytes(16)) + forge.node(4, 6, bytes(16)),
    "a partition of another size": forge.node(4, 1, bytes(10)) + forge.FILE,
    "a partition of no size": forge.node(4, 1) + forge.FILE,
    "a maker's path after a good one": forge.DISK + forge.FILE + forge.END + forge.node(3, 10, bytes(32)),
    "BIOS, a disk": forge.node(5, 1, struct.pack("<HH", 2, 0) + b"disk\0"),
}


def kind(data: bytes) -> Kind | None:
    found = read(data)
    return None if found is None else found.kind


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("path", forge.NETWORK)
def test_an_entry_to_a_network_is_known_in_both_forms(path: str, whole: bool) -> None:
    content = forge.option(forge.NETWORK[path])
    assert kind(forge.named(7, content) if whole else content) is Kind.NETWORK


@pytest.mark.parametrize("path", LOCAL)
def test_an_entry_to_a_file_of_a_disk_is_local(path: str) -> None:
    content = forge.option(LOCAL[path], data=b"options")
    assert kind(content) is Kind.LOCAL and kind(forge.named(1, content)) is Kind.LOCAL


@pytest.mark.parametrize("path", OTHER)
def test_an_entry_to_elsewhere_is_not_local(path: str) -> None:
    assert kind(forge.option(OTHER[path])) is Kind.OTHER


def test_texts_of_an_entry_are_printable() -> None:
    path = forge.DISK + forge.node(4, 4, wide("\\x\x1b[2J\u202e.efi"))
    found = read(forge.option(path, "web\r\n\x1b[31m"))
    assert found is not None and found.kind is Kind.LOCAL
    assert found.path.isprintable() and found.text.isprintable() and found.text.startswith("web")


def test_a_second_path_to_a_network_makes_an_entry_networked() -> None:
    paths = forge.DISK + forge.FILE + forge.END + forge.MAC
    assert kind(forge.option(paths)) is Kind.NETWORK


def test_an_order_is_known_in_both_forms() -> None:
    assert kind(forge.order(1, 0, 0x2001)) is Kind.ORDER and kind(forge.ordered(1, 0)) is Kind.ORDER
    assert boot_entries.order(forge.order(1, 0x10)) == (1, 0x10)
    for numbers in ((), (1, 1), (1, 0x7000), tuple(range(boot_entries.MAX_ORDER + 1))):
        assert boot_entries.order(forge.order(*numbers)) is None


@pytest.mark.parametrize("shift", [0, 1])
def test_no_entry_passes_for_an_order(shift: int) -> None:
    """A boot entry isn't taken for a boot order, whether its end node begins at an even offset or an odd one."""
    uri = forge.node(3, 24, b"http://ab" + bytes(shift))
    content = forge.option(uri, "xy", data=bytes(shift ^ 1))
    assert boot_entries.order(content[: len(content) // 2 * 2]) is None


def test_a_variable_passes_for_no_content_and_no_content_for_one() -> None:
    """A measured content that imitates a whole variable isn't taken for one, nor a variable for a content.

    Some firmware measures only the content of a boot entry, which root may choose.
    """
    whole = forge.named(1, forge.option(LOCAL["a partition alone"]))
    assert int.from_bytes(whole[4:6], "little") > boot_entries.MAX_DATA
    assert boot_entries._order(whole) is None and boot_entries._option(whole) is None
    large = forge.option(LOCAL["a partition alone"], data=bytes(boot_entries.MAX_DATA))
    assert read(large[: boot_entries.MAX_DATA]) is not None
    assert read(large) is None and read(forge.named(1, large[:-64])) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        forge.option(b"")[:-1],
        forge.option(b"\x04\x04\x03\x00"),
        forge.option(forge.DISK)[:-5],
        forge.option(forge.DISK * (boot_entries.MAX_NODES + 1)),
        struct.pack("<IH", 1, 0) + b"\0\0" + forge.END,
        variable(events.SECURITY, "Boot0001", forge.option(forge.DISK + forge.FILE)),
        variable(events.GLOBAL, "BootNext", forge.order(1)),
        variable(events.GLOBAL, "BootOrder", b"\1"),
        variable(events.GLOBAL, "Boot0001", forge.order(1)),
    ],
)
def test_what_is_no_boot_entry_is_not_read(data: bytes) -> None:
    assert read(data) is None


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    for one in (data, forge.option(data), forge.named(1, data), struct.pack("<IH", 1, len(data)) + b"\0\0" + data):
        found = read(one)
        assert found is None or len(found.path) <= events.MAX_TEXT + 3


@given(st.lists(st.sampled_from([*forge.NETWORK.values(), *LOCAL.values(), *OTHER.values()]), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_path_with_a_network_in_it_is_never_local(parts: list[bytes]) -> None:
    found = read(forge.option(b"".join(parts)))
    if any(part in forge.NETWORK.values() for part in parts):
        assert found is not None and found.kind is Kind.NETWORK


EXPECTED = {  # by the log: its entries of each kind, as PCR 1 has them in the SHA-256 bank
    "eventlogwithsp800155.bin": (1, 0, 0),
    "arch-linux-workstation.bin": (1, 2, 0),
    "glinux-alex.bin": (1, 1, 2),
    "event-postcode.bin": (1, 0, 16),
    "uefi_log.bin": (1, 3, 2),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_entries_of_real_machines_are_known_by_their_digests(name: str) -> None:
    folder = boot_logs.others()
    if folder is None:
        pytest.skip("there is no folder of others' logs (NETSPACE_EVENTLOGS)")
    (path,) = folder.rglob(name)
    log = eventlog.parse(path.read_bytes(), "sha256")
    measured = [Extension(one.digests["sha256"], one) for one in log.events if one.pcr == 1 and one.type != 3]
    found = [entry.kind for one in measured if (entry := tcb_rules.entry(one)) is not None]
    assert tuple(found.count(one) for one in (Kind.ORDER, Kind.LOCAL, Kind.NETWORK)) == EXPECTED[name]
