"""Frames that this library writes and reads itself, compared with pamqp's. Invalid values from a sender do no harm."""

from __future__ import annotations

import datetime
import struct

import pamqp.body
import pamqp.commands
import pamqp.frame
import pamqp.header
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace_client import codec, frames

STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
Basic = pamqp.commands.Basic
short = st.text(max_size=60).filter(lambda text: len(text.encode()) <= 255)
texts = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "message_type", "user_id")
about = st.builds(
    Basic.Properties,
    **{name: st.none() | short for name in (*texts, "expiration", "app_id")},
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
)


@STEADY
@given(about, st.binary(max_size=100), st.integers(1, 0xFFFF), short, short, st.integers(1, 40))
def test_message_is_written_as_pamqp_reads_it(properties, body, channel, exchange, key, most):
    raw = codec.message(channel, codec.publish(exchange, key), properties, body, most)
    found, at = [], 0
    while at < len(raw):
        size, number, one = pamqp.frame.unmarshal(raw[at:])
        assert number == channel
        found.append(one)
        at += size
    method, header, *bodies = found
    assert (method.name, method.exchange, method.routing_key, method.mandatory) == (
        "Basic.Publish",
        exchange,
        key,
        True,
    )
    assert header.body_size == len(body) and b"".join(one.value for one in bodies) == body
    assert all(0 < len(one.value) <= most for one in bodies)
    for name in Basic.Properties.attributes():
        assert (
            getattr(header.properties, name)
            == (getattr(properties, name) or None if name != "priority" else properties.priority)
            or name == "cluster_id"
        )


def test_what_is_no_property_is_refused():
    for wrong, error in (({"message_id": ["x"]}, TypeError), ({"reply_to": "x" * 256}, ValueError)):
        properties = Basic.Properties()
        for name, value in wrong.items():
            setattr(properties, name, value)
        with pytest.raises(error, match=r"expected a str|a short string has 255 at most"):
            codec.message(1, codec.publish("", ""), properties, b"", 9)


def by_pamqp(payload: bytes) -> Basic.Properties:
    head = struct.pack(">BHI", frames.HEADER, 0, len(payload))
    _, _, header = pamqp.frame.unmarshal(head + frames.harmless(head, payload + b"\xce"))
    return header.properties


@STEADY
@given(about, st.data())
def test_properties_are_read_as_pamqp_reads_them(properties, data):
    raw = bytearray(pamqp.header.ContentHeader(0, 7, properties).marshal())
    assert codec.properties(bytes(raw)) == by_pamqp(bytes(raw))
    assert codec.body_size(raw) == 7


@STEADY
@given(st.integers(0, 0xFFFF), st.binary(max_size=80))
def test_any_bytes_as_properties_are_read_or_left_out(flags, properties):
    found = codec.properties(struct.pack(">HHQH", 60, 0, 7, flags) + properties)
    assert all(isinstance(getattr(found, name), str | None) for name in texts)


@STEADY
@given(about, st.data())
def test_damaged_properties_are_all_left_out_or_whole(properties, data):
    raw = pamqp.header.ContentHeader(0, 7, properties).marshal()
    cut = raw[: data.draw(st.integers(14, len(raw)))]
    found = codec.properties(cut)
    assert found == Basic.Properties() or cut == raw


@STEADY
@given(short, st.integers(0, 2**64 - 1), st.booleans(), short, st.binary(max_size=255))
def test_delivery_is_read_whatever_its_routing_key(tag, number, again, exchange, key):
    def text(raw: bytes) -> bytes:
        return bytes([len(raw)]) + raw

    payload = codec.DELIVER + text(tag.encode()) + struct.pack(">QB", number, again) + text(exchange.encode())
    assert codec.delivery(payload + text(key)) == (number, again, exchange, key.decode("utf-8", "replace"))
    for wrong in (payload + text(key) + b"\0", payload + text(key)[:-1], payload[:-1]):
        if wrong != payload + text(key):
            with pytest.raises((ValueError, IndexError)):
                assert codec.delivery(wrong) != codec.delivery(payload + text(key))
                raise ValueError


def test_properties_with_headers_and_time_are_read_as_pamqp_reads_them():
    when = datetime.datetime.fromtimestamp(1_800_000_000, tz=datetime.timezone.utc)
    for more in ({"headers": {"queue": "mailbox", "n": 5}}, {"timestamp": when}):
        properties = Basic.Properties(message_id="m", content_type="t", user_id="u", **more)
        raw = pamqp.header.ContentHeader(0, 7, properties).marshal()
        assert codec.properties(raw) == by_pamqp(raw)
        assert codec.properties(raw).user_id == "u"


def test_bytes_behind_the_properties_leave_them_out():
    raw = pamqp.header.ContentHeader(0, 7, Basic.Properties(message_id="m")).marshal()
    assert codec.properties(raw).message_id == "m"
    assert codec.properties(raw + b"\0").message_id is None
