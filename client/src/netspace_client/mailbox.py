"""A program's mailbox and links: ``send``, ``call``, selective ``receive``, ``reply``, ``links``.

``docs/client.md`` lists the guarantees of each, and how they are implemented. The only object that this library
declares on the broker is the binding for answers. It writes nothing to disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from netspace_client import card as cards
from netspace_client import letter
from netspace_client.answers import Answers
from netspace_client.arrivals import Arrivals, Match
from netspace_client.batch import WINDOW, Batch
from netspace_client.card import Card, Peer
from netspace_client.errors import Closed, LinkError, NotDeclared, Revoked, Timeout, Unreachable
from netspace_client.host import Host
from netspace_client.host_peer import HostPeer
from netspace_client.knock import Knocks
from netspace_client.lines import Lines
from netspace_client.message import Message
from netspace_client.monitor import Monitor
from netspace_client.notices import Notices
from netspace_client.outlet import CONFIRM_SECONDS, Parcel, Unroutable
from netspace_client.sealing import Sealing
from netspace_client.secret import changes, present, secret
from netspace_client.sending import Sending
from netspace_client.window import SIZE, Window

log = logging.getLogger("netspace_client")

TIMEOUT = 60.0

Work = Callable[[Message], Awaitable[bytes | str | None]]


@dataclass(frozen=True)
class Link:
    """A declared link of this environment.

    :param direction: ``to`` or ``from`` the peer.
    :param peer: the peer's local name, or its own name if it has no local name.
    :param pattern: ``send`` or ``request``.
    """

    direction: str
    peer: str
    pattern: str


class Mailbox:
    """This environment's mailbox and links. Use: ``async with Mailbox() as mailbox``.

    :param folder: the folder of ``environment.json``.
    :param capacity: the most unsettled messages in this program; more messages stay with the broker.
    :param memory: bytes of message bodies. Above this sum, no more messages are consumed until all are settled.
    :param in_flight: the most ``send`` calls that wait for the broker at once; further calls wait for their turn.
    :param window: the number of ids remembered for each sender, to drop duplicates.
    :param confirm: seconds to wait for a confirmation. If messages wait and none was confirmed for this time, they are
        published again over a new connection.
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
        self._sending = Sending(self._host, self._lines, self._sealing)
        self._notices = Notices(self._host, self._lines)
        self._knocks = Knocks(self._host, self._lines)
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def duplicates(self) -> int:
        """The number of duplicates that were dropped."""
        return self._arrivals.duplicates

    @property
    def strays(self) -> int:
        """The number of messages from undeclared senders, which became dead letters."""
        return self._arrivals.strays

    @property
    def refused(self) -> int:
        """The number of messages that became dead letters because of their link's limits or an invalid seal."""
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
        """Close all connections. The broker requeues messages that were received and not acknowledged."""
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
        """Apply changes of the card, for ever."""
        while True:
            await asyncio.sleep(0.5)
            self._follow()

    def _follow(self) -> None:
        self._arrivals.follow()
        about = self._host.card
        self._notices.follow(about)
        self._answers.follow(about)
        self._lines.follow(about)
        self._sending.paces.forget({peer.exchange for peer in about.peers.values()})

    def _open(self) -> None:
        if self._closed:
            raise Closed("this mailbox was closed")
        if not self._tasks:
            raise Closed("this mailbox isn't open yet: use `async with Mailbox() as mailbox`")

    # -- the declaration ----------------------------------------------------------
    @property
    def card(self) -> Card:
        """The newest card, read again if its file has changed."""
        return self._host.card

    @property
    def name(self) -> str:
        """This environment's name."""
        return self.card.name

    def links(self) -> list[Link]:
        """Return all links that are declared now, from this environment and to it."""
        about = self.card
        to = [Link("to", peer.called, peer.pattern) for peer in about.peers.values()]
        senders = [sender for sender in about.senders.values() if not sender.former]
        return to + [Link("from", sender.name, sender.pattern) for sender in senders]

    @property
    def values(self) -> Mapping[str, Any]:
        """The values that the declaration gives to this environment, read again if the card has changed."""
        return self.card.values

    def value_changes(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the present values, and again after each change: ``async for values in mailbox.value_changes()``.

        A change is noticed within a second after an apply. If there are several changes within this second, only the
        last one is yielded.
        """
        return changes(self._open, lambda: self.values)

    def secret(self, name: str) -> bytes:
        """Return a secret that the declaration gives to this environment, as it is now.

        :raises NoSecret: this environment has no such secret (now).
        """
        return secret(name, self._host.folder)

    def secret_changes(self) -> AsyncIterator[Mapping[str, bytes]]:
        """Yield the present secrets by name, and again after each change: like :meth:`value_changes`."""
        return changes(self._open, lambda: present(self.card.secrets, self._host.folder))

    @property
    def host(self) -> HostPeer:
        """The host of this environment. It answers the requests that the declaration permits (``host: [...]``)."""
        return HostPeer(self)

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
        """Send a message to a peer's mailbox; return its id after the broker has confirmed it.

        At most ``in_flight`` calls wait for the broker at once. Messages of one link arrive in the order of the calls.

        :param link: the peer's local name, or its own name.
        :param timeout: seconds to try, over lost connections and restarts of the broker.
        :param urgent: deliver this message before other waiting messages: two urgent messages for each message that
            isn't urgent.
        :param id: the message's id. To repeat a message after an error that left its arrival unknown, give the same id.
        :raises NotDeclared: there is no such link.
        :raises Revoked: the link was revoked. If the error's ``unknown`` is true, the broker may have the message.
        :raises MailboxFull: the peer's mailbox is full.
        :raises Unreachable: the broker can't be reached. It may have the message.
        :raises Timeout: the broker doesn't confirm. It may have the message.
        :raises Refused: the message is too large or of another type than declared, or the broker refuses it.
        :raises TooFast: the message would exceed the link's declared rate.
        :raises TypeError: the body is neither bytes nor text, or the id or type is not text.
        """
        self._open()
        named = letter.short(id, "id") if id not in (None, "") else secrets.token_hex(16)
        content = letter.content(body, content_type)
        return await self._send(self._peer(link), content, timeout, named, urgent)

    def _peer(self, link: str) -> Peer:
        """Return a peer to which this environment may send.

        :raises NotDeclared: there is no such link.
        """
        try:
            return self._host.peer(link)
        except NotDeclared:
            self._knocks.knock(link)
            raise

    async def _send(
        self, peer: Peer, content: tuple[bytes, str], timeout: float, id: str, urgent: bool, **more: str
    ) -> str:
        self._sending.narrow(peer, content)
        deadline = _now() + timeout
        if self._flight.locked():
            try:
                await asyncio.wait_for(self._flight.acquire(), timeout)
            except asyncio.TimeoutError:
                raise Timeout(f"the link to {peer.called}: earlier sends were unconfirmed for {timeout:g} s") from None
        else:
            await self._flight.acquire()  # at once
        try:
            revoked: Revoked | None = None
            while True:
                try:
                    outlet, parcel = self._sending.parcel(peer, content, id, urgent, **more)
                except LinkError as err:
                    if revoked is not None and revoked.unknown:
                        raise revoked from err
                    raise
                parcel.continues(revoked is not None and revoked.unknown)
                try:
                    await outlet.publish(parcel, max(0.0, deadline - _now()))
                    return id
                except Unroutable as err:
                    raise Unreachable(f"{peer.called} has no mailbox ({err})") from None
                except Revoked as err:
                    again = self._sending.successor(peer)
                    if again is None:
                        raise
                    peer, revoked = again, err
        finally:
            self._flight.release()

    def batch(self, link: str, *, window: int = WINDOW, timeout: float = TIMEOUT) -> Batch:
        """Return a batch of messages to a peer, which are sent without waiting for each confirmation.

        Use: ``async with mailbox.batch("orders") as batch: await batch.send("sold")``.

        :param link: the peer's local name, or its own name.
        :param window: the most messages that are unconfirmed at once; 4096 at most.
        :param timeout: seconds to try each message, over lost connections and restarts of the broker.
        :raises ValueError: the window is out of 1..4096.
        """
        self._open()
        return Batch(lambda: self._peer(link), self._open, self._sending, window=window, timeout=timeout)

    async def send_many(
        self,
        link: str,
        bodies: Iterable[bytes | str] | AsyncIterable[bytes | str],
        *,
        window: int = WINDOW,
        timeout: float = TIMEOUT,
        content_type: str | None = None,
    ) -> list[str]:
        """Send messages to a peer in their order; return their ids after the broker has confirmed all messages.

        :param bodies: the messages' bodies; read from the iterable only as fast as the broker confirms.
        :param window: the most messages that are unconfirmed at once; 4096 at most.
        :param timeout: seconds to try each message, over lost connections and restarts of the broker.
        :raises BatchFailed: some messages failed; the exception has the error of each. All others are confirmed.
        :raises LinkError: the errors of :meth:`Batch.send`, for the first message that can't be sent; later messages
            aren't sent. An error that *bodies* itself raises has the same effect. If earlier messages failed, the
            error's ``__context__`` is a ``BatchFailed``.
        """
        async with self.batch(link, window=window, timeout=timeout) as batch:
            if isinstance(bodies, AsyncIterable):
                return [await batch.send(body, content_type=content_type) async for body in bodies]
            return [await batch.send(body, content_type=content_type) for body in bodies]

    async def call(
        self,
        link: str,
        body: bytes | str,
        timeout: float = TIMEOUT,
        *,
        content_type: str | None = None,
        urgent: bool = False,
    ) -> Message:
        """Send a request to a peer, wait for its answer and return it.

        The errors are those of :meth:`send`, and:

        :raises Timeout: no answer came in time; the peer may have done the work nevertheless.
        :raises NotDeclared: there is no such link, or its pattern isn't ``request``.
        """
        self._open()
        content = letter.content(body, content_type)
        peer = self._peer(link)
        if peer.replies is None:
            raise NotDeclared(f"the link to {link} is for sending only; declare it with pattern: request")
        queue, exchange = peer.replies
        deadline = _now() + timeout
        with self._answers.asking(peer, exchange) as question:
            way = self._answers.known(question, queue)
            if way is None:
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
        """Send an answer to a request; see :meth:`Message.reply`."""
        self._open()
        content = letter.content(body, content_type)
        sender, about = message._from, self.card.broker
        back = sender.reply_exchange
        if not message.wants_reply or back is None or message.reply_to is None or about is None:
            raise NotDeclared(f"{message!r} is not a request, so it can't be answered")
        raw, properties = self._sealing.prepared(
            content,
            sender.seal,
            sender.name,
            "answer",
            secrets.token_hex(16),
            correlation_id=message.correlation_id or "",
            durable=sender.durable,
        )
        outlet = self._lines.outlet(about, back, f"the answer to {sender.name}")
        try:
            await outlet.publish(Parcel(raw, properties, message.reply_to[len(back) + 1 :]), timeout)
        except Unroutable:
            return False
        return True

    # -- receiving ----------------------------------------------------------------------
    async def receive(self, match: Match | str | None = None, timeout: float | None = None) -> Message:
        """Wait for the first message that matches and return it. Other messages stay, in their order.

        :param match: a function that returns whether a message is wanted; or the sender's local name or own name; None:
            any message.
        :param timeout: seconds to wait; None: without limit.
        :raises Timeout: no matching message came in time.
        :raises InboxFull: no matching message can come, because other messages take up the whole capacity.
        """
        self._open()
        return await self._arrivals.receive(self._matcher(match), timeout)

    def _matcher(self, match: Match | str | None) -> Match:
        if match is None:
            return lambda message: True
        if not isinstance(match, str):
            return match

        def wanted(message: Message) -> bool:
            peer = self.card.called.get(match)  # looked up each time, as the card may change
            return message.sender == (match if peer is None else peer.name)

        return wanted

    async def messages(self, match: Match | str | None = None) -> AsyncIterator[Message]:
        """Yield all matching messages as they arrive: ``async for message in mailbox.messages()``."""
        while True:
            yield await self.receive(match)

    async def serve(self, work: Work, match: Match | str | None = None) -> None:
        """Call *work* for each message, one after another; its result is the answer to a request.

        A message is acknowledged after its work. If the work raises an exception, the message is delivered again, up to
        the broker's delivery limit, and then becomes a dead letter. If the answer can't be delivered, for example
        because the asker's queue is full, the failure is logged and the work is not repeated.
        """
        async for message in self.messages(match):
            try:
                async with message:
                    said = await work(message)
                    if said is not None and message.wants_reply:
                        await self._reply_if_possible(message, said)
            except Exception:
                log.exception("the work for %r failed; the broker delivers the message again", message)

    async def _reply_if_possible(self, message: Message, said: bytes | str) -> None:
        """Send the answer; only log a failure, because the work is done and must not be repeated."""
        try:
            await message.reply(said)
        except LinkError as err:
            log.warning("the answer to %r is lost: %s", message, err)

    async def _settle(self, message: Message, how: str) -> None:
        self._arrivals.settle(message, how)
        message._delivery.wire.flush()  # told when this returns, even if the program blocks its event loop then

    # -- monitoring -------------------------------------------------------------------------
    def monitor(self, peer: str) -> Monitor:
        """Return a monitor that reports when *peer*'s program starts or stops reading, and when the link is revoked.

        :raises NotDeclared: there is no such link, or it lacks ``monitor: true``.
        """
        self._open()
        return self._notices.monitor(peer)


def _now() -> float:
    return asyncio.get_running_loop().time()
