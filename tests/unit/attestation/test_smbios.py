"""SMBIOS tables, made by the specification: the facts that the parser finds in them, and its limits."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkout
from support.attestation import smbios_forge as forge

from netspace.attestation.refusals import Malformed
from netspace.attestation.tcb import smbios

WHOLE = forge.table(
    forge.bios(), forge.structure(1, bytes(23), ("Maker Ltd", "Box")), forge.ipmi(), forge.host_interface()
)


def test_firmware_and_controllers_are_read() -> None:
    found = smbios.read(WHOLE)
    assert found.firmware == ("Maker Ltd", "1.24.0", "07/05/2023", "1.24")
    assert found.controllers == ((38, "KCS", "2.0"), (42, "network", None))


def test_a_table_without_a_controller_names_none() -> None:
    assert smbios.read(forge.table(forge.bios())).controllers == ()
    assert smbios.read(forge.END) == (None, ())


@pytest.mark.parametrize(
    ("structure", "found"),
    [
        (forge.ipmi(4, 0x15), (38, "SSIF", "1.5")),
        (forge.ipmi(0, 0x20), (38, "kind 0", "2.0")),
        (forge.host_interface(2), (42, "KCS", None)),
        (forge.host_interface(0x99), (42, "kind 153", None)),
    ],
)
def test_kinds_of_controllers(structure: bytes, found: tuple) -> None:
    assert smbios.read(forge.table(structure)).controllers == (found,)


def test_an_old_firmware_without_a_release() -> None:
    assert smbios.read(forge.table(forge.bios(release=(255, 255)))).firmware.release is None  # type: ignore[union-attr]
    short = forge.structure(0, b"\1\2\0\0\3" + bytes(9), ("Maker", "old", "1999"))
    assert smbios.read(forge.table(short)).firmware == ("Maker", "old", "1999", None)


def test_a_number_without_its_string_gives_no_text() -> None:
    assert smbios.read(forge.table(forge.structure(0, b"\1\2\0\0\3" + bytes(9), ("Maker",)))).firmware == (
        *("Maker", None, None, None),
    )


def test_padding_after_the_end_is_not_read() -> None:
    assert smbios.read(WHOLE + b"\xff" * 100) == smbios.read(WHOLE)


def test_texts_are_printable_and_short() -> None:
    found = smbios.read(forge.table(forge.bios("a\x1b[31m\u202e" + "x" * 300))).firmware
    assert found is not None and found.vendor is not None
    assert found.vendor.isprintable() and len(found.vendor) <= smbios.MAX_TEXT


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "ends after 0 bytes"),
        (WHOLE[:-6], "ends after"),
        (WHOLE[:-1], "have no end"),
        (b"\1\3\0\0\0\0", ": 3 bytes are too few"),
        (b"\1\xff\0\0\0\0", ": 255 bytes are too few, or too many"),
        (bytes(smbios.MAX_TABLE + 1), "at most"),
        (forge.structure(1, b"") * (smbios.MAX_STRUCTURES + 1) + forge.END, "more than 4096 structures"),
        (forge.structure(1, b"", ["x"] * 256) + forge.END, "256 strings"),
    ],
)
def test_a_bad_table_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        smbios.read(raw)


def test_entry_points_of_both_kinds_have_a_version() -> None:
    assert smbios.version(forge.entry_point(100)) == (3, 2)
    assert smbios.version(forge.old_entry_point(100)) == (2, 8)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"_SM3_",
        b"_SM_",
        b"_DMI_" + bytes(30),
        forge.entry_point(100)[:-1],
        forge.entry_point(100)[:-1] + b"\1",
        forge.old_entry_point(100)[:20],
    ],
)
def test_a_bad_entry_point_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed, match="smbios"):
        smbios.version(raw)


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_read_or_refused(noise: bytes, start: int, end: int) -> None:
    for raw in (noise, WHOLE[:start] + noise + WHOLE[end:], noise + forge.END):
        try:
            found = smbios.read(raw)
        except Malformed:
            continue
        assert len(found.controllers) <= smbios.MAX_STRUCTURES
        assert all(text is None or text.isprintable() for text in found.firmware or ())
    with contextlib.suppress(Malformed):
        smbios.version(noise)


@pytest.mark.parametrize(
    ("name", "firmware", "controllers"),
    [("qemu", None, ()), ("qemu-bmc", ("QEMU", "1.0", "01/01/2026", "4.2"), ((38, "KCS", "2.0"),))],
)
def test_recorded_tables_are_read(name: str, firmware: tuple | None, controllers: tuple) -> None:
    raw = bytes.fromhex((checkout.ROOT / f"tests/fixtures/bases/{name}.smbios.hex").read_text())
    assert smbios.read(raw) == (firmware, controllers)
    kinds = [one.kind for one in smbios.structures(raw)]
    assert kinds[-1] == smbios.END and {1, 3, 4, 16, 17, 19, 32} <= set(kinds)
