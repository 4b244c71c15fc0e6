"""Reachability in a fleet: questions, paths and the picture, compared with the assertions over the same edges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import published

from netspace.errors import NetspaceError
from netspace.fleet import compile as compiler
from netspace.fleet.reach import Reach
from netspace.plugin.fleet_picture import picture

NAMES = ("web", "orders", "vault", "log")
HOSTS = {f"h{number}": {"address": f"198.51.100.{number}"} for number in (1, 2, 3)}
ENVIRONMENTS: dict[str, Any] = {
    "web": {"on": ["h1", "h2"], "replicas": 2},
    "orders": {"on": "h2", "interface": {"kind": "veth", "allow": [{"direction": "out", "cidr": "203.0.113.0/24"}]}},
    "vault": {"on": "h3", "interface": {"kind": "veth", "publish": ["443:8443"]}},
    "log": {"on": "h3"},
}


def compiled(links: list[dict[str, Any]], never: Any = ()) -> compiler.Compiled:
    environments = {name: {"image": "tar:/srv/shop.tar", **body} for name, body in ENVIRONMENTS.items()}
    data = {"hosts": HOSTS, "environments": environments, "links": links, "never": list(never)}
    return compiler.fleet({"fleet.yaml": data}, published(HOSTS), {}, {}, edges=True)


def reach(links: list[dict[str, Any]]) -> Reach:
    found = compiled(links)
    assert not found.problems, found.problems
    return Reach(found.edges, found.placed)


CHAIN = [{"from": "web", "to": "orders", "pattern": "request"}, {"from": "orders", "to": "vault"}]


def test_a_link_is_named_for_each_replica_of_its_sender() -> None:
    found = reach(CHAIN).can("web", "orders")
    assert found["can"] and found["summary"] == "web can reach orders"
    rules = [(rule["by"], rule["from"], rule["rule"]) for rule in found["rules"]]
    assert rules == [("messages", "web@h1", "fleet.yaml: links:0"), ("messages", "web@h2", "fleet.yaml: links:0")]
    one = reach(CHAIN).can("web@h2", "orders")
    assert [rule["from"] for rule in one["rules"]] == ["web@h2"]


def test_answers_and_ways_by_others_are_told_apart() -> None:
    back = reach(CHAIN).can("orders", "web")
    assert (back["can"], back["answers"], back["summary"]) == (False, True, "orders can only answer web")
    far = reach(CHAIN).can("web@h1", "vault")
    assert far["summary"] == "web@h1 can reach vault only by way of orders@h2" and not far["can"]
    none = reach(CHAIN).can("vault", "log")
    assert none["summary"] == "vault can not reach log"
    assert set(none["why_not"]) == {"messages", "packets"} and none["through"] == []


def test_networks_outside_are_ends() -> None:
    made = reach([])
    assert made.can("orders", "203.0.113.9")["can"]
    assert not made.can("orders", "192.0.2.1")["can"]
    assert made.can("192.0.2.1", "vault")["can"], "a published port"
    assert {path["from"] for path in made.paths_to("vault")["paths"]} >= {"0.0.0.0/0"}


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (("wev", "orders"), "the fleet has no environment wev"),
        (("web@h3", "orders"), "the fleet has no environment web@h3"),
        (("192.0.2.1", "192.0.2.2"), "neither is an environment of the fleet; name one"),
        (("10.0.0.1/8", "web"), "10.0.0.1/8"),
    ],
)
def test_an_unknown_end_is_refused(ends: tuple[str, str], message: str) -> None:
    with pytest.raises(NetspaceError, match=message):
        reach(CHAIN).can(*ends)


pairs = st.lists(st.sampled_from([(a, b) for a in NAMES for b in NAMES if a != b]), unique=True, max_size=8)


@settings(max_examples=80, deadline=None)
@given(pairs, st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_answers_agree_with_what_assertions_prove(linked: list[tuple[str, str]], source: str, target: str) -> None:
    if source == target:
        return
    links = [{"from": one, "to": other} for one, other in linked]
    found = reach(links).can(source, target)
    reached = found["can"] or bool(found["through"])
    assert reached == bool(compiled(links, [{"from": source, "to": target}]).problems)
    starts = {path["from"].partition("@")[0] for path in reach(links).paths_to(target)["paths"]}
    assert reached == (source in starts)
    assert found["can"] == ((source, target) in linked)


def test_the_picture_has_hosts_with_their_environments() -> None:
    dot = picture("dot", reach(CHAIN))
    assert dot == picture("dot", reach(CHAIN)), "the same input gives the same bytes"
    h3 = dot.partition('label="h3";')[2].partition("}")[0]
    assert '"vault@h3"' in h3 and '"log@h3"' in h3 and '"orders@h2"' not in h3
    assert '"web@h1" -> "orders@h2" [label="requests"];' in dot
    mermaid = picture("mermaid", reach(CHAIN))
    assert mermaid.count("subgraph") == mermaid.count("  end\n") == 3
    assert "orders@h2" in picture("html", reach(CHAIN))
    with pytest.raises(NetspaceError, match="choose from dot, mermaid, html"):
        picture("svg", reach([]))
