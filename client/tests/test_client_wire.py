"""Tests of a wire: the frames that it processes, the frames that wait, and frames that end the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiormq.connection
import pamqp.body
import pamqp.commands
import pamqp.frame
import pamqp.header
import pytest
from aiormq.exceptions import AMQPConnectionError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pamqp.heartbeat import Heartbeat

from netspace_client import wire
from netspace_client.wire import Delivery, Receiver, Wire

Basic = pamqp.commands.Basic
STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Channel:
    """A stand-in for aiormq's channel, with only the parts that a wire uses."""

    max_content_size = 8

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_closed(self) -> bool:
        return self.closing.done()


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.gone = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.gone


class Line:
    """A receiver with a wire on channel 1."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.transport = Transport()
        self.reader.set_transport(self.transport)
        self.receiver = Receiver(self.reader)
        self.channel = Channel()
        self.got: list[Delivery] = []
        channel: Any = self.channel
        self.wire = Wire(channel, self.receiver, self.got.append)
        self.said: list[Any] = []
        self.wire.confirmed = lambda *about: self.said.append(about)
        self.wire.returned = self.said.append

    def feed(self, *pieces: Any, channel: int = 1) -> None:
        self.reader.feed_data(b"".join(pamqp.frame.marshal(one, channel) for one in pieces))

    async def next(self) -> Any:
        return (await asyncio.wait_for(self.receiver.get_frame(), 60))[2]


def trial(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def deliver(tag: int, body: bytes, pieces: int = 1, **about: Any) -> list[Any]:
    size = max(1, -(-len(body) // pieces))
    parts = [pamqp.body.ContentBody(body[at : at + size]) for at in range(0, len(body), size)]
    header = pamqp.header.ContentHeader(0, len(body), Basic.Properties(**about))
    return [Basic.Deliver("c", tag, False, "link.a.b", ""), header, *parts]


def test_messages_go_to_the_wire_and_all_else_to_aiormq() -> None:
    async def play() -> None:
        line = Line()
        line.feed(*deliver(1, b"whole", message_id="m"), *deliver(2, b"in pieces", 3), *deliver(3, b""))
        line.feed(Basic.Ack(4, True), Basic.Nack(5), Basic.CancelOk("c"))
        assert (await line.next()).name == "Basic.CancelOk"
        assert [(one.delivery_tag, one.body) for one in line.got] == [(1, b"whole"), (2, b"in pieces"), (3, b"")]
        assert (line.got[0].exchange, line.got[0].properties.message_id) == ("link.a.b", "m")
        assert line.said == [(4, True, True), (5, False, False)]
        line.feed(*deliver(1, b"nobody's"), channel=2)
        assert (await line.next()).name == "Basic.Deliver"

    trial(play())


def test_message_that_was_routed_nowhere_is_told_by_its_id() -> None:
    async def play() -> None:
        line = Line()
        header = pamqp.header.ContentHeader(0, 1, Basic.Properties(message_id="m"))
        line.feed(Basic.Return(312, "NO_ROUTE", "x", ""), header, pamqp.body.ContentBody(b"x"), Basic.Ack(1))
        line.feed(Heartbeat(), channel=0)
        await line.next()
        assert line.said == ["m", (1, False, True)]

    trial(play())


@STEADY
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_frames_are_read_however_they_are_cut(sizes: list[int]) -> None:
    async def play() -> None:
        line = Line()
        frames = [*deliver(1, b"first", 2, message_id="m"), Basic.Ack(1), *deliver(2, b"second")]
        raw = b"".join(pamqp.frame.marshal(one, 1) for one in frames) + Heartbeat().marshal()
        reading = asyncio.create_task(line.next())
        at = 0
        for size in [*sizes, len(raw)]:
            line.reader.feed_data(raw[at : at + size])
            at += size
            await asyncio.sleep(0)
        assert isinstance(await reading, Heartbeat)
        assert [one.body for one in line.got] == [b"first", b"second"]
        assert line.said == [(1, False, True)]

    trial(play())


@pytest.mark.parametrize(
    "raw",
    [
        b"AMQP\0\0\x09\x01",
        b"\x01\0\1\0\0\0\4\0\x3c\0\x3cX",  # no end
        b"\x01\0\1\x7f\0\0\0" + bytes(20),  # two gigabytes
        b"\x01\0\1\0\0\0\4\0\x3c\0\x50\xce",  # an ack without a tag
    ],
)
def test_no_amqp_ends_the_connection(raw: bytes) -> None:
    async def play() -> None:
        line = Line()
        line.reader.feed_data(raw)
        with pytest.raises(AMQPConnectionError):
            await line.next()

    trial(play())


@pytest.mark.parametrize("size", [wire.LARGEST_BODY + 1, 2**64 - 1, 3])
@pytest.mark.parametrize("piece", [b"more", b""])
def test_body_of_a_wrong_size_ends_the_connection(size: int, piece: bytes) -> None:
    async def play() -> None:
        line = Line()
        header = pamqp.header.ContentHeader(0, size, Basic.Properties())
        line.feed(Basic.Deliver("c", 1, False, "link.a.b", ""), header)
        line.feed(*[] if size > wire.LARGEST_BODY else [pamqp.body.ContentBody(piece)])
        with pytest.raises(AMQPConnectionError):
            await line.next()
        assert line.got == []

    trial(play())


@pytest.mark.parametrize(("offered", "taken"), [(0, 2**20), (131072, 131072), (2**20 + 1, 2**20), (2**32 - 1, 2**20)])
def test_no_larger_frames_are_agreed_than_are_read(offered: int, taken: int) -> None:
    async def play() -> None:
        line = Line()
        line.feed(pamqp.commands.Connection.Tune(64, offered, 20), channel=0)
        assert (await line.next()).frame_max == taken

    trial(play())


def test_connections_of_others_are_read_by_aiormq(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the program itself opens by aiormq gets aiormq's own frame receiver."""
    monkeypatch.setattr(aiormq.connection, "FrameReceiver", aiormq.connection.FrameReceiver)

    async def play() -> None:
        with pytest.raises(AMQPConnectionError):
            await wire.connect("amqp://127.0.0.1:1/")  # nobody listens there
        reader = asyncio.StreamReader()
        receiver = aiormq.connection.FrameReceiver(reader)
        assert not isinstance(receiver, Receiver)
        reader.feed_data(Heartbeat().marshal())
        assert isinstance((await receiver.get_frame())[2], Heartbeat)

    trial(play())


def test_damaged_delivery_ends_the_connection() -> None:
    async def play() -> None:
        line = Line()
        raw = bytearray(pamqp.frame.marshal(deliver(1, b"")[0], 1))
        raw[-2] = 200  # the key is longer than the frame
        line.reader.feed_data(bytes(raw) + pamqp.frame.marshal(deliver(1, b"")[1], 1))
        with pytest.raises(AMQPConnectionError):
            await line.next()

    trial(play())


def test_who_fails_at_a_message_keeps_no_other_from_it() -> None:
    async def play() -> None:
        line = Line()
        got: list[bytes] = []

        def fails(delivery: Delivery) -> None:
            got.append(delivery.body)
            raise ValueError("so it is")

        channel: Any = line.channel
        line.wire = Wire(channel, line.receiver, fails)
        line.feed(*deliver(1, b"1"), *deliver(2, b"2"))
        line.feed(Heartbeat(), channel=0)
        assert isinstance(await line.next(), Heartbeat)
        assert got == [b"1", b"2"]

    trial(play())


def test_aiormq_is_told_that_frames_arrive() -> None:
    """Frames for a wire reset aiormq's timeout, so that it doesn't close a connection on which only messages arrive."""

    async def play() -> None:
        line = Line()
        reading = asyncio.create_task(line.next())
        await asyncio.sleep(0.05)  # it waits for bytes
        line.receiver._told -= 10 * wire.QUIET
        line.feed(*deliver(1, b"x"))
        assert isinstance(await reading, Heartbeat)
        assert len(line.got) == 1

    trial(play())


def test_all_of_one_turn_is_written_at_once() -> None:
    async def play() -> None:
        line = Line()
        line.wire.settle(1, "ack")
        for number in range(3):
            assert line.wire.publish(b"\0\x3c\0\x28", Basic.Properties(message_id=str(number)), b"x") == number + 1
        assert line.transport.written == []
        await asyncio.sleep(0)
        assert len(line.transport.written) == 1
        line.wire.settle(2, "ack")
        await asyncio.sleep(0)
        assert len(line.transport.written) == 1, "an acknowledgement waits a little"
        await asyncio.sleep(wire.PATIENCE * 5)
        assert len(line.transport.written) == 2

    trial(play())


def test_much_is_written_before_the_turn_ends() -> None:
    async def play() -> None:
        line = Line()
        line.wire.publish(b"\0\x3c\0\x28", Basic.Properties(), bytes(wire.CHUNK))
        assert len(line.transport.written) == 1

    trial(play())


def test_nothing_follows_the_end_of_a_channel() -> None:
    async def play() -> None:
        line = Line()
        line.wire.settle(1, "ack")
        line.feed(pamqp.commands.Channel.Close(404, "gone", 60, 40))
        assert (await line.next()).name == "Channel.Close"
        assert len(line.transport.written) == 1, "what waited goes before aiormq's answer"
        assert line.wire.closed and not line.channel.is_closed

    trial(play())


def test_wire_ends_with_its_channel() -> None:
    async def play() -> None:
        line = Line()
        assert line.receiver.wires == {1: line.wire}
        line.channel.closing.set_exception(ConnectionError())
        await asyncio.sleep(0)
        assert line.receiver.wires == {} and line.wire.closed
        line.transport.gone = True
        line.receiver.write(b"x")
        line.receiver.flush()
        assert line.transport.written == []

    trial(play())
