"""Program that the exhaustion audit runs in its environments: it troubles a service of the host, or measures answers.

It needs only the standard library (Python 3.10 or newer) and ``amqp_frames.py``. Its first argument says what it does:

``hold``
    Nothing.
``serve``
    Answer each request in the environment's mailbox.
``ask N``
    Send N requests, one after the other, along the environment's one link for requests; print the seconds until each
    answer, as a JSON list. The first tenth of the answers is left out, because a new connection is slower.
``worst WAY``
    Try one of the attacks in :data:`WAYS` in several processes, for at most :data:`MOST` seconds, and then do nothing.
    Each half second the program writes ``taken N``: the number of attempts that succeeded so far.
``end``
    End at once, with an error.
``endless``
    Write without end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from netspace.environment.audit import amqp_frames as amqp

PROCESSES = 4
HELD = 200  # connections that one process keeps, at most
REST = 0.02  # seconds until a process tries again after it was refused
BODY = 100_000
CONSUMERS = 200  # consumers of one channel at the same time
BRIEF = 40  # consumers that a channel has one after the other before it is closed
TELL = 0.5  # seconds between two lines
MOST = 600.0  # seconds: so that an audit that was killed doesn't leave this for ever
LINE = b"x" * 999 + b"\n"


def hold() -> None:
    while True:
        signal.pause()


def serve() -> None:
    while True:
        # The forwarder is loaded anew when links come and go; a broker may begin again.
        with contextlib.suppress(OSError, amqp.ClosedError), amqp.Connection() as connection:
            connection.send(amqp.consume(amqp.card()["mailbox"]))
            connection.until((60, 21))
            print("serving", flush=True)
            while True:
                tag, texts, body = connection.delivery()
                exchange, key, properties = amqp.answering(texts)
                done = amqp.method(1, (60, 80), struct.pack(">QB", tag, 0))
                connection.send(amqp.message(exchange, key, body, properties) + done)
        time.sleep(0.1)


def ask(times: str) -> None:
    peer = next(peer for peer in amqp.card()["peers"] if "replies" in peer)
    replies, key, taken = peer["replies"], os.urandom(16).hex(), []
    with amqp.Connection() as connection:
        connection.send(amqp.bind(replies["queue"], replies["exchange"], key))
        connection.until((50, 21))
        connection.send(amqp.consume(replies["queue"], acknowledged=False))
        connection.until((60, 21))
        request = amqp.message(peer["exchange"], "", b"x" * 64, amqp.reply_to(replies["exchange"], key))
        for _ in range(int(times)):
            began = time.monotonic()
            connection.send(request)
            connection.delivery()
            taken.append(round(time.monotonic() - began, 6))
    print(json.dumps(taken[len(taken) // 10 :]), flush=True)


# -- attacks: each is a generator, and yields how often it has succeeded since its last yield ------
def _held(begun: Callable[[], socket.socket]) -> Iterator[int]:
    """Make connections without end, and keep the newest HELD of them open.

    :param begun: makes one connection.
    """
    kept: list[socket.socket] = []
    try:
        while True:
            kept.append(begun())
            if len(kept) > HELD:
                kept.pop(0).close()
            yield 1
    finally:
        for one in kept:
            one.close()


def connections() -> Iterator[int]:
    return _held(lambda: amqp.plain(2.0))


def handshakes() -> Iterator[int]:
    while True:
        with amqp.secured() as stream:
            stream.sendall(os.urandom(4096))
        yield 1


def halves() -> Iterator[int]:
    """TLS handshakes that the program begins, but doesn't finish after the broker's answer."""

    def begun() -> socket.socket:
        stream = amqp.plain(2.0)
        try:
            stream.sendall(amqp.greeting())
        except OSError:
            stream.close()
            raise
        return stream

    return _held(begun)


def reconnects() -> Iterator[int]:
    """Log-ins, each on a new connection, which is closed after the log-in."""
    while True:
        with amqp.Connection():
            yield 1


def messages() -> Iterator[int]:
    with amqp.Connection() as connection:
        one = amqp.message(_exchange(), "", bytes(BODY))
        while True:
            connection.send(one)
            yield 1


def small() -> Iterator[int]:
    with amqp.Connection() as connection:
        many = amqp.message(_exchange(), "", bytes(64)) * 100
        while True:
            connection.send(many)
            yield 100


def transactions() -> Iterator[int]:
    with amqp.Connection() as connection:
        connection.send(amqp.method(1, (90, 10)))
        connection.until((90, 11))
        one = amqp.message(_exchange(), "", bytes(BODY))
        while True:
            connection.send(one)
            yield 1


def unfinished() -> Iterator[int]:
    with amqp.Connection() as connection:
        for channel in range(2, 9):
            connection.open(channel)
            connection.until((20, 11))
        for channel in range(1, 9):
            connection.send(amqp.publish(channel, _exchange()) + amqp.header(channel, 1 << 29))
        for channel in itertools.cycle(range(1, 9)):
            connection.send(amqp.frame(amqp.BODY, channel, bytes(BODY)))
            yield 1


def channels() -> Iterator[int]:
    with amqp.Connection() as connection:
        numbers = range(2, min(connection.channels, 8) + 1)
        while True:
            for channel in numbers:
                connection.open(channel)
            for _ in numbers:
                connection.until((20, 11))
            for channel in numbers:
                connection.send(amqp.method(channel, (20, 40), bytes(7)))
            for _ in numbers:
                connection.until((20, 41))
            yield len(numbers)


def brief() -> Iterator[int]:
    """Use channels and close them at once, before the broker can measure their use; yield how many."""
    mailbox = amqp.card()["mailbox"]
    with amqp.Connection() as connection:
        numbers = range(2, min(connection.channels, 8) + 1)
        ended = {number: amqp.method(number, (60, 30), amqp.short("x") + b"\x01") for number in numbers}
        while True:
            for number in numbers:
                connection.open(number)
            for number in numbers:
                pair = amqp.consume(mailbox, "x", quiet=True, channel=number) + ended[number]
                connection.send(pair * BRIEF + amqp.method(number, (20, 40), bytes(7)))
            for _ in numbers:
                connection.until((20, 41))
            yield len(numbers)


def strangers() -> Iterator[int]:
    """Send empty frames on a connection that never logs in, and so has no account; yield how many."""
    with amqp.secured() as stream:
        stream.sendall(b"AMQP\0\0\x09\x01")
        many = amqp.frame(amqp.HEARTBEAT, 0, b"") * 1000
        while True:
            stream.sendall(many)
            yield 1000


def consumers() -> Iterator[int]:
    with amqp.Connection() as connection:
        mailbox, tags = amqp.card()["mailbox"], [str(number) for number in range(CONSUMERS)]
        begun = b"".join(amqp.consume(mailbox, tag, quiet=True) for tag in tags)
        ended = b"".join(amqp.method(1, (60, 30), amqp.short(tag) + b"\x01") for tag in tags)
        while True:
            connection.send(begun + ended)
            yield CONSUMERS


def bindings() -> Iterator[int]:
    replies = next(peer["replies"] for peer in amqp.card()["peers"] if "replies" in peer)
    with amqp.Connection() as connection:
        for number in itertools.count():
            key = f"{os.getpid()} {number}".rjust(255, "x")
            connection.send(amqp.bind(replies["queue"], replies["exchange"], key, quiet=True))
            yield 1


def questions() -> Iterator[int]:
    with amqp.Connection() as connection:
        one = amqp.method(1, (60, 70), b"\0\0" + amqp.short(amqp.card()["mailbox"]) + b"\x01")
        while True:
            connection.send(one * 100)
            for _ in range(100):
                connection.until((60, 72))
            yield 100


def sessions() -> Iterator[int]:
    with amqp.Sessions() as connection:
        begin = (amqp.NULL, amqp.number(0), amqp.number(100), amqp.number(100))
        while True:
            for channel in range(4):
                connection.send(amqp.performative(channel, amqp.BEGIN, *begin))
                connection.send(amqp.performative(channel, amqp.ENDED))
            connection.until(amqp.ENDED, 4)
            yield 4


def frames() -> Iterator[int]:
    with amqp.Connection() as connection:
        many = amqp.frame(amqp.HEARTBEAT, 0, b"") * 1000
        while True:
            connection.send(many)
            yield 1000


def records() -> Iterator[int]:
    """Bytes, each sent in a TLS record of its own."""
    with amqp.Connection() as connection:
        beat = amqp.frame(amqp.HEARTBEAT, 0, b"")
        while True:
            for number in range(len(beat)):
                connection.send(beat[number : number + 1])
            yield len(beat)


def lines() -> Iterator[int]:
    while True:
        os.write(1, LINE * 4)
        yield 4


WAYS: dict[str, Callable[[], Iterator[int]]] = {
    way.__name__: way
    for way in (
        *(connections, handshakes, halves, reconnects, strangers, messages, small, transactions, unfinished),
        *(channels, brief, consumers, bindings, questions, sessions, frames, records, lines),
    )
}


def _exchange() -> str:
    return str(amqp.card()["peers"][0]["exchange"])


def worst(way: str) -> None:
    counts = mmap.mmap(-1, 8 * PROCESSES)
    children = [_worker(WAYS[way], counts, place) for place in range(PROCESSES)]

    def end(*_: object) -> NoReturn:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    until = time.monotonic() + MOST
    while time.monotonic() < until:
        time.sleep(TELL)
        os.write(1, f"taken {sum(struct.unpack(f'={PROCESSES}q', counts[:]))}\n".encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    hold()


def _worker(way: Callable[[], Iterator[int]], counts: mmap.mmap, place: int) -> int:
    """Start a process that repeats one attack of :data:`WAYS` and counts its successes; return the process's id."""
    pid = os.fork()
    if pid:
        return pid
    taken = 0
    while True:
        # amqp.ClosedError is a ConnectionError, ssl.SSLError an OSError. Whatever else it may be: it goes on.
        with contextlib.suppress(Exception):
            for done in way():
                taken += done
                struct.pack_into("=q", counts, 8 * place, taken)
        time.sleep(REST)


def end() -> None:
    sys.exit(3)


def endless() -> None:
    while True:
        os.write(1, LINE * 16)


PROGRAMS: dict[str, Callable[..., Any]] = {one.__name__: one for one in (hold, serve, ask, worst, end, endless)}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    what, *arguments = sys.argv[1:]
    PROGRAMS[what](*arguments)


if __name__ == "__main__":
    main()
