"""Worker of the bridge: receives messages, works on several at once, and settles each when its work ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from netspace_client.errors import LinkError
from netspace_client.mailbox import Mailbox
from netspace_client.message import Message

log = logging.getLogger("netspace_client.bridge")

FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0


@dataclass(frozen=True)
class Done:
    """The outcome of the work on a message.

    :param how: ``done``; ``later``: try again; ``never``: reject the message.
    :param answer: body and content type of the answer to a request.
    """

    how: Literal["done", "later", "never"]
    answer: tuple[bytes, str] | None = None


Work = Callable[[Message], Awaitable[Done]]


async def work_on(mailbox: Mailbox, work: Work, *, at_once: int, patience: float) -> None:
    """Call *work* for each message, for ever.

    :param at_once: the most messages that are worked on at once; with 1, the messages are worked on in order.
    :param patience: seconds for which failed work is tried again. After this time the message is requeued; the broker
        counts redeliveries, and moves the message to the dead letters after 20.
    """
    places = asyncio.Semaphore(at_once)
    running: set[asyncio.Task[None]] = set()
    try:
        while True:
            await places.acquire()
            message = await mailbox.receive()
            task = asyncio.create_task(_one(message, work, patience))
            running.add(task)
            task.add_done_callback(lambda done: (running.discard(done), places.release()))  # type: ignore[func-returns-value]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _one(message: Message, work: Work, patience: float) -> None:
    """Work on one message and settle it. Log a failure, so that it does not stop the others."""
    try:
        async with message:
            done = await _patiently(message, work, patience)
            if message.wants_reply and done.answer is not None:
                body, kind = done.answer
                await _answer(message, body, kind)
            elif done.how == "later":
                await message.requeue()
            elif done.how == "never":
                await message.reject()
    except Exception:
        log.exception("the work for %r failed; the broker delivers the message again", message)


async def _patiently(message: Message, work: Work, patience: float) -> Done:
    """Work on a message until it is done, or *patience* seconds have passed. Try a request only once."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + patience, FIRST_WAIT
    while True:
        done = await work(message)
        if done.how != "later" or message.wants_reply or loop.time() + pause > end:
            return done
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_WAIT)


async def _answer(message: Message, body: bytes, kind: str) -> None:
    """Answer a request; only log a failure, because the work is done and must not be repeated."""
    try:
        await message.reply(body, content_type=kind)
    except LinkError as err:
        log.warning("the answer to %r is lost: %s", message, err)
