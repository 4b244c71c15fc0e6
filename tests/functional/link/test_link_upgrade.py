"""Records and a broker of older versions (``tests/fixtures/links``) are upgraded without loss of messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest
from support.links.link_world import World
from support.links.mail import messages, read
from support.waiting import until

from netspace import files
from netspace.link import plan, record
from netspace.link.broker import access, admission, frames, node, plugin
from netspace.link.mail.dead_letters import Letters
from netspace.link.topology.names import environments_of
from netspace.spec.types import Link, LocalBroker
from netspace.supervision.service import Service

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("unhurried")]

FIXTURES = Path(__file__).parents[2] / "fixtures/links"
ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")


@pytest.fixture(params=sorted(path.stem for path in FIXTURES.glob("*.json")))
def older(request, world) -> Iterator[World]:
    """A host with two links of an older version; one message waits, one is dead, one was about to be sent again."""
    left = json.loads((FIXTURES / f"{request.param}.json").read_text())
    world.environment("web", "orders", "audit")
    for path, content in left["records"].items():
        files.write_json(world.layout.state / path, content)
    node.start(world.layout, LocalBroker(), world.supervisor, world.messages.append)
    with world.api() as api:
        api.post("definitions", body=left["definitions"])
        exchange = named(left["definitions"], "exchanges", "link", "orders", "audit")
        for number, options in enumerate(({"expiration": "1"}, {"expiration": "1"}, {})):
            about = {"message_id": str(number), "delivery_mode": 2, **options}
            body = {"routing_key": "", "payload": f"mail {number}", "payload_encoding": "string", "properties": about}
            assert api.post("exchanges", "netspace", exchange, "publish", body=body)["routed"]
        dead = named(left["definitions"], "queues", "dead")
        until(lambda: messages(world, dead) == 2, "two are dead")
        if any(one["name"] == "netspace.dead-again" for one in left["definitions"]["policies"]):
            body = {"count": 1, "ackmode": "reject_requeue_false", "encoding": "auto"}
            assert api.post("queues", "netspace", dead, "get", body=body)
            again = named(left["definitions"], "queues", "dead-again")
            until(lambda: messages(world, again) == 1, "it is where that version sends it again from")
    yield world
    world.links.purge()


def named(definitions: dict[str, Any], section: str, kind: str, *ends: str) -> str:
    (name,) = (one["name"] for one in definitions[section] if environments_of(one["name"], kind) == ends)
    return name


def stale(host) -> set[tuple[str, ...]]:
    """Return the objects on the broker that today's version wouldn't make."""
    known = record.read(host.layout)
    with host.api() as api:
        definitions = access.definitions(host.layout, api, known.broker)
    wanted = plan.objects(host.layout, known.broker, known.links, host.links.called)
    there = {
        (kind, one["name"])
        for kind in ("exchange", "queue", "user")
        for one in definitions[f"{kind}s"]
        if one["name"] != "netspace.admin"
    }
    there |= {("policy", one["name"]) for one in definitions["policies"]}
    there |= {("permission", one["user"]) for one in definitions["permissions"] if one["user"] != "netspace.admin"}
    return there - {key[:2] for key in wanted}


def settle(host) -> None:
    """Date every recorded renaming back to 1970, so that an apply trusts the broker's counts of messages at once.

    These counts may lag behind for some seconds.
    """
    known = record.read(host.layout)
    aged = tuple(msgspec.structs.replace(one, since=0.0) for one in known.former)
    record.write(host.layout, msgspec.structs.replace(known, former=aged))


def test_what_an_older_version_made_is_upgraded(older):
    older.apply(ASK, TELL)
    assert not older.plan(ASK, TELL).steps
    assert read(older, "audit", 1) == [("orders", b"mail 2")]
    with older.client("orders") as channel:
        channel.basic_publish(older.n("link.orders.audit"), "", b"new", mandatory=True)
    assert read(older, "audit", 1) == [("orders", b"new")]

    desk = Letters(older.layout)
    assert {one["message_id"] for one in desk.count()["letters"]} == {"0", "1"}
    assert desk.redeliver() == {"sent": {"orders.audit": 2}, "kept": {}}
    assert sorted(read(older, "audit", 2)) == [("orders", b"mail 0"), ("orders", b"mail 1")]

    def nothing_stale() -> bool:
        settle(older)
        older.apply(ASK, TELL)
        return not stale(older)

    until(nothing_stale, "the broker says what is empty", pause=1.0)
    assert not record.read(older.layout).former and not older.plan(ASK, TELL).steps
    passwords = older.layout.records("credentials")
    assert not list(passwords.glob("*.json")), "they log in by certificate"


def test_a_broker_of_a_former_guard_is_started_anew_once(world, monkeypatch):
    """A broker with an older guard is restarted by the first apply; messages stay, and the next plan is empty.

    The plan announces the restart. The older guard had no interceptor, and checked no calls.
    """
    world.environment("web", "orders", "audit")
    present = plugin.sources()
    former = {name: text for name, text in present.items() if admission.MODULE not in name}
    source = f"{frames.MODULE}.erl"
    former[source] = former[source].replace("{?MODULE, start, []}", "{?MODULE, stand_in, []}")
    assert former[source] != present[source]
    former[f"{plugin.NAME}.app"] = former[f"{plugin.NAME}.app"].replace(f"{admission.MODULE}, ", "")
    with monkeypatch.context() as before:
        before.setattr(plugin, "sources", lambda: former)
        world.apply(ASK, TELL)
        # It had an epmd beside it, too.
        command = ("/usr/bin/epmd", "-address", "127.0.0.1", "-port", "4379")
        world.supervisor.define([Service(name=node.FORMER, command=command, user=node.USER)])
        assert world.supervisor.start([node.FORMER]) == {}
        with world.client("orders") as channel:
            about = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish(world.n("link.orders.audit"), "", b"kept", about, mandatory=True)
        assert world.plan(ASK, TELL).steps == []
    (step,) = world.plan(ASK, TELL).steps
    assert step.name == "broker" and "restarted" in step.changes["configuration"]["new"]
    world.apply(ASK, TELL)
    assert world.plan(ASK, TELL).steps == []
    assert node.FORMER not in world.supervisor.observe()
    world.admits()
    with world.client("audit") as channel:
        assert channel.basic_get(world.n("mailbox.audit"), auto_ack=True)[2] == b"kept"
