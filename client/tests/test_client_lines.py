"""Settlement of a message at the broker; on a lost connection, nothing is sent."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pamqp.frame
import pytest

from netspace_client import codec
from netspace_client.lines import settle


@pytest.mark.parametrize(("how", "told"), [("ack", "Basic.Ack"), ("requeue", "Basic.Nack"), ("reject", "Basic.Nack")])
def test_delivery_is_settled_as_it_is_asked(how: str, told: str) -> None:
    said: list[tuple[int, str]] = []
    wire = SimpleNamespace(closed=False, settle=lambda tag, how: said.append((tag, how)))
    delivery: Any = SimpleNamespace(wire=wire, delivery_tag=7)
    settle(delivery, how)
    assert said == [(7, how)]
    _, channel, frame = pamqp.frame.unmarshal(codec.settle(3, 7, how))
    assert (channel, frame.name, frame.delivery_tag, frame.multiple) == (3, told, 7, False)
    assert how == "ack" or frame.requeue == (how == "requeue")


def test_nothing_is_said_on_a_connection_that_is_gone() -> None:
    wire = SimpleNamespace(closed=True, settle=lambda tag, how: pytest.fail("settled"))
    delivery: Any = SimpleNamespace(wire=wire, delivery_tag=7)
    settle(delivery, "ack")


def test_a_confirmation_is_read_as_it_is_written() -> None:
    for multiple in (False, True):
        payload = codec.settle(1, 2**40, "ack", multiple)[7:-1]
        assert codec.confirmation(payload) == (2**40, multiple)
    with pytest.raises(struct.error):
        codec.confirmation(payload + b"\0")
