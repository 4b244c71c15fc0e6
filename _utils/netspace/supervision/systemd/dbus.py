"""A D-Bus client that reads properties of many systemd units at once, without starting a process.

``systemctl show`` reads all of a unit's 300 properties (1.5 ms per unit); netspace needs seven. So this module calls
``org.freedesktop.DBus.Properties.Get`` over systemd's own socket, as systemctl does when root runs it: no bus daemon is
needed. ``jeepney`` encodes and decodes. The module changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, Properties, new_method_call
from jeepney.auth import BEGIN, Authenticator
from jeepney.low_level import Header

SOCKET = "/run/systemd/private"
SYSTEMD = "org.freedesktop.systemd1"
TIMEOUT = 30.0
"""Seconds for each batch, and for the greeting."""
BATCH = 64
"""Units whose calls are sent in one go."""
LARGEST = 1 << 20
"""The most bytes of one message behind its head."""
MOST_UNITS = 1 << 24
"""The most bytes of a list of units: 350 for each."""
LISTED = "a(ssssssouso)"
"""The type of a list of units."""
OTHERS = 4096
"""The most messages other than replies (signals) that are skipped for each batch."""

UNIT, SERVICE = f"{SYSTEMD}.Unit", f"{SYSTEMD}.Service"
WANTED = {
    "ActiveState": UNIT,
    "StateChangeTimestampMonotonic": UNIT,
    "MainPID": SERVICE,
    "NRestarts": SERVICE,
    "Result": SERVICE,
    "ExecMainCode": SERVICE,
    "ExecMainStatus": SERVICE,
}
_TYPES = frozenset("suit")


def object_path(unit: str) -> str:
    """Return the object path of *unit*; bytes other than letters and digits become ``_xx``."""
    escaped = "".join(c if c.isascii() and c.isalnum() else "".join(f"_{o:02x}" for o in c.encode()) for c in unit)
    return f"/org/freedesktop/systemd1/unit/{escaped}"


class Property(NamedTuple):
    """A property of one of systemd's objects."""

    path: str
    interface: str
    name: str

    def call(self, serial: int) -> bytes:
        """Return the D-Bus call that reads the property."""
        head, between, behind = _shape(len(self.path), self.interface, self.name)
        return head + struct.pack("<I", serial) + between + self.path.encode() + behind


@functools.cache
def _shape(length: int, interface: str, name: str) -> tuple[bytes, bytes, bytes]:
    """Return the three parts of an encoded call: before its serial, from there to its path, and after the path.

    The path has *length* bytes. jeepney encodes each shape only once. Encoding all 350 calls for 50 units would take
    longer than everything else.
    """
    path = "/" + "_" * (length - 1)
    message = Properties(DBusAddress(path, SYSTEMD, interface)).get(name).serialise(serial=1)
    before, _, behind = message.partition(path.encode())
    return before[:8], before[12:], behind  # the serial has a fixed place in the header of a message


class Connection:
    """A connection to systemd. It never waits longer than ``TIMEOUT`` for the answers to one batch."""

    def __init__(self, sock: socket.socket) -> None:
        """Log in as this process's user.

        :raises OSError: when systemd doesn't answer.
        :raises ValueError: when systemd refuses.
        """
        self._socket = sock
        self._parser = Parser()
        self._serial = 0
        self._deadline = time.monotonic() + TIMEOUT
        login = Authenticator()
        # BEGIN goes with the first line, and calls follow only after the answer: systemd (257) reads a short call
        # together with BEGIN, and then doesn't process it until more data arrives.
        self._send(login.data_to_send() + BEGIN)
        while not login.authenticated:
            login.feed(self._receive(1))  # one byte at a time: signals may follow the line at once

    def ask(self, wanted: Sequence[Property]) -> list[Message]:
        """Ask for all of *wanted* at once; return systemd's replies in the same order.

        :raises OSError: when systemd doesn't answer in time, or has closed the connection.
        :raises ValueError: when an answer is malformed, or does not come from systemd.
        """
        self._deadline = time.monotonic() + TIMEOUT
        first = self._serial + 1
        self._serial += len(wanted)
        self._send(b"".join(one.call(serial) for serial, one in enumerate(wanted, first)))
        pending = {serial: place for place, serial in enumerate(range(first, self._serial + 1))}
        found: dict[int, Message] = {}
        others = 0
        while pending:
            message = self._next()
            fields = message.header.fields
            place = pending.pop(fields.get(HeaderFields.reply_serial, 0), None)
            if place is None:
                others += 1
                if others > OTHERS:
                    raise ValueError(f"more than {OTHERS} messages besides the answers")
                continue
            if fields.get(HeaderFields.sender) != SYSTEMD:
                raise ValueError(f"an answer by {fields.get(HeaderFields.sender)!r:.80}, not by {SYSTEMD}")
            found[place] = message
        return [found[place] for place in range(len(wanted))]

    def active(self, pattern: str) -> list[str]:
        """Return the names of the active units that match *pattern*. Call it before :meth:`ask`.

        :raises OSError: when systemd doesn't answer in time, or has closed the connection.
        :raises ValueError: when the answer is malformed, or does not come from systemd.
        """
        manager = DBusAddress("/org/freedesktop/systemd1", SYSTEMD, f"{SYSTEMD}.Manager")
        self._deadline = time.monotonic() + TIMEOUT
        self._serial += 1
        call = new_method_call(manager, "ListUnitsByPatterns", "asas", (["active"], [pattern]))
        self._send(call.serialise(serial=self._serial))
        for _ in range(OTHERS):
            header, body = self._raw()
            if header.fields.get(HeaderFields.reply_serial) != self._serial:
                continue
            fields = header.fields
            if fields.get(HeaderFields.sender) != SYSTEMD or fields.get(HeaderFields.signature) != LISTED:
                raise ValueError(f"not systemd's list of units: {fields!r:.80}")
            return names(body)
        raise ValueError(f"more than {OTHERS} messages besides the answer")

    def _raw(self) -> tuple[Header, bytes]:
        """Return the header of the next message, and its body undecoded.

        :raises ValueError: when the message is malformed or too large.
        """
        head = self._exactly(16)
        order, _, _, _, size, _, fields = struct.unpack("<cBBBIII", head)
        rest = (fields + 7 & ~7) + size
        if order != b"l" or rest > MOST_UNITS:
            raise ValueError(f"a message of {rest} bytes, in the order {order!r}")
        data = head + self._exactly(rest)
        try:
            return Header.from_buffer(data[: len(data) - size])[0], data[len(data) - size :]
        except (struct.error, LookupError, TypeError, AssertionError, RecursionError) as err:
            raise ValueError(f"a damaged message: {err}") from err

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self._receive(min(size - len(data), 1 << 18))
        return bytes(data)

    def _next(self) -> Message:
        """Return the next message, within the deadline.

        :raises ValueError: when the message is malformed or too large.
        """
        try:
            while (message := self._parser.get_next_message()) is None:
                if self._parser.bytes_desired() > LARGEST:
                    raise ValueError(f"a message of more than {LARGEST} bytes")
                self._parser.add_data(self._receive(1 << 16))
        except (struct.error, LookupError, TypeError, AssertionError, RecursionError) as err:
            raise ValueError(f"a damaged message: {err}") from err
        return message

    def _send(self, data: bytes) -> None:
        self._limit()
        self._socket.sendall(data)

    def _receive(self, most: int) -> bytes:
        self._limit()
        data = self._socket.recv(most)
        if not data:
            raise ConnectionError("systemd closed the connection")
        return data

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"systemd has not answered for {TIMEOUT:.0f} s")
        self._socket.settimeout(left)


def value(reply: Message) -> str | None:
    """Return the property in *reply* as text; None if the reply is an error, since systemd doesn't know the unit.

    :raises ValueError: when the property is neither a text nor a number.
    """
    if reply.header.message_type is MessageType.error:
        return None
    match reply.body:
        case ((signature, content),) if reply.header.message_type is MessageType.method_return and signature in _TYPES:
            return str(content)
    raise ValueError(f"not a property that is text or a number: {reply.body!r:.80}")


def show(units: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the properties ``WANTED`` of each unit, by its name.

    :raises OSError: when systemd can't be reached over its socket.
    :raises ValueError: when systemd's answer is malformed.
    """
    found: dict[str, dict[str, str]] = {unit: {} for unit in units}
    with _connected() as connection:
        for start in range(0, len(units), BATCH):
            asked = [(unit, name) for unit in units[start : start + BATCH] for name in WANTED]
            wanted = [Property(object_path(unit), WANTED[name], name) for unit, name in asked]
            for (unit, name), reply in zip(asked, connection.ask(wanted), strict=True):
                content = value(reply)
                if content is not None:
                    found[unit][name] = content
    return found


def active(pattern: str) -> list[str]:
    """Return the names of the active units that match *pattern*, by one question.

    :raises OSError: when systemd can't be reached over its socket.
    :raises ValueError: when systemd's answer is malformed.
    """
    with _connected() as connection:
        return connection.active(pattern)


def names(body: bytes) -> list[str]:
    """Return the first field of each unit in *body*, which has the type :data:`LISTED`.

    jeepney would need five times as long, because it decodes all ten fields.

    :raises ValueError: when *body* is malformed.
    """
    number = struct.Struct("<I").unpack_from
    found = []
    try:
        at, end = 8, 8 + number(body, 0)[0]
        while at < end:
            start = at + 4
            at = start + number(body, at)[0]
            found.append(body[start:at].decode())
            at = at + 4 & ~3  # a text ends with a zero byte, and begins at a multiple of four
            for _ in range(6):  # description, load, active, sub, following, path
                at = at + number(body, at)[0] + 8 & ~3
            at += 4  # the number of a job
            for _ in range(2):  # the job's type and path
                at = at + number(body, at)[0] + 8 & ~3
            at = at + 7 & ~7
    except struct.error as err:
        raise ValueError(f"a damaged list of units: {err}") from err
    if end != len(body):
        raise ValueError(f"a list of units with {len(body)} bytes, not {end}")
    return found


def version() -> int:
    """Return systemd's version.

    :raises OSError: when systemd can't be reached over its socket.
    :raises ValueError: when systemd's answer is malformed.
    """
    with _connected() as connection:
        (reply,) = connection.ask([Property("/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", "Version")])
    return release(value(reply) or "")


def release(text: str) -> int:
    """Return the number of a version such as ``257.9-1~deb13u1`` or ``v255-rc1``.

    :raises ValueError: when *text* doesn't begin with a version.
    """
    found = re.match(r"v?(\d{1,6})", text)
    if found is None:
        raise ValueError(f"no version: {text[:40]!r}")
    return int(found[1])


@contextlib.contextmanager
def _connected() -> Iterator[Connection]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(SOCKET)
        yield Connection(sock)
