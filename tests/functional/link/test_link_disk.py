"""Disk of durable queues: the broker keeps messages that wait, and little of those that were read."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pika
import pytest
from support.waiting import until

from netspace.link.broker import versions
from netspace.spec.types import MESSAGE_SIZE, Link

pytestmark = [pytest.mark.root, pytest.mark.exhaustion]

TELL = Link(source="orders", target="audit")
PATIENCE = 60.0
ROUNDS = 24


@pytest.fixture(scope="module")
def host(standing):
    standing.environment("orders", "audit")
    standing.apply(TELL)
    return standing


def on_disk(folder: Path) -> int:
    total = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            with contextlib.suppress(FileNotFoundError):  # the broker's files come and go, its folders too
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


def send(host, channel, body: bytes) -> None:
    """Send a message as soon as the mailbox has room for it."""
    while True:
        try:
            channel.basic_publish(host.n("link.orders.audit"), "", body, mandatory=True)
            return
        except pika.exceptions.NackError:
            time.sleep(0.1)


def test_what_was_read_is_not_kept_on_disk(host):
    """A program reads six times as much as its mailbox may hold; the broker frees the disk space meanwhile."""
    data = host.layout.broker / "data"
    before = on_disk(data)
    sent = 384
    got: list[bytes] = []

    def take(channel, delivery, _, body) -> None:
        channel.basic_ack(delivery.delivery_tag)
        got.append(body[:1])
        if len(got) == sent:
            channel.stop_consuming()

    most = 0
    with contextlib.closing(host.connect("audit")) as receiver, host.client("orders") as channel:
        box = receiver.channel()
        box.basic_qos(prefetch_count=10)
        box.basic_consume(host.n("mailbox.audit"), take)
        reading = threading.Thread(target=box.start_consuming, daemon=True)
        reading.start()
        for number in range(sent):
            send(host, channel, bytes(MESSAGE_SIZE))
            if number % 32 == 0:
                most = max(most, on_disk(data) - before)
        reading.join(PATIENCE)
        assert not reading.is_alive()
    assert len(got) == sent
    # The mailbox, two files of its log, and the log of all queues.
    assert most < 280 * MESSAGE_SIZE
    until(lambda: on_disk(data) - before < 160 * MESSAGE_SIZE, patience=PATIENCE)


@pytest.mark.skipif(versions.server() < (4, 3), reason="older ones keep all that follows a message that is held")
def test_a_held_message_keeps_no_read_ones_on_disk(host):
    """A program fills its mailbox again and again, and acknowledges all but one small message of each file."""
    data = host.layout.broker / "data"
    before, most = on_disk(data), []
    with contextlib.closing(host.connect("audit")) as receiver, host.client("orders") as channel:
        box, held = receiver.channel(), []
        for _ in range(ROUNDS):
            for body in (b"held", *[bytes(MESSAGE_SIZE)] * 60):
                send(host, channel, body)
            taken = [box.basic_get(host.n("mailbox.audit")) for _ in range(61)]
            held += [method.delivery_tag for method, _, body in taken if body == b"held"]
            for method, _, body in taken:
                if body != b"held":
                    box.basic_ack(method.delivery_tag)
            most.append((on_disk(data) - before) // MESSAGE_SIZE)
        assert len(held) == ROUNDS
        assert max(most) < 400, most  # without compaction: 546
        until(lambda: on_disk(data) - before < 160 * MESSAGE_SIZE, patience=PATIENCE)
        for tag in held:
            box.basic_ack(tag)
