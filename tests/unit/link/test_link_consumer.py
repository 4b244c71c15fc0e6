"""Consumers of many queues: the queues that are consumed after the broker refused or deleted some of them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from netspace.link.broker.amqp import ClosedError, Connection
from netspace.link.broker.consumer import Consumer

Method = tuple[int, int]
CONSUME, CANCEL = (60, 20), (60, 30)
METHOD = 1


class Broker(Consumer):
    """A connection to a broker with these queues."""

    def __init__(self, *queues: str) -> None:
        self.there = set(queues)
        self.cancels: list[str] = []
        self.rest = False  # whether all other queues are deleted during the next cancellation
        with socket.socket() as way:
            super().__init__(way, "/", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), b"x", 1)

    def _call(self, channel: int, method: Method, arguments: bytes, *answers: Method) -> tuple[Method, bytes]:
        if method == CONSUME and (queue := arguments[3 : 3 + arguments[2]].decode()) not in self.there:
            raise ClosedError(404, f"no queue {queue}")
        if method == CANCEL:
            self.cancels.append(arguments[1 : 1 + arguments[0]].decode())
            for queue in list(self._queues) if self.rest else ():
                self.delete(queue)
        return answers[0], b""

    def delete(self, queue: str) -> None:
        """Delete a queue, and tell its consumer (RabbitMQ's "Consumer Cancel Notification")."""
        self.there.discard(queue)
        raw = queue.encode()
        assert self._taken(METHOD, self._queues[queue], bytes([0, 60, 0, 30, len(raw)]) + raw + b"\1")


@pytest.fixture(autouse=True)
def unconnected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Connection, "__init__", lambda self, *_, **__: None)
    yield


def test_queue_deleted_and_made_again_is_consumed_again() -> None:
    broker = Broker("a", "b")
    broker.follow(("a", "b"))
    assert not broker.lacking
    broker.delete("a")
    assert broker.lacking
    broker.follow(("a", "b"))
    assert broker.lacking and set(broker._queues) == {"b"}
    broker.there.add("a")
    broker.follow(("a", "b"))
    assert not broker.lacking and set(broker._queues) == {"a", "b"}


def test_refused_queue_is_lacking_until_it_is_not_wanted() -> None:
    broker = Broker("a")
    broker.follow(("a", "b"))
    assert broker.lacking and set(broker._queues) == {"a"}
    broker.follow(("a",))
    assert not broker.lacking


def test_queues_deleted_while_one_is_cancelled_are_forgotten() -> None:
    broker = Broker("a", "b", "c")
    broker.follow(("a", "b", "c"))
    broker.rest = True
    broker.follow(())
    assert len(broker.cancels) == 1 and not broker._queues and not broker.lacking
