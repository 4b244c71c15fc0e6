"""Replicas of an environment on several hosts: each message goes to a replica that works, as far as this program knows.

In a fleet, a link with ``reach: each`` leads to all replicas, named ``orders@h1`` and ``orders@h2``. The choice depends
on this program's own observations: errors of its messages and, if the links have ``monitor: true``, whether the
replica's program reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from netspace_client.errors import LinkError, MailboxFull, NotDeclared, Revoked, Timeout, Unreachable
from netspace_client.mailbox import TIMEOUT, Mailbox
from netspace_client.message import Message

T = TypeVar("T")

PAUSE = 10.0
LOOK = 5.0
"""Seconds between two look-ups of the existing replicas."""
AILING = (MailboxFull, NotDeclared, Revoked, Timeout, Unreachable)
"""Errors that concern the replica, not the message."""


class Replicas:
    """The replicas of one environment. Use: ``orders = Replicas(mailbox, "orders")``, ``await orders.call("tea?")``.

    A replica on the own host is tried first. After that, messages go to the replica that worked last. A replica that
    failed is tried again after *pause*, or if no other is left.

    :param name: the environment's name, without a host.
    :param pause: seconds for which a replica that failed is tried only after all others.
    """

    def __init__(self, mailbox: Mailbox, name: str, *, pause: float = PAUSE) -> None:
        self._mailbox, self._name, self._pause = mailbox, name, pause
        self._last = ""
        self._failed: dict[str, float] = {}
        self._down: set[str] = set()

    def names(self) -> list[str]:
        """Return the names of the replicas to which there are links now, the best replica first.

        :raises NotDeclared: no link leads to a replica.
        """
        peers = {link.peer for link in self._mailbox.links() if link.direction == "to"}
        found = {peer for peer in peers if peer == self._name or peer.startswith(f"{self._name}@")}
        if not found:
            raise NotDeclared(f"there is no link to {self._name}, nor to a replica of it; declare it with reach: each")
        self._failed = {peer: at for peer, at in self._failed.items() if peer in found}
        self._down &= found
        now = _now()

        def rank(peer: str) -> tuple[bool, float, bool, bool, str]:
            failed = self._failed.get(peer, float("-inf"))
            ails = failed + self._pause > now
            return peer in self._down, failed if ails else float("-inf"), peer != self._last, "@" in peer, peer

        return sorted(found, key=rank)

    async def send(
        self,
        body: bytes | str,
        *,
        timeout: float = TIMEOUT,
        repeat: bool = False,
        content_type: str | None = None,
        urgent: bool = False,
    ) -> str:
        """Send a message to one replica; return its id after that replica's broker has confirmed it.

        :param timeout: seconds to try, for all replicas together.
        :param repeat: also try the next replica when it is unknown whether the last one has the message. **Two replicas
            may then get the message**, with the same id.
        :raises LinkError: an error of :meth:`Mailbox.send` for the last replica that was tried.
        """
        identity = secrets.token_hex(16)

        def one(peer: str, seconds: float) -> Awaitable[str]:
            return self._mailbox.send(
                peer, body, timeout=seconds, id=identity, content_type=content_type, urgent=urgent
            )

        return await self._tried(one, timeout, repeat)

    async def call(
        self,
        body: bytes | str,
        timeout: float = TIMEOUT,
        *,
        repeat: bool = False,
        content_type: str | None = None,
        urgent: bool = False,
    ) -> Message:
        """Send a request to one replica, wait for its answer and return it. Parameters are those of :meth:`send`.

        :raises LinkError: an error of :meth:`Mailbox.call` for the last replica that was tried.
        """

        def one(peer: str, seconds: float) -> Awaitable[Message]:
            return self._mailbox.call(peer, body, seconds, content_type=content_type, urgent=urgent)

        return await self._tried(one, timeout, repeat)

    async def watch(self) -> None:
        """Follow the monitors of all replicas until the call is cancelled. Run it as a task.

        A replica whose program doesn't read is tried last. Links without ``monitor: true`` aren't monitored.
        """
        following: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                with contextlib.suppress(NotDeclared):
                    for peer in self.names():
                        if peer not in following or following[peer].done():
                            following[peer] = asyncio.create_task(self._follow(peer))
                await asyncio.sleep(LOOK)
        finally:
            for task in following.values():
                task.cancel()
            await asyncio.gather(*following.values(), return_exceptions=True)

    async def _follow(self, peer: str) -> None:
        with contextlib.suppress(NotDeclared):
            monitor = self._mailbox.monitor(peer)
            self._down.discard(peer)  # nothing is known before a monitor's first change
            async for change in monitor:
                if change.state == "up":
                    self._down.discard(peer)
                    self._failed.pop(peer, None)
                else:
                    self._down.add(peer)

    async def _tried(self, one: Callable[[str, float], Awaitable[T]], timeout: float, repeat: bool) -> T:
        deadline, error = _now() + timeout, LinkError(f"{self._name}: no replica was tried")
        waiting, tried = self.names(), False
        while waiting:
            peer = waiting.pop(0)
            left = max(0.0, deadline - _now())
            if left == 0 and tried:  # no time was left to try this replica
                break
            tried = True
            try:
                found = await one(peer, left / (1 + len(waiting)) if repeat else left)
            except AILING as err:
                self._failed[peer] = _now()
                error = err
                if err.unknown and not repeat:
                    break
            else:
                self._failed.pop(peer, None)
                self._last = peer
                return found
        raise error


def _now() -> float:
    return asyncio.get_running_loop().time()
