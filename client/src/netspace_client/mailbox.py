"""A program's mailbox and links: ``send``, ``call``, selective ``receive``, ``reply``, ``links``.

``docs/client.md`` states the promises and what each rests on. The binding by which answers find their asker
is all that is declared on the broker; nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from netspace_client import card as cards
from netspace_client import letter, narrowing
from netspace_client.answers import Answers
from netspace_client.arrivals import Arrivals, Match
from netspace_client.card import Card, Peer
from netspace_client.errors import Closed, LinkError, NotDeclared, Refused, Revoked, Timeout, TooFast, Unreachable
from netspace_client.host import Host
from netspace_client.lines import Lines
from netspace_client.message import Message
from netspace_client.monitor import Monitor
from netspace_client.narrowing import Paces
from netspace_client.notices import Notices
from netspace_client.outlet import CONFIRM_SECONDS, Unroutable
from netspace_client.sealing import Sealing
from netspace_client.window import SIZE, Window

log = logging.getLogger("netspace_client")

TIMEOUT = 60.0

Work = Callable[[Message], Awaitable[bytes | str | None]]


@dataclass(frozen=True)
class Link:
    """A declared link of this environment: ``to`` a peer (by its local name, where it has one), or ``from`` one."""

    direction: str
    peer: str
    pattern: str


class Mailbox:
    """This environment's mailbox, and the links from it. Use: ``async with Mailbox() as mailbox``.

    :param folder: where the host has put ``environment.json``.
    :param capacity: how many messages may wait here or be in work; more stay with the broker.
    :param memory: bytes that they may have; when there are more, none is taken until all of them are settled.
    :param in_flight: how many ``send`` may wait for the broker at once; more wait for their turn.
    :param window: how many ids of each sender are remembered, to drop what comes twice.
    :param confirm: seconds after which a broker that doesn't confirm is asked again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] = cards.FOLDER,
        *,
        capacity: int = 200,
        memory: int = 64 * 1024 * 1024,
        in_flight: int = 256,
        window: int = SIZE,
        confirm: float = CONFIRM_SECONDS,
    ) -> None:
        if not 1 <= capacity <= 65535:
            raise ValueError(f"capacity {capacity} is out of 1..65535")
        if memory < 1 or in_flight < 1:
            raise ValueError(f"memory {memory} and in_flight {in_flight}: each must be 1 at least")
        self._flight = asyncio.Semaphore(in_flight)
        self._host = Host(Path(folder))
        self._lines = Lines(self._host, confirm)
        seen = Window(window)
        self._sealing = Sealing(self._host, seen)
        self._arrivals = Arrivals(self, self._host, self._lines, self._sealing, seen, capacity=capacity, memory=memory)
        self._answers = Answers(self, self._host, self._lines, self._sealing)
        self._paces = Paces()
        self._notices = Notices(self._host, self._lines)
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def duplicates(self) -> int:
        """The number of messages that came again and were dropped."""
        return self._arrivals.duplicates

    @property
    def strays(self) -> int:
        """The number of messages from undeclared senders; they are with the dead letters."""
        return self._arrivals.strays

    @property
    def refused(self) -> int:
        """The number of messages beyond their link's limits, or not validly sealed for us; they are dead letters."""
        return self._sealing.refused + self._arrivals.refused

    # -- life --------------------------------------------------------------------
    async def __aenter__(self) -> Mailbox:
        self._follow()
        self._tasks = [asyncio.create_task(self._arrivals.sort()), asyncio.create_task(self._watch())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave. What was received and not acknowledged goes back to the broker."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._arrivals.close(Closed("this mailbox was closed"))
        await self._answers.close()
        await self._notices.ears.close()
        await self._lines.close()

    async def _watch(self) -> None:
        """Follow the card."""
        while True:
            await asyncio.sleep(0.5)
            self._follow()

    def _follow(self) -> None:
        self._arrivals.follow()
        about = self._host.card
        self._notices.follow(about)
        self._answers.follow(about)
        self._lines.follow(about)
        self._paces.forget({peer.exchange for peer in about.peers.values()})

    def _open(self) -> None:
        if self._closed:
            raise Closed("this mailbox was closed")
        if not self._tasks:
            raise Closed("this mailbox isn't open yet: use `async with Mailbox() as mailbox`")

    # -- what is declared ----------------------------------------------------------
    @property
    def card(self) -> Card:
        """The newest card of the host; read again where its file was changed."""
        return self._host.card

    @property
    def name(self) -> str:
        """This environment's name."""
        return self.card.name

    def links(self) -> list[Link]:
        """All links that are declared now, from this environment and to it."""
        about = self.card
        to = [Link("to", peer.called, peer.pattern) for peer in about.peers.values()]
        senders = [sender for sender in about.senders.values() if not sender.former]
        return to + [Link("from", sender.name, sender.pattern) for sender in senders]

    # -- sending ---------------------------------------------------------------------
    async def send(
        self,
        link: str,
        body: bytes | str,
        *,
        timeout: float = TIMEOUT,
        id: str | None = None,
        content_type: str | None = None,
        urgent: bool = False,
    ) -> str:
        """Put a message into a peer's mailbox; returns its id when it is safe there.

        Waits where many are on their way already. Messages of one link arrive in the order of the calls.

        :param link: the peer's local name, or its own.
        :param timeout: seconds to try for, over lost connections and restarts of the broker.
        :param urgent: it comes before others that wait in the mailbox, two such for one of the others.
        :param id: the message's id, where the same is sent again after an error that left open whether it arrived.
        :raises NotDeclared: no such link.
        :raises Revoked: it is no more.
        :raises MailboxFull: the peer's mailbox takes no more now.
        :raises Unreachable: the broker can't be reached. It may have the message.
        :raises Timeout: the broker doesn't confirm. It may have the message.
        :raises Refused: not this message.
        :raises TooFast: not so many in a second.
        :raises TypeError: the body is neither bytes nor text, or the id or type is no text.
        """
        self._open()
        named = letter.short(id, "id") if id not in (None, "") else secrets.token_hex(16)
        content = letter.content(body, content_type)
        return await self._send(self._host.peer(link), content, timeout, named, urgent)

    async def _send(
        self, peer: Peer, content: tuple[bytes, str], timeout: float, id: str, urgent: bool, **more: str
    ) -> str:
        what = f"the link to {peer.called}"
        self._narrow(peer, content)
        deadline = _now() + timeout
        try:
            await asyncio.wait_for(self._flight.acquire(), timeout)
        except asyncio.TimeoutError:
            raise Timeout(f"{what}: others were on their way for {timeout:g} s") from None
        try:
            while True:
                raw, properties = self._sealing.prepared(
                    content, peer.seal, peer.name, "message", id, urgent=urgent, **more
                )
                if peer.message_size is not None and len(raw) > peer.message_size:
                    raise Refused(f"{what}: {len(raw)} bytes; its host takes {peer.message_size} at most")
                outlet = self._lines.outlet(peer.broker, peer.exchange, what)
                try:
                    await outlet.publish(raw, properties, timeout=max(0.0, deadline - _now()))
                    return id
                except Unroutable as err:
                    raise Unreachable(f"{peer.called} has no mailbox ({err})") from None
                except Revoked:
                    # It may have been made anew. Another environment that is called so now never gets this message.
                    again = self.card.peers.get(peer.name)
                    if again is None or again.exchange == peer.exchange:
                        raise
                    peer = again
        finally:
            self._flight.release()

    def _narrow(self, peer: Peer, content: tuple[bytes, str]) -> None:
        """Refuse a message that the receiver would refuse.

        :raises Refused: its size or type isn't what the link is declared for.
        :raises TooFast: more were sent in a second than the link is declared for.
        """
        try:
            narrowing.check(peer.narrowed, *content)
        except Refused as err:
            raise Refused(f"the link to {peer.called}: {err}") from None
        pace = self._paces.of(peer.exchange, peer.narrowed)
        if pace is None:
            return
        if (left := pace.wait(_now())) > 0:
            raise TooFast(f"the link to {peer.called}: {pace.rate:g} in a second are declared; again in {left:.3f} s")
        pace.take(_now())

    async def call(
        self,
        link: str,
        body: bytes | str,
        timeout: float = TIMEOUT,
        *,
        content_type: str | None = None,
        urgent: bool = False,
    ) -> Message:
        """Ask a peer, and wait for its answer.

        :raises Timeout: no answer came; the peer may have done the work all the same.
        :raises NotDeclared: no such link, or one that is for sending only.
        """
        self._open()
        content = letter.content(body, content_type)
        peer = self._host.peer(link)
        if peer.replies is None:
            raise NotDeclared(f"the link to {link} is for sending only; declare it with pattern: request")
        queue, exchange = peer.replies
        deadline = _now() + timeout
        with self._answers.asking(peer, exchange) as question:
            try:
                way = await asyncio.wait_for(self._answers.way(question, queue), timeout)
            except asyncio.TimeoutError:
                raise question.session.unreached(f"the link to {link}", timeout) from None
            left, identity = max(0.0, deadline - _now()), secrets.token_hex(16)
            await self._send(peer, content, left, identity, urgent, reply_to=way, correlation_id=question.id)
            return await self._answers.wait(question, max(0.0, deadline - _now()))

    async def reply(
        self, message: Message, body: bytes | str, *, content_type: str | None = None, timeout: float = TIMEOUT
    ) -> bool:
        """Answer a request; see :meth:`Message.reply`."""
        self._open()
        content = letter.content(body, content_type)
        sender, about = message._from, self.card.broker
        back = sender.reply_exchange
        if not message.wants_reply or back is None or message.reply_to is None or about is None:
            raise NotDeclared(f"{message!r} is no request: it can't be answered")
        raw, properties = self._sealing.prepared(
            content,
            sender.seal,
            sender.name,
            "answer",
            secrets.token_hex(16),
            correlation_id=message.correlation_id or "",
        )
        outlet = self._lines.outlet(about, back, f"the answer to {sender.name}")
        try:
            await outlet.publish(raw, properties, message.reply_to[len(back) + 1 :], timeout=timeout)
        except Unroutable:
            return False
        return True

    # -- receiving ----------------------------------------------------------------------
    async def receive(self, match: Match | str | None = None, timeout: float | None = None) -> Message:
        """Return the first message that is asked for; others stay, in their order.

        :param match: says whether a message is wanted; or a peer's name, local or its own. Absent: any.
        :param timeout: seconds to wait; absent: for ever.
        :raises Timeout: none came.
        :raises InboxFull: none can come, for others take all the room.
        """
        self._open()
        return await self._arrivals.receive(self._matcher(match), timeout)

    def _matcher(self, match: Match | str | None) -> Match:
        if match is None:
            return lambda message: True
        if not isinstance(match, str):
            return match

        def wanted(message: Message) -> bool:
            peer = self.card.called.get(match)  # each time: it may be another since
            return message.sender == (match if peer is None else peer.name)

        return wanted

    async def messages(self, match: Match | str | None = None) -> AsyncIterator[Message]:
        """All messages that are asked for, as they come: ``async for message in mailbox.messages()``."""
        while True:
            yield await self.receive(match)

    async def serve(self, work: Work, match: Match | str | None = None) -> None:
        """Have *work* done for each message, one after another; what it returns answers a request.

        A message is acknowledged after its work; one whose work raises comes again, until the
        broker's delivery limit, and is then with the dead letters. Work whose answer can't be delivered,
        because the asker doesn't read his answers say, is not done again; that is logged.
        """
        async for message in self.messages(match):
            try:
                async with message:
                    said = await work(message)
                    if said is not None and message.wants_reply:
                        await self._reply_if_possible(message, said)
            except Exception:
                log.exception("the work for %r failed; it comes again", message)

    async def _reply_if_possible(self, message: Message, said: bytes | str) -> None:
        """Send the answer; where that fails, log it: the work was done, and an asker must not have it done again so."""
        try:
            await message.reply(said)
        except LinkError as err:
            log.warning("the answer to %r is lost: %s", message, err)

    async def _settle(self, message: Message, how: str) -> None:
        await self._arrivals.settle(message, how)

    # -- monitoring -------------------------------------------------------------------------
    def monitor(self, peer: str) -> Monitor:
        """Be told when *peer*'s program goes and comes, and when the link to it is revoked, also for want of trust.

        :raises NotDeclared: no such link, or without ``monitor: true``.
        """
        self._open()
        return self._notices.monitor(peer)


def _now() -> float:
    return asyncio.get_running_loop().time()
