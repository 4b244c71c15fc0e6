"""Incoming messages of this environment's queues: check them in order, hold them until they are received, settle them.

The number and the bytes of held messages are limited. If a sender is no longer declared, its held messages are rejected
instead of received; they become dead letters, like its later messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from netspace_client import narrowing
from netspace_client.card import Card
from netspace_client.ear import Ear, Ears
from netspace_client.errors import InboxFull, LinkError, NotDeclared, Refused, Timeout, UnknownKey
from netspace_client.host import Host
from netspace_client.inbox import Inbox, Waiter
from netspace_client.lines import Lines, settle
from netspace_client.message import Message
from netspace_client.narrowing import Paces
from netspace_client.sealing import Sealing
from netspace_client.session import Session
from netspace_client.window import Window
from netspace_client.wire import Delivery

if TYPE_CHECKING:
    from netspace_client.mailbox import Mailbox

log = logging.getLogger("netspace_client")

Match = Callable[[Message], bool]


class Arrivals:
    """The messages that this program has received from the broker and not settled.

    :param owner: the mailbox to which the messages belong.
    :param capacity: the most unsettled messages.
    :param memory: bytes of message bodies. Above this sum, no more messages are consumed until all are settled.
    """

    def __init__(
        self,
        owner: Mailbox,
        host: Host,
        lines: Lines,
        sealing: Sealing,
        window: Window,
        *,
        capacity: int,
        memory: int,
    ) -> None:
        self._owner = owner
        self._host = host
        self._lines = lines
        self._sealing = sealing
        self._window = window
        self._capacity = capacity
        self._memory = memory
        self._followed: Card | None = None
        self._ears = Ears(lines, self._ear)
        self._arrived: deque[tuple[str, Delivery, bool]] = deque()
        self._some = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._unsettled: dict[tuple[str, str], Message] = {}
        self._share = capacity
        self._room_in: dict[str, int] = {}
        self._here: Counter[str] = Counter()
        self._bytes = 0
        self._stopped = False
        self.inbox: Inbox[Message] = Inbox()
        self._paces = Paces()
        self.duplicates = 0
        self.strays = 0
        self.refused = 0

    # -- consuming -------------------------------------------------------------------
    def follow(self) -> None:
        """Consume exactly the queues in the card; reject held messages of senders that are not in the card."""
        about = self._host.card
        if about is self._followed:
            return
        self._followed = about
        wanted = set()
        if about.broker is not None:
            session = self._lines.session(about.broker)
            wanted = {(session, queue) for queue in about.queues}
        self._share = max(1, self._capacity // max(1, len(about.queues)))
        self._ears.follow(wanted)
        self._paces.forget(set(about.senders))
        for message in self.inbox.drop(lambda held: held._from.exchange not in about.senders):
            self._stray()
            self.settle(message, "reject")

    def _ear(self, session: Session, queue: str) -> Ear:
        def heard(delivery: Delivery) -> None:
            self._bytes += len(delivery.body)
            if self._bytes > self._memory:
                self._stopped = True
                for ear in self._ears:
                    ear.stop()
            left = self._left(delivery)
            if left is not None and (left > 0 or self._timers):
                self._later(left, queue, delivery)
            else:
                self._judge(queue, delivery)

        self._room_in[queue] = self._share
        return Ear(self._lines, session, queue, heard, self._share, self._forget_unnamed, in_order=True)

    def _left(self, delivery: Delivery) -> float | None:
        """Return the seconds until a delivery is within its link's declared rate; None: the link has no rate.

        A delayed message is not settled, so the link's dedicated queue fills up, and the broker refuses the sender's
        next messages.
        """
        sender = self._host.card.senders.get(delivery.exchange)
        pace = None if sender is None else self._paces.of(sender.exchange, sender.narrowed)
        if pace is None:
            return None
        now = asyncio.get_running_loop().time()
        left = pace.wait(now)
        pace.take(now + left)
        return left

    def _later(self, left: float, queue: str, delivery: Delivery) -> None:
        """Check a delivery after *left* seconds."""

        def arrive() -> None:
            self._timers.discard(timer)
            self._judge(queue, delivery)

        timer = asyncio.get_running_loop().call_later(left, arrive)
        self._timers.add(timer)

    def _judge(self, queue: str, delivery: Delivery) -> None:
        """Check a delivery now. Queue it for ``sort`` if it has to wait, or if earlier deliveries wait there."""
        behind = bool(self._arrived)
        if behind or not self._take(queue, delivery):
            self._arrived.append((queue, delivery, not behind))
            self._some.set()

    def _forget_unnamed(self) -> None:
        """Drop held messages without an id whose channel is closed.

        The broker redelivers them; without an id, this program couldn't recognize the duplicates.
        """
        for message in self.inbox.drop(lambda one: one.id is None and one._delivery.channel.is_closed):
            self._gone(message._queue, message._delivery)

    def _gone(self, queue: str, delivery: Delivery) -> None:
        """Subtract a message from the count of its queue's messages and from the sum of all messages' bytes."""
        self._here[queue] -= 1
        self._forgotten(delivery)

    def _forgotten(self, delivery: Delivery) -> None:
        self._bytes -= len(delivery.body)
        self._go_on()

    def _go_on(self) -> None:
        """Consume again, if no unsettled message is left."""
        if self._stopped and not self._here.total() and not self._arrived and not self._timers:
            self._stopped = False
            for ear in self._ears:
                ear.go_on()

    def _stray(self) -> None:
        self.strays += 1
        log.warning("a message from an undeclared sender became a dead letter")

    # -- checking -------------------------------------------------------------------------
    async def sort(self) -> None:
        """Check, for ever, the deliveries that need a newer card, and the deliveries that arrived after those."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._arrived:
                queue, delivery, put_off = self._arrived[0]
                if put_off or not self._take(queue, delivery):
                    await asyncio.sleep(1.0)
                    self._take(queue, delivery, again=True)
                self._arrived.popleft()
            self._go_on()

    def _take(self, queue: str, delivery: Delivery, again: bool = False) -> bool:
        """Check a delivery, and put it into the inbox or settle it. Return False if it must be checked again later.

        :param again: whether it was checked before.
        """
        if delivery.wire.closed:
            self._forgotten(delivery)
            return True
        try:
            message = self._admitted(queue, delivery, again)
        except _Later:
            return False
        except Exception:  # one message must not block the others
            log.exception("checking a message failed; it became a dead letter")
            self._not_taken(delivery, "reject")
            return True
        if message is not None:
            self._here[queue] += 1
            if message.id is not None:
                self._unsettled[message.sender, message.id] = message
            self.inbox.put(message)
            self._stuck()
        return True

    def _admitted(self, queue: str, delivery: Delivery, again: bool) -> Message | None:
        """Check a delivery and return it as a message.

        Settle it and return None if its sender isn't declared, if it is a duplicate, or if it is refused.

        :raises _Later: the key for its seal may be in newer files of the host.
        """
        sender = self._host.card.senders.get(delivery.exchange)
        if sender is None:
            self._stray()
            self._not_taken(delivery, "reject")
            return None
        identity = delivery.properties.message_id
        if identity:
            former = self._unsettled.get((sender.name, identity))
            if former is not None and former._delivery.wire.closed:
                former._delivery, delivery = delivery, former._delivery  # redelivered after a lost connection
                self._forgotten(delivery)
                return None
            if former is not None or (sender.name, identity) in self._window:
                self.duplicates += 1
                self._not_taken(delivery, "ack")
                return None
        try:
            opened = self._sealing.opened(delivery, sender.seal, sender.name, "message")
        except LinkError as err:
            if isinstance(err, UnknownKey) and not again and self._sealing.may_wait(sender):
                raise _Later from err
            self._sealing.refuse(err, sender.name)
            self._not_taken(delivery, "reject")
            return None
        message = Message(self._owner, sender, queue, delivery, opened)
        try:
            narrowing.check(sender.narrowed, message.body, message.content_type)
        except Refused as err:
            self.refused += 1
            log.warning("a message from %s was refused: %s", sender.name, err)
            self._not_taken(delivery, "reject")
            return None
        return message

    def _not_taken(self, delivery: Delivery, how: str) -> None:
        self._forgotten(delivery)
        settle(delivery, how)

    # -- receiving --------------------------------------------------------------------------
    async def receive(self, wanted: Match, timeout: float | None) -> Message:
        """Wait for the first message that matches *wanted* and return it. Other messages stay, in their order.

        :raises Timeout: no matching message came in time.
        :raises InboxFull: no matching message can come, because other messages take up the whole capacity.
        :raises NotDeclared: this environment has no mailbox.
        """
        self.follow()
        found = self.inbox.take(wanted)
        if found is not None:
            return found
        if not self._host.card.queues:
            raise NotDeclared(f"{self._host.card.name} has no mailbox: it has no declared link")
        loop = asyncio.get_running_loop()
        waiter: Waiter[Message] = Waiter(wanted, loop.create_future())
        late = None if timeout is None else loop.call_later(timeout, _late, waiter, timeout)
        self.inbox.wait(waiter)
        self._stuck()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if message := _given(waiter):
                self.inbox.put_back(message)
            raise
        finally:
            self.inbox.leave(waiter)
            if late is not None:
                late.cancel()

    def _stuck(self) -> None:
        """Fail all waiting ``receive`` calls with InboxFull, if held messages take up the whole capacity."""
        full = self._stopped or all(
            self._here[queue] >= self._room_in.get(queue, 1) for queue in self._host.card.queues
        )
        if len(self.inbox) and self.inbox.waiting and full:
            working = self._here.total() - len(self.inbox)
            self.inbox.fail(
                InboxFull(
                    f"{len(self.inbox)} messages wait here and {working} are in work, and none matches: "
                    "receive some of them, or raise capacity and memory"
                )
            )

    def settle(self, message: Message, how: str) -> None:
        """Settle a message at the broker, at most once.

        :param how: ``ack``, ``requeue`` or ``reject``.
        """
        if message.settled:
            return
        message.settled = True
        self._gone(message._queue, message._delivery)
        if message.id is not None:
            self._unsettled.pop((message.sender, message.id), None)
            if how == "ack":  # a rejected one may be sent again from the dead letters, and is then no duplicate
                self._window.add(message.sender, message.id, message.sealed_at)
        settle(message._delivery, how)

    async def close(self, error: LinkError) -> None:
        self.inbox.fail(error)
        for timer in self._timers:
            timer.cancel()
        await self._ears.close()


class _Later(Exception):
    """Error: a delivery can't be checked yet."""


def _late(waiter: Waiter[Message], timeout: float) -> None:
    if not waiter.future.done():
        waiter.future.set_exception(Timeout(f"no such message within {timeout:g} s"))


def _given(waiter: Waiter[Message]) -> Message | None:
    """Return the message that *waiter* got before it was cancelled; None: it got no message."""
    future = waiter.future
    done = future.done() and not future.cancelled() and future.exception() is None
    return future.result() if done else None
