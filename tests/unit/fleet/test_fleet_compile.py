"""Slices of a fleet: each host gets its own parts, and nothing about others."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import fleets, public_key, published

from netspace.fleet import compile as compiler
from netspace.fleet.compile import Compiled
from netspace.spec import parse

TWO_HOSTS = """
hosts:
  h1: {address: 198.51.100.1}
  h2: {address: 198.51.100.2}
environments:
  web:    {on: h1, image: tar:salt://images/shop.tar, command: [/usr/bin/web]}
  orders: {on: h2, image: tar:salt://images/shop.tar, command: [/usr/bin/orders], attestation: {minimum: L3}}
links:
  - {from: web, to: orders, pattern: request, seal: true}
"""
IMAGE = {"image": "tar:/srv/shop.tar"}


def made(data: Any, joined: Any = None, **more: Any) -> Compiled:
    data = yaml.safe_load(data) if isinstance(data, str) else data
    facts = published(data["hosts"]) if joined is None else joined
    return compiler.fleet({"fleet.yaml": data}, facts, more.get("nodegroups", {}), more.get("previous", {}))


def section(compiled: Compiled, minion: str) -> dict[str, Any]:
    assert compiled.problems == ()
    found: dict[str, Any] = dict(compiled.slices[minion]["netspace"])
    return found


def test_two_hosts_get_what_the_page_had_as_steps() -> None:
    compiled = made(TWO_HOSTS)
    assert section(compiled, "h1") == {
        "broker": {
            "kind": "local",
            "host": "h1",
            "trust_domain": "h1.netspace.internal",
            "authority": "/etc/netspace/authority",
            "hosts": {
                "h2": {
                    "trust_domain": "h2.netspace.internal",
                    "public_key": public_key("h2"),
                    "address": "198.51.100.2:5671",
                }
            },
        },
        "environments": {"web": {"image": "tar:salt://images/shop.tar", "command": ["/usr/bin/web"]}},
        "links": [{"from": "web", "to": "orders@h2", "pattern": "request", "seal": True, "as": "orders"}],
    }
    other = section(compiled, "h2")
    assert other["broker"]["listen"] == "198.51.100.2:5671"
    assert "address" not in other["broker"]["hosts"]["h1"]  # nothing leads there
    assert other["links"] == [{"from": "web@h1", "to": "orders", "pattern": "request", "seal": True}]
    assert compiled.missing == ()


def test_a_host_that_has_not_joined_is_named_and_left_out() -> None:
    compiled = made(TWO_HOSTS, published(["h1"]))
    assert section(compiled, "h1")["broker"] == {
        "kind": "local", "host": "h1", "trust_domain": "h1.netspace.internal", "authority": "/etc/netspace/authority",
    }  # fmt: skip
    assert "links" not in section(compiled, "h1")
    assert section(compiled, "h2")["broker"] == {"kind": "local", "host": "h2"}
    assert list(section(compiled, "h2")["environments"]) == ["orders"]
    assert [one.text for one in compiled.missing] == ["h2 hasn't joined: salt-run netspace_fleet.join h2"]


def test_a_host_that_joined_under_another_name_has_to_join_again() -> None:
    compiled = made(TWO_HOSTS, {**published(["h1"]), **published(["h2"], "example.org")})
    assert "hosts" not in section(compiled, "h1")["broker"]
    (missing,) = compiled.missing
    assert "h2 joined as h2.example.org, and is declared as h2.netspace.internal" in missing.text


def test_a_host_that_claims_anothers_key_stops_nobody_else() -> None:
    facts = published(["h1", "h2"], joined=1.0)
    facts["h2"] = msgspec.structs.replace(facts["h1"], minion="h2", trust_domain="h2.netspace.internal", joined=2.0)
    compiled = made(TWO_HOSTS, facts)
    assert "hosts" not in section(compiled, "h1")["broker"]
    assert compiled.missing[0].text.startswith("h2 has the key of h1")


@settings(max_examples=40, deadline=None)
@given(fleets(), st.data())
def test_a_slice_has_nothing_of_others(data: dict[str, Any], draws: st.DataObject) -> None:
    joined = draws.draw(st.sets(st.sampled_from(sorted(data["hosts"]))))
    compiled = made(data, published(joined))
    assert compiled.problems == ()
    for host in data["hosts"]:
        own = {name for name, placed in compiled.placed.items() if host in placed}
        peers, others = set[str](), set[str]()
        for link in section(compiled, host).get("links", ()):
            for end in (link["from"], link["to"]):
                name, _, where = end.partition("@")
                peers.add(name)
                others |= {where} - {""}
        linked = {
            name for link in data["links"] for name in (link["from"], link["to"]) if own & {link["from"], link["to"]}
        }
        assert peers <= linked
        text = json.dumps(compiled.slices[host])
        for name in data["environments"]:
            assert (f"secret-{name}" in text) == (f"image-{name}" in text) == (name in own)
            assert (name in text) == (name in own | peers)
        for other in set(data["hosts"]) - {host}:
            assert (other in text) == (other in others)
            assert (public_key(other) in text) == (other in others)
            assert data["hosts"][other]["address"] + ":" not in text or other in others
            assert f"rack-{other}" not in text
        for link in data["links"]:
            assert link["content_type"] not in text or own & {link["from"], link["to"]}


@settings(max_examples=40, deadline=None)
@given(fleets())
def test_both_ends_of_a_link_agree(data: dict[str, Any]) -> None:
    compiled = made(data)
    ends = []
    for host in data["hosts"]:
        for link in section(compiled, host).get("links", ()):
            full = [end if "@" in end else f"{end}@{host}" for end in (link["from"], link["to"])]
            ends += [tuple(full)] * (2 if full[0].endswith(host) and full[1].endswith(host) else 1)
        parse.declaration(section(compiled, host))
    assert all(ends.count(pair) == 2 for pair in ends)
    for link in data["links"]:
        for source in compiled.placed[link["from"]]:
            reached = {to for way, to in ends if way == f"{link['from']}@{source}" and to.startswith(link["to"])}
            assert len(reached) == (len(compiled.placed[link["to"]]) if link["reach"] == "each" else 1)


def test_a_replica_on_the_same_host_is_the_one_that_is_reached() -> None:
    data = {
        "hosts": {host: {"address": f"198.51.100.{number}"} for number, host in enumerate(("h1", "h2", "h3"), 1)},
        "environments": {
            "web": {"on": "h*", "replicas": "all", **IMAGE}, "db": {"on": ["h1", "h2"], "replicas": 2, **IMAGE},
        },
        "links": [{"from": "web", "to": "db", "via": "buffered"}],
    }  # fmt: skip
    compiled = made(data)
    assert section(compiled, "h1")["links"][0] == {"from": "web", "to": "db"}
    (far,) = section(compiled, "h3")["links"]
    assert far["to"] in ("db@h1", "db@h2") and (far["as"], far["via"]) == ("db", "buffered")


def test_settings_of_all_hosts_and_of_one_are_merged() -> None:
    data = yaml.safe_load(TWO_HOSTS)
    data["defaults"] = {
        "broker": {"message_size": "2M"},
        "attestation": {"verifier": "master", "verifier_keys": ["A" * 43]},
    }
    data["hosts"]["h2"] |= {"broker": {"message_size": "4M"}, "instance": "shop", "attestation": {"minimum": "L3"}}
    data["hosts"]["h2"]["minion"] = "h2.example.org"
    compiled = made(data, {**published(["h1"]), "h2.example.org": published(["h2"])["h2"]})
    assert section(compiled, "h1")["broker"]["message_size"] == "2M"
    assert section(compiled, "h1")["broker"]["hosts"]["h2"]["message_size"] == "4M"
    assert section(compiled, "h1")["broker"]["hosts"]["h2"]["vhost"] == "shop"
    assert section(compiled, "h2.example.org")["attestation"] == {**data["defaults"]["attestation"], "minimum": "L3"}


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"environments": {"web": {"on": "h1", **IMAGE, "limits": {"memroy": "1M"}}}}, "environments:web:limits:memroy",
         "did you mean memory?"),
        ({"links": [{"from": "web", "to": "orders", "patern": "send"}]}, "links:0:patern", "did you mean pattern?"),
        ({"links": [{"from": "web", "to": "orders"}] * 2}, "links:1", "the same link"),
        ({"hosts": {"h1": {"address": "198.51.100.1"}, "h2": {}}}, "links:0:to", "declare hosts:h2:address"),
        ({"hosts": {"h1": {"address": "198.51.100.1", "network": {"ipv4": "x"}}, "h2": {"address": "198.51.100.2"}}},
         "hosts:h1:network:ipv4", "expected a network"),
        ({"defaults": {"network": {"ipv4": "x"}}}, "defaults:network:ipv4", "expected a network"),
        ({"environments": {"web": {"on": "h1", **IMAGE, "after": ["orders"]}, "orders": {"on": "h2", **IMAGE}}},
         "environments:web:after", "orders"),
    ],
)  # fmt: skip
def test_a_problem_has_file_path_and_reason(change: dict[str, Any], path: str, reason: str) -> None:
    data = {**yaml.safe_load(TWO_HOSTS), **change}
    if "orders" not in data["environments"]:
        data["environments"]["orders"] = {"on": "h2", **IMAGE}
    problems = made(data).problems
    assert any(one.file == "fleet.yaml" and one.path.startswith(path) and reason in one.reason for one in problems), (
        problems
    )


def test_a_problem_of_all_replicas_is_told_once() -> None:
    data = {"hosts": {"h1": {}, "h2": {}}, "environments": {"web": {"on": "h*", "replicas": 2, "image": "nowhere"}}}
    assert [one.path for one in made(data).problems] == ["environments:web:image"]


def test_assertions_are_the_masters_alone() -> None:
    data = yaml.safe_load(TWO_HOSTS)
    data["environments"]["vault"] = {"on": "h2", **IMAGE}
    data["never"] = [{"from": "orders", "to": "vault"}, {"from": "web", "to": "vault"}]
    assert "never" not in json.dumps(made(data).slices)


@pytest.mark.parametrize(
    ("broken", "path"),
    [
        ({"links": [{"from": "web", "to": "orders", "patern": "request"}]}, "links:0"),
        ({"environments": {"vault": {"on": "G@role:db", **IMAGE, "comand": "x"}}}, "environments:vault"),
        (
            {
                "environments": {"vault": {"on": "G@role:db", **IMAGE}},
                "links": [{"from": "vault", "to": "orders", "patern": "request"}],
            },
            "links:0",
        ),
    ],
)
def test_what_would_break_at_the_first_join_is_a_problem_before(broken: dict[str, Any], path: str) -> None:
    data = {**yaml.safe_load(TWO_HOSTS), "trusted_grains": ["role"]}
    data |= {**broken, "environments": data["environments"] | broken.get("environments", {})}
    for joined in ((), ("h1",), ("h1", "h2")):
        problems = made(data, published(joined)).problems
        assert problems and all(one.path.startswith(path) for one in problems), problems


def test_an_environment_that_runs_nowhere_yet_may_need_the_settings_of_some_host() -> None:
    data = yaml.safe_load(TWO_HOSTS)
    data["trusted_grains"] = ["role"]
    data["environments"]["vault"] = {"on": "G@role:db", **IMAGE}
    data["links"] += [{"from": "web", "to": "vault", "seal": True}, {"from": "vault", "to": "orders"}]
    assert made(data, {}).problems == ()
