"""Buffered links between two hosts: an outbox on the sender's broker, and a shovel (docs/remote-links.md)."""

from __future__ import annotations

import contextlib
import time

import msgspec
import pika
import pytest
from support.links.linked_hosts import as_broker
from support.links.streams import Stream
from support.waiting import until

from netspace.link.broker import node
from netspace.link.topology import peers
from netspace.spec.types import Link, Size
from netspace_client import LinkError, MailboxFull, Refused

pytestmark = pytest.mark.root

TELL = Link(source="web@h1", target="orders@h2", via="buffered")
FEW = Link(source="web@h1", target="audit@h2", via="buffered", length=5)
LINKS = (TELL, FEW)
ENVIRONMENTS = {"h1": ("web",), "h2": ("orders", "audit")}
IN_FLIGHT, IN_HAND = 256, 200  # of the client, by default


@pytest.fixture
def linked(declared):
    until(lambda: shovels(declared[0]) == ["running", "running"])
    return declared


def shovels(world) -> list[str]:
    with world.here(), world.api() as api:
        return [one.get("state", "") for one in api.get("shovels", world.layout.instance) or []]


def waiting(world, queue: str) -> int:
    """Return the number of messages in a queue by reading them, since the broker's statistics are late."""
    with world.here(), world.api() as api:
        body = {"count": 10_000, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1}
        return len(api.post("queues", world.layout.instance, queue, "get", body=body) or [])


def test_the_same_list_is_declared_on_both_and_a_second_apply_changes_nothing(linked):
    h1, h2, _ = linked
    for world in (h1, h2):
        assert not world.plan(*world.local(*LINKS)).steps
        with world.here():
            assert {one["state"] for one in world.links.list()["links"].values()} == {"active"}


def test_a_message_reaches_the_other_host_whatever_user_id_it_bears(linked, program):
    h1, h2, _ = linked
    orders = program(h2, "orders")
    card = h1.card("web")
    exchange = next(one["exchange"] for one in card["peers"] if one["to"] == "orders@h2")
    with h1.client("web") as channel:
        about = pika.BasicProperties(user_id=card["broker"]["username"], message_id="1")
        channel.basic_publish(exchange, "", b"hello", about, mandatory=True)
    assert orders.receive("web@h1") == "hello"
    assert shovels(h1) == ["running", "running"]


def test_what_is_sent_while_the_other_host_is_away_arrives_when_it_is_back(linked, program):
    h1, h2, cable = linked
    web = program(h1, "web")
    cable.cut()
    for number in range(20):
        web.send("orders@h2", str(number))
    cable.mend()
    orders = program(h2, "orders")
    assert [orders.receive("web@h1") for _ in range(20)] == [str(number) for number in range(20)]


def test_nothing_is_lost_though_brokers_die_and_the_cable_is_cut(linked, program):
    """10,000 messages arrive once each, although each broker is killed and the network is cut for 15 seconds."""
    h1, h2, cable = linked
    stream = Stream(program(h1, "web", confirm=5.0), program(h2, "orders"), "orders@h2", "web@h1", 10_000)
    stream.until(1_500)
    h2.kill_broker()
    h2.declare(*LINKS)
    stream.until(3_500)
    h1.kill_broker()
    h1.declare(*LINKS)
    stream.until(5_000)
    cable.cut()
    time.sleep(15)
    cable.mend()
    assert stream.failed() == []
    got = stream.got()
    # What came twice, the client knew by its id, and dropped: what a shovel had on its way whenever that broke, and
    # what the sender gave its broker again because it had not been confirmed, and what the receiver had in hand.
    assert got == list(range(10_000))
    assert stream.receiver.mailbox.duplicates <= 3 * peers.PREFETCH + 2 * IN_FLIGHT + IN_HAND


def test_a_full_mailbox_there_loses_nothing_and_the_outbox_tells_its_sender_in_the_end(linked, program):
    """The receiver's mailbox is full: no message is lost, and at last the sender gets MailboxFull from its outbox."""
    h1, h2, _ = linked
    web = program(h1, "web")
    for number in range(200):
        web.send("audit@h2", str(number))
    time.sleep(3)  # each comes back many times in that
    with h1.here(), h1.api() as api:
        policies = [one for one in api.get("policies", h1.layout.instance) if one["name"] == "netspace.outbox"]
        policies[0]["definition"]["max-length"] = 100
        api.post("definitions", body={"policies": policies})
    with pytest.raises(MailboxFull):
        for sent in range(200, 300):  # the first may still be taken
            web.send("audit@h2", str(sent))
    h1.declare(*LINKS)
    audit = program(h2, "audit")
    got = [int(audit.receive("web@h1")) for _ in range(sent)]
    assert sorted(got) == list(range(sent))
    # Who comes back may be overtaken by those that were on the way beside it, and by no others.
    assert all(abs(place - number) <= 3 * peers.PREFETCH for place, number in enumerate(got))


@pytest.mark.revocation
def test_revoked_at_the_senders_host_nothing_more_is_taken_and_nothing_is_lost(linked, program):
    h1, h2, cable = linked
    web = program(h1, "web")
    cable.cut()
    web.send("orders@h2", "kept")
    web.leave()
    h1.apply(*h1.local(FEW))  # without purge
    with h1.here():
        assert h1.links.list()["parked"] == ["web.orders@h2"]
    assert waiting(h1, h1.links.called.outbox(h1.local(TELL)[0])) == 1
    cable.mend()
    h1.declare(*LINKS)
    assert program(h2, "orders").receive("web@h1") == "kept"


@pytest.mark.revocation
def test_an_outbox_ends_at_once_and_an_apply_carries_on(linked, program):
    h1, h2, cable = linked
    web = program(h1, "web")
    cable.cut()
    web.send("orders@h2", "kept")
    with h1.here():
        assert h1.links.part([link for link in h1.links.recorded() if link.to_host == "h2"]) == []
    cable.mend()
    with pytest.raises(LinkError):
        web.send("orders@h2", "too late")
    web.leave()
    assert waiting(h1, h1.links.called.outbox(h1.local(TELL)[0])) == 1, "nothing leaves"
    h1.declare(*LINKS)
    assert program(h2, "orders").receive("web@h1") == "kept"


@pytest.mark.revocation
def test_revoked_at_the_receivers_host_what_waits_stays_and_the_operator_is_told(linked, program):
    h1, h2, _ = linked
    web = program(h1, "web")
    h2.declare(FEW)
    web.send("orders@h2", "in vain")
    until(lambda: [problem for problem in problems(h1) if "web.orders@h2" in problem], str(problems(h1)))
    # Between two tries it is there; in the midst of one the shovel has it in hand.
    until(lambda: waiting(h1, h1.links.called.outbox(h1.local(TELL)[0])) == 1, "what waits is gone")

    def stalled() -> bool:
        """Return whether the shovel is reported as stalled. RabbitMQ notices the missing exchange late."""
        with h1.here():
            told = h1.links.list()["links"]["web.orders@h2"]
        return told["state"] == "stalled" and "its mail is not carried over now" in told["why"]

    until(stalled)
    h2.declare(*LINKS)
    assert program(h2, "orders").receive("web@h1") == "in vain"
    until(lambda: not [problem for problem in problems(h1) if "web.orders@h2" in problem], str(problems(h1)))


def test_an_apply_starts_what_carries_anew_where_that_ended_for_good(linked, program):
    """A shovel that has ended for good is reported; the next apply starts it again, and the message arrives.

    A shovel ends for good if a link is revoked at the moment when the shovel reconnects.
    """
    h1, h2, _ = linked
    end_carriers(h1)
    assert any("not carried over now (absent)" in problem for problem in problems(h1))
    program(h1, "web").send("orders@h2", "waits")
    plan = h1.declare(*LINKS)
    assert {step.name: set(step.changes) for step in plan.steps} == {"broker": {"carriers to other hosts"}}
    assert program(h2, "orders").receive("web@h1") == "waits"
    until(lambda: shovels(h1) == ["running", "running"])
    assert not h1.plan(*h1.local(*LINKS)).steps


@pytest.mark.parametrize(("before", "after"), [((FEW,), LINKS), (LINKS, (FEW,))])
def test_links_are_made_and_revoked_though_what_carries_ends_amid_the_apply(linked, before, after):
    h1, _, _ = linked
    h1.declare(*before)
    gone = h1.links.names() - {link.name for link in h1.local(*after)}
    plan = h1.plan(*h1.local(*after), remove=gone)
    end_carriers(h1)
    with h1.here():
        assert [outcome.error for outcome in h1.links.apply(plan.steps, purge=True) if outcome.error] == []
    until(lambda: shovels(h1) == ["running"] * len(after))


def end_carriers(world) -> None:
    ended = "ok = supervisor:terminate_child(rabbit_shovel_sup, rabbit_shovel_dyn_worker_sup_sup)."
    with world.here():
        assert node.evaluate(world.layout, world.broker, ended) == ""


def problems(world) -> list[str]:
    with world.here():
        return world.links.health()["problems"]


def test_a_shovel_that_somebody_changed_or_removed_is_repaired(linked):
    h1, _, _ = linked
    name = h1.links.called.outbox(h1.local(TELL)[0])
    with h1.here(), h1.api() as api:
        api.delete("parameters", "shovel", h1.layout.instance, name)
        assert h1.links.list()["links"]["web.orders@h2"]["state"] == "missing"
    plan = h1.plan(*h1.local(*LINKS))
    assert [step.name for step in plan.steps] == ["web.orders@h2"]
    h1.declare(*LINKS)
    until(lambda: shovels(h1) == ["running", "running"])


def test_another_hosts_broker_may_send_by_that_hosts_links_and_do_nothing_else(linked):
    """An attacker with another broker's key, who knows every name, is refused everything except that host's links."""
    h1, h2, _ = linked
    attempts = {
        "read a mailbox": lambda channel: channel.basic_get(h2.n("mailbox.orders")),
        "write into a mailbox": lambda channel: channel.basic_publish("", h2.n("mailbox.orders"), b""),
        "declare a queue": lambda channel: channel.queue_declare("mine"),
        "send in another host's name": lambda channel: channel.basic_publish(h2.n("link.web@h3.orders"), "", b""),
        "answer": lambda channel: channel.basic_publish(h2.n("reply.orders"), "", b""),
    }
    for what, attempt in attempts.items():
        with contextlib.closing(as_broker(h1, h2)) as connection:
            channel = connection.channel()
            with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
                attempt(channel)
                channel.queue_declare("", passive=True)
            assert refused.value.reply_code in (403, 404), what
    # And an environment can't come beside it: its link is carried, so it has no account there.
    with pytest.raises((OSError, pika.exceptions.AMQPError)):
        with contextlib.closing(as_broker(h1, h2, h1.layout.identity("web") / "identity.pem")):
            pass


def test_from_buffered_to_direct_and_back_nothing_that_waits_is_lost(linked, program):
    h1, h2, cable = linked
    web = program(h1, "web")
    cable.cut()
    web.send("orders@h2", "1")
    web.leave()
    direct = msgspec.structs.replace(TELL, via="direct")
    h1.apply(*h1.local(direct, FEW))
    cable.mend()
    h2.declare(direct, FEW)
    program(h1, "web").send("orders@h2", "2")
    h2.declare(*LINKS)
    h1.declare(*LINKS)
    orders = program(h2, "orders")
    # The first may have been there already, though nobody said so.
    assert {orders.receive("web@h1") for _ in range(2)} == {"1", "2"}


def test_a_message_that_is_too_large_for_the_other_host_is_refused_here_and_stops_nothing(both, program, monkeypatch):
    h1, h2, cable = both
    cable.mend()
    size = Size(64 * 1024)
    least = {"h2": msgspec.structs.replace(h1.broker.hosts["h2"], message_size=size)}
    monkeypatch.setattr(h1, "broker", msgspec.structs.replace(h1.broker, hosts=least))
    monkeypatch.setattr(h2, "broker", msgspec.structs.replace(h2.broker, message_size=size))
    few = msgspec.structs.replace(FEW, via="direct")
    h2.declare(TELL, few)
    h1.declare(TELL, few)
    for world in (h1, h2):
        world.no_mail()
    web, orders, audit = program(h1, "web"), program(h2, "orders"), program(h2, "audit")
    for peer, reader in (("orders@h2", orders), ("audit@h2", audit)):
        with pytest.raises(Refused, match=f"{size} at most"):
            web.send(peer, "x" * (size + 1))
        web.send(peer, "x" * size)
        web.send(peer, "goes on")
        assert [len(reader.receive("web@h1")), reader.receive("web@h1")] == [size, "goes on"]


def test_a_broker_that_is_killed_in_its_sleep_carries_on(linked, program):
    h1, h2, _ = linked
    h1.kill_broker()
    until(lambda: h1.supervisor.observe()[node.NODE].state == "running")
    h1.declare(*LINKS)
    program(h1, "web").send("orders@h2", "still")
    assert program(h2, "orders").receive("web@h1") == "still"


def test_more_links_than_an_environment_may_have_connections_are_carried(linked):
    """A broker has more shovels than an environment may have connections, and all of them run."""
    h1, h2, _ = linked
    many = [Link(source=f"web{number}@h1", target="audit@h2", via="buffered") for number in range(12)]
    h1.environment(*(link.source.partition("@")[0] for link in many))
    for step in (many[:6], many):
        h2.declare(*LINKS, *step)
        h1.declare(*LINKS, *step)
    until(lambda: shovels(h1) == ["running"] * (len(LINKS) + len(many)), str(problems(h1)))
