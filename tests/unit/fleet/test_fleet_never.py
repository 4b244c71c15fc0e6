"""A fleet's assertions: paths through other environments and hosts, by messages and by packets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import published

from netspace.fleet import compile as compiler

IMAGE = {"image": "tar:/srv/shop.tar"}
HOSTS = {"h1": {"address": "198.51.100.1"}, "h2": {"address": "198.51.100.2"}}


def reasons(
    links: Any, never: Any, environments: Any = None, joined: Any = ("h1", "h2"), hosts: Any = None
) -> list[str]:
    names = {"web": "h1", "orders": "h2", "vault": "h1", "log": "h2"}
    data = {
        "hosts": hosts or HOSTS,
        "environments": {name: {"on": host, **IMAGE} for name, host in names.items()} | (environments or {}),
        "links": links,
        "never": never,
    }
    found = compiler.fleet({"fleet.yaml": data}, published(joined), {}, {}).problems
    assert all(one.path.startswith("never:") for one in found), found
    return [one.reason for one in found]


CHAIN = [{"from": "web", "to": "orders", "pattern": "request"}, {"from": "orders", "to": "vault"}]


def test_a_path_by_way_of_another_host_is_the_counter_example() -> None:
    (reason,) = reasons(CHAIN, [{"from": "web", "to": "vault"}])
    assert "web@h1 -> orders@h2: requests, by fleet.yaml: links:0; orders@h2 -> vault@h1: messages" in reason
    assert reasons(CHAIN, [{"from": "vault", "to": "web"}]) == []


def test_hosts_that_have_not_joined_count_as_they_will_be() -> None:
    assert reasons(CHAIN, [{"from": "web", "to": "vault"}], joined=())


def test_answers_count_with_flow() -> None:
    never = {"from": "orders", "to": "web"}
    assert reasons(CHAIN, [never]) == []
    (reason,) = reasons(CHAIN, [{**never, "flow": True}])
    assert "data flows from orders to web (orders@h2 -> web@h1: answers to requests" in reason


def test_a_published_port_of_another_host_is_a_way() -> None:
    out = {"kind": "veth", "allow": [{"direction": "out", "cidr": "198.51.100.0/24", "port": 443}]}
    door = {"kind": "veth", "publish": ["443:8443"]}
    environments = {
        "log": {"on": "h2", **IMAGE, "interface": out}, "vault": {"on": "h1", **IMAGE, "interface": door},
    }  # fmt: skip
    never = [{"from": "log", "to": "vault"}]
    (reason,) = reasons([], never, environments)
    assert "log@h2 -> vault@h1: tcp 443 to a published port, by fleet.yaml: environments:log:interface" in reason
    assert reasons([], [{**never[0], "by": "messages"}], environments) == []
    out["allow"][0]["port"] = 80  # type: ignore[index]
    assert reasons([], never, environments) == []


def test_what_a_program_may_delegate_is_a_way() -> None:
    bound = {"vault": {"to": ["till"]}}
    environments = {
        "web": {"on": "h1", **IMAGE, "host": ["delegate"], "delegates": bound},
        "till": {"on": "h1", **IMAGE},
    }
    links = [{"from": "web", "to": "vault"}, {"from": "web", "to": "till"}]
    (reason,) = reasons(links, [{"from": "till", "to": "vault"}], environments)
    assert "till@h1 -> vault@h1: messages, by fleet.yaml: environments:web:delegates:vault" in reason
    assert reasons(links, [{"from": "vault", "to": "till"}], environments) == []


def test_a_host_without_an_address_may_have_any() -> None:
    out = {"direction": "out", "cidr": "203.0.113.0/24", "port": 443}
    environments = {
        "log": {"on": "h2", **IMAGE, "interface": {"kind": "veth", "allow": [out]}},
        "vault": {"on": "h1", **IMAGE, "interface": {"kind": "veth", "publish": ["443:8443"]}},
    }
    never = [{"from": "log", "to": "vault"}]
    assert reasons([], never, environments) == []
    (reason,) = reasons([], never, environments, hosts={"h1": None, "h2": None})
    assert "log@h2 -> vault@h1: tcp 443 to a published port" in reason


def test_a_network_outside_is_reached_through_another() -> None:
    out = {"kind": "veth", "allow": [{"direction": "out", "cidr": "203.0.113.0/24"}]}
    environments = {"orders": {"on": "h2", **IMAGE, "interface": out}}
    (reason,) = reasons(CHAIN, [{"from": "web", "to": "203.0.113.7"}], environments)
    assert "orders@h2 -> 203.0.113.0/24" in reason
    assert reasons(CHAIN, [{"from": "web", "to": "192.0.2.0/24"}], environments) == []
    assert reasons(CHAIN, [{"from": "0.0.0.0/0", "to": "web"}], environments) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(["web", "orders", "vault", "log"])] * 2), max_size=8, unique=True))
def test_an_assertion_holds_exactly_if_no_path_leads_there(pairs: list[tuple[str, str]]) -> None:
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    reached = {"web"}
    for _ in pairs:
        reached |= {target for source, target in pairs if source in reached}
    found = reasons([{"from": one, "to": other} for one, other in pairs], [{"from": "web", "to": "vault"}])
    assert bool(found) == ("vault" in reached)


@pytest.mark.parametrize("replicas", [1, "all"])
def test_each_replica_is_meant(replicas: Any) -> None:
    environments = {
        "vault": {"on": "h*", "replicas": "all", **IMAGE},
        "web": {"on": "h*", "replicas": replicas, **IMAGE},
    }
    assert reasons([{"from": "web", "to": "vault"}], [{"from": "web", "to": "vault"}], environments)
