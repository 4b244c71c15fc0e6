"""Bounds of a link: accepted ones, and those that are refused because nothing would enforce them."""

from __future__ import annotations

from typing import Any

import pytest

from netspace.errors import SpecError
from netspace.link import record
from netspace.spec import parse
from netspace.spec.types import Link

ENDS = {"from": "web", "to": "orders"}


@pytest.mark.parametrize(
    "bounds",
    [{}, {"ttl": 0.5}, {"ttl": 604800}, {"length": 1}, {"length": 10_000, "full": "drop-head"}, {"full": "reject"}],
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
    ],
)
def test_bounds_out_of_bounds(key: str, bounds: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        parse.link({**ENDS, **bounds}, "netspace:links:0")
    assert f"netspace:links:0:{key}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "reason"),
    [("priority", "queue of their own")],
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
