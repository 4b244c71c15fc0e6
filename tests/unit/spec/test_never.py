"""Assertions of a declaration: malformed ones, and violated ones with the violating path."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import SpecError
from netspace.spec import never, parse, reach
from netspace.spec.reach import World
from netspace.spec.types import Declaration, Link, Never

NAMES = ("a", "b", "c", "d")
ONE = {"image": "dir:/srv/one"}
BROKER = {
    "kind": "local", "host": "h1", "trust_domain": "h1.example.org", "authority": "/etc/ca", "names_key": "/etc/names",
    "hosts": {"h2": {"trust_domain": "h2.example.org", "address": "192.0.2.2:5671"}},
}  # fmt: skip


def declared(*assertions: Any, **parts: Any) -> Declaration:
    environments = dict.fromkeys(NAMES, ONE) | {
        "out": {**ONE, "interface": {"kind": "veth", "allow": [{"direction": "out", "cidr": "198.51.100.0/24"}]}},
        "led": {**ONE, "interface": {"kind": "veth", "publish": ["443:8443"]}},
    }
    links = [
        {"from": "a", "to": "b", "pattern": "request"},
        {"from": "b", "to": "c"},
        {"from": "led", "to": "b"},
        {"from": "d", "to": "x@h2"},
    ]
    return parse.declaration(
        {"broker": BROKER, "environments": environments, "links": links, "never": list(assertions), **parts}
    )


def refusals(*assertions: Any, **parts: Any) -> list[tuple[str, str]]:
    try:
        declared(*assertions, **parts)
    except SpecError as err:
        return [(problem.path, problem.message) for problem in err.problems]
    return []


@pytest.mark.parametrize(
    ("assertion", "steps"),
    [
        ({"from": "a", "to": "b"}, ["netspace:links:a.b"]),
        ({"from": "a@h1", "to": "b"}, ["netspace:links:a.b"]),
        ({"from": "a", "to": "c"}, []),
        ({"from": "a", "to": "c", "flow": True}, ["netspace:links:a.b", "netspace:links:b.c"]),
        ({"from": "b", "to": "a"}, []),
        ({"from": "b", "to": "a", "flow": True}, ["netspace:links:a.b"]),
        ({"from": "a", "to": "b", "by": "packets"}, []),
        ({"from": "d", "to": "x@h2"}, ["netspace:links:d.x@h2"]),
        ({"from": "out", "to": "198.51.100.7"}, ["netspace:environments:out:interface:allow:0"]),
        ({"from": "out", "to": "0.0.0.0/0"}, ["netspace:environments:out:interface:allow:0"]),
        ({"from": "out", "to": "203.0.113.0/24"}, []),
        ({"from": "0.0.0.0/0", "to": "out"}, []),
        ({"from": "0.0.0.0/0", "to": "out", "flow": True}, ["netspace:environments:out:interface:allow:0"]),
        ({"from": "::/0", "to": "led"}, ["netspace:environments:led:interface:publish:0"]),
        ({"from": "0.0.0.0/0", "to": "c"}, []),
        ({"from": "0.0.0.0/0", "to": "c", "flow": True, "by": "packets"}, []),
        (
            {"from": "0.0.0.0/0", "to": "c", "flow": True},
            ["netspace:environments:led:interface:publish:0", "netspace:links:led.b", "netspace:links:b.c"],
        ),
        ({"from": "y@h2", "to": "z@h3"}, []),
    ],
)
def test_violated_assertion_is_refused_with_its_path(assertion: dict[str, Any], steps: list[str]) -> None:
    found = refusals(assertion)
    assert [path for path, _ in found] == ["netspace:never:0"] * bool(steps)
    for _, message in found:
        assert [message.index(f"by {step}") for step in steps] == sorted(message.index(f"by {step}") for step in steps)
        assert message.count("->") == len(steps)


@pytest.mark.parametrize(
    ("assertion", "path"),
    [
        ({"from": "web", "to": "b"}, "netspace:never:0:from"),
        ({"from": "a", "to": "10.0.0.1/8"}, "netspace:never:0:to"),
        ({"from": "a", "to": "A!"}, "netspace:never:0:to"),
        ({"from": "127.0.0.1", "to": "a"}, "netspace:never:0:from"),
        ({"from": "a", "to": "a"}, "netspace:never:0"),
        ({"from": "0.0.0.0/0", "to": "::/0"}, "netspace:never:0"),
        ({"from": "0.0.0.0/0", "to": "a", "by": "messages"}, "netspace:never:0:by"),
        ({"from": "a", "to": "b", "by": "post"}, "netspace:never:0:by"),
        ({"from": "a"}, "netspace:never:0"),
        ({"from": "a", "to": "b", "flows": True}, "netspace:never:0:flows"),
        ("a", "netspace:never:0"),
    ],
)
def test_malformed_assertion_is_refused_at_its_key(assertion: Any, path: str) -> None:
    assert [where for where, _ in refusals(assertion)] == [path]


def test_assertions_that_are_no_list_are_refused() -> None:
    with pytest.raises(SpecError, match="netspace:never: expected a list, got a mapping"):
        parse.declaration({"environments": {"a": ONE}, "never": {"from": "a", "to": "b"}})


def test_declaration_with_assertions_is_read_again_as_it_is() -> None:
    once = declared({"from": "c", "to": "a", "flow": True})
    assert once.never == (Never(source="c", target="a", flow=True),)
    assert parse.declaration(parse.encode(once)) == once


pairs = st.sampled_from(list(itertools.permutations(NAMES, 2)))


@given(st.dictionaries(pairs, st.booleans(), max_size=6), pairs, st.booleans())
def test_flow_is_violated_as_warshall_says(
    asked: dict[tuple[str, str], bool], pair: tuple[str, str], flow: bool
) -> None:
    links = tuple(
        Link(source=source, target=target, pattern="request" if request else "send")
        for (source, target), request in asked.items()
    )
    moved = set(asked) | {(target, source) for (source, target), request in asked.items() if request}
    for middle in NAMES:
        moved |= {
            (one, other)
            for one, other in itertools.product(NAMES, repeat=2)
            if {(one, middle), (middle, other)} <= moved
        }
    world = World(frozenset(NAMES), links=links)
    found = never.violation(world, reach.edges(world), Never(source=pair[0], target=pair[1], flow=flow))
    assert bool(found) == (pair in (moved if flow else asked))
