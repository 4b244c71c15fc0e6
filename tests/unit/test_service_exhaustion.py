"""Verdicts of the services' part of the exhaustion audit, and the frames that its program sends."""

from __future__ import annotations

import inspect
import struct
from pathlib import Path

import pika.frame
import pika.spec
import pytest
from support.links import amqp1

from netspace.environment.audit import amqp_frames, pools, services, storms
from netspace.errors import NetspaceError
from netspace.host import trials
from netspace.host.service_exhaustion import GOALS, WAYS, chosen, judge
from netspace.layout import Layout

ALONE = {"answer": 0.02, "exec": 0.1, "apply": 0.2, "restart": 0.2, "health": 0.6, "logs": 0.001}


# -- verdicts --------------------------------------------------------------------------------------
def test_the_verdict_on_a_service():
    assert judge("x", 7, ALONE, ALONE).outcome == "held"
    assert (
        judge("x", 7, ALONE, {**ALONE, "answer": 0.039, "apply": 0.29, "logs": 0.019, "health": 1.49}).outcome == "held"
    )
    for what, much in (("answer", 0.041), ("exec", 0.16), ("apply", 0.31), ("restart", 0.31), ("health", 1.51)):
        row = judge("x", 7, ALONE, {**ALONE, what: much})
        assert (row.outcome, row.group, row.taken) == ("slow", "services", 7)
        assert row.detail.endswith(f"; more than it should: {what}")
        assert row.seconds[what] == [ALONE[what], much]


def test_what_fails_for_others_is_a_leak():
    row = judge("x", 7, ALONE, ALONE, ["apply (no answer) failed", "the broker began again"])
    assert row.outcome == "leak"
    assert row.detail.startswith("succeeded 7 times; answer 20.0 -> 20.0 ms")
    assert row.detail.endswith("; apply (no answer) failed; the broker began again")


def test_without_a_broker_there_is_no_answer_to_time():
    rest = {what: seconds for what, seconds in ALONE.items() if what != "answer"}
    assert judge("x", 1, rest, rest).seconds.keys() == GOALS.keys() - {"answer"}


def test_rows_are_chosen_by_name():
    assert chosen("forks") == {"forks"}
    assert chosen(["broker: messages", "timers"]) == {"broker: messages", "timers"}
    with pytest.raises(NetspaceError, match="there is no row broker: mesages; did you mean broker: messages"):
        chosen(["forks", "broker: mesages"])


def test_the_page_names_each_way():
    page = (Path(__file__).parents[2] / "docs/limits.md").read_text()
    assert [name for name in WAYS if f"`{name}`" not in page] == []


def test_no_two_rows_have_the_same_name():
    assert len({*pools.POOLS, *storms.STORMS, *WAYS}) == len(pools.POOLS) + len(storms.STORMS) + len(WAYS)


def test_the_program_knows_what_each_way_asks_for():
    tried = set()
    for way in WAYS.values():
        for arguments in filter(None, (way.program, way.check, way.run)):
            program = services.PROGRAMS[arguments[0]]
            inspect.signature(program).bind(*arguments[1:])
            tried.update(arguments[1:])
    assert tried == services.WAYS.keys()
    assert all(way.linked == (way.program[-1] != "lines") for way in WAYS.values() if way.program[0] == "worst")


def test_note_of_a_trial_says_what_to_remove(tmp_path):
    layout = Layout(root=tmp_path)
    assert trials.noted(layout) == {}
    trials.note(layout, "0a", ["audit-0a-b", "audit-0a-a"])
    assert trials.noted(layout) == {"0a": ["audit-0a-a", "audit-0a-b"]}


# -- frames: others read them ----------------------------------------------------------------------
def read(raw: bytes) -> list[pika.frame.Frame]:
    found = []
    while raw:
        size, frame = pika.frame.decode_frame(raw)
        assert size
        found.append(frame)
        raw = raw[size:]
    return found


def test_methods_are_what_another_library_reads():
    (bound,) = read(amqp_frames.bind("mine", "theirs", "key"))
    assert isinstance(bound.method, pika.spec.Queue.Bind)
    assert (bound.method.queue, bound.method.exchange, bound.method.routing_key) == ("mine", "theirs", "key")
    assert (bound.method.nowait, bound.method.arguments) == (False, {})
    (consumer,) = read(amqp_frames.consume("box", "tag", acknowledged=False, quiet=True, channel=3))
    assert isinstance(consumer.method, pika.spec.Basic.Consume)
    assert (consumer.method.queue, consumer.method.consumer_tag, consumer.channel_number) == ("box", "tag", 3)
    assert (consumer.method.no_ack, consumer.method.nowait, consumer.method.exclusive) == (True, True, False)
    (closed,) = read(amqp_frames.method(2, (20, 40), bytes(7)))
    assert isinstance(closed.method, pika.spec.Channel.Close)


def test_messages_are_what_another_library_reads():
    properties = amqp_frames.reply_to("replies", "k1")
    begun, header, body = read(amqp_frames.message("link", "to", b"hello", properties))
    assert (begun.method.exchange, begun.method.routing_key) == ("link", "to")
    assert (begun.method.mandatory, begun.method.immediate) == (True, False)
    assert header.body_size == 5
    assert (header.properties.reply_to, header.properties.message_id) == ("replies/k1", "k1")
    assert body.fragment == b"hello"
    exchange, key, answer = amqp_frames.answering(properties)
    assert (exchange, key) == ("replies", "k1")
    _, header = read(amqp_frames.message("replies", "k1", b"", answer))
    assert (header.properties.correlation_id, header.properties.reply_to) == ("k1", None)


class Told(amqp_frames.Connection):
    """A connection whose peer has already sent all its bytes."""

    def __init__(self, said: bytes) -> None:
        self._unread = said
        self.stream = self  # type: ignore[assignment]

    @staticmethod
    def recv(_: int) -> bytes:
        return b""


def test_a_delivery_is_read_and_an_end_is_told():
    arguments = amqp_frames.short("tag") + struct.pack(">QB", 9, 0) + amqp_frames.short("x") + amqp_frames.short("k")
    rest = amqp_frames.message("x", "k", b"body", amqp_frames.reply_to("back", "k1"))
    size, _ = pika.frame.decode_frame(rest)
    acknowledged = amqp_frames.method(1, (60, 80), bytes(9))
    delivered = amqp_frames.method(1, (60, 60), arguments) + rest[size:]
    connection = Told(acknowledged + delivered)
    assert connection.delivery() == (9, {9: "back/k1", 7: "k1"}, b"body")
    with pytest.raises(amqp_frames.ClosedError, match="ended"):
        connection.delivery()
    refused = pika.spec.Channel.Close(403, "ACCESS_REFUSED - no", 60, 40)
    with pytest.raises(amqp_frames.ClosedError, match="403 ACCESS_REFUSED - no"):
        Told(pika.frame.Method(1, refused).marshal() + delivered).delivery()


def test_performatives_are_what_another_library_reads():
    raw = amqp_frames.performative(5, amqp_frames.BEGIN, amqp_frames.NULL, amqp_frames.number(7))
    assert struct.unpack(">IBBH", raw[:8]) == (len(raw), 2, 0, 5)
    found, end = amqp1.decode(raw[8:])
    assert (found.code, found.value, end) == (amqp1.BEGIN, [None, 7], len(raw) - 8)
