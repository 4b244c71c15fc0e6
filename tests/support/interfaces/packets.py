"""Packets assembled by tests, sent without any socket's checks, and captured at their destination."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.interfaces.interface_bench import within
from support.waiting import PATIENCE

IPV4, IPV6, ARP, VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
ICMP, TCP, UDP, FRAGMENT, ICMP6, OPTIONS, HOP_BY_HOP, ROUTING = 1, 6, 17, 44, 58, 60, 0, 43
_ALL = 3  # ETH_P_ALL
BROADCAST = "ff:ff:ff:ff:ff:ff"


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(target: str, source: str, kind: int, body: bytes) -> bytes:
    return mac(target) + mac(source) + struct.pack(">H", kind) + body


def upper(source: str, target: str, protocol: int, body: bytes, at: int) -> bytes:
    """Return *body* with its protocol's checksum at offset *at*."""
    one, other = packed(source), packed(target)
    pseudo = one + other + struct.pack(">IHBB", len(body), 0, 0, protocol)
    return body[:at] + struct.pack(">H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


def udp(source: str, target: str, port: int, data: bytes, from_port: int = 40000) -> bytes:
    return upper(source, target, UDP, struct.pack(">HHHH", from_port, port, 8 + len(data), 0) + data, 6)


def tcp(source: str, target: str, port: int, data: bytes, from_port: int = 40000) -> bytes:
    head = struct.pack(">HHIIBBHHH", from_port, port, 1000, 0, 0x50, 0x02, 1000, 0, 0)
    return upper(source, target, TCP, head + data, 16)


def echo(source: str, target: str, data: bytes) -> bytes:
    if ":" in source:
        return upper(source, target, ICMP6, struct.pack(">BBHHH", 128, 0, 0, 7, 1) + data, 2)
    body = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + data
    return body[:2] + struct.pack(">H", checksum(body)) + body[4:]


def ip(
    source: str,
    target: str,
    protocol: int,
    body: bytes,
    *,
    offset: int = 0,
    more: bool = False,
    number: int = 1,
    options: bytes = b"",
    hops: int = 64,
) -> bytes:
    """Return an IP packet of the addresses' family; *offset*, *more* and *options* are only for IPv4."""
    if ":" in source:
        head = struct.pack(">IHBB", 6 << 28, len(body), protocol, hops)
        return head + packed(source) + packed(target) + body
    words = 5 + len(options) // 4
    flags = offset // 8 | (0x2000 if more else 0)
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 4 * words + len(body), number, flags, hops, protocol, 0)
    head += packed(source) + packed(target) + options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def fragment(protocol: int, body: bytes, *, offset: int = 0, more: bool = False, number: int = 1) -> bytes:
    """Return an IPv6 fragment: the fragment header and its part of *body*."""
    return struct.pack(">BBHI", protocol, 0, offset | more, number) + body


def datagram(source: str, target: str, protocol: str, port: int | None, data: bytes) -> bytes:
    """Return a whole first packet of ``tcp``, ``udp`` or ``icmp``."""
    six = ":" in source
    if protocol == "icmp":
        return ip(source, target, ICMP6 if six else ICMP, echo(source, target, data))
    made = {"tcp": tcp, "udp": udp}[protocol]
    return ip(source, target, TCP if protocol == "tcp" else UDP, made(source, target, port or 0, data))


def kind_of(packet: bytes) -> int:
    return IPV4 if packet[0] >> 4 == 4 else IPV6


class Wire:
    """One network device of a namespace. It sends given frames, and captures arriving frames."""

    def __init__(self, path: Path | None, link: str) -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            made.bind((link, _ALL))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            return made

        self._socket = within(path, make)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as err:
            if err.errno != errno.ENOBUFS:  # dropped before it left
                raise

    def received(self, *, patience: float = 0.02) -> list[bytes]:
        """Return the frames that arrive, until no frame comes for *patience* seconds."""
        return [data for data, leaves in self._seen(patience) if not leaves]

    def sent(self) -> list[bytes]:
        """Return the outgoing frames."""
        return [data for data, leaves in self._seen(0) if leaves]

    def _seen(self, patience: float) -> Iterator[tuple[bytes, bool]]:
        while select.select([self._socket], [], [], patience)[0]:
            data, (_, _, kind, *_) = self._socket.recvfrom(1 << 16)
            yield data, kind == socket.PACKET_OUTGOING

    def until(self, mark: bytes) -> list[bytes]:
        """Return the frames that arrive until shortly after the frame with *mark*.

        Frames that the same processor sent before *mark* (fixture ``one_processor``) have arrived by then, or are lost.
        """
        found: list[bytes] = []
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found += self.received()
            if any(mark in one for one in found):
                return found
        raise AssertionError(f"{mark!r} did not arrive")


def tags(frames: Iterable[bytes], known: Iterable[bytes]) -> set[bytes]:
    """Return the tags in *known* that occur in *frames*."""
    listed = list(frames)
    return {tag for tag in known if any(tag in one for one in listed)}
