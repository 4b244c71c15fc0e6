"""Limits of a link: accepted ones, and limits that are refused because nothing would enforce them."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from netspace.errors import SpecError
from netspace.link import record
from netspace.link.topology.names import PLAIN, Names
from netspace.spec import parse
from netspace.spec.types import Link

ENDS = {"from": "web", "to": "orders"}


@pytest.mark.parametrize(
    "bounds",
    [
        {},
        {"ttl": 0.5},
        {"ttl": 604800},
        {"length": 1},
        {"length": 10_000, "full": "drop-head"},
        {"full": "reject"},
        {"durable": False},
        {"durable": True},
        {"durable": False, "ttl": 1, "length": 3},
    ],
)
def test_bounds(bounds: dict[str, Any]) -> None:
    link = parse.link({**ENDS, **bounds})
    assert {key: getattr(link, key) for key in bounds} == bounds
    again = parse.link({**ENDS, **link.bounds})
    assert again.bounds == link.bounds, "as it is recorded"


@pytest.mark.parametrize(
    "narrowed", [{"size": 1}, {"content_type": "application/vnd.x+json"}, {"rate": 0.001, "length": 1}, {"size": 2**24}]
)
def test_what_a_message_may_be(narrowed: dict[str, Any]) -> None:
    link = parse.link({**ENDS, **narrowed})
    again = parse.convert(record.plain(link), Link, "link")
    assert again == link, "as it is recorded"
    assert link.narrowed == {key: value for key, value in narrowed.items() if key != "length"}


@pytest.mark.parametrize(
    ("key", "bounds"),
    [
        ("ttl", {"ttl": 0}),
        ("ttl", {"ttl": 604801}),
        ("length", {"length": 0}),
        ("length", {"length": 10_001}),
        ("full", {"full": "drop-head"}),
        ("rate", {"rate": 5}),
        ("rate", {"rate": 0, "length": 5}),
        ("size", {"size": 0}),
        ("size", {"size": "17M"}),
        ("content_type", {"content_type": "json"}),
        ("content_type", {"content_type": "text/plain; charset=utf-8"}),
        ("content_type", {"content_type": "Text/Plain"}),
        ("full", {"full": "drop-tail", "length": 5}),
        ("durable", {"durable": "no"}),
    ],
)
def test_bounds_out_of_bounds(key: str, bounds: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        parse.link({**ENDS, **bounds}, "netspace:links:0")
    assert f"netspace:links:0:{key}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "reason"),
    [("priority", "queues of their own")],
)
def test_what_nothing_enforces_is_refused_with_the_reason(key: str, reason: str) -> None:
    with pytest.raises(SpecError, match=f"link:{key}: .*{reason}"):
        parse.link({**ENDS, key: 1})


@pytest.mark.parametrize(("size", "right"), [("1K", True), ("512M", True), (1023, False), ("513M", False)])
def test_sizes_of_messages(size: Any, right: bool) -> None:
    declared = {"broker": {"kind": "local", "message_size": size}}
    far = {"h2": {"trust_domain": "h2.example.org", "message_size": size}}
    if right:
        assert parse.declaration(declared).broker.message_size
    else:
        with pytest.raises(SpecError, match="broker:message_size"):
            parse.declaration(declared)
        with pytest.raises(SpecError, match="broker:hosts:h2:message_size"):
            parse.declaration({"broker": {"kind": "local", "hosts": far}})


def test_link_in_memory_is_recorded_and_has_a_lane_of_its_own() -> None:
    link, kept = (parse.link({**ENDS, **more}) for more in ({"durable": False}, {}))
    assert parse.convert(record.plain(link), Link, "link") == link
    assert "durable" not in (record.plain(kept) or {})
    assert (PLAIN.has_lane(link), PLAIN.has_lane(kept)) == (True, False)
    keyed = Names(b"key")
    assert keyed.queue(link) != keyed.queue(parse.link({**ENDS, "durable": False, "ttl": 1}))


def test_link_in_memory_is_refused_where_it_must_keep() -> None:
    hosts = {
        "h2": {
            "trust_domain": "h2.test",
            "address": "192.0.2.2:5671",
            "public_key": base64.b64encode(bytes(32)).decode(),
        }
    }
    broker = {"kind": "local", "host": "h1", "trust_domain": "h1.test", "authority": "/ca", "hosts": hosts}
    buffered = {"from": "web", "to": "orders@h2", "via": "buffered"}
    value = {"environments": {"web": {"image": "tar:/x.tar"}}, "broker": broker, "links": [buffered]}
    assert "links" not in problems(value)
    value["links"] = [{**buffered, "durable": False}]
    assert "netspace:links:0:durable: a buffered link must keep messages" in problems(value)


def test_link_in_memory_is_refused_on_a_cluster() -> None:
    names = {name: {"image": "tar:/x.tar"} for name in ("web", "orders")}
    cluster = {
        "kind": "cluster",
        "url": ["amqps://n1:5671"],
        "management": ["https://n1:15671"],
        "ca": "/ca.pem",
        "credentials": "/login",
    }
    value: dict[str, Any] = {"environments": names, "broker": cluster, "links": [ENDS]}
    assert problems(value) == ""
    value["links"] = [{**ENDS, "durable": False}]
    assert "netspace:links:0:durable: a queue in memory is lost with its node" in problems(value)


def problems(value: dict[str, Any]) -> str:
    """Return all problems of a declaration."""
    try:
        parse.declaration(value)
    except SpecError as err:
        return str(err)
    return ""
