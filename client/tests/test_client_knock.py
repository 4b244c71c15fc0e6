"""Attempts to send without a link: one for each peer, and none if the link was declared in the meantime."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_client_parts import CARD

from netspace_client import card
from netspace_client.knock import Knocks


class Lines:
    """A stand-in for a session: calls *then* before its channel opens, and records the exchanges of its messages."""

    def __init__(self, then: Any = lambda: None) -> None:
        self.sent: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._then = then

    def session(self, broker: object) -> Lines:
        return self

    async def channel(self) -> Lines:
        await asyncio.sleep(0)
        self._then()
        return self

    async def basic_publish(self, body: bytes, *, exchange: str, routing_key: str) -> None:
        self.sent.append(exchange)

    async def close(self) -> None:
        pass

    def later(self, work: Any) -> None:
        self.tasks.append(asyncio.ensure_future(work))


def about(audit: bool = True, *peers: str) -> card.Card:
    more = [{"to": peer, "pattern": "send", "exchange": f"x-{peer}"} for peer in peers]
    return card.parse({**CARD, "audit": audit, "peers": [*CARD["peers"], *more]}, Path("/"))


def knocked(before: card.Card, after: card.Card) -> list[str]:
    """Try twice to send to a peer without a link, while the card changes from *before* to *after*.

    Return the exchanges of the sent messages.
    """
    host = SimpleNamespace(card=before)
    lines = Lines(lambda: setattr(host, "card", after))

    async def ask() -> None:
        knocks = Knocks(cast(Any, host), cast(Any, lines))
        for _ in range(2):
            knocks.knock("billing")
        await asyncio.gather(*lines.tasks)

    asyncio.run(ask())
    return lines.sent


@pytest.mark.parametrize(
    ("before", "after", "sent"),
    [
        (about(), about(), ["link.web.billing"]),
        (about(), about(True, "billing"), []),
        (about(), about(False), []),
        (about(False), about(False), []),
    ],
)
def test_peer_is_asked_for_once_and_not_if_it_is_linked_by_then(
    before: card.Card, after: card.Card, sent: list[str]
) -> None:
    assert knocked(before, after) == sent
