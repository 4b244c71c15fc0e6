"""A real broker: links whose messages wait in memory (``durable: false``), and links with messages on disk."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from pathlib import Path

import msgspec
import pytest
from pika.exceptions import ChannelClosedByBroker, NackError
from support.links.mail import PATIENCE, letters, messages, read, send
from support.links.programs import Program, tell
from support.waiting import until
from test_link_protocols import PROTOCOLS, Refused

from netspace.link import record
from netspace.link.mail import counts
from netspace.link.topology import draining, names, objects, policies
from netspace.spec.types import Link

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("unhurried")]

ASK = Link(source="web", target="orders", pattern="request", durable=False)
TELL = Link(source="orders", target="audit", durable=False)
KEPT = Link(source="web", target="audit")
LINKS = (ASK, TELL, KEPT)
ON_DISK = msgspec.structs.replace(TELL, durable=True)


@pytest.fixture(scope="module")
def linked(standing):
    standing.environment("web", "orders", "audit")
    return standing


@pytest.fixture
def host(linked):
    linked.apply(*LINKS, purge=True)
    linked.no_mail()
    with linked.api() as api:  # what another test left to be read until it is empty
        for queue in api.get("queues", "netspace", query="columns=name"):
            if queue["name"] not in {
                key[1] for key in objects.objects(LINKS, linked.links.called) if key[0] == "queue"
            }:
                api.delete("queues", "netspace", queue["name"])
    linked.apply(*LINKS)
    return linked


def lane(host, link: Link) -> str:
    return host.links.called.queue(link)


def kind(host, queue: str) -> str:
    with host.api() as api:
        return str(api.get("queues", "netspace", queue, query="columns=type")["type"])


def restarted(host) -> None:
    """Kill the broker, and start it again."""
    host.kill_broker()
    until(host._answers, patience=PATIENCE)
    host.apply(*host.links.recorded())


def test_memory_link_has_a_queue_of_its_own_and_is_told(host):
    assert not host.plan(*LINKS).steps
    assert kind(host, lane(host, TELL)) == "classic"
    assert kind(host, host.n("mailbox.audit")) == "quorum"
    told = host.card("audit")
    assert lane(host, TELL) in told["queues"]
    assert {one["from"]: one.get("durable") for one in told["senders"]} == {"orders": False, "web": None}
    assert [one.get("durable") for one in host.card("orders")["peers"]] == [False]
    assert host.links.list()["links"]["orders.audit"]["durable"] is False


def test_memory_ends_with_the_broker_and_the_disk_does_not(host, tmp_path: Path):
    with contextlib.ExitStack() as after:
        programs = {}
        for name in ("web", "orders"):
            programs[name] = Program(host, name, tell(host, name, tmp_path / name))
            after.callback(programs[name].leave)
        programs["orders"].send("audit", "in memory")
        programs["web"].send("audit", "on disk")
        assert messages(host, lane(host, TELL)) == 1
        restarted(host)
        assert messages(host, lane(host, TELL)) == 0
        programs["orders"].send("audit", "afterwards", timeout=PATIENCE)
        assert sorted(read(host, "audit", 2)) == [("orders", b"afterwards"), ("web", b"on disk")]


def test_questions_are_answered_through_memory(host, tmp_path: Path):
    async def work(message) -> str:
        assert message._delivery.properties.delivery_mode == 1
        return f"{message.sender} said {message.text}"

    async def ask(mailbox) -> list[tuple[str, int]]:
        answers = [await mailbox.call("orders", str(number), timeout=PATIENCE) for number in range(20)]
        return [(one.text, one._delivery.properties.delivery_mode) for one in answers]

    with contextlib.ExitStack() as after:
        orders = Program(host, "orders", tell(host, "orders", tmp_path / "orders"))
        after.callback(orders.leave)
        web = Program(host, "web", tell(host, "web", tmp_path / "web"))
        after.callback(web.leave)
        serving = orders.start(orders.mailbox.serve(work))
        assert web.run(ask(web.mailbox)) == [(f"web said {number}", 1) for number in range(20)]
        serving.cancel()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("other", PROTOCOLS)
def test_both_protocols_send_and_read_through_memory(host, protocol, other):
    with contextlib.ExitStack() as after:
        sender, reader = PROTOCOLS[protocol](host, "orders"), PROTOCOLS[other](host, "audit")
        after.callback(sender.close)
        after.callback(reader.close)
        exchange = host.links.called.exchange(TELL)
        assert sender.send(exchange, "by memory")
        assert reader.receive(lane(host, TELL))[:2] == (exchange, "by memory")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_memory_link_belongs_to_its_two_ends_alone(host, protocol):
    stranger = PROTOCOLS[protocol](host, "web")
    with contextlib.closing(stranger), pytest.raises(Refused):
        stranger.send(host.links.called.exchange(TELL), "not mine to send")
    with host.client("web") as channel, pytest.raises(ChannelClosedByBroker):
        channel.basic_get(lane(host, TELL))


def test_no_waiting_message_is_lost_by_a_switch(host):
    host.apply(ASK, ON_DISK, KEPT)
    send(host, ON_DISK, b"on disk", delivery_mode=2)
    host.apply(*LINKS)
    send(host, TELL, b"in memory", delivery_mode=1)
    host.apply(ASK, ON_DISK, KEPT)
    send(host, ON_DISK, b"on disk again", delivery_mode=2)
    got = read(host, "audit", 3)
    assert sorted(got) == [("orders", b"in memory"), ("orders", b"on disk"), ("orders", b"on disk again")]


def test_no_confirmed_message_is_lost_while_a_link_is_switched(host):
    over, confirmed = threading.Event(), list[bytes]()

    def pour() -> None:
        with host.client("orders") as channel:
            for number in itertools.count():
                if over.is_set():
                    return
                body = str(number).encode()
                channel.basic_publish(host.n("link.orders.audit"), "", body)  # not mandatory: as any client may do it
                confirmed.append(body)

    sender = threading.Thread(target=pour)
    sender.start()
    try:
        for number in range(6):
            more = len(confirmed) + 20
            until(lambda more=more: len(confirmed) > more, patience=PATIENCE)
            host.apply(KEPT, ASK, (ON_DISK, TELL)[number % 2])
    finally:
        over.set()
        sender.join(PATIENCE)
    queues = {host.n("mailbox.audit"), lane(host, TELL), *host.card("audit")["queues"]}
    arrived = set[bytes]()
    with host.client("audit") as channel:
        for queue in queues:
            while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
                arrived.add(got[2])
    assert len(confirmed) > 100
    assert set(confirmed) - arrived == set()


def test_what_waited_on_disk_outlives_a_switch_and_the_broker(host):
    bounded = msgspec.structs.replace(ON_DISK, length=5)
    host.apply(ASK, bounded, KEPT)
    send(host, bounded, b"on disk", delivery_mode=2)
    host.apply(*LINKS)
    send(host, TELL, b"in memory", delivery_mode=1)
    restarted(host)
    send(host, TELL, b"afterwards", delivery_mode=1)
    assert sorted(read(host, "audit", 2)) == [("orders", b"afterwards"), ("orders", b"on disk")]


def test_former_memory_queue_goes_when_it_is_empty(host, monkeypatch):
    send(host, TELL, b"1", delivery_mode=1)
    host.apply(ASK, ON_DISK, KEPT)
    assert lane(host, TELL) in host.card("audit")["queues"]
    assert read(host, "audit", 1) == [("orders", b"1")]
    monkeypatch.setattr(draining, "SETTLED", 0.0)
    time.sleep(0.01)
    until(lambda: host.plan(ASK, ON_DISK, KEPT).steps, "the broker says that it is empty", patience=PATIENCE)
    host.apply(ASK, ON_DISK, KEPT)
    assert messages(host, lane(host, TELL)) is None
    assert lane(host, TELL) not in host.card("audit")["queues"]


@pytest.mark.exhaustion
def test_memory_link_is_bounded_and_a_nack_is_told(host):
    link = msgspec.structs.replace(TELL, length=3)
    host.apply(ASK, link, KEPT)
    accepted = 0
    with pytest.raises(NackError):
        for number in range(100):
            send(host, link, str(number).encode(), delivery_mode=1)
            accepted += 1
    assert accepted == 3
    full = "the mailbox of orders.audit is 100% full, and accepts no messages at 100 %"
    waits = "nobody reads the mailbox of "
    told = {full, f"{waits}orders.audit: 3 messages wait"}
    until(lambda: told <= set(host.links.health()["problems"]), "the broker counts them", patience=PATIENCE)


def test_memory_queue_has_the_bounds_of_a_mailbox(host):
    with host.api() as api:
        about = api.get("queues", "netspace", lane(host, TELL))
    assert about["policy"] == "netspace.memory"
    mailbox, memory = (policies.policies(names.PLAIN)[f"netspace.{one}"]["definition"] for one in ("mailbox", "memory"))
    same = ("max-length", "max-length-bytes", "message-ttl", "consumer-timeout")
    assert {key: about["effective_policy_definition"][key] for key in same} == {key: mailbox[key] for key in same}
    assert memory.keys() == {*same, "dead-letter-exchange"}
    assert about["arguments"]["x-overflow"] == "reject-publish"


def test_what_a_reader_refuses_or_leaves_is_a_dead_letter(host):
    short = msgspec.structs.replace(TELL, ttl=0.5)
    host.apply(ASK, short, KEPT)
    send(host, short, b"too late", delivery_mode=1)
    assert [(one["link"], one["reason"]) for one in letters(host, 1)] == [("orders.audit", "expired")]
    host.apply(*LINKS)
    send(host, TELL, b"refused", delivery_mode=1)
    with host.client("audit") as channel:
        got: list[int] = []
        until(lambda: got.extend(one.delivery_tag for one in [channel.basic_get(lane(host, TELL))[0]] if one) or got)
        channel.basic_reject(got[0], requeue=False)
    wanted = {("orders.audit", "expired"), ("orders.audit", "rejected")}
    assert {(one["link"], one["reason"]) for one in letters(host, 2)} == wanted


def test_memory_of_a_revoked_link_is_parked_or_purged(host):
    send(host, TELL, b"kept", delivery_mode=1)
    host.apply(ASK, KEPT)
    assert host.links.list()["parked"] == ["orders.audit"]
    host.apply(*LINKS)
    assert read(host, "audit", 1) == [("orders", b"kept")]
    send(host, TELL, b"purged", delivery_mode=1)
    host.apply(ASK, KEPT, purge=True)
    assert messages(host, lane(host, TELL)) is None


def test_what_waits_on_a_link_is_counted(host):
    send(host, TELL, b"1", b"2", delivery_mode=1)

    def waiting() -> dict[str, float]:
        found = counts.families(host.layout, record.read(host.layout), host.supervisor.observe())
        return next(dict(one.samples) for one in found if one.name == "netspace_link_waiting")

    wanted = {'{from="orders",to="audit"}': 2, '{from="web",to="orders"}': 0}
    until(lambda: waiting() == wanted, "the broker counts them", patience=PATIENCE)


def test_parked_mail_in_memory_is_forgotten_once_it_is_lost(host):
    send(host, TELL, b"in memory", delivery_mode=1)
    send(host, KEPT, b"on disk", delivery_mode=2)
    until(
        lambda: host.links.list()["mailboxes"]["audit"]["messages"] == 1, "the broker has counted it", patience=PATIENCE
    )
    host.apply(ASK)
    assert record.read(host.layout).parked == ("audit", "orders.audit")
    problems = {"audit, orders.audit": host.links.health()}
    host.kill_broker()
    until(host._answers, patience=PATIENCE)
    until(lambda: host.links.list()["parked"] == ["audit"], "what is on disk was counted", patience=PATIENCE)
    problems["audit"] = host.links.health()
    for owners, told in problems.items():
        (text,) = [text for text in told["problems"] if "mail is parked" in text]
        assert text.endswith(f": {owners}")
    (step,) = host.plan(ASK).steps
    assert step.changes == {"parked:orders.audit": {"old": "mail", "new": None}}
    host.apply(ASK)
    assert record.read(host.layout).parked == ("audit",)
    assert messages(host, lane(host, TELL)) is None
    assert not host.plan(ASK).steps
    host.apply(*LINKS)
    assert read(host, "audit", 1) == [("web", b"on disk")]
