"""A message is settled with the broker while its connection is going away, and nobody waits for that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from netspace_client.lines import settle


class Channel:
    """A channel as aiormq's is when a connection is about to go: nobody takes what it is to write any more."""

    def __init__(self) -> None:
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.write_queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1)

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    async def basic_ack(self, delivery_tag: int, multiple: bool = False, wait: bool = True) -> None:
        await self.write_queue.put(f"ack {delivery_tag}")

    async def basic_nack(
        self, delivery_tag: int, multiple: bool = False, requeue: bool = True, wait: bool = True
    ) -> None:
        await self.write_queue.put(f"nack {delivery_tag} {requeue}")


class Delivery:
    def __init__(self, channel: Any) -> None:
        self.channel, self.delivery_tag = channel, 7


@pytest.mark.parametrize(("how", "told"), [("ack", "ack 7"), ("requeue", "nack 7 True"), ("reject", "nack 7 False")])
def test_it_is_told_and_nobody_waits_for_a_connection_that_is_going(how: str, told: str) -> None:
    async def trial() -> None:
        delivery: Any = Delivery(Channel())
        await settle(delivery, how)
        second = asyncio.create_task(settle(delivery, how))
        await asyncio.sleep(0.01)
        assert not second.done(), "there is no room"
        delivery.channel.closing.set_result(None)
        await asyncio.wait_for(second, 10)
        assert delivery.channel.write_queue.get_nowait() == told
        assert delivery.channel.write_queue.empty()
        await settle(delivery, how)

    asyncio.run(trial())
