"""Netlink sockets: many messages in one system call, each answer matched to its message.

This module doesn't use pyroute2's sockets. They take 9 times as long (an event loop each, a system call for each
request), and they report only the first refusal in a batch. ``requests`` makes requests. Queries are packed here, so
that a process that only reads doesn't import pyroute2.

Sources: RFC 3549, netlink(7), rtnetlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import msgspec

from netspace.netlink import reading
from netspace.netlink.reading import FAMILIES, Address, Link, NetlinkError, Route

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12

_REQUEST, _MULTI, _ACK, _DUMP_INTERRUPTED = 0x1, 0x2, 0x4, 0x10
_ACK_CAPPED, _ACK_TLVS = 0x100, 0x200
DUMP = 0x300
_ERROR, _DONE = 2, 3
_GETLINK, _GETADDR, _GETROUTE, _GETQDISC = 18, 22, 26, 38
_GETNETCONF, _NETCONFA_IFINDEX, _NETCONFA_FORWARDING, _NETCONFA_ALL = 82, 1, 2, -1  # linux/netconf.h
_IFLA_IFNAME, _IFLA_EXT_MASK, _SKIP_STATISTICS, _RTA_OIF = 3, 29, 1 << 3, 4

# The protocol number of netspace's routes (free for users, see rt_protos of iproute2), so that
# the kernel can select them among a million other routes.
ROUTE_PROTOCOL = 110
MAIN_TABLE = 254

# The answers of a kernel that lacks the requested kind of device or rule.
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
# The kernel sends at most 32 kB at once. For a buffer above 128 kB, malloc would map and unmap memory each time.
_RECEIVE = 1 << 16
# Messages per send. The receive buffer must have room for an error for each of them.
_BATCH = 128
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by the length modulo 4


class Message(msgspec.Struct, frozen=True):
    """One request without its sequence number.

    :param type: the message's type.
    :param flags: flags in addition to NLM_F_REQUEST.
    :param body: the encoded body.
    :param protocol: the netlink protocol of the socket over which it must be sent.
    """

    type: int
    flags: int
    body: bytes
    protocol: int = NETLINK_ROUTE


class Failure(msgspec.Struct, frozen=True):
    """The kernel's answer to a message that it refused."""

    code: int
    text: str = ""

    def __str__(self) -> str:
        return f"{os.strerror(self.code)} ({self.text})" if self.text else os.strerror(self.code)


def attribute(type_: int, value: bytes) -> bytes:
    """Return one encoded netlink attribute, padded to four bytes."""
    length = len(value)
    return _ATTRIBUTE.pack(4 + length, type_) + value + _PADDING[length & 3]


# The body of a query for network devices, without their statistics.
_ANY_LINK = reading.LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))


def _request(message: Message, number: int, more: int = 0) -> bytes:
    flags = _REQUEST | message.flags | more
    return _HEADER.pack(_HEADER.size + len(message.body), message.type, flags, number, 0) + message.body


class Socket:
    """A netlink socket. It stays in the network namespace in which it was created."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                if option == _STRICT and protocol == NETLINK_ROUTE:
                    self._socket.close()
                    raise NetlinkError(errno.ENOPROTOOPT, "netspace needs Linux 4.20 or newer") from None

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def batch(self, messages: Sequence[Message]) -> dict[int, Failure]:
        """Send *messages*; return the failures, by the message's position. All other messages succeeded.

        The kernel processes every message, even after a failed one.
        """
        failures: dict[int, Failure] = {}
        for start in range(0, len(messages), _BATCH):
            part = messages[start : start + _BATCH]
            first = self._sequence + 1
            self._sequence += len(part)
            data = bytearray()
            for number, message in enumerate(part, first):
                # Only the last message requests an ACK on success, which marks the end.
                data += _request(message, number, _ACK if number == self._sequence else 0)
            self._socket.send(data)
            ended = False
            while not ended:
                for _, flags, number, payload in self._receive(_ERROR):
                    code = -_CODE.unpack_from(payload)[0]
                    if code:
                        failures[start + number - first] = Failure(code, _explanation(flags, payload))
                    ended = ended or number == self._sequence
        return failures

    def dump(self, message: Message) -> list[bytes]:
        """Return the payloads of a dump.

        If a change interrupts the dump, it is requested again, up to 5 times in total.
        """
        for _ in range(5):
            found, whole = self._dump(message)
            if whole:
                break
        return found

    def _dump(self, message: Message) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._socket.send(_request(message, self._sequence))
        found: list[bytes] = []
        whole = True
        while True:
            for type_, flags, number, payload in self._receive():
                if number != self._sequence:
                    continue
                whole = whole and not flags & _DUMP_INTERRUPTED
                if type_ in (_ERROR, _DONE):
                    code = -_CODE.unpack_from(payload)[0] if len(payload) >= 4 else 0
                    if code > 0:
                        raise NetlinkError(code, str(Failure(code, _explanation(flags, payload))))
                    return found, whole
                found.append(bytes(payload))
                if not flags & _MULTI:
                    return found, whole

    def _receive(self, only: int | None = None) -> Iterator[tuple[int, int, int, memoryview]]:
        view = memoryview(self._socket.recv(_RECEIVE))
        offset = 0
        while offset + _HEADER.size <= len(view):
            length, type_, flags, number, _ = _HEADER.unpack_from(view, offset)
            if length < _HEADER.size or offset + length > len(view):
                raise NetlinkError(errno.EBADMSG, "the kernel's answer is cut short")
            if only in (None, type_):
                yield type_, flags, number, view[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3

    def links(self) -> list[Link]:
        """Return every network device of the namespace."""
        return [reading.parse_link(p) for p in self.dump(Message(_GETLINK, DUMP, _ANY_LINK))]

    def link(self, name: str) -> Link | None:
        """Return the network device of the namespace with this name; None if there is none."""
        body = _ANY_LINK + attribute(_IFLA_IFNAME, name.encode() + b"\0")
        try:
            (found,) = self.dump(Message(_GETLINK, 0, body))
        except NetlinkError as err:
            if err.errno != errno.ENODEV:
                raise
            return None
        return reading.parse_link(found)

    def addresses(self, index: int = 0) -> list[Address]:
        """Return every address of the namespace.

        :param index: return only the addresses of the network device with this index; 0: of all devices.
        """
        body = reading.ADDRESS.pack(0, 0, 0, 0, index)
        return [reading.parse_address(p) for p in self.dump(Message(_GETADDR, DUMP, body))]

    def routes(self, families: Iterable[int] = FAMILIES.values(), index: int = 0) -> list[tuple[int, Route]]:
        """Return netspace's routes in the main table, each with its network device's index.

        :param families: the address families to list.
        :param index: the device whose routes are listed; 0: all devices.
        """
        found = []
        for family in families:
            body = reading.ROUTE.pack(family, 0, 0, 0, MAIN_TABLE, ROUTE_PROTOCOL, 0, 0, 0)
            if index:
                body += attribute(_RTA_OIF, struct.pack("=I", index))
            try:
                found += [reading.parse_route(p) for p in self.dump(Message(_GETROUTE, DUMP, body))]
            except NetlinkError as err:
                if err.errno != errno.ENOENT:  # the kernel creates a table with its first route
                    raise
        return found

    def forwards(self, family: int) -> int | None:
        """Return 1 if the namespace forwards packets (``net.ipv4.ip_forward``), else 0; None: it lacks the family."""
        body = struct.pack("=Bxxx", family) + attribute(_NETCONFA_IFINDEX, _CODE.pack(_NETCONFA_ALL))
        try:
            (found,) = self.dump(Message(_GETNETCONF, 0, body))
        except NetlinkError as err:
            if err.errno not in UNSUPPORTED:
                raise
            return None
        told = dict(reading.attributes(found, 4))
        return int(_CODE.unpack(told[_NETCONFA_FORWARDING])[0])

    def rates(self) -> dict[int, int]:
        """Return the rate limit in bits per second of each limited network device, by the device's index."""
        body = reading.TRAFFIC.pack(0, 0, 0, 0, 0)
        found = dict(reading.parse_rate(payload) for payload in self.dump(Message(_GETQDISC, DUMP, body)))
        return {index: rate for index, rate in found.items() if rate}


def _explanation(flags: int, payload: memoryview) -> str:
    """Return the error text (extended ack) in the kernel's answer; empty if the answer has none."""
    if not flags & _ACK_TLVS or not flags & _ACK_CAPPED:
        return ""
    return next(
        (reading.text(value) for type_, value in reading.attributes(payload, 4 + _HEADER.size) if type_ == 1), ""
    )
