"""Declarations of links between hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import SpecError
from netspace.plugin import arguments
from netspace.spec import hosts, parse
from netspace.spec.types import END, ClusterBroker, Link, LocalBroker

ENVIRONMENT = {"image": "tar:/srv/x.tar", "command": ["/bin/x"]}
KEY = "x" * 43
BROKER = {
    "kind": "local",
    "host": "h1",
    "listen": "198.51.100.1:5671",
    "trust_domain": "h1.example.org",
    "authority": "/etc/netspace/authority",
    "hosts": {"h2": {"trust_domain": "h2.example.org", "address": "198.51.100.2:5671", "public_key": KEY}},
}
NAME = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?", fullmatch=True)
PLACE = st.sampled_from(["h1", "h2", "h3"])


def parsed(*links, environments=("web",), **broker):
    given = {key: value for key, value in {**BROKER, **broker}.items() if value is not None}
    section = {"broker": given, "environments": dict.fromkeys(environments, ENVIRONMENT), "links": list(links)}
    return parse.declaration(section)


def problems(*links, **broker) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parsed(*links, **broker)
    return [str(problem) for problem in caught.value.problems]


def test_what_is_of_this_host_is_named_as_here_and_what_is_of_others_is_left_out():
    links = (
        {"from": "web@h1", "to": "orders@h2", "pattern": "request"},
        {"from": "orders@h2", "to": "web@h1"},
        {"from": "orders@h2", "to": "audit@h3"},
    )
    found = parsed(*links)
    assert [(link.name, link.here, link.from_host, link.to_host) for link in found.links] == [
        ("web.orders@h2", ["web"], None, "h2"),
        ("orders@h2.web", ["web"], "h2", None),
    ]
    assert parse.declaration(parse.encode(found)) == found


@given(st.lists(st.tuples(NAME, PLACE, NAME, PLACE), max_size=8))
def test_each_host_has_the_links_that_touch_it_and_all_of_them_have_all(links):
    listed = [Link(source=f"{a}@{b}", target=f"{c}@{d}") for a, b, c, d in links]
    seen = set()
    for name in ("h1", "h2", "h3"):
        for link in hosts.local(listed, LocalBroker(host=name)):
            assert link.here and all(END.fullmatch(end) for end in (link.source, link.target))
            assert not link.source.endswith(f"@{name}") and not link.target.endswith(f"@{name}")
            whole = [end if "@" in end else f"{end}@{name}" for end in (link.source, link.target)]
            seen.add(tuple(whole))
    assert seen == {(link.source, link.target) for link in listed}


@pytest.mark.parametrize(
    ("link", "path", "why"),
    [
        ({"from": "web", "to": "orders@h4"}, "netspace:links:1:to", "h4 is not in broker:hosts (h2)"),
        ({"from": "nobody", "to": "orders@h2"}, "netspace:links:1:from", "there is no environment nobody"),
        ({"from": "web", "to": "orders@h2", "via": "buffered", "pattern": "request"}, "netspace:links:1:via", "direct"),
        ({"from": "web", "to": "orders@h2", "via": "buffered", "monitor": True}, "netspace:links:1:monitor", "direct"),
        ({"from": "web", "to": "web", "via": "buffered"}, "netspace:links:1", "can't be linked to itself"),
        ({"from": "web", "to": "orders@h2@h3"}, "netspace:links:1:to", "<name>@<host>"),
        ({"from": "web", "to": "@h2"}, "netspace:links:1:to", "<name>@<host>"),
    ],
)
def test_what_can_not_be_is_told_where_it_stands(link, path, why):
    elsewhere = {"from": "x@h2", "to": "y@h3"}  # which is none of ours, and counts all the same
    found = problems(elsewhere, link)
    assert any(text.startswith(f"{path}: ") and why in text for text in found), found


@pytest.mark.parametrize(
    ("change", "path", "why"),
    [
        ({"hosts": {"h2": {"trust_domain": "h2.org"}}}, "broker:hosts:h2:public_key", "is missing"),
        (
            {"hosts": {"h2": {"trust_domain": "h2.org", "public_key": "x" * 42}}},
            "broker:hosts:h2:public_key",
            "the output of",
        ),
        (
            {"hosts": {name: {"trust_domain": f"{name}.org", "public_key": KEY} for name in ("h2", "h3")}},
            "broker:hosts:h3:public_key",
            "already belongs to h2",
        ),
        ({"authority": None}, "broker:authority", "missing"),
        ({"trust_domain": None}, "broker:trust_domain", "missing"),
        ({"trust_domain": "h1"}, "broker:trust_domain", "h1.example.org"),
        ({"host": None}, "broker:host", "missing"),
        ({"host": "H1"}, "broker:host", "can't be a host's name"),
        ({"listen": "h1.example.org:5671"}, "broker:listen", "an address and a port"),
        ({"listen": "198.51.100.1"}, "broker:listen", "an address and a port"),
        ({"listen": "198.51.100.1:0"}, "broker:listen", "an address and a port"),
        ({"passwords": ["web"]}, "broker:passwords", "only certificates"),
        ({"hosts": {"h1": {"trust_domain": "x.example.org"}}}, "broker:hosts:h1", "is this host itself"),
        (
            {"hosts": {"h2": {"trust_domain": "h1.example.org"}}},
            "broker:hosts:h2:trust_domain",
            "already belongs to h1",
        ),
        ({"hosts": {"h2": {"trust_domain": "EVIL"}}}, "broker:hosts:h2:trust_domain", "expected a name"),
        ({"hosts": {"h2": {"trust_domain": "h2.org", "address": "h2"}}}, "broker:hosts:h2:address", "a port"),
        ({"hosts": {"h2": {"trust_domain": "h2.org", "address": "h2.org:1"}}}, "broker:hosts:h2:address", "numeric"),
        (
            {"hosts": {"h2": {"trust_domain": "example.org"}}},
            "broker:hosts:h2:trust_domain",
            "one domain lies within the other",
        ),
        (
            {"hosts": {"h2": {"trust_domain": "x.h1.example.org"}}},
            "broker:hosts:h2:trust_domain",
            "one domain lies within the other",
        ),
        ({"names_key": "/etc/netspace/names.key"}, "broker:names_key", "it has no effect"),
        ({"names_key": "/etc/netspace/names.key", "hosts": {}}, "broker:names_key", "it has no effect"),
        ({"names_key": ""}, "broker:names_key", "absolute path"),
        ({"names_key": "names.key"}, "broker:names_key", "absolute path"),
        ({"hosts": {"h2": {"trust_domain": "h2.org", "vhost": "a/b"}}}, "broker:hosts:h2:vhost", "instance"),
    ],
)
def test_what_is_said_of_hosts_is_checked(change, path, why):
    found = problems(**change)
    assert any(text.startswith(f"netspace:{path}: ") and why in text for text in found), found


def test_a_way_that_nobody_can_go_is_told():
    assert "broker:listen is missing" in problems({"from": "orders@h2", "to": "web"}, listen=None)[0]
    far = {"h2": {"trust_domain": "h2.example.org"}}
    assert "broker:hosts:h2:address is missing" in problems({"from": "web", "to": "orders@h2"}, hosts=far)[0]


def test_on_a_shared_broker_a_host_needs_a_name():
    broker = ClusterBroker(url="amqps://b", management="https://b", credentials="/x")
    link = Link(source="web", target="orders@h2")
    assert "broker:host is missing" in str(hosts.link(link, broker, "links:0")[0])


def test_states_name_links_of_other_hosts():
    pillar = {"netspace": {"broker": BROKER}}
    assert arguments.one_link("web.orders@h2", {}, pillar).links[0].to_host == "h2"
    assert arguments.one_link("web@h1.orders@h2", {}, pillar).links[0].name == "web.orders@h2"
    with pytest.raises(SpecError, match="neither x@h2 nor y@h3 is an environment of this host"):
        arguments.one_link("x@h2.y@h3", {}, pillar)
    # What is to go may be impossible by now.
    assert arguments.link("web.orders@h9", {}, pillar).name == "web.orders@h9"
    assert arguments.link("web.orders@h9", {}, {}).name == "web.orders@h9"
