"""Consumers of queues, which go on after a lost connection: one *ear* for each queue. No ear declares a queue."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Set

from aiormq import Channel

from netspace_client.errors import Closed
from netspace_client.lines import Lines
from netspace_client.session import FAILURES, Session, answer, hang_up
from netspace_client.wire import Delivery, Wire

log = logging.getLogger("netspace_client")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0

LEFT_SECONDS = 3.0
"""Seconds to wait for the end of another consumer of a mailbox, which may be our own lost connection.

If the broker hasn't noticed the end of a lost consumer, it delivers new messages first. It redelivers the messages that
the lost consumer had only later, out of order.
"""
ANSWER_SECONDS = 0.2
"""Only an answer "empty, no consumer" within these seconds is trusted. RabbitMQ also sends it if it knows nothing in
0.25 s."""

Heard = Callable[[Delivery], None]


class Ear:
    """A consumer of *queue* that calls *heard* with each delivery, until ``close``.

    :param most: the most unsettled messages (AMQP's prefetch count); 0: no limit.
    :param begin: function called before each new AMQP consumer, when the broker may redeliver unsettled messages.
    :param in_order: wait up to ``LEFT_SECONDS`` until earlier consumers of the queue are gone.
    """

    def __init__(
        self,
        lines: Lines,
        session: Session,
        queue: str,
        heard: Heard,
        most: int = 0,
        begin: Callable[[], None] = lambda: None,
        in_order: bool = False,
    ) -> None:
        self._lines = lines
        self._session = session
        self._queue = queue
        self._heard = heard
        self._most = most
        self._begin = begin
        self._in_order = in_order
        self._others = 0
        self._pause = FIRST_PAUSE
        self._consumer: _Consumer | None = None
        self._more = asyncio.Event()
        self.hearing: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        """The channel of the consumer; each new channel comes in a new future."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop consuming until ``go_on``. Deliveries that the broker has already sent still arrive."""
        self._more.clear()
        if self._consumer is not None and not self._consumer.stopped:
            self._consumer.stopped = True
            self._lines.later(self._consumer.cancel())

    def go_on(self) -> None:
        self._more.set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            wire: Wire | None = None
            try:
                wire = await self._session.wire(self._heard)
                channel = wire.channel
                await answer(channel.basic_qos(prefetch_count=self._most))
                if self._in_order:
                    await self._let_go(channel)
                await self._hear(channel)
            except Closed:
                return
            except FAILURES as err:
                log.debug("hearing %s: %s", self._queue, err)
            finally:
                if wire is not None and not wire.closed:
                    wire.shut()
                    self._lines.later(hang_up(wire.channel))
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def _let_go(self, channel: Channel) -> None:
        """Wait until the queue has no earlier consumer, for up to ``LEFT_SECONDS``.

        A consumer that still exists after this time probably belongs to another program; the next call doesn't wait.
        """
        clock = asyncio.get_running_loop().time
        deadline, pause = clock() + LEFT_SECONDS, 0.005
        while True:
            begun = clock()
            there = await answer(channel.queue_declare(self._queue, passive=True))
            readers = there.consumer_count or 0
            told = readers or there.message_count or clock() - begun < ANSWER_SECONDS
            if (told and readers <= self._others) or clock() >= deadline:
                self._others = readers
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.1)

    async def _hear(self, channel: Channel) -> None:
        """Consume by *channel* until the broker cancels the consumer or the channel closes."""
        while True:
            self._more.set()
            self._begin()
            tag = (await answer(channel.basic_consume(self._queue, _elsewhere))).consumer_tag
            self._consumer = consumer = _Consumer(channel, str(tag))
            if not self._more.is_set():
                self.stop()  # ``stop`` was called before the broker's answer came
            if self.hearing.done():
                self.hearing = asyncio.get_running_loop().create_future()
            self.hearing.set_result(channel)
            self._pause = FIRST_PAUSE
            while consumer.there:
                await _first(channel, consumer.over, 0.5)
            self._consumer = None
            if not consumer.stopped:
                return  # the broker has cancelled the consumer
            while not self._more.is_set():
                await _first(channel, self._more)
                if channel.is_closed:
                    return


async def _elsewhere(delivery: object) -> None:
    """Do nothing, because the wire gets the deliveries instead of aiormq."""


class _Consumer:
    """An AMQP consumer on one channel."""

    def __init__(self, channel: Channel, tag: str) -> None:
        self.channel = channel
        self.tag = tag
        self.stopped = False
        self.over = asyncio.Event()

    @property
    def there(self) -> bool:
        return not self.channel.is_closed and self.tag in self.channel.consumers

    async def cancel(self) -> None:
        with contextlib.suppress(*FAILURES):
            await answer(self.channel.basic_cancel(self.tag))
            self.over.set()


async def _first(channel: Channel, event: asyncio.Event, timeout: float | None = None) -> None:
    """Wait until the channel is closed, *event* is set, or *timeout* seconds have passed."""
    happening = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({channel.closing, happening}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happening.cancel()


class Ears:
    """A set of ears, one per queue.

    :param make: a function that makes the ear of a queue.
    """

    def __init__(self, lines: Lines, make: Callable[[Session, str], Ear]) -> None:
        self._lines = lines
        self._make = make
        self._ears: dict[tuple[Session, str], Ear] = {}

    def __len__(self) -> int:
        return len(self._ears)

    def __iter__(self) -> Iterator[Ear]:
        return iter(list(self._ears.values()))

    def of(self, session: Session, queue: str) -> Ear:
        """Return the ear of this queue; make it if there is none."""
        if (session, queue) not in self._ears:
            self._ears[session, queue] = self._make(session, queue)
        return self._ears[session, queue]

    def follow(self, wanted: Set[tuple[Session, str]]) -> None:
        """Consume exactly the *wanted* queues."""
        self.forget(wanted)
        for session, queue in wanted:
            self.of(session, queue)

    def forget(self, wanted: Set[tuple[Session, str]]) -> None:
        """Close each ear whose queue is not *wanted*."""
        for key in self._ears.keys() - wanted:
            self._lines.later(self._ears.pop(key).close())

    async def close(self) -> None:
        for ear in self:
            await ear.close()
