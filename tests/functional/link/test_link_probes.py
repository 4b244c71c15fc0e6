"""Probes of another host's broker: an attacker on one host finds out only the links between the two hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import msgspec
import pika
import pytest
from support.links.linked_hosts import PORT, as_broker, domain

from netspace.link.broker import versions
from netspace.link.topology import objects, pair_keys
from netspace.link.topology.names import PLAIN, Names
from netspace.spec.types import Link, RemoteHost

pytestmark = pytest.mark.root

ASK = Link(source="web@h1", target="orders@h2", pattern="request", monitor=True)
TELL = Link(source="web@h1", target="audit@h2", length=20)
CARRY = Link(source="other@h1", target="orders@h2", via="buffered")
BETWEEN = (ASK, TELL, CARRY)
# What is none of h1's business: within h2, from a third host, and to it.
NEAR = Link(source="orders@h2", target="audit@h2", pattern="request", monitor=True, ttl=60)
FROM = Link(source="shop@h3", target="orders@h2", pattern="request", monitor=True)
BY = Link(source="shop@h3", target="audit@h2", via="buffered", length=5)
AWAY = Link(source="orders@h2", target="shop@h3", via="buffered")
LINKS = (*BETWEEN, NEAR, FROM, BY, AWAY)
ENVIRONMENTS = {"h1": ("web", "other"), "h2": ("orders", "audit")}
KINDS = ("queue", "exchange")


@pytest.fixture(scope="module")
def linked(both, folder):
    h1, h2, _ = both
    h3 = RemoteHost(
        trust_domain=domain("h3"), address=f"198.51.100.3:{PORT}", public_key=pair_keys.public(folder / "h3")
    )
    for world in (h1, h2):  # h1 knows all that can be known of h3 without being it
        world.broker = msgspec.structs.replace(world.broker, hosts={**world.broker.hosts, "h3": h3})
    h2.declare(*LINKS)
    h1.declare(*LINKS)
    return h1, h2


def guesses(h1, there: Iterable[str]) -> set[str]:
    """Return the full names that h1 computes with its own keys for the plain names *there*. The attacker knows them."""
    own = h1.links.called
    bounds = {repr(sorted(link.bounds.items())) for link in LINKS}
    known = (PLAIN, *(Names(key) for key in (own.key, *own.pairs.values())))
    return {called.of(plain, more) for plain in there for more in {"", *bounds} for called in known}


def answer(connection: pika.BlockingConnection, kind: str, name: str) -> int:
    """Return the broker's answer to a passive declare of a queue or exchange with this name."""
    channel = connection.channel()
    try:
        (channel.queue_declare if kind == "queue" else channel.exchange_declare)(name, passive=True)
        channel.close()
    except pika.exceptions.ChannelClosedByBroker as err:
        return err.reply_code
    return 200


def found(connection: pika.BlockingConnection, names: Iterable[str]) -> set[str]:
    """Return the names in *names* for which the broker's answer differs from its answer for a nonexistent name."""
    nothing = {404, *(answer(connection, kind, f"link.{'0' * 32}") for kind in KINDS)}
    return {name for name in names for kind in KINDS if answer(connection, kind, name) not in nothing}


@pytest.mark.parametrize("whose", ["an environment's", "its broker's"])
def test_a_host_that_is_taken_over_finds_out_what_is_between_it_and_the_other_and_nothing_else(linked, whose):
    h1, h2 = linked
    with h2.here(), h2.api() as api:
        there = api.get("definitions")
    here = [
        one["name"]
        for kind in ("queues", "exchanges")
        for one in there[kind]
        if one["vhost"] == h2.layout.instance and not one["name"].startswith("amq.")
    ]
    called = h2.links.called
    asked, told, carried = h2.local(*BETWEEN)
    between = {
        called.exchange(asked),
        called.exchange(told),
        called.exchange(carried),
        called.replies("web@h1"),
        called.reply("orders", "h1"),
        called.notices("web@h1"),
        called.watched(asked),
    }
    assert between < set(here)
    tried = guesses(h1, {name.rpartition(".")[0] for name in here})
    with contextlib.closing(
        h1.connect("web", to="orders@h2") if whose == "an environment's" else as_broker(h1, h2)
    ) as connection:
        if versions.server() < (4, 3):
            assert found(connection, tried) == between
            assert found(connection, here) == set(here), "what it lacks is the names, and nothing else"
        else:  # 4.3 tells of a name only those with a right to it, even if they know it.
            assert set() < found(connection, tried) <= between
            assert found(connection, here) == found(connection, tried)


def test_what_its_environments_are_told_names_nothing_else(linked):
    h1, h2 = linked
    others = {key[1] for key in objects.objects(h2.local(NEAR, FROM, BY, AWAY), h2.links.called) if key[0] in KINDS}
    assert {h2.links.called.mailbox(name) for name in ("orders", "audit")} <= others
    said = str([h1.card(name) for name in ("web", "other")])
    assert not [name for name in others if name in said]
