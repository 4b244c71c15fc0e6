"""The programs of ``messages.py``. Each is one process that plays one role with one client, and prints JSON.

usage: python message_programs.py CLIENT ROLE ADDRESS NAME [SECONDS]

The roles are: ask, answer, send, receive. netspace-client and aiormq are used as their documentation says. For NATS
JetStream and Redis streams, this file implements only the needed parts of their protocols, so that mostly the server is
measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "client/src"))

PROCESSOR = "NETSPACE_BENCHMARK_PROCESSOR"
"""Variable with the descriptor of the file that has the processor time of the whole sandbox (``bench.processor``).

A program in another network namespace can't open the file: there ``/sys`` is another file system.
"""
BODY = b"x" * 64
CALLS, POURED = 2000, 8000
AT_ONCE, WINDOW = 256, 1024


def processor() -> float:
    """Return the milliseconds of processor time that all programs in the sandbox have used so far."""
    words = os.pread(int(os.environ[PROCESSOR]), 4096, 0).split()
    return int(words[1]) / 1e3 if len(words) > 1 else int(words[0]) / 1e6


def percentiles(times: list[float]) -> dict[str, float]:
    """Return p50, p99 and p99.9 in milliseconds, and the number of samples."""
    times.sort()
    found = {name: times[min(len(times) - 1, int(len(times) * part))] for name, part in PARTS.items()}
    return {**{name: value * 1000 for name, value in found.items()}, "samples": len(times)}


PARTS = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


async def asked(ask: Callable[[], Awaitable[Any]], seconds: float) -> dict[str, float]:
    """Send requests one after another; return the milliseconds that they took, and the processor time of each."""
    warm = time.perf_counter() + min(1.0, seconds / 4)
    for _ in range(100):
        await ask()
        if time.perf_counter() > warm:
            break
    times: list[float] = []
    end, used = time.perf_counter() + seconds, processor()
    while len(times) < CALLS and time.perf_counter() < end:
        begun = time.perf_counter()
        await ask()
        times.append(time.perf_counter() - begun)
    each = (processor() - used) / len(times)
    return {**percentiles(times), "processor time": each}


async def poured(name: str, pour: Callable[[int], Awaitable[Any]], seconds: float) -> dict[str, float]:
    """Send for *seconds*; return the confirmed messages per second as *name*, and the processor time of each (ms)."""
    await pour(50)
    begun, used, count = time.perf_counter(), processor(), 0
    while count < POURED and time.perf_counter() - begun < seconds:
        await pour(POURED // 8)
        count += POURED // 8
    took = time.perf_counter() - begun
    return {name: count / took, f"{name}, processor time": (processor() - used) / count}


# -- netspace-client -----------------------------------------------------------------------
class Netspace:
    def __init__(self, address: str, name: str) -> None:
        self._folder, self._peer = address, name

    async def answer(self) -> None:
        from netspace_client import Mailbox

        async def same(message: Any) -> bytes:
            return bytes(message.body)

        async with Mailbox(self._folder) as mailbox:
            await mailbox.serve(same)

    async def drain(self) -> None:
        from netspace_client import Mailbox

        async with Mailbox(self._folder) as mailbox:
            async for message in mailbox.messages():
                await message.ack()

    async def ask(self, seconds: float) -> Any:
        from netspace_client import Mailbox

        async with Mailbox(self._folder) as mailbox:
            return await asked(lambda: mailbox.call(self._peer, BODY, timeout=60), seconds)

    async def pour(self, seconds: float) -> Any:
        from netspace_client import Mailbox

        async with Mailbox(self._folder, in_flight=AT_ONCE) as mailbox:

            async def each(count: int) -> None:
                await asyncio.gather(*(mailbox.send(self._peer, BODY) for _ in range(count)))

            async def batch(count: int) -> None:
                await mailbox.send_many(self._peer, (BODY for _ in range(count)), window=WINDOW)

            return await poured("sends", each, seconds) | await poured("pipelined", batch, seconds)


# -- aiormq alone --------------------------------------------------------------------------
class Bare:
    """A client of the queues ``bare.NAME`` and ``bare.NAME.answers``, of the same queue type as a link's queues."""

    def __init__(self, address: str, name: str) -> None:
        self._where, self._queue = Path(address).read_text(), f"bare.{name}"
        self._kind, self._mode = ("quorum", 2) if name == "disk" else ("classic", 1)

    async def _channel(self) -> Any:
        import aiormq

        self._connection = await aiormq.connect(self._where)
        return await self._connection.channel()

    async def prepare(self) -> None:
        channel = await self._channel()
        arguments = {"x-queue-type": self._kind}
        await channel.queue_declare(self._queue, durable=True, arguments=arguments)
        await channel.queue_declare(f"{self._queue}.answers", durable=True, arguments={"x-queue-type": "classic"})
        await self._connection.close()

    async def _publish(self, channel: Any, queue: str, body: bytes) -> None:
        from aiormq import spec

        about = spec.Basic.Properties(delivery_mode=self._mode)
        await channel.basic_publish(body, routing_key=queue, properties=about, mandatory=True, wait=False)

    async def answer(self) -> None:
        channel = await self._channel()
        await channel.basic_qos(prefetch_count=200)

        async def heard(delivery: Any) -> None:
            await self._publish(channel, f"{self._queue}.answers", delivery.body)
            await channel.basic_ack(delivery.delivery_tag, wait=False)

        await channel.basic_consume(self._queue, heard)
        await asyncio.Event().wait()

    async def drain(self) -> None:
        channel = await self._channel()
        await channel.basic_qos(prefetch_count=200)

        async def heard(delivery: Any) -> None:
            await channel.basic_ack(delivery.delivery_tag, wait=False)

        await channel.basic_consume(self._queue, heard)
        await asyncio.Event().wait()

    async def ask(self, seconds: float) -> Any:
        channel = await self._channel()
        got: asyncio.Queue[None] = asyncio.Queue()

        async def heard(delivery: Any) -> None:
            got.put_nowait(None)
            await channel.basic_ack(delivery.delivery_tag, wait=False)

        await channel.basic_consume(f"{self._queue}.answers", heard)

        async def ask() -> None:
            await self._publish(channel, self._queue, BODY)
            await got.get()

        return await asked(ask, seconds)

    async def pour(self, seconds: float) -> Any:
        channel = await self._channel()

        def within(most: int) -> Callable[[int], Awaitable[None]]:
            async def pour(count: int) -> None:
                room = asyncio.Semaphore(most)

                async def one() -> None:
                    async with room:
                        await self._publish(channel, self._queue, BODY)

                await asyncio.gather(*(one() for _ in range(count)))

            return pour

        return await poured("sends", within(AT_ONCE), seconds) | await poured("pipelined", within(WINDOW), seconds)


# -- NATS JetStream ------------------------------------------------------------------------
class Nats:
    """A client of two JetStream streams, one for questions and one for answers. Each message is acknowledged.

    https://docs.nats.io/reference/nats-protocols
    """

    def __init__(self, address: str, name: str) -> None:
        self._port, self._name = int(address), name
        self._storage = "file" if name == "disk" else "memory"
        self._number = 0
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._heard: Callable[[bytes, bytes], None] = lambda reply, body: None

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self._reader.readline()
        self._inbox = f"_INBOX.{id(self):x}.{time.time_ns():x}"
        self._writer.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n' + f"SUB {self._inbox}.* 1\r\n".encode())
        self._reading = asyncio.create_task(self._read())
        for part in ("asked", "answered"):
            about = {"name": f"{self._name}-{part}", "subjects": [f"{self._name}.{part}"], "storage": self._storage}
            await self._api(f"STREAM.CREATE.{about['name']}", {**about, "retention": "workqueue"})

    async def _read(self) -> None:
        while line := await self._reader.readline():
            if line.startswith(b"MSG "):
                _, subject, _, *reply, size = line.split()
                body = (await self._reader.readexactly(int(size) + 2))[:-2]
                waiting = self._waiting.pop(subject.decode(), None)
                if waiting is not None:
                    waiting.set_result(body)
                elif reply:
                    self._heard(reply[0], body)
            elif line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")

    def _request(self, subject: str, body: bytes) -> asyncio.Future[bytes]:
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        future = self._waiting[reply] = asyncio.get_running_loop().create_future()
        self._writer.write(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n")
        return future

    async def _api(self, what: str, about: dict[str, Any]) -> None:
        said = json.loads(await self._request(f"$JS.API.{what}", json.dumps(about).encode()))
        if "error" in said:
            raise RuntimeError(f"nats: {what}: {said['error']}")

    async def _consume(self, part: str, heard: Callable[[bytes, bytes], None]) -> None:
        self._heard = heard
        to = f"deliver.{self._name}.{part}"
        self._writer.write(f"SUB {to} 2\r\n".encode())
        stream, name = f"{self._name}-{part}", "reader"
        config = {"durable_name": name, "deliver_subject": to, "ack_policy": "explicit", "max_ack_pending": 200}
        await self._api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})

    def _ack(self, reply: bytes) -> None:
        self._writer.write(b"PUB " + reply + b" 4\r\n+ACK\r\n")

    async def answer(self) -> None:
        await self._open()

        def heard(reply: bytes, body: bytes) -> None:
            self._request(f"{self._name}.answered", body)
            self._ack(reply)

        await self._consume("asked", heard)
        await self._reading

    async def drain(self) -> None:
        await self._open()
        await self._consume("asked", lambda reply, body: self._ack(reply))
        await self._reading

    async def ask(self, seconds: float) -> Any:
        await self._open()
        got: asyncio.Queue[None] = asyncio.Queue()

        def heard(reply: bytes, body: bytes) -> None:
            self._ack(reply)
            got.put_nowait(None)

        await self._consume("answered", heard)

        async def ask() -> None:
            await self._request(f"{self._name}.asked", BODY)
            await got.get()

        return await asked(ask, seconds)

    async def pour(self, seconds: float) -> Any:
        await self._open()
        return await poured_within(self._begin, seconds)

    def _begin(self) -> asyncio.Future[bytes]:
        return self._request(f"{self._name}.asked", BODY)


async def windowed(begin: Callable[[], asyncio.Future[bytes]], most: int, count: int) -> None:
    """Send *count* requests, with at most *most* of them unanswered at a time."""
    room = asyncio.Semaphore(most)
    last: list[asyncio.Future[bytes]] = []
    for _ in range(count):
        await room.acquire()
        last.append(begin())
        last[-1].add_done_callback(lambda _: room.release())
    await asyncio.gather(*last)


async def poured_within(begin: Callable[[], asyncio.Future[bytes]], seconds: float) -> dict[str, float]:
    """Return the results of :func:`poured` for each limit on unconfirmed messages."""

    def within(most: int) -> Callable[[int], Awaitable[None]]:
        return lambda count: windowed(begin, most, count)

    return await poured("sends", within(AT_ONCE), seconds) | await poured("pipelined", within(WINDOW), seconds)


# -- Redis streams -------------------------------------------------------------------------
class Redis:
    """A client of streams with a consumer group.

    https://redis.io/docs/latest/develop/reference/protocol-spec
    """

    def __init__(self, address: str, name: str) -> None:
        self._port, self._name = int(address), name

    async def _open(self) -> None:
        self._commands = await Resp.connect(self._port)
        self._blocking = await Resp.connect(self._port)
        for part in ("asked", "answered"):
            made = await self._commands.say("XGROUP", "CREATE", f"{self._name}.{part}", "g", "$", "MKSTREAM")
            assert made == b"OK" or b"BUSYGROUP" in made, made

    async def _read(self, part: str, heard: Callable[[bytes], None]) -> None:
        stream = f"{self._name}.{part}"
        while True:
            said = await self._blocking.say(
                *("XREADGROUP", "GROUP", "g", "c", "COUNT", "200", "BLOCK", "0", "STREAMS", stream, ">")
            )
            for identity, pairs in said[0][1]:
                heard(pairs[1])
                self._commands.begin("XACK", stream, "g", identity)
                self._commands.begin("XDEL", stream, identity)

    def _add(self, part: str, body: bytes) -> asyncio.Future[bytes]:
        return self._commands.begin("XADD", f"{self._name}.{part}", "*", "b", body)

    async def answer(self) -> None:
        await self._open()
        await self._read("asked", lambda body: void(self._add("answered", body)))

    async def drain(self) -> None:
        await self._open()
        await self._read("asked", lambda body: None)

    async def ask(self, seconds: float) -> Any:
        await self._open()
        got: asyncio.Queue[None] = asyncio.Queue()
        reading = asyncio.create_task(self._read("answered", lambda body: got.put_nowait(None)))

        async def ask() -> None:
            await self._add("asked", BODY)
            await got.get()

        try:
            return await asked(ask, seconds)
        finally:
            reading.cancel()

    async def pour(self, seconds: float) -> Any:
        await self._open()
        return await poured_within(self._begin, seconds)

    def _begin(self) -> asyncio.Future[bytes]:
        return self._add("asked", BODY)


def void(_: object) -> None:
    """Ignore an answer for which no caller waits."""


class Resp:
    """A connection to Redis. Replies come in the order of the commands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def connect(cls, port: int) -> Resp:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def begin(self, *words: str | bytes) -> asyncio.Future[Any]:
        raw = [word if isinstance(word, bytes) else word.encode() for word in words]
        self._writer.write(b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(future)
        return future

    async def say(self, *words: str | bytes) -> Any:
        return await self.begin(*words)

    async def _run(self) -> None:
        while True:
            said = await self._value()
            future = self._waiting.get_nowait()
            if not future.done():
                future.set_result(said)

    async def _value(self) -> Any:
        line = (await self._reader.readline())[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else (await self._reader.readexactly(int(rest) + 2))[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [await self._value() for _ in range(int(rest))]
        return rest


CLIENTS: dict[str, Any] = {"netspace": Netspace, "bare": Bare, "nats": Nats, "redis": Redis}


def main() -> None:
    client, role, address, name, *seconds = sys.argv[1:]
    work = getattr(CLIENTS[client](address, name), role)
    if not seconds:
        asyncio.run(work())
        return
    print(json.dumps(asyncio.run(work(float(seconds[0])))), flush=True)


if __name__ == "__main__":
    main()
