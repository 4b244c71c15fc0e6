"""A program's mailbox and links: ``send``, ``call``, selective ``receive``, ``reply``, ``links``.

What is promised, and by what, is in ``docs/client.md``. Nothing is declared on the broker but the
binding by which answers find their asker; nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from aiormq import Channel, spec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from netspace_client import card as cards
from netspace_client import letter, seal
from netspace_client.card import Broker, Card, Peer, Sender
from netspace_client.errors import (
    CardError,
    Closed,
    InboxFull,
    LinkError,
    NotDeclared,
    Refused,
    Revoked,
    SealError,
    Timeout,
    UnknownKey,
    Unreachable,
)
from netspace_client.inbox import Inbox, Waiter
from netspace_client.keys import Ring
from netspace_client.message import Message
from netspace_client.monitor import Monitor
from netspace_client.outlet import CONFIRM_SECONDS, Outlet, Unroutable
from netspace_client.seal import Envelope, Opened, Sealed
from netspace_client.session import FAILURES, Place, Session, answer, hang_up
from netspace_client.window import SIZE, Window

log = logging.getLogger("netspace_client")

TIMEOUT = 60.0
WAIT_AGAIN = 30.0
CHANNELS = 40
"""The host permits 64 for all connections of an environment: two programs of it may be this busy, but for a moment."""

Match = Callable[[Message], bool]
Work = Callable[[Message], Awaitable[bytes | str | None]]


@dataclass(frozen=True)
class Link:
    """A declared link of this environment: ``to`` a peer, or ``from`` one."""

    direction: str
    peer: str
    pattern: str


class Mailbox:
    """This environment's mailbox, and the links from it. Use: ``async with Mailbox() as mailbox``.

    :param folder: where the host has put ``environment.json``.
    :param capacity: how many messages may wait here or be in work; more stay with the broker.
    :param in_flight: how many ``send`` may wait for the broker at once; more wait for their turn.
    :param window: how many ids of each sender are remembered, to drop what comes twice.
    :param confirm: seconds after which a broker that doesn't confirm is asked again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] = cards.FOLDER,
        *,
        capacity: int = 200,
        in_flight: int = 256,
        window: int = SIZE,
        confirm: float = CONFIRM_SECONDS,
    ) -> None:
        if not 1 <= capacity <= 65535:
            raise ValueError(f"capacity {capacity} is out of 1..65535")
        self._folder = Path(folder)
        self._capacity = capacity
        self._confirm = confirm
        self._flight = asyncio.Semaphore(in_flight)
        self._window = Window(window)
        self._inbox: Inbox[Message] = Inbox()
        self._unsettled: dict[tuple[str, str], Message] = {}
        self._arrived: asyncio.Queue[tuple[str, DeliveredMessage]] = asyncio.Queue()
        self._reading: dict[tuple[Session, str], asyncio.Task[None]] = {}
        self._room_in: dict[str, int] = {}
        self._here: Counter[str] = Counter()
        self._sessions: dict[Place, Session] = {}
        self._outlets: dict[tuple[Session, str], Outlet] = {}
        # By session as well as by exchange: what is on another host's broker may bear the same name.
        self._keys: dict[tuple[Session, str], str] = {}
        self._bound: dict[tuple[Session, str], Channel] = {}
        self._hearing: dict[tuple[Session, str], asyncio.Task[None]] = {}
        self._ears: dict[tuple[Session, str], asyncio.Future[Channel]] = {}
        self._calls: dict[str, tuple[Session, str, str, asyncio.Future[Message]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._errands: set[asyncio.Task[None]] = set()
        self._card_state: tuple[int, ...] = ()
        self._card: Card | None = None
        self._noticing: dict[tuple[Session, str], asyncio.Task[None]] = {}
        self._monitors: dict[str, weakref.WeakSet[Monitor]] = {}
        self._ring: Ring | None = None
        self._ring_state: tuple[int, ...] = ()
        self._waited: dict[str, float] = {}
        self._closed = False
        self.duplicates = 0
        """Messages that came again and were dropped."""
        self.strays = 0
        """Messages of nobody who is declared to send; they are with the dead letters."""
        self.refused = 0
        """Messages on sealed links that weren't sealed, or not for us, here and now; they are with the dead letters."""

    # -- life --------------------------------------------------------------------
    async def __aenter__(self) -> Mailbox:
        self._read()
        self._tasks = [asyncio.create_task(self._sort()), asyncio.create_task(self._watch())]
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
        self._inbox.fail(Closed("this mailbox was closed"))
        with contextlib.suppress(LinkError, ConnectionError, asyncio.TimeoutError):
            await asyncio.wait_for(self._unbind(), 2.0)
        tasks = [*self._tasks, *self._hearing.values(), *self._reading.values(), *self._noticing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for outlet in self._outlets.values():
            await outlet.close()
        for session in self._sessions.values():
            await session.close()
        await asyncio.gather(*self._errands, return_exceptions=True)

    # -- what is declared ----------------------------------------------------------
    @property
    def card(self) -> Card:
        """What the host says now; read again where it was changed."""
        state = _state(self._folder / "environment.json")
        if self._card is None or state != self._card_state:
            try:
                self._card = cards.load(self._folder)
                self._card_state = state
            except LinkError as err:
                if self._card is None:
                    raise
                log.warning("%s; going on with what it said before", err)
                self._card_state = state
        return self._card

    @property
    def name(self) -> str:
        """This environment's name."""
        return self.card.name

    def links(self) -> list[Link]:
        """All links that are declared now, from this environment and to it."""
        about = self.card
        to = [Link("to", peer.name, peer.pattern) for peer in about.peers.values()]
        senders = [sender for sender in about.senders.values() if not sender.former]
        return to + [Link("from", sender.name, sender.pattern) for sender in senders]

    def _peer(self, name: str) -> Peer:
        peer = self.card.peers.get(name)
        if peer is None:
            known = ", ".join(self.card.peers) or "nobody"
            raise NotDeclared(f"no link to {name} is declared; {self.name} may send to {known}")
        return peer

    # -- sending ---------------------------------------------------------------------
    async def send(
        self,
        link: str,
        body: bytes | str,
        *,
        timeout: float = TIMEOUT,
        id: str | None = None,
        content_type: str | None = None,
    ) -> str:
        """Put a message into a peer's mailbox; returns its id when it is safe there.

        Waits where many are on their way already. Messages of one link arrive in the order of the calls.

        :param link: the peer's name.
        :param timeout: seconds to try for, over lost connections and restarts of the broker.
        :param id: the message's id, where the same is sent again after an error that left open whether it arrived.
        :raises NotDeclared: no such link.
        :raises Revoked: it is no more.
        :raises MailboxFull: the peer's mailbox takes no more now.
        :raises Unreachable: the broker can't be reached. It may have the message.
        :raises Timeout: the broker doesn't confirm. It may have the message.
        :raises Refused: not this message.
        """
        return await self._send(link, body, timeout, id, content_type, {})

    async def _send(
        self,
        link: str,
        body: bytes | str,
        timeout: float,
        id: str | None,
        content_type: str | None,
        more: dict[str, Any],
    ) -> str:
        self._open()
        peer = self._peer(link)
        identity = letter.short(id or secrets.token_hex(16), "id")
        letter.body_and_type(body, content_type)
        deadline = _now() + timeout
        try:
            await asyncio.wait_for(self._flight.acquire(), timeout)
        except asyncio.TimeoutError:
            raise Timeout(f"the link to {link}: others were on their way for {timeout:g} s") from None
        try:
            while True:
                envelope = self._envelope(peer.seal, peer.name, "message", identity, more.get("correlation_id"))
                raw, properties = self._prepared(body, content_type, peer.seal, envelope, **more)
                if peer.message_size is not None and len(raw) > peer.message_size:
                    raise Refused(f"the link to {link}: {len(raw)} bytes; its host takes {peer.message_size} at most")
                outlet = self._outlet(peer.broker, peer.exchange, f"the link to {link}")
                try:
                    await outlet.publish(raw, properties, timeout=max(0.0, deadline - _now()))
                    return identity
                except Unroutable as err:
                    raise Unreachable(f"{link} has no mailbox ({err})") from None
                except Revoked:
                    again = self.card.peers.get(link)  # it may have been made anew under another name
                    if again is None or again.exchange == peer.exchange:
                        raise
                    peer = again
        finally:
            self._flight.release()

    async def call(
        self, link: str, body: bytes | str, timeout: float = TIMEOUT, *, content_type: str | None = None
    ) -> Message:
        """Ask a peer, and wait for its answer.

        :raises Timeout: no answer came; the peer may have done the work all the same.
        :raises NotDeclared: no such link, or one that is for sending only.
        """
        self._open()
        peer = self._peer(link)
        if peer.replies is None:
            raise NotDeclared(f"the link to {link} is for sending only; declare it with pattern: request")
        queue, exchange = peer.replies
        deadline = _now() + timeout
        identity = secrets.token_hex(16)
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        session = self._session(peer.broker)
        self._calls[identity] = (session, exchange, link, answered)
        try:
            try:
                key = await asyncio.wait_for(self._listen(peer, queue, exchange), timeout)
            except asyncio.TimeoutError:
                raise Unreachable(f"{link}: the broker wasn't reached within {timeout:g} s") from None
            more = {"reply_to": f"{exchange}/{key}", "correlation_id": identity}
            await self._send(link, body, max(0.0, deadline - _now()), None, content_type, more)
            try:
                return await asyncio.wait_for(answered, max(0.0, deadline - _now()))
            except asyncio.TimeoutError:
                self._bound.pop((session, exchange), None)  # should the host have made the exchange anew
                raise Timeout(f"{link} didn't answer within {timeout:g} s") from None
        finally:
            self._calls.pop(identity, None)

    async def reply(
        self, message: Message, body: bytes | str, *, content_type: str | None = None, timeout: float = TIMEOUT
    ) -> bool:
        """Answer a request; see :meth:`Message.reply`."""
        self._open()
        back, about = message._from.reply_exchange, self.card.broker
        if not message.wants_reply or back is None or message.reply_to is None or about is None:
            raise NotDeclared(f"{message!r} is no request: it can't be answered")
        sealed, correlation = message._from.seal, message.correlation_id or ""
        envelope = self._envelope(sealed, message.sender, "answer", secrets.token_hex(16), correlation)
        raw, properties = self._prepared(body, content_type, sealed, envelope, correlation_id=correlation)
        outlet = self._outlet(about, back, f"the answer to {message.sender}")
        try:
            await outlet.publish(raw, properties, message.reply_to[len(back) + 1 :], timeout=timeout)
        except Unroutable:
            return False
        return True

    # -- receiving ----------------------------------------------------------------------
    async def receive(self, match: Match | str | None = None, timeout: float | None = None) -> Message:
        """The first message that is asked for; others stay, in their order.

        :param match: says whether a message is wanted; or a peer's name. Absent: any.
        :param timeout: seconds to wait; absent: for ever.
        :raises Timeout: none came.
        :raises InboxFull: none can come, for others take all the room.
        """
        self._open()
        wanted = _matcher(match)
        found = self._inbox.take(wanted)
        if found is not None:
            return found
        if not self.card.queues:
            raise NotDeclared(f"{self.name} has no mailbox: no link of its is declared")
        waiter = Waiter(wanted, asyncio.get_running_loop().create_future())
        self._inbox.wait(waiter)
        self._stuck()
        try:
            return await asyncio.wait_for(asyncio.shield(waiter.future), timeout)
        except asyncio.TimeoutError:
            if message := _given(waiter):
                return message
            raise Timeout(f"no such message within {timeout:g} s") from None
        except asyncio.CancelledError:
            if message := _given(waiter):
                self._inbox.put_back(message)
            raise
        finally:
            self._inbox.leave(waiter)
            waiter.future.cancel()

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
        """The work was done: that its asker can't be told, as he pleases even, must not have it done again."""
        try:
            await message.reply(said)
        except LinkError as err:
            log.warning("the answer to %r is lost: %s", message, err)

    async def _settle(self, message: Message, how: str) -> None:
        if message.settled:
            return
        message.settled = True
        self._here[message._queue] -= 1
        if message.id is not None:
            self._unsettled.pop((message.sender, message.id), None)
            if how != "requeue":
                self._window.add(message.sender, message.id, message.sealed_at)
        await self._answer(message._delivery, how)

    async def _answer(self, delivery: DeliveredMessage, how: str) -> None:
        """Tell the broker; where it is gone, the message comes again and is known then."""
        channel, tag = delivery.channel, delivery.delivery_tag
        if channel.is_closed or tag is None:
            return
        with contextlib.suppress(*FAILURES):
            if how == "ack":
                await channel.basic_ack(tag, wait=False)
            else:
                await channel.basic_nack(tag, requeue=how == "requeue", wait=False)

    def _read(self) -> None:
        """Read the queues that the card names, and no others."""
        about = self.card
        wanted = {(self._session(about.broker), queue) for queue in about.queues} if about.broker is not None else set()
        watched = [peer for peer in about.peers.values() if peer.monitor]
        heard_of = {(self._session(peer.broker), peer.notices) for peer in watched if peer.notices}
        for place in self._noticing.keys() - heard_of:
            self._noticing.pop(place).cancel()
        for session, queue in heard_of - self._noticing.keys():
            heard = functools.partial(self._noticed, session)
            self._noticing[session, queue] = asyncio.create_task(self._hear(session, queue, 0, heard))
        answers = {(_place(peer.broker), peer.replies[0]) for peer in about.peers.values() if peer.replies}
        for place in self._reading.keys() - wanted:
            self._reading.pop(place).cancel()
        for place in [one for one in self._hearing if (one[0].place, one[1]) not in answers]:
            self._hearing.pop(place).cancel()
        for moved in self._sessions.keys() - {_place(broker) for broker in about.brokers}:
            self._later(self._sessions.pop(moved).close())
        for session, queue in wanted - self._reading.keys():
            self._room_in[queue] = room = max(1, self._capacity // len(wanted))
            heard = functools.partial(self._arrive, queue)
            self._reading[session, queue] = asyncio.create_task(self._hear(session, queue, room, heard))

    async def _noticed(self, session: Session, delivery: DeliveredMessage) -> None:
        """Tell those who monitor a peer what the broker says of the readers of its mailbox."""
        about = delivery.header.properties.headers or {}
        for peer in self.card.peers.values():
            here = self._sessions.get(_place(peer.broker)) is session
            if here and peer.monitor == (delivery.exchange, about.get("queue")):
                came, at = delivery.routing_key == "consumer.created", about.get("timestamp_in_ms")
                for monitor in self._monitors.get(peer.name, ()):
                    if isinstance(at, int):
                        monitor.told(came, str(about.get("consumer_tag")), at / 1000)
        await self._answer(delivery, "ack")

    async def _arrive(self, queue: str, delivery: DeliveredMessage) -> None:
        await self._arrived.put((queue, delivery))

    async def _watch(self) -> None:
        """Follow the card."""
        while True:
            await asyncio.sleep(0.5)
            self._read()
            for name in self._monitors.keys() - self.card.peers.keys():
                for monitor in self._monitors.pop(name):
                    monitor.revoked()

    async def _sort(self) -> None:
        """Judge what arrives, in order."""
        while True:
            queue, delivery = await self._arrived.get()
            if delivery.channel.is_closed:
                continue
            try:
                await self._admit(queue, delivery)
            except Exception:  # one message must not keep the others from coming
                log.exception("a message can't be judged; it is with the dead letters")
                await self._answer(delivery, "reject")

    async def _admit(self, queue: str, delivery: DeliveredMessage) -> None:
        sender = self.card.senders.get(delivery.exchange or "")
        if sender is None:
            self.strays += 1
            log.warning("a message of nobody who is declared to send was put with the dead letters")
            await self._answer(delivery, "reject")
            return
        identity = delivery.header.properties.message_id
        if identity:
            key = (sender.name, identity)
            former = self._unsettled.get(key)
            if former is not None and former._delivery.channel.is_closed:
                former._delivery = delivery  # the same, handed out again after a lost connection
                return
            if former is not None or key in self._window:
                self.duplicates += 1
                await self._answer(delivery, "ack")
                return
        try:
            opened = await self._opened(delivery, sender)
        except LinkError as err:
            self._refuse(err, sender.name)
            await self._answer(delivery, "reject")
            return
        message = Message(self, sender, queue, delivery, opened)
        self._here[queue] += 1
        if message.id is not None:
            self._unsettled[sender.name, message.id] = message
        self._inbox.put(message)
        self._stuck()

    def _stuck(self) -> None:
        """Don't have anybody wait for what can't come: the broker hands out no more than there is room for."""
        full = all(self._here[queue] >= self._room_in.get(queue, 1) for queue in self.card.queues)
        if len(self._inbox) and self._inbox.waiting and full:
            working = sum(self._here.values()) - len(self._inbox)
            self._inbox.fail(
                InboxFull(
                    f"{len(self._inbox)} messages wait here and {working} are in work, none as asked for: "
                    "receive some of them, or raise capacity"
                )
            )

    # -- monitoring -------------------------------------------------------------------------
    def monitor(self, peer: str) -> Monitor:
        """Be told when *peer*'s program goes and comes, and when the link to it is revoked, also for want of trust.

        :raises NotDeclared: no such link, or without ``monitor: true``.
        """
        self._open()
        if self._peer(peer).monitor is None:
            raise NotDeclared(f"{self.name} may not monitor {peer}; declare the link with monitor: true")
        made = Monitor(peer)
        self._monitors.setdefault(peer, weakref.WeakSet()).add(made)
        return made

    # -- answers ---------------------------------------------------------------------------
    async def _listen(self, peer: Peer, queue: str, exchange: str) -> str:
        """Have the peer's answers find us; return the key that they need."""
        session = self._session(peer.broker)
        place = (session, queue)
        if place not in self._hearing:
            self._ears[place] = asyncio.get_running_loop().create_future()
            heard = functools.partial(self._answered, session)
            self._hearing[place] = asyncio.create_task(self._hear(session, queue, 0, heard, place))
        key = self._keys.setdefault((session, exchange), secrets.token_hex(16))
        while True:
            ear = await asyncio.shield(self._ears[place])
            if self._bound.get((session, exchange)) is ear:
                return key
            try:
                channel = await session.channel()
                await answer(channel.queue_bind(queue, exchange, key))
                await answer(channel.close())
                self._bound[session, exchange] = ear
            except (ChannelNotFoundEntity, ChannelAccessRefused) as err:
                raise Revoked(f"the link to {peer.name} is revoked ({err})") from None
            except FAILURES:
                await asyncio.sleep(0.1)

    async def _answered(self, session: Session, delivery: DeliveredMessage) -> None:
        """Give an answer to who asked; what nobody waits for any more is dropped."""
        await self._answer(delivery, "ack")
        asked = self._calls.get(delivery.header.properties.correlation_id or "")
        if asked is None:
            return
        where, exchange, name, waiting = asked
        if not waiting.done() and where is session and delivery.exchange == exchange:
            peer = self.card.peers.get(name)
            if peer is None:
                return
            try:
                opened = self._open_sealed(delivery, peer.seal, peer.name, "answer")
            except LinkError as err:
                self._refuse(err, peer.name)
                return
            message = Message(self, Sender(peer.name, "reply", exchange), "", delivery, opened)
            message.settled = True
            waiting.set_result(message)

    async def _unbind(self) -> None:
        """Take back what answers found us by."""
        for peer in self.card.peers.values():
            session = self._sessions.get(_place(peer.broker))
            if peer.replies is None or session is None or not session.connected:
                continue
            key = self._keys.get((session, peer.replies[1]))
            if key is None:
                continue
            with contextlib.suppress(*FAILURES):
                channel = await session.channel()
                await answer(channel.queue_unbind(*peer.replies, key), 2.0)

    # -- seals -----------------------------------------------------------------------------
    def _envelope(self, sealed: Sealed | None, to: str, use: str, id: str, correlation: str | None) -> Envelope:
        if sealed is None:
            return Envelope("", self.name, to, use, id, correlation or "")
        return sealed.envelope(self.name, to, use, id, correlation or "", ours=True)

    def _prepared(
        self, body: bytes | str, content_type: str | None, sealed: Sealed | None, envelope: Envelope, **about: Any
    ) -> tuple[bytes, spec.Basic.Properties]:
        """What goes to the broker."""
        raw, kind = letter.body_and_type(body, content_type)
        if sealed is not None:
            afar = sealed.endorser is not None
            raw = seal.seal(raw, kind, envelope, self._own_keys(), sealed.keys, time.time(), afar=afar)
            kind = seal.CONTENT_TYPE
        return raw, spec.Basic.Properties(content_type=kind, delivery_mode=2, message_id=envelope.id, **about)

    def _own_keys(self) -> Ring:
        """Our keys; read again where the host has made new ones."""
        path = self.card.keys
        if path is None:
            raise CardError("a link is sealed, but the card names no keys of ours")
        state = _state(path)
        if self._ring is None or state != self._ring_state:
            self._ring, self._ring_state = cards.load_keys(path), state
        return self._ring

    def _open_sealed(self, delivery: DeliveredMessage, sealed: Sealed | None, sender: str, use: str) -> Opened | None:
        """What is in a sealed message; None where the link isn't sealed.

        :raises LinkError: it isn't what its sender sealed for us.
        """
        if sealed is None:
            return None
        about = delivery.header.properties
        ids = (about.message_id or "", about.correlation_id or "")
        envelope = sealed.envelope(self.name, sender, use, *ids, ours=False)
        found = seal.open_sealed(delivery.body, envelope, self._own_keys(), sealed.keys, time.time(), sealed.endorser)
        if self._window.too_old(sender, found.at):
            raise SealError("it is older than the oldest id that is remembered: it may have come before")
        return found

    async def _opened(self, delivery: DeliveredMessage, sender: Sender) -> Opened | None:
        """As ``_open_sealed``; waits a moment for a key that the host is about to tell us.

        Not more than once in a while for one sender, who could keep us waiting with keys that he made up.
        """
        try:
            return self._open_sealed(delivery, sender.seal, sender.name, "message")
        except UnknownKey:
            if self._waited.get(sender.name, -WAIT_AGAIN) + WAIT_AGAIN > _now():
                raise
        self._waited[sender.name] = _now()
        await asyncio.sleep(1.0)
        sender = self.card.senders.get(sender.exchange, sender)
        return self._open_sealed(delivery, sender.seal, sender.name, "message")

    def _refuse(self, err: LinkError, sender: str) -> None:
        self.refused += 1
        log.warning("a message over the sealed link from %s was refused: %s", sender, err)

    # -- plumbing ----------------------------------------------------------------------------
    async def _hear(
        self,
        session: Session,
        queue: str,
        prefetch: int,
        heard: Callable[[DeliveredMessage], Coroutine[Any, Any, None]],
        place: tuple[Session, str] | None = None,
    ) -> None:
        """Have *heard* get what is in *queue*, over lost connections; without *prefetch*, all of it at once."""
        pause = 0.05
        while True:
            channel: Channel | None = None
            try:
                channel = await session.channel()
                await answer(channel.basic_qos(prefetch_count=prefetch))
                if prefetch:
                    self._forget_unnamed()
                tag = (await answer(channel.basic_consume(queue, heard))).consumer_tag
                if place is not None:
                    if self._ears[place].done():
                        self._ears[place] = asyncio.get_running_loop().create_future()
                    self._ears[place].set_result(channel)
                pause = 0.05
                while not channel.is_closed and tag in channel.consumers:
                    await asyncio.wait({channel.closing}, timeout=0.5)
            except Closed:
                return
            except FAILURES as err:
                log.debug("hearing %s: %s", queue, err)
            finally:
                if channel is not None and not channel.is_closed:
                    self._later(hang_up(channel))
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _forget_unnamed(self) -> None:
        """Messages without an id wouldn't be known when they are handed out again: forget the first time."""
        for message in self._inbox.drop(lambda one: one.id is None and one._delivery.channel.is_closed):
            self._here[message._queue] -= 1

    def _session(self, broker: Broker) -> Session:
        place = _place(broker)
        session = self._sessions.get(place)
        if session is None:
            session = self._sessions[place] = Session(place, lambda: self._login(place, broker))
        return session

    def _login(self, place: Place, known: Broker) -> Broker:
        """How to log in there, by the newest card."""
        return next((one for one in self.card.brokers if _place(one) == place), known)

    def _outlet(self, broker: Broker, exchange: str, what: str) -> Outlet:
        session = self._session(broker)
        outlet = self._outlets.get((session, exchange))
        if outlet is None:
            outlet = self._outlets[session, exchange] = Outlet(session, exchange, what, self._room, self._confirm)
        return outlet

    def _room(self) -> None:
        """Close channels that nothing is on its way through, where there are many."""
        opened = [outlet for outlet in self._outlets.values() if outlet.open]
        for outlet in opened[: max(0, len(opened) - CHANNELS)]:
            outlet.release()

    def _open(self) -> None:
        if self._closed:
            raise Closed("this mailbox was closed")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _place(broker: Broker) -> Place:
    return (broker.host, broker.port, broker.vhost, broker.server_name or "")


def _matcher(match: Match | str | None) -> Match:
    if match is None:
        return lambda message: True
    if isinstance(match, str):
        return lambda message: message.sender == match
    return match


def _given(waiter: Waiter[Message]) -> Message | None:
    """What a waiter got, though he no longer waits."""
    future = waiter.future
    done = future.done() and not future.cancelled() and future.exception() is None
    return future.result() if done else None
