"""A real broker's dead letters: kept despite floods, shown, sent again, discarded, and never lost."""

from __future__ import annotations

import struct
import threading
import time

import pika
import pytest
from pika.exceptions import NackError
from support.links.mail import PATIENCE, letters, read, refuse, send
from support.waiting import until

from netspace.errors import NetspaceError
from netspace.link.broker import amqp
from netspace.link.mail.dead_letters import LetterFilter, Letters
from netspace.link.topology import policies
from netspace.spec.types import Link

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
BESIDE = Link(source="web", target="audit")
LINKS = (ASK, TELL)

WELL = {"ok": True, "problems": [], "findings": [], "dead": 0, "late": 0}


@pytest.fixture
def host(standing):
    """A host with the same links, and without messages."""
    standing.environment("web", "orders", "audit")
    standing.apply(*LINKS)
    standing.no_mail()
    return standing


def test_dead_letters_are_kept_however_often_they_are_looked_at(host):
    """A dead letter is still shown after 30 listings, although a quorum queue drops a message after 20 deliveries."""
    send(host, TELL, b"secret", message_id="m-1", content_type="text/plain")
    refuse(host, "audit")
    letters(host, 1)
    for _ in range(30):
        letters(host, 1)
    desk = {"letters": letters(host, 1)}
    about = desk["letters"][0]
    assert abs(about.pop("died") - time.time()) < 3600
    assert about == {
        "link": "orders.audit",
        "reason": "rejected",
        "bytes": 6,
        "message_id": "m-1",
        "content_type": "text/plain",
    }
    assert letters(host, 1, payload=True)[0]["payload"] == "secret"
    until(lambda: "1 dead letters" in host.links.health()["problems"], patience=PATIENCE)


def test_dead_letters_are_sent_again_by_their_own_link(host):
    forged = {"x-death": [{"exchange": host.n("link.web.orders"), "queue": "x", "reason": "rejected", "count": 1}]}
    own = {"text": "kept", "number": 2**40, "list": [1, "a", None], "table": {"yes": True}, "raw": b"\xff"}
    send(
        host,
        TELL,
        b"told",
        message_id="m-1",
        headers={**forged, **own},
        user_id=host.card("orders")["broker"]["username"],
    )
    send(host, ASK, b"asked", message_id="m-2", headers={"x-netspace-died": {"link": "orders.audit"}})
    refuse(host, "audit")
    refuse(host, "orders")
    letters(host, 2)
    desk = Letters(host.layout)
    both = {"orders.audit": 1, "web.orders": 1}
    until(lambda: desk.redeliver(test=True)["sent"] == both, "it only says so", patience=PATIENCE)
    letters(host, 2)
    done = desk.redeliver(LetterFilter(link="orders.audit"))
    assert done == {"sent": {"orders.audit": 1}, "kept": {"web.orders": {"number": 1, "why": "not asked for"}}}
    with host.client("audit") as channel:
        delivery, properties, body = channel.basic_get(host.n("mailbox.audit"), auto_ack=True)
    assert (delivery.exchange, body) == (host.n("link.orders.audit"), b"told")
    assert (properties.message_id, properties.headers) == ("m-1", own)
    assert letters(host, 1)[0]["link"] == "web.orders", "what was put back is known as before"

    host.apply(TELL)
    letters(host, 1)
    done = Letters(host.layout).redeliver()
    assert done == {"sent": {}, "kept": {"web.orders": {"number": 1, "why": "the link is revoked"}}}
    host.apply(*LINKS)
    letters(host, 1)
    assert Letters(host.layout).redeliver()["sent"] == {"web.orders": 1}
    assert read(host, "orders", 1) == [("web", b"asked")]
    assert Letters(host.layout).count() == {"count": 0, "late": 0, "letters": []}


def test_dead_letters_for_a_full_mailbox_are_kept(host):
    link = Link(source="orders", target="audit", length=1, ttl=3600)
    host.apply(ASK, link)
    send(host, link, b"dies", expiration="1")
    letters(host, 1)
    with pytest.raises(NackError):
        for _ in range(100):
            send(host, link, b"fills it")
    done = Letters(host.layout).redeliver()
    assert done["kept"]["orders.audit"] == {"number": 1, "why": "the mailbox is full"}
    letters(host, 1)


@pytest.mark.exhaustion
def test_no_sender_pushes_anothers_letter_out(host):
    """A sender makes 10,500 messages expire; another sender's rejected message stays among the dead letters."""
    host.apply(*LINKS, BESIDE)
    send(host, TELL, b"victim", message_id="victim")
    refuse(host, "audit")
    letters(host, 1)
    flood(host, BESIDE, 10_500, expiration="0")
    until(lambda: taken(host, TELL, b"goes on"), "its mailbox has place again", patience=PATIENCE)
    until(lambda: Letters(host.layout).count()["late"] > 9_000, "they are dead", patience=PATIENCE)
    assert letters(host, 1)[0]["message_id"] == "victim"
    assert Letters(host.layout).redeliver(LetterFilter(1, "orders.audit"))["sent"] == {"orders.audit": 1}

    def over() -> bool:
        host.no_mail()
        return host.links.list()["mailboxes"]["audit"]["messages"] == 0

    until(over, "none of them comes into another test", patience=PATIENCE, pause=1.0)


def taken(host, link: Link, body: bytes) -> bool:
    try:
        send(host, link, body)
    except NackError:
        return False
    return True


def flood(host, link: Link, number: int, **properties) -> None:
    """Send *number* messages without waiting for their confirmations."""
    connection = host.connect(link.source)
    channel = connection.channel()
    for one in range(number):
        about = pika.BasicProperties(message_id=str(one), **properties)
        channel.basic_publish(host.links.called.exchange(link), "", b"x", about)
    connection.close()


@pytest.mark.exhaustion
def test_no_reader_pushes_anothers_letter_out_and_none_of_its_own_is_lost(host, monkeypatch):
    monkeypatch.setitem(policies._DEAD, "max-length", 5)
    host.apply(*LINKS)
    send(host, TELL, b"victim", message_id="victim")
    refuse(host, "audit")
    letters(host, 1)
    flood(host, ASK, 30)
    with host.client("orders") as channel:
        refused: list[int] = []
        until(lambda: refuse_next(channel, host.n("mailbox.orders"), refused) or len(refused) == 30, patience=PATIENCE)
    send(host, TELL, b"later", message_id="later")
    refuse(host, "audit")  # it waits in its mailbox, and keeps nobody from using that
    send(host, TELL, b"goes on")
    assert read(host, "audit", 1) == [("orders", b"goes on")]
    desk = Letters(host.layout)
    assert "victim" in {one["message_id"] for one in desk.count()["letters"]}
    gone = 0

    def all_seen() -> bool:
        nonlocal gone
        gone += desk.discard(LetterFilter(link="web.orders"))["discarded"].get("web.orders", 0)
        # One of them may have come twice.
        return gone >= 30 and {one["message_id"] for one in desk.count()["letters"]} == {"victim", "later"}

    until(all_seen, "what waited finds its place", patience=2 * PATIENCE, pause=1.0)


def refuse_next(channel, queue: str, refused: list[int]) -> None:
    delivery, _, _ = channel.basic_get(queue)
    if delivery is not None:
        channel.basic_reject(delivery.delivery_tag, requeue=False)
        refused.append(delivery.delivery_tag)


def many_refused(host, link: Link, number: int) -> None:
    flood(host, link, number)
    with host.client(link.target) as channel:
        refused: list[int] = []
        queue = host.n(f"mailbox.{link.target}")
        until(lambda: refuse_next(channel, queue, refused) or len(refused) == number, patience=2 * PATIENCE, pause=0)
    until(lambda: Letters(host.layout).count(1)["count"] >= number, patience=PATIENCE)


def all_back(host, count: int) -> None:
    """Wait until the dead letters that a killed run held are in their queue again."""
    desk = Letters(host.layout)
    until(lambda: desk.count(1)["count"] == count, f"{count} dead letters", patience=PATIENCE)


def test_a_letter_is_found_behind_all_others(host):
    many_refused(host, ASK, 1_100)
    send(host, TELL, b"the last one", message_id="last")
    refuse(host, "audit")
    all_back(host, 1_101)
    desk = Letters(host.layout)
    kept = {"web.orders": {"number": 1_100, "why": "not asked for"}}
    assert desk.redeliver(LetterFilter(1, "orders.audit")) == {"sent": {"orders.audit": 1}, "kept": kept}
    assert read(host, "audit", 1) == [("orders", b"the last one")]
    all_back(host, 1_100)
    assert desk.discard(LetterFilter(2, message_id="1099"))["discarded"] == {"web.orders": 1}
    all_back(host, 1_099)


def test_letters_are_discarded_by_link_and_number_also_those_of_unknown_origin(host):
    many_refused(host, ASK, 3)
    with host.api() as api:
        stray = {"routing_key": "", "payload": "x", "payload_encoding": "string", "properties": {"message_id": "stray"}}
        assert api.post("exchanges", "netspace", host.n("dead"), "publish", body=stray)["routed"]
    letters(host, 4)
    desk = Letters(host.layout)
    done = desk.redeliver(LetterFilter(link="unknown"))
    assert done["sent"] == {} and done["kept"]["unknown"] == {
        "number": 1,
        "why": "its link is unknown",
    }
    for test in (True, False):
        all_back(host, 4)
        done = desk.discard(LetterFilter(link="unknown"), test)
        assert done == {
            "discarded": {"unknown": 1},
            "kept": {"web.orders": {"number": 3, "why": "not asked for"}},
        }
    all_back(host, 3)
    assert desk.discard(LetterFilter(2)) == {"discarded": {"web.orders": 2}, "kept": {}}
    until(lambda: host.links.health()["dead"] == 1, patience=PATIENCE)
    desk.discard()
    until(
        lambda: host.links.health() == WELL | {"late": 0},
        patience=PATIENCE,
    )
    with host.api() as api:
        assert not [one["name"] for one in api.get("users") if one["name"].endswith("/broker")], "its account is gone"


def test_late_letters_are_no_problem(host):
    send(host, TELL, b"too late", expiration="1")
    letters(host, 1)
    until(
        lambda: host.links.health() == WELL | {"late": 1},
        patience=PATIENCE,
    )


def test_two_at_a_time_lose_none(host):
    many_refused(host, ASK, 200)

    def again() -> None:
        while True:
            try:
                if not desk.count(1)["count"]:
                    return
                Letters(host.layout).redeliver(LetterFilter(50))
            except NetspaceError:  # the other one had done, and took the account along
                time.sleep(0.01)

    desk = Letters(host.layout)
    threads = [threading.Thread(target=again, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert received(host, "orders") == {str(one) for one in range(200)}


def received(host, name: str) -> set[str]:
    found = set()
    with host.client(name) as channel:
        while (got := channel.basic_get(host.n(f"mailbox.{name}"), auto_ack=True))[0]:
            found.add(got[1].message_id)
    return found


def test_a_run_that_is_killed_loses_none(host, monkeypatch):
    many_refused(host, ASK, 3)
    with monkeypatch.context() as patched:
        patched.setattr(amqp.Connection, "remove", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Letters(host.layout).redeliver()
    until(lambda: Letters(host.layout).count()["count"] == 3, "all are there", patience=PATIENCE)
    assert received(host, "orders") == {"0"}, "one was sent"
    assert Letters(host.layout).redeliver()["sent"] == {"web.orders": 3}
    assert received(host, "orders") == {"0", "1", "2"}


class Nested(pika.BasicProperties):
    """Properties with headers that no Python encoder makes: *depth* nested tables."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        table = b""
        for _ in range(depth):
            table = b"\1aF" + struct.pack(">I", len(table)) + table
        self._raw = struct.pack(">HI", 0x2100, len(table)) + table + b"\x011"  # headers, and an expiration of 1 ms

    def encode(self) -> list[bytes]:
        return [self._raw]


@pytest.mark.parametrize("depth", [1500, 4000])
def test_one_letter_that_cannot_be_read_costs_itself(host, depth):
    """A dead letter with deeply nested headers is kept with a reason; other dead letters are shown and sent again.

    Such a message can only come from a broker without the guard.
    """
    with host.unguarded(), host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", b"deep", Nested(depth), mandatory=True)
    desk = Letters(host.layout)
    until(lambda: desk.count()["late"] == 1, "it is dead", patience=PATIENCE)
    send(host, TELL, b"told", message_id="m-1", expiration="1")
    until(lambda: desk.count()["late"] == 2, "the other is dead", patience=PATIENCE)
    assert [(one["link"], one["reason"]) for one in desk.count()["letters"]] == [
        ("web.orders", "expired"),
        ("orders.audit", "expired"),
    ]
    assert desk.redeliver(test=True) == {"sent": {"web.orders": 1, "orders.audit": 1}, "kept": {}}
    assert desk.discard(test=True)["discarded"] == {"web.orders": 1, "orders.audit": 1}
    assert host.links.health()["late"] == 2
    answer = desk.redeliver()
    assert answer["sent"] == {"orders.audit": 1}
    assert "nested" in answer["kept"]["web.orders"]["why"], "what our own broker admits no more is kept, and said"
    assert read(host, "audit", 1) == [("orders", b"told")]
    assert desk.discard(LetterFilter(link="web.orders"))["discarded"] == {"web.orders": 1}
