"""The cost of a link between two hosts, direct and buffered, compared with a link on one host and a bare connection.

usage: sudo python benchmarks/remote_links.py [--json] [--rounds N] [--messages N]

There are two hosts, connected by a veth pair. Each is a network namespace with its own broker, forwarder and
environments. All paths end in a mailbox (a quorum queue, on disk). The sender is Python, with aiormq alone or with
netspace-client. The paths are measured in turn within each round. The bare connection is plain AMQP from one host to a
temporary listener of the other host's broker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import bench
from bench import Rounds, line, say

sys.path[:0] = [str(bench.ROOT / "client/src"), str(bench.ROOT / "tests")]

PLAIN_PORT = 5699
BODY = b"x" * 64
FLIGHT = 256  # the number of unconfirmed messages that netspace-client permits too
PATHS = ("bare", "near", "direct", "buffered")


class Bare:
    """A bare connection from h1 to a mailbox on h2's broker, without TLS, forwarders or netspace's libraries."""

    def __init__(self, h1: Any, h2: Any, target: str) -> None:
        from support.links.linked_hosts import ADDRESSES

        from netspace.link.broker import node

        listen = (
            "application:set_env(rabbit, auth_mechanisms, ['EXTERNAL', 'PLAIN']), "
            f'rabbit_networking:start_tcp_listener({{"{ADDRESSES["h2"]}", {PLAIN_PORT}}}, 10).'
        )
        with h2.here():
            refused = node.evaluate(h2.layout, h2.broker, listen)
            assert not refused, refused
            admin = node.login(h2.layout)
            assert admin, "the broker keeps no login"
        self._exchange = h2.n(target)
        self._where = f"amqp://{admin.username}:{admin.password}@{ADDRESSES['h2']}:{PLAIN_PORT}/{h2.layout.instance}"
        self._host = h1
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        self._channel = self.run(self._open())

    def _live(self) -> None:
        with self._host.here():
            self._loop.run_forever()

    async def _open(self) -> Any:
        import aiormq

        return await (await aiormq.connect(self._where)).channel()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(300)

    async def send(self) -> None:
        await self._channel.basic_publish(BODY, exchange=self._exchange, routing_key="", mandatory=True, wait=False)


class Linked:
    """A program with netspace-client, and one of its links."""

    def __init__(self, program: Any, to: str) -> None:
        self.run = program.run
        self._mailbox = program.mailbox
        self._to = to

    async def send(self) -> None:
        await self._mailbox.send(self._to, BODY, timeout=120)


async def one_by_one(path: Any, count: int) -> float:
    """Return the milliseconds from sending a message to its confirmation."""
    begun = time.perf_counter()
    for _ in range(count):
        await path.send()
    return (time.perf_counter() - begun) / count * 1000


async def many(path: Any, count: int) -> float:
    """Return the confirmed messages per second, with up to FLIGHT unconfirmed messages."""
    room = asyncio.Semaphore(FLIGHT)

    async def send() -> None:
        async with room:
            await path.send()

    begun = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(count)))
    return count / (time.perf_counter() - begun)


@contextlib.contextmanager
def fleet(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield each path by its name, and a function that waits for a message sent over the buffered path."""
    from support.links.linked_hosts import hosts
    from support.links.programs import Program, tell

    from netspace.spec.types import Link

    links = (
        Link(source="web@h1", target="near@h1"),
        Link(source="web@h1", target="far@h2"),
        Link(source="web@h1", target="later@h2", via="buffered"),
        Link(source="bare@h2", target="far@h2"),
    )
    with hosts(folder / "authorities") as (h1, h2, _):
        h1.environment("web", "near")
        h2.environment("far", "later", "bare")
        h2.declare(*links)
        h1.declare(*links)
        started = []
        try:
            for world, name in ((h1, "web"), (h1, "near"), (h2, "far"), (h2, "later")):
                started.append(Program(world, name, tell(world, name, folder / name), capacity=1000))
            web, near, far, later = started
            for reader in (near, far):
                reader.start(reader.mailbox.serve(_nothing))
            paths: dict[str, Any] = {
                "bare": Bare(h1, h2, "link.bare.far"),
                "near": Linked(web, "near"),
                "direct": Linked(web, "far@h2"),
                "buffered": Linked(web, "later@h2"),
            }
            yield paths, later
        finally:
            for one in started:
                one.leave()


async def _nothing(_: Any) -> None:
    return None


def carried(path: Any, later: Any, count: int) -> tuple[float, float]:
    """Return, for a buffered link, the milliseconds until one message arrives, and the messages per second."""

    async def take(number: int) -> None:
        for _ in range(number):
            async with await later.mailbox.receive(timeout=120):
                pass

    times = []
    for _ in range(50):
        begun = time.perf_counter()
        path.run(path.send())
        later.run(take(1))
        times.append((time.perf_counter() - begun) * 1000)
    begun = time.perf_counter()
    path.run(many(path, count))
    later.run(take(count))
    return sorted(times)[len(times) // 2], count / (time.perf_counter() - begun)


def lines(rounds: Rounds) -> dict[str, dict[str, Any]]:
    bare = "bare connection across"
    found = {}
    for name, told in (("near", "on one host"), ("direct", "to another host, direct"), ("buffered", "..., buffered")):
        found[f"confirmed after, {told}"] = line(rounds.middle(f"one {name}"), "ms", bare, rounds.middle("one bare"))
        found[f"confirmed, {told}"] = line(rounds.middle(f"many {name}"), "msg/s", bare, rounds.middle("many bare"))
    direct = "direct"
    found["there after, buffered"] = line(rounds.middle("there"), "ms", direct, rounds.middle("one direct"))
    found["arrives, buffered"] = line(rounds.middle("arrives"), "msg/s", direct, rounds.middle("many direct"))
    return found


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    rounds = Rounds()
    with bench.disk(in_memory=options.memory_disk), tempfile.TemporaryDirectory(prefix="links-") as name:
        say("two hosts")
        with fleet(Path(name)) as (paths, later):
            for number in range(options.rounds):
                say(f"round {number + 1} of {options.rounds}")
                for what in PATHS:
                    path = paths[what]
                    if what == "buffered":
                        there, arrives = carried(path, later, options.messages)
                        rounds.note("there", there)
                        rounds.note("arrives", arrives)
                    path.run(one_by_one(path, 20))
                    rounds.note(f"one {what}", path.run(one_by_one(path, 200)))
                    rounds.note(f"many {what}", path.run(many(path, options.messages)))
                    if what == "buffered":  # takes messages still on their way
                        later.run(_drain(later, 220 + options.messages))
    return lines(rounds)


async def _drain(later: Any, count: int) -> None:
    for _ in range(count):
        async with await later.mailbox.receive(timeout=120):
            pass


def main() -> int:
    parser = bench.arguments(__doc__, rounds=3)
    parser.add_argument("--messages", type=int, default=2000, help="messages of one measurement (default 2000)")
    options = parser.parse_args()
    bench.on_a_host_of_its_own()
    bench.tell(measure(options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
