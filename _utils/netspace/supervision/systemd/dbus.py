"""A D-Bus client that reads properties of many systemd units at once, without starting a process.

``systemctl show`` reads all of a unit's 300 properties (1.5 ms per unit); netspace needs
seven. This module implements just enough of the D-Bus protocol (D-Bus Specification, "Message
Protocol") to call ``org.freedesktop.DBus.Properties.Get`` over systemd's own socket, as
systemctl does when root runs it. So no bus daemon is needed. It changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence

SOCKET = "/run/systemd/private"
TIMEOUT = 30.0
BATCH = 64
LARGEST = 1 << 20
METHOD_CALL, METHOD_RETURN, ERROR = 1, 2, 3
PATH, INTERFACE, MEMBER, REPLY_SERIAL, SIGNATURE = 1, 2, 3, 5, 8

UNIT, SERVICE = "org.freedesktop.systemd1.Unit", "org.freedesktop.systemd1.Service"
WANTED = {
    "ActiveState": UNIT,
    "StateChangeTimestampMonotonic": UNIT,
    "MainPID": SERVICE,
    "NRestarts": SERVICE,
    "Result": SERVICE,
    "ExecMainCode": SERVICE,
    "ExecMainStatus": SERVICE,
}


def object_path(unit: str) -> str:
    """Return the object path of *unit*; bytes other than letters and digits become ``_xx``."""
    escaped = "".join(c if c.isascii() and c.isalnum() else "".join(f"_{o:02x}" for o in c.encode()) for c in unit)
    return f"/org/freedesktop/systemd1/unit/{escaped}"


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw + b"\0"


def _pad(raw: bytes, to: int) -> bytes:
    return raw + b"\0" * (-len(raw) % to)


MANAGER = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def call(serial: int, path: str, interface: str, name: str) -> bytes:
    """Return the message that gets the property *name* of the object *path*."""
    body = _pad(_string(interface), 4) + _string(name)
    fields = b""
    for code, kind, value in (
        (PATH, b"o", _string(path)),
        (INTERFACE, b"s", _string("org.freedesktop.DBus.Properties")),
        (MEMBER, b"s", _string("Get")),
        (SIGNATURE, b"g", b"\x02ss\0"),
    ):
        fields = _pad(fields, 8) + struct.pack("<BB", code, 1) + kind + b"\0" + value
    head = struct.pack("<cBBBIII", b"l", METHOD_CALL, 0, 1, len(body), serial, len(fields))
    return _pad(head + fields, 8) + body


def size(head: bytes) -> int:
    """Return the size of the message that begins with these 16 octets.

    :raises ValueError: they don't begin a message, or it is too large.
    """
    if len(head) < 16 or head[0:1] != b"l" or head[3] != 1:
        raise ValueError("not a little-endian D-Bus message")
    body, _, fields = struct.unpack_from("<III", head, 4)
    total = 16 + fields + -fields % 8 + body
    if total > LARGEST:
        raise ValueError("too large")
    return int(total)


def answer(message: bytes) -> tuple[int, str | None]:
    """Return the serial of the call that *message* answers, and the property as text; None for an error.

    The serial of other messages (signals) is 0.

    :raises ValueError: the message is malformed.
    """
    try:
        return _answer(message)
    except (struct.error, IndexError, UnicodeDecodeError) as err:
        raise ValueError(f"a damaged message: {err}") from err


def _answer(message: bytes) -> tuple[int, str | None]:
    kind = message[1]
    if kind not in (METHOD_RETURN, ERROR):
        return 0, None
    (length,) = struct.unpack_from("<I", message, 12)
    serial, at, end = 0, 16, 16 + length
    while at < end:
        at += -at % 8
        code, signature = message[at], message[at + 2 : at + 3]
        at += 2 + message[at + 1] + 1  # to the value, after the signature and its NUL
        if signature == b"g":
            at += 1 + message[at] + 1
        else:
            at += -at % 4
            (number,) = struct.unpack_from("<I", message, at)
            at += 4 if signature == b"u" else 4 + number + 1
            if code == REPLY_SERIAL:
                serial = number
    if kind == ERROR:
        return serial, None
    at = end + -end % 8
    signature, at = message[at + 1 : at + 2], at + 1 + message[at] + 1
    if signature == b"s":
        at += -at % 4
        (number,) = struct.unpack_from("<I", message, at)
        if at + 4 + number > len(message):
            raise ValueError("a text beyond the end")
        return serial, message[at + 4 : at + 4 + number].decode()
    layout, align = {b"u": ("<I", 4), b"i": ("<i", 4), b"t": ("<Q", 8)}.get(signature, ("", 0))
    if not align:
        raise ValueError(f"a property of type {signature!r}")
    return serial, str(struct.unpack_from(layout, message, at + -at % align)[0])


def show(units: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the properties ``WANTED`` of each unit, by its name.

    :raises OSError: systemd can't be reached over its socket.
    :raises ValueError: its answer is malformed.
    """
    found: dict[str, dict[str, str]] = {unit: {} for unit in units}
    with _connected() as connection:
        messages = _messages(connection)
        serial = 0
        for start in range(0, len(units), BATCH):
            pending: dict[int, tuple[str, str]] = {}
            out = bytearray()
            for unit in units[start : start + BATCH]:
                for name, interface in WANTED.items():
                    serial += 1
                    pending[serial] = (unit, name)
                    out += call(serial, object_path(unit), interface, name)
            connection.sendall(out)
            _collect(messages, pending, found)
    return found


def version() -> int:
    """Return systemd's version.

    :raises OSError: systemd can't be reached over its socket.
    :raises ValueError: its answer is malformed.
    """
    with _connected() as connection:
        connection.sendall(call(1, *MANAGER, "Version"))
        for message in _messages(connection):
            number, value = answer(message)
            if number == 1:
                return release(value or "")
    raise ValueError("no answer")


def release(text: str) -> int:
    """Return the number of a version such as ``257.9-1~deb13u1`` or ``v255-rc1``.

    :raises ValueError: *text* doesn't begin with a version.
    """
    found = re.match(r"v?(\d{1,6})", text)
    if found is None:
        raise ValueError(f"no version: {text[:40]!r}")
    return int(found[1])


@contextlib.contextmanager
def _connected() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(SOCKET)
        uid = str(os.geteuid()).encode().hex().encode()
        connection.sendall(b"\0AUTH EXTERNAL " + uid + b"\r\nBEGIN\r\n")
        # Wait for the answer before sending calls: systemd (257) reads a short call together with these lines,
        # and then doesn't process it until more data arrives.
        line = b""
        while not line.endswith(b"\r\n"):
            line += _more(connection)
        if not line.startswith(b"OK "):
            raise ConnectionError(f"systemd refuses: {line[:100]!r}")
        yield connection


def _more(connection: socket.socket) -> bytes:
    chunk = connection.recv(1 << 16)
    if not chunk:
        raise ConnectionError("systemd closed the connection")
    return chunk


def _collect(
    messages: Iterator[bytes], pending: dict[int, tuple[str, str]], found: Mapping[str, dict[str, str]]
) -> None:
    while pending:
        number, value = answer(next(messages))
        unit, name = pending.pop(number, ("", ""))
        if unit and value is not None:
            found[unit][name] = value


def _messages(connection: socket.socket) -> Iterator[bytes]:
    """Yield one received message after the other."""
    received = bytearray()
    while True:
        while len(received) < 16:
            received += _more(connection)
        total = size(bytes(received[:16]))
        while len(received) < total:
            received += _more(connection)
        yield bytes(received[:total])
        del received[:total]
