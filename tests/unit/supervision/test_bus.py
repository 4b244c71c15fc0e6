"""The few D-Bus messages that are made and read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.supervision.systemd import dbus


def reply(serial: int, signature: bytes, value: bytes, kind: int = dbus.METHOD_RETURN) -> bytes:
    """Make systemd's answer: a header with reply serial and signature, then a variant."""
    fields = struct.pack("<BB", dbus.REPLY_SERIAL, 1) + b"u\0" + struct.pack("<I", serial)
    fields += struct.pack("<BB", dbus.SIGNATURE, 1) + b"g\0\x01v\0"
    body = b"\x01" + signature + b"\0"
    body += b"\0" * (-len(body) % (8 if signature == b"t" else 4)) + value
    head = struct.pack("<cBBBIII", b"l", kind, 1, 1, len(body), 1, len(fields))
    message = head + fields
    return message + b"\0" * (-len(message) % 8) + body


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode() + b"\0"


@pytest.mark.parametrize(
    ("signature", "value", "shown"),
    [
        (b"s", text("active"), "active"),
        (b"u", struct.pack("<I", 4711), "4711"),
        (b"i", struct.pack("<i", -1), "-1"),
        (b"t", struct.pack("<Q", 2**40), str(2**40)),
    ],
)
def test_an_answer(signature: bytes, value: bytes, shown: str) -> None:
    message = reply(7, signature, value)
    assert dbus.size(message[:16]) == len(message)
    assert dbus.answer(message) == (7, shown)
    assert dbus.answer(reply(7, signature, value, kind=dbus.ERROR)) == (7, None)
    assert dbus.answer(reply(7, signature, value, kind=4)) == (0, None)


@given(st.binary(max_size=200))
def test_anything_else_is_a_value_error_or_nothing(raw: bytes) -> None:
    for read in (dbus.size, dbus.answer):
        try:
            read(raw)
        except ValueError:
            continue


@given(st.integers(0, 90), st.integers(0, 255))
def test_a_damaged_answer_is_a_value_error_or_another_answer(at: int, octet: int) -> None:
    message = bytearray(reply(7, b"s", text("active")))
    message[at % len(message)] = octet
    try:
        serial, _ = dbus.answer(bytes(message))
    except ValueError:
        return
    assert serial >= 0


@given(st.integers(1, 2**32 - 1), st.text("abc-_.", min_size=1), st.sampled_from(sorted(dbus.WANTED)))
def test_a_call_says_its_own_size(serial: int, unit: str, name: str) -> None:
    message = dbus.call(serial, dbus.object_path(unit), dbus.WANTED[name], name)
    assert dbus.size(message[:16]) == len(message)
    assert name.encode() in message


def test_object_paths() -> None:
    assert dbus.object_path("netspace-a_b.service") == "/org/freedesktop/systemd1/unit/netspace_2da_5fb_2eservice"


@pytest.mark.parametrize(("text", "number"), [("257.9-1~deb13u1", 257), ("252", 252), ("v255-rc1", 255)])
def test_the_release(text: str, number: int) -> None:
    assert dbus.release(text) == number


@pytest.mark.parametrize("text", ["", "unknown", "-1", "9" * 4000])
def test_no_release(text: str) -> None:
    if text.isdigit():
        assert dbus.release(text) == 999999
        return
    with pytest.raises(ValueError, match="no version"):
        dbus.release(text)
