"""A real broker: names that can't be guessed and change without loss, bounds of links, dead letters, revocation."""

from __future__ import annotations

import dataclasses
import os

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker
from waiting import until

from netspace import files
from netspace.link import names, record
from netspace.spec.types import Link, LocalBroker

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
LINKS = (ASK, TELL)
REPETITIONS = int(os.environ.get("NETSPACE_REPETITIONS", "3"))
PATIENCE = 60.0


@pytest.fixture(scope="module")
def linked(world):
    world.environment("web", "orders", "audit")
    world.apply(*LINKS)
    return world


@pytest.fixture
def host(linked):
    """The same links again, and no mail."""
    linked.apply(*LINKS, purge=True)
    with linked.api() as api:
        for plain in ("mailbox.web", "mailbox.orders", "mailbox.audit", "dead"):
            api.delete("queues", "netspace", linked.n(plain), "contents")
    return linked


def send(host, link: Link, *bodies: bytes, **properties) -> None:
    with host.client(link.source) as channel:
        for body in bodies:
            channel.basic_publish(
                host.links.called.exchange(link), "", body, pika.BasicProperties(**properties), mandatory=True
            )


def read(host, name: str, count: int, *, queues=None) -> list[tuple[str, bytes]]:
    """What *name* reads as its card tells it: (sender, body), *count* of them."""
    about = host.card(name)
    senders = {sender["exchange"]: sender["from"] for sender in about["senders"]}
    got: list[tuple[str, bytes]] = []

    def look() -> bool:
        for queue in queues or about["queues"]:
            delivery, _, body = channel.basic_get(queue, auto_ack=True)
            if delivery:
                got.append((senders[delivery.exchange], body))
        return len(got) >= count

    with host.client(name) as channel:
        until(look, f"{count} messages", patience=PATIENCE)
    return got


def messages(host, queue: str) -> int | None:
    """How many a queue holds for certain, as its reader would be told; None: there is no such queue."""
    with host.api() as api:
        if api.get("queues", "netspace", queue, query="columns=name") is None:
            return None
        body = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1}
        got = api.post("queues", "netspace", queue, "get", body=body)
        return got[0]["message_count"] + 1 if got else 0


# -- names -----------------------------------------------------------------------------
def first_version(host, monkeypatch) -> None:
    """Have the broker as netspace's first versions made it."""
    host.apply(purge=True)
    with monkeypatch.context() as patched:
        patched.setattr(names, "ensure", lambda layout, broker: names.PLAIN)
        patched.setattr(names, "read", lambda layout, broker: names.PLAIN)
        host.apply(*LINKS)
        yield
    assert record.read(host.layout).named == ""


def lost_key(host, monkeypatch) -> None:
    yield
    (host.layout.records("link") / "names.json").unlink()


@pytest.mark.parametrize("before", [first_version, lost_key])
def test_renaming_loses_no_mail_and_no_sender(host, monkeypatch, before):
    stage = before(host, monkeypatch)
    next(stage)
    old = {plain: host.n(plain) for plain in ("mailbox.audit", "link.orders.audit", "dead")}
    send(host, TELL, b"dies", expiration="1")
    send(host, TELL, b"waits 1", b"waits 2", b"held")
    until(lambda: messages(host, old["dead"]) == 1, "a dead letter", patience=PATIENCE)
    held = host.connect("audit").channel()
    holder = [held.basic_get(old["mailbox.audit"])[2] for _ in range(2)]
    assert holder == [b"waits 1", b"waits 2"]
    sender = host.connect("orders").channel()
    sender.confirm_delivery()
    next(stage, None)

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

    settle(host)
    until(lambda: host.plan(*LINKS).steps, "the broker says that it is empty", patience=PATIENCE)
    host.apply(*LINKS)
    assert messages(host, old["mailbox.audit"]) is None
    assert host.card("audit")["queues"] == [host.n("mailbox.audit")]
    assert messages(host, old["dead"]) == 1, "dead letters are kept"
    settle(host)
    until(lambda: not host.plan(*LINKS).steps, "the broker says that these are not empty", patience=PATIENCE)
    with host.api() as api:
        api.delete("queues", "netspace", old["dead"])


def settle(host) -> None:
    """Have the time pass after which the broker's counts tell of all that was sent."""
    known = record.read(host.layout)
    aged = tuple(dataclasses.replace(one, since=0.0) for one in known.former)
    record.write(host.layout, dataclasses.replace(known, former=aged))


def test_a_killed_renaming_is_finished_by_the_next_run(host, monkeypatch):
    send(host, TELL, b"kept")
    (host.layout.records("link") / "names.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("netspace.link.diff.document", lambda *_: 1 / 0)
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
    here = names.read(host.layout, LocalBroker(names_key=str(shared)))
    assert here == names.Names(b"x" * 32)
