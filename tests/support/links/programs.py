"""Programs inside environments that use ``netspace-client``, for tests of links.

Each program runs in a separate thread. The thread stays in the environment's network namespace, and finds its card in a
folder, in the form in which the host writes the card.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from netspace_client import Mailbox
from support.waiting import until

T = TypeVar("T")


class Program:
    """A program in environment *name* with an open mailbox.

    :param world: the ``World`` of the tests of links.
    :param folder: the folder that stands for ``/run/netspace``.
    """

    def __init__(self, world: Any, name: str, folder: Path, **options: Any) -> None:
        self.world = world
        self.name = name
        self.folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()
        self.mailbox: Mailbox = self.run(self._start(options))

    def _live(self) -> None:
        with self.world.inside(self.name):
            self._loop.run_forever()
            self._loop.close()

    async def _start(self, options: dict[str, Any]) -> Mailbox:
        return await Mailbox(self.folder, **options).__aenter__()

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        """Begin *work* in the program's thread; ``result()`` of the returned object waits for the end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        """Run *work* in the program's thread."""
        return self.start(work).result(timeout)

    def send(self, to: str, body: str, **options: Any) -> str:
        return self.run(self.mailbox.send(to, body, **options))

    def receive(self, match: Any = None, timeout: float = 30.0) -> str:
        """Receive and acknowledge the next message; return its text."""

        async def take() -> str:
            async with await self.mailbox.receive(match, timeout) as message:
                return message.text

        return self.run(take())

    def reads(self) -> bool:
        """Return whether the program reads all of its queues."""
        return all(ear._consumer for ear in self.mailbox._arrivals._ears)

    def connections(self) -> set[Any]:
        """Return the connections that the program has now."""
        return {session._connection for session in self.mailbox._lines.sessions.values() if session.connected}

    def leave(self) -> None:
        if not self._thread.is_alive():
            return
        try:
            self.run(self.mailbox.close())
        finally:
            self.die()

    def die(self) -> None:
        """End without closing any connection."""

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            self.mailbox._closed = True
            for session in self.mailbox._lines.sessions.values():
                session._closed = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if self._thread.is_alive():
            self.run(end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)


def no_mail(world: Any) -> None:
    """Empty all mailboxes, twice, since messages that a program hadn't acknowledged return a moment after its end."""
    vhost, look = world.layout.instance, {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto", "truncate": 1}

    def emptied() -> bool:
        world.no_mail()
        with world.here(), world.api() as api:
            queues = api.get("queues", vhost, query="columns=name") or []
            return not any(api.post("queues", vhost, queue["name"], "get", body=look) for queue in queues)

    until(lambda: emptied() and emptied(), "mail comes again and again", pause=0.1)


def tell(world: Any, name: str, folder: Path) -> Path:
    """Write into *folder* the files of an environment's ``/run/netspace``, each by a rename, like the host."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for file in Path(world.write_cards(name, Path(scratch) / "new")).iterdir():
            os.replace(file, folder / file.name)
    return folder
