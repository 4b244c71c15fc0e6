"""Take messages out of the mailbox and have each worked on, several at once; settle each when its work ends."""

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

    :param how: ``done``; ``later``: not now, try again; ``never``: nobody can work on it.
    :param answer: body and type of the answer, for a request.
    """

    how: Literal["done", "later", "never"]
    answer: tuple[bytes, str] | None = None


Work = Callable[[Message], Awaitable[Done]]


async def work_on(mailbox: Mailbox, work: Work, *, at_once: int, patience: float) -> None:
    """Have *work* done for each message, for ever.

    :param at_once: messages that are worked on at once; with 1 they are in order.
    :param patience: seconds for which the work is tried again. Then the message goes back to the broker, which counts
        its returns (and moves it to the dead letters after 20).
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
    """Work on one message; its failure does not stop the next ones."""
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
        log.exception("the work for %r failed; it comes again", message)


async def _patiently(message: Message, work: Work, patience: float) -> Done:
    """Work on a message until it is done, or *patience* is over."""
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + patience, FIRST_WAIT
    while True:
        done = await work(message)
        if done.how != "later" or message.wants_reply or loop.time() + pause > end:
            return done
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_WAIT)


async def _answer(message: Message, body: bytes, kind: str) -> None:
    """Answer a request. The work was done, so a failure to reach the asker must not repeat it."""
    try:
        await message.reply(body, content_type=kind)
    except LinkError as err:
        log.warning("the answer to %r is lost: %s", message, err)
