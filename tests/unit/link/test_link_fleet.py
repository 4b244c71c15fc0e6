"""Hosts that share a broker: together they make all of a fleet's links, and each makes only its own part."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.errors import SpecError
from netspace.link.card import card
from netspace.link.topology import diff, found_objects
from netspace.link.topology import objects as model
from netspace.link.topology.names import Names, is_dead
from netspace.spec import hosts, parse
from netspace.spec.types import ClusterBroker, Link

CALLED = Names(b"k" * 32, fleet=True)
HOSTS = {"h1": ("web", "shop"), "h2": ("orders", "audit"), "h3": ("mail",)}
ENDS = [f"{name}@{host}" for host, names in HOSTS.items() for name in names]
ENVIRONMENT = {"image": "tar:/srv/x.tar", "command": ["/bin/x"]}
LINKS = st.lists(
    st.builds(
        Link,
        source=st.sampled_from(ENDS),
        target=st.sampled_from(ENDS),
        pattern=st.sampled_from(["send", "request"]),
        ttl=st.none() | st.just(5.0),
    ).filter(lambda link: link.source != link.target),
    max_size=8,
    unique_by=lambda link: link.name,
)


def broker(host: str) -> ClusterBroker:
    return ClusterBroker(url="amqp://x", management="http://x", credentials="/x", names_key="/x", host=host)


def wanted(links: list[Link], host: str) -> tuple[tuple[Link, ...], model.Objects]:
    own = hosts.local(links, broker(host))
    return own, model.objects(own, CALLED)


def definitions(objects: model.Objects, *more: dict[str, Any]) -> dict[str, Any]:
    made = diff.document(objects, diff.Difference(create=tuple(objects)), "v", dict.fromkeys(known(objects), ""))
    made.setdefault("bindings", []).extend(more)
    return made


def known(objects: model.Objects) -> set[str]:
    return {key[1].partition(".")[2] for key in objects if key[0] == "user"}


def changes(links: list[Link], host: str, there: dict[str, Any], before: list[Link] | None = None) -> diff.Difference:
    own, objects = wanted(links, host)
    environments = model.accounts([*own, *hosts.local(before or [], broker(host))], CALLED)
    found = found_objects.found(there, "v", environments, whole=False)
    return diff.difference(objects, found, dict.fromkeys(environments, ""))


@given(LINKS)
def test_together_they_make_it_all_and_then_none_finds_anything_to_do(links):
    every: model.Objects = {}
    for host in HOSTS:
        _, objects = wanted(links, host)
        for key, value in objects.items():
            assert every.setdefault(key, value) == value, "two hosts make one thing in two ways"
    whole = [
        Link(link.source.partition("@")[0], link.target.partition("@")[0], link.pattern, ttl=link.ttl) for link in links
    ]
    assert every == model.objects(whole, CALLED)
    # Whoever asks has bound its queue to the answers; it is nobody's to take away.
    asked = [link for link in whole if link.pattern == "request"]
    bound = [
        {
            "source": CALLED.reply(link.target),
            "vhost": "v",
            "destination_type": "queue",
            "destination": CALLED.replies(link.source),
            "routing_key": "random",
            "arguments": {},
        }
        for link in asked
    ]
    there = definitions(every, *bound)
    for host in HOSTS:
        found = changes(links, host, there)
        assert found.empty and not found.stuck
        assert not [name for name in found.left if not is_dead(name)]


@given(LINKS, st.data())
def test_what_is_revoked_is_revoked_by_its_host_and_nothing_else_is(links, data):
    kept = [link for link in links if data.draw(st.booleans())]
    whole: model.Objects = {}
    for host in HOSTS:
        whole.update(wanted(links, host)[1])
    there = definitions(whole)
    left: model.Objects = {}
    for host in HOSTS:
        left.update(wanted(kept, host)[1])
    gone: set[model.Key] = set()
    for host in HOSTS:
        change = changes(kept, host, there, links)
        gone.update(change.revoke)
        assert not (set(change.revoke) & left.keys()), "it is still somebody's"
        assert not change.create
    exchanges = {key for key in whole if key[0] == "exchange" and key[1].startswith(("link.", "reply."))}
    assert {key for key in gone if key[0] == "exchange"} == exchanges - left.keys()
    accounts = {key for key in whole if key[0] == "user"}
    assert {key for key in gone if key[0] == "user"} == accounts - left.keys()


def test_an_asker_that_may_ask_no_more_is_cut_from_the_answers_by_its_own_host():
    ask = Link("web@h1", "orders@h2", "request")
    other = Link("web@h1", "audit@h2", "request")
    objects: model.Objects = {}
    for host in HOSTS:
        objects.update(wanted([ask, other], host)[1])
    binding = {"source": CALLED.reply("orders"), "destination_type": "queue", "destination": CALLED.replies("web")}
    there = definitions(objects, {**binding, "vhost": "v", "routing_key": "random", "arguments": {}})
    key = ("binding", CALLED.reply("orders"), "queue", CALLED.replies("web"), "random")
    assert key in changes([other], "h1", there, [ask, other]).revoke
    assert key not in changes([ask, other], "h2", there).revoke


def test_both_ends_are_told_the_same_names():
    links = [Link("web@h1", "orders@h2", "request", ttl=5.0)]
    cards = {
        name: card(name, hosts.local(links, broker(host)), "v", CALLED, broker=broker(host))
        for name, host in (("web", "h1"), ("orders", "h2"))
    }
    (peer,), (sender,) = cards["web"]["peers"], cards["orders"]["senders"]
    assert (peer["to"], sender["from"]) == ("orders@h2", "web@h1")
    assert peer["exchange"] == sender["exchange"]
    assert peer["replies"]["exchange"] == sender["reply_exchange"]
    assert "broker" not in peer


@pytest.mark.parametrize(
    ("link", "more", "why"),
    [
        ({"to": "orders@h2"}, {"host": None}, "broker:host is missing"),
        ({"to": "orders@h2"}, {"names_key": None}, "broker:names_key is missing"),
        ({"to": "web@h2"}, {}, "both ends have the same name"),
        ({"to": "shop@h2"}, {}, "this host has an environment of the same name"),
        ({"to": "orders@h2", "seal": True}, {}, "have no authorities"),
        ({"to": "orders@h2", "via": "buffered"}, {}, "both ends are on one broker"),
    ],
)
def test_what_can_not_be_on_a_shared_broker_is_told(link, more, why):
    about = {"kind": "cluster", "url": "amqps://x", "management": "https://x", "credentials": "/x"}
    about |= {"host": "h1", "names_key": "/x", **more}
    section = {
        "broker": {key: value for key, value in about.items() if value is not None},
        "environments": dict.fromkeys(("web", "shop"), ENVIRONMENT),
        "links": [{"from": "web", **link}],
    }
    with pytest.raises(SpecError, match=why):
        parse.declaration(section)
