"""A name server for tests, on loopback. It gives any answer that a test defines, also a dishonest server's."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

ADDRESS = "127.0.0.1"

Forge = Callable[[dns.message.QueryMessage, dns.message.Message], "list[bytes]"]
"""Return the datagrams that are sent, from the question and the honest answer."""


def honest(_: dns.message.QueryMessage, answer: dns.message.Message) -> list[bytes]:
    return [answer.to_wire()]


class NameServer:
    """A name server with one zone. It can send forged answers.

    :ivar zone: the records for each name and type, as in a zone file: ``{("deb.example.org.", "A"): (300,
        ["192.0.2.1"])}``.
    :ivar forge: makes the datagrams that are sent, from the question and the honest answer.
    :ivar asked: the received questions, as (name, type).
    """

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.forge: Forge = honest
        self.rcode = dns.rcode.NOERROR
        self.silent = False
        self.asked: list[tuple[str, str]] = []

    def has(self, name: str, *addresses: str, ttl: int = 300) -> None:
        """Give *name* exactly these addresses."""
        for type_, colon in (("A", False), ("AAAA", True)):
            self.zone[f"{name}.", type_] = (ttl, [one for one in addresses if (":" in one) == colon])

    def answer(self, wire: bytes, *, stream: bool) -> list[bytes]:
        question = dns.message.from_wire(wire)
        assert isinstance(question, dns.message.QueryMessage)
        name, type_ = question.question[0].name.to_text(), dns.rdatatype.to_text(question.question[0].rdtype)
        self.asked.append((name, type_))
        if self.silent:
            return []
        answer = dns.message.make_response(question, recursion_available=True)
        answer.set_rcode(self.rcode)
        here, seen = name, 0
        while (here, "CNAME") in self.zone and seen < 64:
            ttl, (target,) = self.zone[here, "CNAME"]
            answer.answer.append(dns.rrset.from_text(here, ttl, "IN", "CNAME", target))
            here, seen = target, seen + 1
        ttl, records = self.zone.get((here, type_), (0, []))
        if records:
            answer.answer.append(dns.rrset.from_text(here, ttl, "IN", type_, *records))
        elif not any(known == here for known, _ in self.zone) and self.rcode == dns.rcode.NOERROR:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        made = self.forge(question, answer)
        if not stream and any(len(one) > 1232 for one in made):
            cut = dns.message.make_response(question)
            cut.flags |= dns.flags.TC
            return [cut.to_wire()]
        return made


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[NameServer, Path]]:
    """Yield a server at port 53 of loopback, and the path of a resolv.conf(5) that names it."""
    server, over = NameServer(), threading.Event()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    streams = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for one in (datagrams, streams):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((ADDRESS, 53))
        one.settimeout(0.1)
    streams.listen()

    def by_datagram() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                wire, peer = datagrams.recvfrom(65535)
                for told in server.answer(wire, stream=False):
                    datagrams.sendto(told, peer)

    def by_stream() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError, OSError, struct.error):
                client, _ = streams.accept()
                with client:
                    client.settimeout(5)
                    (size,) = struct.unpack(">H", client.recv(2, socket.MSG_WAITALL))
                    for told in server.answer(client.recv(size, socket.MSG_WAITALL), stream=True):
                        client.sendall(struct.pack(">H", len(told)) + told)

    threads = [threading.Thread(target=work, daemon=True) for work in (by_datagram, by_stream)]
    for thread in threads:
        thread.start()
    configuration = folder / "resolv.conf"
    configuration.write_text(f"nameserver {ADDRESS}\noptions timeout:1\n")
    try:
        yield server, configuration
    finally:
        over.set()
        for thread in threads:
            thread.join()
        datagrams.close()
        streams.close()
