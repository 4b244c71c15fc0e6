"""A real broker: names that can't be guessed and change without loss, limits of links, revocation."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError
from support.links.mail import PATIENCE, letters, messages, read, send
from support.waiting import until

from netspace import files
from netspace.errors import NetspaceError
from netspace.link import record
from netspace.link.topology import names
from netspace.spec.types import ClusterBroker, Link

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("unhurried")]

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
LINKS = (ASK, TELL)


@pytest.fixture(scope="module")
def linked(standing):
    standing.environment("web", "orders", "audit")
    standing.apply(*LINKS)
    return standing


@pytest.fixture
def host(linked):
    """A host with the same links, and without messages."""
    linked.apply(*LINKS, purge=True)
    with linked.api() as api:
        for former in record.read(linked.layout).former:
            api.delete("queues", "netspace", former.queue)
        for plain in ("mailbox.web", "mailbox.orders", "mailbox.audit", "dead", "dead-late"):
            api.delete("queues", "netspace", linked.n(plain), "contents")
    linked.apply(*LINKS)
    return linked


# -- names -----------------------------------------------------------------------------
def test_renaming_loses_no_mail_and_no_sender(host):
    old = {plain: host.n(plain) for plain in ("mailbox.audit", "link.orders.audit", "dead-late")}
    send(host, TELL, b"dies", expiration="1")
    send(host, TELL, b"waits 1", b"waits 2", b"held")
    until(lambda: messages(host, old["dead-late"]) == 1, "a dead letter", patience=PATIENCE)
    held = host.connect("audit").channel()
    holder = [held.basic_get(old["mailbox.audit"])[2] for _ in range(2)]
    assert holder == [b"waits 1", b"waits 2"]
    sender = host.connect("orders").channel()
    sender.confirm_delivery()
    (host.layout.records("link") / "names.json").unlink()

    plan = host.apply(*LINKS)
    assert "names" in {step.name: step.changes for step in plan.steps}["broker"]
    assert set(old.values()).isdisjoint(host.n(plain) for plain in old)
    with pytest.raises(ChannelClosedByBroker) as caught:  # told, not swallowed
        sender.basic_publish(old["link.orders.audit"], "", b"into the void", mandatory=True)
    assert caught.value.reply_code in (403, 404)
    sender.connection.close()
    send(host, TELL, b"new")
    assert not host.plan(*LINKS).steps, "it stays as it is while there is mail"

    about = host.card("audit")
    assert about["queues"] == [host.n("mailbox.audit"), old["mailbox.audit"]]
    held.connection.close()  # what it held comes back
    got = read(host, "audit", 4)
    assert sorted(got) == sorted(("orders", body) for body in (b"waits 1", b"waits 2", b"held", b"new"))

    until(lambda: counted(host, old["dead-late"]) == 1, "the broker says that it is not empty", pause=0.1)

    def gone() -> bool:
        settle(host)
        host.apply(*LINKS)
        return messages(host, old["mailbox.audit"]) is None

    until(gone, "the broker says that it is empty", patience=PATIENCE, pause=1.0)
    assert host.card("audit")["queues"] == [host.n("mailbox.audit")]
    assert messages(host, old["dead-late"]) == 1, "dead letters are kept"

    def kept() -> bool:
        settle(host)
        host.apply(*LINKS)
        return not host.plan(*LINKS).steps

    until(kept, "what else bore a former name is gone", patience=PATIENCE, pause=1.0)
    assert messages(host, old["dead-late"]) == 1
    with host.api() as api:
        api.delete("queues", "netspace", old["dead-late"])


def counted(host, queue: str) -> int | None:
    """Return the number of messages in a queue by the broker's statistics, which are up to 5 s old."""
    with host.api() as api:
        return api.get("queues", "netspace", queue).get("messages")


def settle(host) -> None:
    """Date every recorded renaming back to 1970, so that an apply trusts the broker's counts of messages at once.

    These counts may lag behind for some seconds.
    """
    known = record.read(host.layout)
    aged = tuple(msgspec.structs.replace(one, since=0.0) for one in known.former)
    record.write(host.layout, msgspec.structs.replace(known, former=aged))


def test_a_killed_renaming_is_finished_by_the_next_run(host, monkeypatch):
    send(host, TELL, b"kept")
    (host.layout.records("link") / "names.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("netspace.link.topology.diff.document", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            host.apply(*LINKS)
    host.apply(*LINKS)
    assert read(host, "audit", 1) == [("orders", b"kept")]
    send(host, TELL, b"goes on")
    assert read(host, "audit", 1) == [("orders", b"goes on")]


def test_the_key_is_root_only_and_shared_where_a_file_says_so(host, tmp_path):
    path = host.layout.records("link") / "names.json"
    assert path.stat().st_mode & 0o777 == 0o600
    key = files.read_json(path)["key"]
    with host.api() as api:
        assert key not in str(api.get("definitions"))
    assert key not in str(host.card("web")) + repr(host.links.observe()) + str(host.links.list())
    shared = tmp_path / "key"
    shared.write_text("x" * 32 + "\n")
    shared.chmod(0o640)
    cluster = ClusterBroker(url="amqp://x", management="http://x", credentials="/x", names_key=str(shared))
    with pytest.raises(NetspaceError, match="other users can read it"):
        names.declared(host.layout, cluster)
    shared.chmod(0o600)
    assert names.declared(host.layout, cluster) == names.Names(b"x" * 32, fleet=True)


# -- bounds of one link --------------------------------------------------------------------
def bounded(host, **bounds) -> Link:
    """Declare the link from orders to audit with these limits; return the link."""
    link = Link(source="orders", target="audit", **bounds)
    host.apply(ASK, link)
    assert not host.plan(ASK, link).steps
    return link


@pytest.mark.exhaustion
def test_a_full_link_refuses_and_its_neighbour_does_not(host):
    link = bounded(host, length=3)
    free = Link(source="web", target="audit")
    host.apply(ASK, link, free)
    accepted = 0
    with pytest.raises(NackError):
        for number in range(100):  # the length of a quorum queue is a soft limit
            send(host, link, str(number).encode())
            accepted += 1
    assert 3 <= accepted < 10
    send(host, free, b"the mailbox itself is free")
    got = read(host, "audit", accepted + 1)
    assert got.count(("orders", b"0")) == 1
    assert ("web", b"the mailbox itself is free") in got
    send(host, link, b"again")


def test_a_full_link_may_drop_the_oldest_which_is_a_dead_letter(host):
    link = bounded(host, length=2, full="drop-head")
    send(host, link, *(str(number).encode() for number in range(5)))
    dropped = letters(host, 3, payload=True)
    assert {one["payload"] for one in dropped} == {"0", "1", "2"}
    assert {(one["link"], one["reason"]) for one in dropped} == {("orders.audit", "maxlen")}
    assert read(host, "audit", 2) == [("orders", b"3"), ("orders", b"4")]


def test_what_waits_too_long_on_a_link_is_a_dead_letter(host):
    link = bounded(host, ttl=0.5)
    send(host, link, b"too late")
    assert letters(host, 1)[0]["reason"] == "expired"


def test_other_bounds_lose_nothing(host):
    first = bounded(host, length=5)
    send(host, first, b"1", b"2")
    second = bounded(host, length=6, ttl=3600)
    send(host, second, b"3")
    assert len(host.card("audit")["queues"]) == 3
    assert sorted(read(host, "audit", 3)) == [("orders", b"1"), ("orders", b"2"), ("orders", b"3")]
    settle(host)
    until(lambda: host.plan(ASK, second).steps, "the broker says that it is empty", patience=PATIENCE)
    host.apply(ASK, second)
    assert len(host.card("audit")["queues"]) == 2


def test_a_revoked_link_with_bounds_is_parked_or_purged(host):
    link = bounded(host, length=5)
    lane = host.links.called.queue(link)
    send(host, link, b"kept")
    host.apply(ASK, Link(source="web", target="audit"))
    assert host.links.list()["parked"] == ["orders.audit"]
    assert lane not in host.card("audit")["queues"]
    host.apply(ASK, link)
    assert read(host, "audit", 1) == [("orders", b"kept")]
    send(host, link, b"purged")
    host.apply(ASK, Link(source="web", target="audit"), purge=True)
    assert messages(host, lane) is None


# -- health ------------------------------------------------------------------------------
def test_health_names_full_and_unread_mailboxes(host):
    link = bounded(host, length=5)
    send(host, link, b"1", b"2", b"3", b"4")

    def said() -> bool:
        problems = host.links.health()["problems"]
        return {
            "the mailbox of orders.audit is 80% full, and accepts no messages at 100 %",
            "nobody reads the mailbox of orders.audit: 4 messages wait",
        } <= set(problems)

    until(said, "the broker counts them", patience=PATIENCE)


# -- revocation --------------------------------------------------------------------------
@pytest.mark.revocation
def test_revocation_severs_one_link_in_the_midst_of_mail(host):
    """A link is revoked during a stream of messages: confirmed ones have arrived, and later ones are refused or lost.

    Another link isn't interrupted.
    """
    doomed, other = Link(source="web", target="audit"), TELL
    host.apply(ASK, doomed, other)
    exchange, beside = host.links.called.exchange(doomed), host.links.called.exchange(other)
    sent: dict[str, float] = {}
    stop, flowing = threading.Event(), threading.Event()

    def pour() -> None:
        number = 0
        try:
            while True:
                number += 1
                pouring.basic_publish(exchange, "", f"d{number}".encode(), mandatory=True)
                sent["confirmed"] = number
                flowing.set()
        except AMQPError as err:
            sent["told"] = time.monotonic()
            sent["code"] = getattr(err, "reply_code", 0)

    def go_on() -> None:
        number = 0
        while not stop.is_set():
            steady.basic_publish(beside, "", f"o{number}".encode(), mandatory=True)
            number += 1
        sent["beside"] = number

    pouring, steady = (host.connect(name).channel() for name in ("web", "orders"))
    for channel in (pouring, steady):
        channel.confirm_delivery()
    threads = [threading.Thread(target=pour, daemon=True), threading.Thread(target=go_on, daemon=True)]
    for thread in threads:
        thread.start()
    assert flowing.wait(PATIENCE)
    host.apply(ASK, other)
    threads[0].join(PATIENCE)
    assert sent["code"] in (403, 404)
    confirmed = messages(host, host.n("mailbox.audit"))
    assert confirmed is not None
    stop.set()
    threads[1].join(PATIENCE)
    with pouring.connection.channel() as again:  # its connection goes on
        again.confirm_delivery()
        again.basic_publish(host.n("link.web.orders"), "", b"x", mandatory=True)
    got = bodies(host, "audit", exchange, beside)
    assert int(sent["confirmed"]) <= len(got[exchange]) <= sent["confirmed"] + 1, (
        "confirmed, and at most the one in flight"
    )
    assert len(got[beside]) == sent["beside"], "the neighbour lost nothing"
    for channel in (pouring, steady):
        channel.connection.close()


def bodies(host, name: str, *exchanges: str) -> dict[str, list[bytes]]:
    """Read all messages in the mailbox of *name*; return the bodies by exchange."""
    found: dict[str, list[bytes]] = {exchange: [] for exchange in exchanges}
    with host.client(name) as channel:
        while True:
            delivery, _, body = channel.basic_get(host.n(f"mailbox.{name}"), auto_ack=True)
            if delivery is None:
                return found
            found[delivery.exchange].append(body)
