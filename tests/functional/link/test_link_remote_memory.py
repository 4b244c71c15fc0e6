"""A direct link between two hosts whose messages wait in the memory of the receiver's broker."""

from __future__ import annotations

import pytest

from netspace.spec.types import Link

pytestmark = pytest.mark.root

ASK = Link(source="web@h1", target="orders@h2", pattern="request", monitor=True, durable=False)
LINKS = (ASK,)
ENVIRONMENTS = {"h1": ("web",), "h2": ("orders",)}


@pytest.fixture
def linked(declared):
    return declared


def test_a_link_in_memory_leads_to_another_host(linked, program):
    h1, h2, _ = linked
    assert not h1.plan(*h1.local(*LINKS)).steps
    assert not h2.plan(*h2.local(*LINKS)).steps
    web, orders = program(h1, "web"), program(h2, "orders")
    assert h1.card("web")["peers"][0]["durable"] is False
    assert h2.card("orders")["senders"][0]["durable"] is False

    async def work(message) -> str:
        return f"{message.sender}: {message._delivery.properties.delivery_mode}"

    async def ask() -> tuple[str, int]:
        answer = await web.mailbox.call("orders@h2", "how much?", timeout=60)
        return answer.text, answer._delivery.properties.delivery_mode

    serving = orders.start(orders.mailbox.serve(work))
    assert web.run(ask(), 120) == ("web@h1: 1", 1)
    serving.cancel()
    (wanted,) = h2.local(ASK)
    with h2.here(), h2.api() as api:
        about = api.get("queues", h2.layout.instance, h2.links.called.queue(wanted))
    assert (about["type"], about["policy"]) == ("classic", "netspace.memory")
