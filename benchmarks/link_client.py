"""Two programs that exchange messages by ``netspace-client``, over a plain and a sealed link; part of ``links.py``.

Each program is a thread in its environment's network namespace, with a folder of the files from the host. A mailbox is
a quorum queue, so the figures include the disk, as for real programs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench

sys.path.insert(0, str(bench.ROOT / "client/src"))
BODY = b"x" * 64


class Program:
    """A program in environment *name* of *links*, with an open mailbox."""

    def __init__(self, links: Any, name: str, folder: Path) -> None:
        from netspace.interface import netns
        from netspace.link.seal import keys

        folder.mkdir()
        own = [link for link in links.recorded() if name in (link.source, link.target)]
        (folder / "environment.json").write_text(json.dumps(links.cards()(name, own)))
        for file, content in {**keys.handed(name, own, links.keys()), **links.access().files(name)}.items():
            (folder / file).write_bytes(content)
        self._loop = asyncio.new_event_loop()

        def live() -> None:
            netns.enter(links.layout.netns(name))
            self._loop.run_forever()

        self._thread = threading.Thread(target=live, daemon=True)
        self._thread.start()
        self.mailbox = self.run(self._start(folder))

    async def _start(self, folder: Path) -> Any:
        from netspace_client import Mailbox

        return await Mailbox(folder).__aenter__()

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.begin(work).result(120)

    def leave(self) -> None:
        self.run(self.mailbox.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextmanager
def _programs(links: Any, names: list[str], folder: Path) -> Iterator[list[Program]]:
    made: list[Program] = []
    try:
        for name in names:
            made.append(Program(links, name, folder / f"card-{name}"))
        yield made
    finally:
        for one in made:
            one.leave()


def measure(links: Any, asker: str, peers: dict[str, str], folder: Path, rounds: bench.Rounds, times: int) -> None:
    """Measure, in each round and for each peer, requests one after another and messages sent at once.

    :param asker: the environment that sends.
    :param peers: the peers, by the labels of the links to them.
    :param times: the number of rounds.
    """

    async def answer(message: Any) -> bytes:
        return bytes(message.body)

    async def ask(mailbox: Any, peer: str, count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            await mailbox.call(peer, BODY, timeout=60)
        return (time.perf_counter() - begun) / count * 1000

    async def pour(mailbox: Any, peer: str, count: int) -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(mailbox.send(peer, BODY, timeout=60) for _ in range(count)))
        return count / (time.perf_counter() - begun)

    with _programs(links, [asker, *peers.values()], folder) as (first, *others):
        working = [other.begin(other.mailbox.serve(answer)) for other in others]
        for number in range(times):
            bench.say(f"netspace-client: round {number + 1} of {times}")
            for what, peer in peers.items():
                first.run(ask(first.mailbox, peer, 20))
                rounds.note(f"call {what}", first.run(ask(first.mailbox, peer, 200)))
                rounds.note(f"send {what}", first.run(pour(first.mailbox, peer, 1000)))
        for one in working:
            one.cancel()
