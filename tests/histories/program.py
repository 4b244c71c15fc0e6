"""A program of the checker inside an environment, with netspace-client. It notes what it does and is told, as it goes.

``program.py send|call FOLDER NOTES PROGRESS LINK PEER NUMBER`` sends messages up to NUMBER, or asks as many questions.
It goes on where the program before it was killed: what wasn't confirmed is sent again, with the same ids.

``program.py receive FOLDER NOTES PROGRESS`` receives and answers messages until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "client" / "src")]

from histories import notes  # noqa: E402
from histories.judge import Confirmed, Failed  # noqa: E402
from netspace_client import BatchFailed, LinkError, Mailbox  # noqa: E402
from netspace_client.message import Message  # noqa: E402

WINDOW = 256
"""Messages of a sender that are unconfirmed at once, and that a successor may repeat."""
QUESTIONS = 8
AHEAD = 2000
"""A sender waits while its receiver is so many messages behind, so that no mailbox is full: that is another test."""
PATIENCE = 900.0


class Progress:
    """Files of eight bytes, on which no promise depends: how far each link's receiver is, and its sender may go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}

    def _file(self, link: str) -> int:
        if link not in self._files:
            self._files[link] = os.open(self._folder / link, os.O_RDWR | os.O_CREAT, 0o644)
        return self._files[link]

    def note(self, link: str, number: int) -> None:
        if number + 1 > self.count(link):
            os.pwrite(self._file(link), (number + 1).to_bytes(8, "big"), 0)

    def count(self, link: str) -> int:
        """Return one more than the highest number that the receiver got."""
        return int.from_bytes(os.pread(self._file(link), 8, 0), "big")

    def allow(self, link: str, count: int) -> None:
        os.pwrite(self._file(f"{link}.allowed"), count.to_bytes(8, "big"), 0)

    def waits(self, link: str, number: int) -> bool:
        """Return whether the sender has to wait before it sends a message."""
        allowed = int.from_bytes(os.pread(self._file(f"{link}.allowed"), 8, 0), "big")
        return number >= allowed or number - self.count(link) > AHEAD


class Sender:
    """The sender of one link's messages."""

    def __init__(self, mailbox: Mailbox, path: Path, progress: Progress, link: str, peer: str) -> None:
        self._mailbox = mailbox
        self._path = path
        self._notes = notes.Notes(path)
        self._progress = progress
        self._link = link
        self._peer = peer

    async def run(self, how: str, number: int) -> None:
        again, following = notes.left(self._path)
        if how == "call":
            # A question that nobody answered is not asked again: it would be another question.
            self._notes.told(Failed(one, True) for one in again)
            again = []
        for chunk in _chunks(itertools.chain(again, range(following, number)), WINDOW if how == "send" else QUESTIONS):
            while self._progress.waits(self._link, chunk[0]):
                await asyncio.sleep(0.02)
            await (self._send(chunk) if how == "send" else self._ask(chunk))

    async def _send(self, chunk: list[int]) -> None:
        batch = self._mailbox.batch(self._peer, window=WINDOW, timeout=PATIENCE)
        with contextlib.suppress(BatchFailed):
            async with batch:
                for number in chunk:
                    self._notes.tried(number)
                    await batch.send(notes.body(self._link, number), id=f"{self._link}-{number}")
        told: list[Confirmed | Failed] = []
        for number in chunk:
            error = batch.failed.get(identity := f"{self._link}-{number}")
            told.append(Failed(number, error.unknown) if error else Confirmed(number, identity in batch.repeated))
        self._notes.told(told)

    async def _ask(self, chunk: list[int]) -> None:
        async def ask(number: int) -> Confirmed | Failed:
            question = notes.body(self._link, number)
            self._notes.tried(number)
            try:
                answer = await self._mailbox.call(self._peer, question)
            except LinkError as err:
                return Failed(number, err.unknown)
            if answer.body != question[::-1]:
                raise SystemExit(f"{self._link}: question {number} got another's answer: {answer.body[:100]!r}")
            return Confirmed(number, False)

        self._notes.told(await asyncio.gather(*map(ask, chunk)))


async def _receive(mailbox: Mailbox, path: Path, progress: Progress) -> None:
    written = notes.Notes(path)
    written.began()
    answers: set[asyncio.Task[None]] = set()

    async def answer(message: Message) -> None:
        with contextlib.suppress(LinkError):  # an asker that doesn't get it notes a failure
            await message.reply(message.body[::-1])
        await message.ack()

    async for message in mailbox.messages():
        link, number, intact = notes.named(message.body)
        # A link's name begins with its sender, whom the message can't choose.
        intact = intact and link.split(">")[0] == message.sender.split("@")[0]
        written.received(link, number, redelivered=message.redelivered, intact=intact)
        progress.note(link, number)
        if message.wants_reply:
            answers.add(task := asyncio.create_task(answer(message)))
            task.add_done_callback(answers.discard)
        else:
            await message.ack()


def _chunks(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    rest = iter(numbers)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


async def main(how: str, folder: str, path: str, progress: str, *more: str) -> None:
    async with Mailbox(folder) as mailbox:
        if how == "receive":
            await _receive(mailbox, Path(path), Progress(Path(progress)))
        else:
            link, peer, number = more
            await Sender(mailbox, Path(path), Progress(Path(progress)), link, peer).run(how, int(number))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
