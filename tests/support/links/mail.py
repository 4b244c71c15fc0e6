"""Messages on a host of ``link_world``: functions with which tests of links send, read and refuse messages."""

from __future__ import annotations

import pika

from netspace.link.mail.dead_letters import Letters
from netspace.spec.types import Link
from support.waiting import until

PATIENCE = 60.0


def send(host, link: Link, *bodies: bytes, **properties) -> None:
    with host.client(link.source) as channel:
        for body in bodies:
            channel.basic_publish(
                host.links.called.exchange(link), "", body, pika.BasicProperties(**properties), mandatory=True
            )


def read(host, name: str, count: int, *, queues=None) -> list[tuple[str, bytes]]:
    """Return *count* messages that *name* reads by its card: (sender, body)."""
    about = host.card(name)
    senders = {sender["exchange"]: sender["from"] for sender in about["senders"]}
    got: list[tuple[str, bytes]] = []

    def look() -> bool:
        for queue in queues or about["queues"]:
            delivery, _, body = channel.basic_get(queue, auto_ack=True)
            if delivery:
                got.append((senders[delivery.exchange], body))
        return len(got) >= count

    with host.client(name) as channel:
        until(look, f"{count} messages", patience=PATIENCE)
    return got


def messages(host, queue: str) -> int | None:
    """Return the exact number of messages in a queue, as its reader would see it; None if the queue does not exist."""
    with host.api() as api:
        if api.get("queues", "netspace", queue, query="columns=name") is None:
            return None
        body = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1}
        got = api.post("queues", "netspace", queue, "get", body=body)
        return got[0]["message_count"] + 1 if got else 0


def refuse(host, name: str) -> None:
    """Read one message and refuse it without requeueing."""
    with host.client(name) as channel:
        got = []
        until(lambda: got.extend(filter(None, [channel.basic_get(host.card(name)["mailbox"])[0]])) or got)
        channel.basic_reject(got[0].delivery_tag, requeue=False)


def letters(host, count: int, **options) -> list[dict]:
    desk = Letters(host.layout)
    until(lambda: desk.count()["count"] >= count, f"{count} dead letters", patience=PATIENCE)
    return desk.count(**options)["letters"]
