"""Messages that wait, because only a newer card can show whether to accept them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from netspace_client import Mailbox
from netspace_client.card import Sender
from netspace_client.errors import UnknownKey
from netspace_client.seal import Opened, Sealed
from netspace_client.wire import Delivery

SENDER = Sender("web", "send", "x")
CARD = {
    "version": 1,
    "name": "vault",
    "mailbox": "box",
    "broker": {"host": "127.0.0.1", "port": 1, "vhost": "v", "username": "u", "password_file": "p"},
    "senders": [{"from": SENDER.name, "pattern": SENDER.pattern, "exchange": SENDER.exchange}],
}


class Line:
    """A stand-in for the wire of a delivery: the wire is open, and records how each delivery is settled."""

    closed = False

    def __init__(self) -> None:
        self.settled: list[tuple[int, str]] = []

    def settle(self, tag: int, how: str) -> None:
        self.settled.append((tag, how))

    def flush(self) -> None:
        """Do nothing, because nothing is written."""


def delivery(line: Any, tag: int) -> Delivery:
    method = bytes((0, 60, 0, 60, 0)) + tag.to_bytes(8, "big") + b"\0\1x\0"
    return Delivery(line, method, bytes(14), b"%d" % tag)


def test_message_with_a_new_key_waits_until_the_key_is_known(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps(CARD))
    known = False

    def opened(delivery: Delivery, sealed: Sealed | None, sender: str, use: str) -> Opened | None:
        if not known:
            raise UnknownKey("signed by a key that is too new")
        return None

    async def play() -> None:
        nonlocal known
        line = Line()
        async with Mailbox(tmp_path) as mailbox:
            mailbox._sealing.opened = opened  # type: ignore[method-assign]
            (ear,) = mailbox._arrivals._ears
            for tag in (1, 2):
                ear._heard(delivery(line, tag))
            for _ in range(5):
                await asyncio.sleep(0)  # all that doesn't wait for the key has its turn
            assert line.settled == []
            known = True
            got = [await mailbox.receive(timeout=60) for _ in range(2)]
            assert [message.body for message in got] == [b"1", b"2"]
            assert (mailbox.refused, line.settled) == (0, [])

    asyncio.run(asyncio.wait_for(play(), 60))


def test_message_whose_key_stays_unknown_becomes_a_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps(CARD))

    def opened(delivery: Delivery, sealed: Sealed | None, sender: str, use: str) -> Opened | None:
        raise UnknownKey("signed by an invented key")

    async def play() -> None:
        line = Line()
        async with Mailbox(tmp_path) as mailbox:
            mailbox._sealing.opened = opened  # type: ignore[method-assign]
            (ear,) = mailbox._arrivals._ears
            for tag in (1, 2, 3):
                ear._heard(delivery(line, tag))
            while len(line.settled) < 3:
                await asyncio.sleep(0.02)
            assert line.settled == [(tag, "reject") for tag in (1, 2, 3)]
            assert mailbox.refused == 3

    asyncio.run(asyncio.wait_for(play(), 60))
