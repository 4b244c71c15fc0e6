"""Fuzzer of AMQP 0-9-1 and 1.0: a logged-in account sends frames by the specifications' grammars, some with errors.

A batch is one connection: a correct log-in, then random frames. Nothing checks frames before they are sent.
https://www.rabbitmq.com/resources/specs/amqp0-9-1.xml,
https://docs.oasis-open.org/amqp/core/v1.0/os/amqp-core-complete-v1.0-os.pdf
"""

from __future__ import annotations

import contextlib
import random
import re
import select
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from support.links import amqp1
from support.links.amqp1 import Byte, Described, Encoded, Symbol, encode

CHANNELS = 13
"""Channels or sessions of a batch."""
EACH = 5
"""Frames of each, at most."""
CLOSED = re.compile(rb"\0\x0a\0[\x32\x33]|\0\x53\x18")
"""What is said last: connection.close or its answer in AMQP 0-9-1, close in 1.0."""
BY_ITSELF = re.compile(rb"\0\x0a\0\x32|\0\x53\x18.*\0\x53\x1d", re.DOTALL)
"""Likewise, without having been asked, or with an error."""
QUIET = 0.2
"""Seconds without a word after which there is nothing more to come."""
EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)

# By class and method, the types of its fields. o octet, h short, l long, L 64 bits, b bit, s and S text, F table.
METHODS = {
    (10, 10): "ooFSS", (10, 11): "FsSs", (10, 20): "S", (10, 21): "S", (10, 30): "hlh", (10, 31): "hlh",
    (10, 40): "ssb", (10, 41): "s", (10, 50): "hshh", (10, 51): "", (10, 60): "s", (10, 61): "", (10, 70): "Ss",
    (20, 10): "s", (20, 11): "S", (20, 20): "b", (20, 21): "b", (20, 40): "hshh", (20, 41): "",
    (30, 10): "sbbbbb", (30, 11): "h",
    (40, 10): "hssbbbbbF", (40, 11): "", (40, 20): "hsbb", (40, 21): "", (40, 30): "hsssbF", (40, 40): "hsssbF",
    (50, 10): "hsbbbbbF", (50, 11): "sll", (50, 20): "hsssbF", (50, 30): "hsb", (50, 40): "hsbbb", (50, 50): "hsssF",
    (60, 10): "lhb", (60, 20): "hssbbbbF", (60, 21): "s", (60, 30): "sb", (60, 40): "hssbb", (60, 50): "hsss",
    (60, 60): "sLbss", (60, 70): "hsb", (60, 71): "Lbssl", (60, 72): "s", (60, 80): "Lb", (60, 90): "Lb",
    (60, 100): "b", (60, 110): "b", (60, 120): "Lbb",
    (85, 10): "b", (90, 10): "", (90, 20): "", (90, 30): "",
}  # fmt: skip
ANSWERS = {(50, 11), (60, 21), (60, 50), (60, 60), (60, 71), (60, 72), (30, 11), (40, 11), (40, 21)}
"""Of a server alone: RabbitMQ ends a connection for them."""
ON_CHANNELS = [method for method in METHODS if method[0] >= 30 and method not in ANSWERS]
PUBLISH = (60, 40)
COMMON = [PUBLISH, (50, 10), (60, 20), (60, 70)]

# By performative, the types of its fields.
PERFORMATIVES = {
    amqp1.ATTACH: ("text", "uint", "bool", "mode", "mode", "source", "target", "none", "bool", "uint", "ulong",
                   "symbols", "symbols", "map"),
    amqp1.FLOW: ("uint", "uint", "uint", "uint", "uint", "uint", "uint", "uint", "bool", "bool", "none"),
    amqp1.TRANSFER: ("uint", "uint", "binary", "zero", "bool", "bool", "mode", "none", "none", "none", "bool"),
    amqp1.DISPOSITION: ("bool", "uint", "uint", "bool", "state", "bool"),
    amqp1.DETACH: ("uint", "bool", "error"),
    amqp1.END: ("error",),
    amqp1.BEGIN: ("none", "uint", "uint", "uint", "uint", "symbols", "symbols", "map"),
    amqp1.OPEN: ("text", "text", "uint", "short", "uint", "symbols", "symbols", "symbols", "symbols", "map"),
    amqp1.CLOSE: ("error",),
}  # fmt: skip


class NotAdmittedError(ConnectionError):
    """Error: the peer refuses a connection above the account's maximum."""


class Grammar:
    """The random parts of frames.

    :param names: names of exchanges and queues, also of some to which the account has no right.
    """

    def __init__(self, dice: random.Random, names: Sequence[str]) -> None:
        self.dice = dice
        self.names = names

    def one(self, *choices: Any) -> Any:
        return self.dice.choice(choices)

    def often(self, part: float) -> bool:
        return self.dice.random() < part

    def number(self, bits: int) -> int:
        wanted = self.dice.choice(EDGES) if self.often(0.5) else self.dice.getrandbits(self.dice.choice((4, bits)))
        return int(wanted) % (1 << bits)

    def text(self, most: int = 255) -> bytes:
        if self.often(0.8):
            return self.dice.choice(self.names).encode()[:most]
        raw = self.dice.randbytes(self.dice.choice((0, 1, 7, most)))
        return raw if self.often(0.005) else bytes(one & 0x7F for one in raw)  # else it is mostly no UTF-8

    # -- AMQP 0-9-1: section 4.2 ----------------------------------------------------
    def field(self, kind: str) -> bytes:
        match kind:
            case "o":
                return bytes([self.number(8)])
            case "h":
                return struct.pack(">H", self.number(16))
            case "l":
                return struct.pack(">I", self.number(32))
            case "L":
                return struct.pack(">Q", self.number(64))
            case "s":
                raw = self.text()
                return bytes([len(raw)]) + raw
            case "S":
                raw = self.text(self.one(10, 1000))
                return struct.pack(">I", len(raw)) + raw
        return self.table(3)

    def table(self, depth: int) -> bytes:
        raw = b""
        for _ in range(self.dice.choice((0, 0, 1, 1, 2, 5))):
            name = self.one(b"x-priority", b"x-dead-letter-exchange", b"x-queue-type", b"CC", b"x-death", self.text(20))
            raw += bytes([len(name)]) + name + self.value(depth)
        return struct.pack(">I", len(raw)) + raw

    def value(self, depth: int) -> bytes:
        kind = self.one(*b"tbBsuIilLfdDxSTVFA") if self.often(0.995) else self.number(8)
        fixed = (
            dict.fromkeys(b"tbB", 1) | dict.fromkeys(b"su", 2) | dict.fromkeys(b"Iif", 4) | dict.fromkeys(b"lLdT", 8)
        )
        if kind in fixed:
            return bytes([kind]) + self.dice.randbytes(fixed[kind])
        if kind == ord("D"):
            return bytes([kind]) + self.dice.randbytes(5)
        if kind in b"F" and depth:
            return bytes([kind]) + self.table(depth - 1)
        if kind in b"A" and depth:
            inner = b"".join(self.value(depth - 1) for _ in range(self.number(2)))
            return bytes([kind]) + struct.pack(">I", len(inner)) + inner
        return (b"S" + self.field("S")) if kind in b"SxFA" else bytes([kind])

    def method(self, which: tuple[int, int]) -> bytes:
        raw, bits, width = struct.pack(">HH", *which), 0, 0
        for kind in METHODS[which]:
            if kind == "b":
                bits |= self.dice.getrandbits(1) << width
                width += 1
                continue
            if width:
                raw, bits, width = raw + bytes([bits]), 0, 0
            raw += self.field(kind)
        return raw + (bytes([bits]) if width else b"")

    def content(self, channel: int) -> list[bytes]:
        body = self.dice.randbytes(self.one(0, 0, 1, 100))
        flags = self.dice.getrandbits(14) << 2 if self.often(0.7) else self.one(0, 1, 0xFFFF)
        kinds = "ssFoossssLssss"
        values = b"".join(self.field(kind) for bit, kind in enumerate(kinds) if flags & 0x8000 >> bit)
        size = len(body) if self.often(0.995) else self.number(64)
        head = struct.pack(">HHQH", 60 if self.often(0.998) else self.number(16), 0, size, flags) + values
        return [frame(2, channel, head), *([frame(3, channel, body)] if body else [])]

    def on_channel(self, channel: int) -> list[bytes]:
        """Return the frames of one channel, without its opening."""
        found: list[bytes] = []
        for _ in range(self.dice.randint(1, EACH)):
            which = self.dice.choice(ON_CHANNELS if self.often(0.6) else COMMON)
            if self.often(0.002):
                which = self.dice.choice(list(METHODS))
            raw = self.method(which)
            if self.often(0.98):  # neither of these is implemented, for which RabbitMQ ends the connection
                if which == PUBLISH:
                    raw = raw[:-1] + bytes([raw[-1] & 1])
                elif which == (60, 10):
                    raw = raw[:4] + bytes(4) + raw[8:]
                elif which in ((60, 100), (60, 110)):
                    raw = raw[:4] + b"\1"
            if self.often(0.003):
                raw = self.damaged(raw)
            found.append(frame(1, channel, raw))
            if which == PUBLISH and self.often(0.998):
                found += self.content(channel)
        return found

    def damaged(self, raw: bytes) -> bytes:
        at = self.dice.randrange(len(raw) + 1)
        return self.one(raw[:at], raw + self.dice.randbytes(3), raw[:at] + self.dice.randbytes(1) + raw[at + 1 :])

    # -- AMQP 1.0: part 1, 2.7, 3.2 -----------------------------------------------------
    def typed(self, kind: str) -> Any:
        if self.often(0.0005):  # which ends the connection, mostly
            return self.any(3)
        if self.often(0.15):
            return None
        match kind:
            case "uint":
                return self.number(32) if self.often(0.3) else self.one(0, 1, 2, 3, 10)
            case "zero":
                return 0
            case "none":
                return None
            case "short":
                return Encoded(b"\x60" + struct.pack(">H", self.number(16)))
            case "ulong":
                return Encoded(b"\x80" + struct.pack(">Q", self.number(64)))
            case "bool":
                return self.one(True, False)
            case "mode":
                return Byte(self.one(0, 1, 2, 255))
            case "text":
                return self.address()[:255] if self.often(0.1) else self.one("l1", "l2", "pair")
            case "binary":
                return self.dice.randbytes(self.one(0, 4, 32, 33))
            case "symbols":
                return self.one(Symbol("queue"), Encoded(b"\xf0\0\0\0\x0c\0\0\0\x01\xa3\x05queue"))
            case "map":
                return self.one({}, {Symbol("paired"): self.often(0.5)}, {Symbol("rabbitmq:priority"): PRIORITY})
            case "source":
                return Described(amqp1.SOURCE, [self.end("/queues/", "mailbox", "replies", "dead"), *self.few(8)])
            case "target":
                return Described(amqp1.TARGET, [self.end("/exchanges/", "link", "reply"), *self.few(5)])
            case "error":
                return Described(0x1D, [Symbol("amqp:not-found"), "x", None])
        return self.state()

    def state(self) -> Described:
        """Return the outcome of a delivery (AMQP 1.0's *delivery-state*), with values in few of its fields.

        RabbitMQ ends the connection if many fields have values.
        """
        code = self.dice.choice(list(STATES))
        return Described(code, self.few(STATES[code] if self.often(0.998) else 9))

    def end(self, prefix: str, *kinds: str) -> str | None:
        """Return an address that the broker admits, with or without a right to it; in rare cases any address."""
        if self.often(0.003):
            return self.one(None, self.address())
        return prefix + str(self.one(*(name for name in self.names if name.split(".")[0] in kinds)))

    def few(self, count: int) -> list[Any]:
        """Return *count* fields, almost all of them missing: a field with a value may end the connection."""
        return [self.any(1) if self.often(0.001) else None for _ in range(count)]

    def address(self) -> str:
        name = self.text().decode(errors="replace")
        return str(self.one("/exchanges/", "/queues/", "/management", "/amq/queue/", "/queue/", "/topic/", "")) + name

    def any(self, depth: int) -> Any:
        if not depth or self.often(0.5):
            raw = bytes([self.one(*(SUPPORTED if self.often(0.995) else amqp1._FIXED))])
            fixed = Encoded(raw + self.dice.randbytes(amqp1._FIXED[raw[0]]))
            return self.one(None, True, self.number(32), self.text(50), self.address(), Symbol("x"), fixed)
        inner = [self.any(depth - 1) for _ in range(self.number(2))]
        if self.often(0.01):  # which ends the connection
            return Described(self.number(8), inner)
        return self.one(inner, {f"{at}": one for at, one in enumerate(inner)}, self.state())

    def message(self) -> bytes:
        if self.often(0.05):
            return self.dice.randbytes(self.number(6))
        request = [
            self.one("1", None, self.any(1)) if self.often(0.1) else "1",
            None,
            self.one(self.managed(), self.address())[:255],
            self.one(*HTTP),
            "$me",
        ]
        sections = [
            (amqp1.HEADER, [True, None, self.typed("uint")]),
            (amqp1.ANNOTATIONS, {Symbol(f"x-{at}"): self.any(2) for at in range(self.number(1))}),
            (amqp1.PROPERTIES, request if self.often(0.95) else [self.any(2) for _ in range(self.number(4))]),
            (amqp1.APPLICATION, {str(at): self.any(1) for at in range(self.number(1))}),
            self.one((amqp1.VALUE, self.any(3)), (amqp1.DATA, self.dice.randbytes(9))),
        ]
        return b"".join(encode(Described(code, value)) for code, value in sections if self.often(0.98))

    def managed(self) -> str:
        name = self.text().decode(errors="replace").replace("/", "%2F")
        return str(
            self.one(
                f"/queues/{name}", f"/queues/{name}/messages", f"/exchanges/{name}", "/bindings", f"/bindings/{name}"
            )
        )

    def on_session(self, channel: int) -> list[bytes]:
        """Return the frames of one session, without its beginning."""
        found: list[bytes] = []
        if self.often(0.3):  # a pair of links for management, so that requests are read
            for receives in (False, True):
                ends = [Described(one, ["/management"]) for one in (amqp1.SOURCE, amqp1.TARGET)]
                fields = ["pair", int(receives), receives, Byte(1), None, *ends, None, None, None if receives else 0]
                found.append(frame1(channel, amqp1.ATTACH, [*fields, None, None, None, {Symbol("paired"): True}]))
            found.append(frame1(channel, amqp1.FLOW, [0, 2048, 0, 2048, 1, 0, 100]))
            found.append(frame1(channel, amqp1.TRANSFER, [0, 0, b"0", 0, True], self.message()))
        for _ in range(self.dice.randint(1, EACH)):
            code = self.one(amqp1.ATTACH, amqp1.ATTACH, amqp1.TRANSFER, amqp1.TRANSFER, amqp1.FLOW, amqp1.DISPOSITION)
            if self.often(0.05):
                code = self.dice.choice(list(PERFORMATIVES)[4:])
            fields = [self.typed(kind) for kind in PERFORMATIVES[code]]
            if code == amqp1.ATTACH and self.often(0.8):  # one that is as it should be, but for its ends
                at, receives = self.number(2), self.one(True, False)
                first = None if receives else 0
                fields[:10] = [
                    f"l{at}",
                    at,
                    receives,
                    None,
                    None,
                    self.typed("source"),
                    self.typed("target"),
                    None,
                    None,
                    first,
                ]
            if code == amqp1.FLOW and self.often(0.8):  # else the session is over
                fields[:4] = [0, 2048, 0, 2048]
            raw = frame1(channel, code, fields, self.message() if code == amqp1.TRANSFER else b"")
            if self.often(0.003):
                body = self.damaged(raw[8:])
                size = struct.pack(">I", len(body) + 8) if self.often(0.8) else raw[:4]
                raw = size + raw[4:8] + body
            found.append(raw)
        return found


PRIORITY = Encoded(b"\x54\x07")
STATES = {0x24: 0, 0x25: 1, 0x26: 0, 0x27: 3}
"""By state of a delivery, how many fields it has."""
SUPPORTED = (0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x60, 0x61, 0x70, 0x71, 0x72,
             0x73, 0x80, 0x81, 0x82, 0x83, 0x98)  # fmt: skip
HTTP = ("GET", "PUT", "POST", "DELETE", "PATCH")


def early(dice: random.Random, names: Sequence[str]) -> bytes:
    """Return the bytes that one connection sends before any log-in: correct, wrong and damaged frames."""
    grammar = Grammar(dice, names)
    found = b"AMQP\x03\x01\0\0"
    for _ in range(dice.randint(1, EACH)):
        code = grammar.one(amqp1.INIT, amqp1.INIT, amqp1.INIT, amqp1.MECHANISMS, 0x42, 0x43, amqp1.OUTCOME, amqp1.OPEN)
        name = Symbol(grammar.one("EXTERNAL", "PLAIN", "x"))
        fields = grammar.one([name, b""], [grammar.any(3) for _ in range(3)], [name, grammar.any(3), grammar.any(3)])
        body = grammar.one(encode(Described(code, fields)), grammar.damaged(encode(Described(code, fields))))
        found += struct.pack(">IBBH", len(body) + 8, 2, 1, 0) + body
    return found


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def frame1(channel: int, code: int, fields: list[Any], payload: bytes = b"") -> bytes:
    body = encode(Described(code, fields)) + payload
    return struct.pack(">IBBH", len(body) + 8, 2, 0, channel) + body


def batch(dice: random.Random, names: Sequence[str], vhost: str, modern: bool) -> tuple[list[bytes], int]:
    """Return one connection's bytes in pieces, each followed by an answer, and the number of random frames."""
    grammar = Grammar(dice, names)
    groups = [(number, (grammar.on_session if modern else grammar.on_channel)(number)) for number in range(1, CHANNELS)]
    count = sum(len(frames) for _, frames in groups)
    if modern:
        init = encode(Described(amqp1.INIT, [Symbol("EXTERNAL"), b""]))
        begin = [None, 0, 2048, 2048]
        rest = b"".join(frame1(number, amqp1.BEGIN, begin) + b"".join(frames) for number, frames in groups)
        hello = b"AMQP\x03\x01\0\0" + struct.pack(">IBBH", len(init) + 8, 2, 1, 0) + init
        opened = b"AMQP\0\x01\0\0" + frame1(0, amqp1.OPEN, ["fuzz", f"vhost:{vhost}", 1 << 20, Encoded(b"\x60\0\x3f")])
        return [hello, opened, rest + frame1(0, amqp1.CLOSE, [])], count
    start = b"\0\0\0\0" + b"\x08EXTERNAL" + b"\0\0\0\0" + b"\x05en_US"
    tune = struct.pack(">HHHIH", 10, 31, 64, 131072, 0)
    opened = struct.pack(">HH", 10, 40) + bytes([len(vhost)]) + vhost.encode() + b"\0\0"
    rest = b"".join(frame(1, number, b"\0\x14\0\x0a\0") + b"".join(frames) for number, frames in groups)
    goodbye = frame(1, 0, struct.pack(">HHH", 10, 50, 200) + b"\0" + bytes(4))
    first = frame(1, 0, struct.pack(">HH", 10, 11) + start)
    return [b"AMQP\0\0\x09\x01", first, frame(1, 0, tune) + frame(1, 0, opened), rest + goodbye], count


def say(stream: ssl.SSLSocket, pieces: Sequence[bytes], patience: float = 60.0) -> bool:
    """Send all *pieces* while listening; return whether the peer ended the connection early.

    An early end is a close before the last byte is sent, an unrequested close, a close with an error, or a broken
    connection.

    :param patience: seconds without any progress after which the peer counts as stuck.
    :raises NotAdmittedError: the peer ended the connection before any random frame.
    :raises TimeoutError: the peer neither reads, nor answers, nor closes the connection.
    """
    stream.settimeout(patience)
    try:
        for piece in pieces[:-1]:
            stream.sendall(piece)
            told = stream.recv(65536)
            if not told or CLOSED.search(told):
                raise NotAdmittedError
        stream.setblocking(False)
        rest, until = memoryview(pieces[-1]), time.monotonic() + patience
        while time.monotonic() < until:
            select.select([stream], [stream] if rest else [], [], QUIET)
            heard = said = False
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if rest:
                    rest = rest[stream.send(rest[:16384]) :]
                    said = True
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                told = stream.recv(65536)
                if not told:
                    return bool(rest)
                if CLOSED.search(told):
                    return BY_ITSELF.search(told) is not None
                heard = True
            if said:
                until = time.monotonic() + patience
            elif not heard and not rest:
                return False  # the end of what it was told is missing, for all it knows
    except NotAdmittedError:
        raise
    except (ConnectionError, ssl.SSLError):
        return True
    raise TimeoutError("the broker says nothing more, and doesn't end the connection")


def knock(connect: Callable[[], ssl.SSLSocket], said: bytes) -> int:
    """Send *said* before a log-in, and disconnect without waiting; after an error, the broker would wait 3 s.

    Return whether sending worked.
    """
    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError), connect() as stream:
        stream.settimeout(QUIET)
        stream.sendall(said)
        with contextlib.suppress(TimeoutError):
            while stream.recv(65536):
                pass
        return 1
    return 0


def run(
    connect: Callable[[], ssl.SSLSocket], count: int, seed: str, names: Sequence[str], vhost: str
) -> dict[str, int]:
    """Send *count* frames or more, of both protocols in turn; return the counts by name.

    A refused connection is tried again, up to a limit.
    """
    told = {"before log-in": 0, "frames": 0, "connections": 0, "ended early": 0, "refused": 0}
    number = 0
    while told["frames"] < count:
        dice = random.Random(f"{seed}.{number}")
        if not number % 10:
            told["before log-in"] += knock(connect, early(dice, names))
        pieces, frames = batch(dice, names, vhost, modern=bool(number % 2))
        try:
            with connect() as stream:
                ended = say(stream, pieces)
        except (ConnectionError, ssl.SSLError):  # the account's number of connections, while others end
            told["refused"] += 1
            if told["refused"] > 1000 + 10 * told["connections"]:
                raise
            time.sleep(0.05)
            continue
        told["ended early"] += ended
        told["frames"] += frames
        told["connections"] += 1
        number += 1
    return told
