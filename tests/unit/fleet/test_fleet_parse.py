"""The parser of a fleet's declaration: files, names, and each refusal with its place."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from netspace.fleet import parse
from netspace.fleet.policy import Policy
from netspace.fleet.types import FleetError, broker_address

IMAGE = {"image": "tar:/srv/shop.tar"}


def refused(*documents: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(FleetError) as raised:
        parse.fleet({f"{number}.yaml": data for number, data in enumerate(documents)})
    return [tuple(one) for one in raised.value.problems]


def test_yaml_reads_the_word_on_as_true_and_it_means_on() -> None:
    data = yaml.safe_load("{hosts: {h1: {}}, environments: {web: {on: h1, image: 'tar:/srv/shop.tar'}}}")
    assert True in data["environments"]["web"]
    assert parse.fleet({"a": data}).environments["web"].placing.on == "h1"


def test_several_files_are_one_declaration() -> None:
    found = parse.fleet(
        {
            "a": {"hosts": {"h1": None}, "domain": "fleet.example.org"},
            "b": {"hosts": {"h2": None}, "environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": "h2", **IMAGE}}},
            "c": {"links": [{"from": "web", "to": "db"}]},
        }
    )
    assert [entry.file for entry in found.hosts.values()] == ["a", "b"]
    assert (found.trust_domain("h2"), found.links[0].file) == ("h2.fleet.example.org", "c")


@pytest.mark.parametrize(
    ("documents", "file", "path", "reason"),
    [
        ([{"host": {}}], "0.yaml", "host", "unknown"),
        ([{"hosts": []}], "0.yaml", "hosts", "expected a mapping"),
        ([{"links": {}}], "0.yaml", "links", "expected a list"),
        ([[]], "0.yaml", "", "expected a mapping"),
        ([{"hosts": {"H 1": {}}}], "0.yaml", "hosts:H 1", "can't be a host's name"),
        ([{"hosts": {"h1": {"adress": "198.51.100.1"}}}], "0.yaml", "hosts:h1:adress", "did you mean address?"),
        ([{"hosts": {"h1": {"address": "h1.example.org"}}}], "0.yaml", "hosts:h1:address", "no names are looked up"),
        ([{"hosts": {"h1": {"address": "fe80::1%eth0"}}}], "0.yaml", "hosts:h1:address", "expected an address"),
        ([{"hosts": {"h1": {"broker": {"hosts": {}}}}}], "0.yaml", "hosts:h1:broker:hosts", "it is derived"),
        ([{"hosts": {"h1": {"broker": {"kind": "cluster"}}}}], "0.yaml", "hosts:h1:broker:kind", "cluster in pillar"),
        ([{"hosts": {"h1": {"broker": {"prot": 1}}}}], "0.yaml", "hosts:h1:broker:prot", "did you mean port?"),
        ([{"hosts": {"h1": {"minion": "a/b"}}}], "0.yaml", "hosts:h1:minion", "can't be a minion's id"),
        ([{"hosts": {"h1": {"labels": {"a b": "c"}}}}], "0.yaml", "hosts:h1:labels:a b", "letters"),
        ([{"hosts": {"h_1": {}}}], "0.yaml", "hosts:h_1:trust_domain", "can't be a trust domain"),
        ([{"hosts": {"a": {"minion": "m"}, "b": {"minion": "m"}}}], "0.yaml", "hosts:b:minion", "m is a's"),
        ([{"hosts": {"a": {"trust_domain": "x.org"}, "b": {"trust_domain": "x.org"}}}], "0.yaml",
         "hosts:b:trust_domain", "x.org is a's"),
        ([{"hosts": {"a": {"trust_domain": "x.org"}, "b": {"trust_domain": "b.x.org"}}}], "0.yaml",
         "hosts:b:trust_domain", "that host could certify this one"),
        ([{"hosts": {"h1": {}}}, {"hosts": {"h1": {}}}], "1.yaml", "hosts:h1", "is declared in 0.yaml, too"),
        ([{"domain": "a.org"}, {"domain": "a.org"}], "1.yaml", "domain", "stands in 0.yaml, too"),
        ([{"domain": "no"}], "0.yaml", "domain", "expected a name"),
        ([{"environments": {"web": IMAGE}}], "0.yaml", "environments:web:on", "is missing"),
        ([{"environments": {"web": "x"}}], "0.yaml", "environments:web", "expected a mapping"),
        ([{"environments": {"web": {"on": [], **IMAGE}}}], "0.yaml", "environments:web:on", "expected 1 to"),
        ([{"environments": {"web": {"on": "h1", "replicas": 0}}}], "0.yaml", "environments:web:replicas", "1 to"),
        ([{"environments": {"web": {"on": "h1", "replicas": "some"}}}], "0.yaml", "environments:web:replicas", ""),
        ([{"environments": {"web": {"on": "h1", "at_least": "L3", "attestation": {"minimum": "L2"}}}}], "0.yaml",
         "environments:web:attestation:minimum", "L2 is lower than at_least"),
        ([{"links": [{"from": "web", "to": "orders@h2"}]}], "0.yaml", "links:0:to", "leave out the host"),
        ([{"links": [{"from": "web"}]}], "0.yaml", "links:0:to", "expected the name"),
        ([{"links": ["web"]}], "0.yaml", "links:0", "expected a mapping"),
        ([{"environments": {"web": {"on": "h1"}}, "links": [{"from": "web", "to": "wbe"}]}], "0.yaml", "links:0:to",
         "did you mean web?"),
        ([{"environments": {"web": {"on": "h1"}}, "links": [{"from": "web", "to": "web"}]}], "0.yaml", "links:0",
         "is at both ends"),
        ([{"links": [{"from": "a", "to": "b", "reach": "any"}]}], "0.yaml", "links:0:reach", "one, each"),
        ([{"never": [{"from": "a", "to": "b"}]}], "0.yaml", "never:0:from", "no environment is called"),
        ([{"never": [{"from": "10.0.0.0/8", "to": "0.0.0.0/0"}]}], "0.yaml", "never:0", "neither end"),
        ([{"never": [{"from": "a", "to": "127.0.0.1"}]}], "0.yaml", "never:0:to", "machines outside can't have"),
        ([{"never": [{"from": "a", "to": "10.0.0.0/8", "by": "messages"}]}], "0.yaml", "never:0:by", "by: packets"),
        ([{"rollout": {"max_fial": 1}}], "0.yaml", "rollout:max_fial", "did you mean max_fail?"),
        ([{"rollout": {"max_fail": 0}}], "0.yaml", "rollout:max_fail", "no host can change"),
        ([{"rollout": {"step": "half"}}], "0.yaml", "rollout:step", "a percentage such as 10%"),
        ([{"rollout": {"step": []}}], "0.yaml", "rollout:step", "expected"),
        ([{"rollout": {"canary": ["h9"]}}], "0.yaml", "rollout:canary", "h9: no host of the fleet"),
        ([{"rollout": {"gate": ["luck"]}}], "0.yaml", "rollout:gate:0", "choose from health, trust"),
        ([{"rollout": {"settle": -1}}], "0.yaml", "rollout:settle", "expected 0 to"),
        ([{"rollout": {}}, {"rollout": {}}], "1.yaml", "rollout", "stands in 0.yaml, too"),
        ([{"trusted_grains": ["a b"]}], "0.yaml", "trusted_grains", "can't be a grain's name"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_place(documents: list[Any], file: str, path: str, reason: str) -> None:
    found = refused(*documents)
    assert any((one[0], one[1]) == (file, path) and reason in one[2] for one in found), found


def test_a_rollouts_policy_is_read() -> None:
    data = {"hosts": {"h1": None}, "rollout": {"canary": ["h1"], "step": "25%", "max_fail": 3, "settle": 5, "gate": []}}
    assert parse.fleet({"a": data}).rollout == Policy(canary=("h1",), step="25%", max_fail=3, settle=5.0, gate=())
    assert parse.fleet({"a": {"hosts": {"h1": None}}}).rollout == Policy()


def test_at_least_is_required_where_the_environment_starts() -> None:
    data = {"hosts": {"h1": None}, "environments": {"web": {"on": "h1", "at_least": "L3", **IMAGE}}}
    body = parse.fleet({"a": data}).environments["web"].body
    assert body["attestation"] == {"policy": "require", "minimum": "L3"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("198.51.100.1", "198.51.100.1:5671"), ("198.51.100.1:99", "198.51.100.1:99"),
        ("2001:db8::1", "[2001:db8::1]:5671"), ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ("198.51.100.1:0", None), ("host", None), ("host:1", None), ("", None), ("fe80::1%x", None),
    ],
)  # fmt: skip
def test_a_brokers_address_may_leave_out_the_port(text: str, expected: str | None) -> None:
    assert broker_address(text) == expected
