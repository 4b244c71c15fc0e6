"""Receipt of answers to requests: binds the replies queue, and assigns each answer to its request."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiormq import Channel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from netspace_client.card import Card, Peer, Sender
from netspace_client.ear import Ear, Ears
from netspace_client.errors import LinkError, Revoked, Timeout
from netspace_client.host import Host
from netspace_client.lines import Lines, settle
from netspace_client.message import Message
from netspace_client.sealing import Sealing
from netspace_client.session import FAILURES, Session, answer
from netspace_client.wire import Delivery

if TYPE_CHECKING:
    from netspace_client.mailbox import Mailbox


class Question:
    """A request that waits for its answer.

    :param exchange: the exchange through which the answer must come.
    """

    def __init__(self, session: Session, exchange: str, peer: str) -> None:
        self.session = session
        self.exchange = exchange
        self.peer = peer
        self.id = secrets.token_hex(16)
        self.answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()


class Answers:
    """The open questions of a program.

    To ask, enter ``asking``, put the result of ``way`` into the request's ``reply_to``, and call ``wait``.
    """

    def __init__(self, owner: Mailbox, host: Host, lines: Lines, sealing: Sealing) -> None:
        self._owner = owner
        self._host = host
        self._lines = lines
        self._sealing = sealing
        self._ears = Ears(lines, self._ear)
        self._keys: dict[tuple[Session, str], str] = {}
        self._bound: dict[tuple[Session, str], Channel] = {}
        self._questions: dict[str, Question] = {}

    @contextlib.contextmanager
    def asking(self, peer: Peer, exchange: str) -> Iterator[Question]:
        """Yield a new question, which is open until the end of the context."""
        question = Question(self._lines.session(peer.broker), exchange, peer.name)
        self._questions[question.id] = question
        try:
            yield question
        finally:
            del self._questions[question.id]

    def known(self, question: Question, queue: str) -> str | None:
        """Return the address for ``reply_to`` if the replies queue is bound; None: call ``way``, which binds it."""
        place = (question.session, question.exchange)
        hearing = self._ears.of(question.session, queue).hearing
        bound = self._bound.get(place)
        if bound is None or not hearing.done() or hearing.result() is not bound or bound.is_closed:
            return None
        return f"{question.exchange}/{self._keys[place]}"

    async def way(self, question: Question, queue: str) -> str:
        """Bind the replies queue to the peer's answers; return the address for the request's ``reply_to``.

        :param queue: our own replies queue.
        :raises Revoked: the link was revoked.
        """
        place = (question.session, question.exchange)
        ear = self._ears.of(question.session, queue)
        key = self._keys.setdefault(place, secrets.token_hex(16))
        while True:
            hearing = await asyncio.shield(ear.hearing)
            if self._bound.get(place) is hearing:
                return f"{question.exchange}/{key}"
            try:
                channel = await question.session.channel()
                await answer(channel.queue_bind(queue, question.exchange, key))
                await answer(channel.close())
                self._bound[place] = hearing
            except (ChannelNotFoundEntity, ChannelAccessRefused) as err:
                raise Revoked(f"the link to {question.peer} is revoked ({err})") from None
            except FAILURES:
                await asyncio.sleep(0.1)

    async def wait(self, question: Question, timeout: float) -> Message:
        """Wait for the answer to a question and return it.

        :raises Timeout: no answer came in time.
        """
        late = asyncio.get_running_loop().call_later(timeout, self._late, question)
        try:
            return await question.answered
        finally:
            late.cancel()

    def _late(self, question: Question) -> None:
        if not question.answered.done():
            self._bound.pop((question.session, question.exchange), None)  # the exchange may be a new one
            question.answered.set_exception(Timeout(f"{question.peer} didn't answer in time"))

    def follow(self, about: Card) -> None:
        """Stop consuming replies queues that are no longer in the card, and forget their bindings."""
        asked = [peer for peer in about.peers.values() if peer.replies]
        wanted = {(session, peer.replies) for peer in asked if (session := self._lines.known(peer.broker))}
        self._ears.forget({(session, replies[0]) for session, replies in wanted if replies})
        exchanges = {(session, replies[1]) for session, replies in wanted if replies}
        for place in self._keys.keys() - exchanges:
            del self._keys[place]
            self._bound.pop(place, None)

    async def close(self) -> None:
        """Delete the bindings and stop consuming."""
        with contextlib.suppress(LinkError, ConnectionError, asyncio.TimeoutError):
            await asyncio.wait_for(self._unbind(), 2.0)
        await self._ears.close()

    def _ear(self, session: Session, queue: str) -> Ear:
        def heard(delivery: Delivery) -> None:
            settle(delivery, "ack")
            self.judge(session, delivery)

        return Ear(self._lines, session, queue, heard)

    def judge(self, session: Session, delivery: Delivery) -> None:
        """Check an answer and give it to its question. Drop it if the check fails, or no such question is open."""
        question = self._questions.get(delivery.properties.correlation_id or "")
        if question is None or question.answered.done():
            return
        peer = self._host.card.peers.get(question.peer)
        if peer is None or question.session is not session or delivery.exchange != question.exchange:
            return
        try:
            opened = self._sealing.opened(delivery, peer.seal, peer.name, "answer")
        except LinkError as err:
            self._sealing.refuse(err, peer.name)
            return
        message = Message(self._owner, Sender(peer.name, "reply", question.exchange), "", delivery, opened)
        message.settled = True
        question.answered.set_result(message)

    async def _unbind(self) -> None:
        for peer in self._host.card.peers.values():
            session = self._lines.known(peer.broker)
            if peer.replies is None or session is None or not session.connected:
                continue
            key = self._keys.get((session, peer.replies[1]))
            if key is None:
                continue
            with contextlib.suppress(*FAILURES):
                channel = await session.channel()
                await answer(channel.queue_unbind(*peer.replies, key), 2.0)
