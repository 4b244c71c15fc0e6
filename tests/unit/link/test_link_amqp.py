"""Properties of messages are passed on unchanged, compared with pika's decoder."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.link.broker import amqp

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
SIMPLE = st.one_of(
    TEXT,
    st.binary(max_size=30),
    st.booleans(),
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(10**6), 10**6).map(lambda number: Decimal(number) / 100),
    st.datetimes(datetime.datetime(1980, 1, 1), datetime.datetime(2100, 1, 1)),
)
VALUES = st.recursive(SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": TEXT,
        "delivery_mode": st.integers(1, 2),
        "priority": st.integers(0, 9),
        "correlation_id": TEXT,
        "message_id": TEXT,
        "timestamp": st.integers(0, 2**40),
        "user_id": TEXT,
        "app_id": TEXT,
        "headers": st.dictionaries(TEXT.filter(bool), VALUES, min_size=1, max_size=5),
    },
)


@given(PROPERTIES)
def test_properties_are_kept_byte_by_byte(wanted):
    raw = b"".join(pika.BasicProperties(**wanted).encode())
    properties, headers = amqp.decode(raw)
    assert set(properties) == set(wanted) - {"headers"}
    assert set(headers) == set(wanted.get("headers", ()))
    assert amqp._encode(properties, headers) == raw
    held = amqp.Held(1, b"", properties, headers)
    assert held.text("message_id") == wanted.get("message_id")
    for name, value in wanted.get("headers", {}).items():
        assert held.header(name) == (value if isinstance(value, str) else None)


@given(PROPERTIES)
def test_one_that_is_left_out_takes_no_other_along(wanted):
    properties, headers = amqp.decode(b"".join(pika.BasicProperties(**wanted).encode()))
    properties.pop("user_id", None)
    told = pika.BasicProperties()
    told.decode(amqp._encode(properties, headers))
    assert told.user_id is None
    for name in set(wanted) - {"user_id", "headers"}:
        assert getattr(told, name) == wanted[name]


def test_a_header_of_an_unknown_type_is_told():
    with pytest.raises(NetspaceError, match="unknown type: 'q'"):
        amqp.decode(b"\x20\x00\x00\x00\x00\x03\x01aq")
