"""``batch`` and ``send_many`` of netspace-client on the real broker: order, losses, errors of single messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.links.mail import PATIENCE, messages
from support.links.programs import Program, no_mail, tell
from support.waiting import until

from netspace.link.broker import node
from netspace.spec.types import Link
from netspace_client import BatchFailed, Closed, MailboxFull, NotDeclared, Refused, Revoked, Timeout, TooFast

pytestmark = pytest.mark.root

PLAIN = Link(source="web", target="audit")
MEMORY = Link(source="web", target="orders", durable=False)
SEALED = Link(source="web", target="vault", seal=True)
FEW = Link(source="web", target="till", length=5, durable=False)  # a quorum queue notices its length late
SLOW = Link(source="web", target="post", length=100, rate=5)
LINKS = (PLAIN, MEMORY, SEALED, FEW, SLOW)
NAMES = ("web", "audit", "orders", "vault", "till", "post")


@pytest.fixture(scope="module")
def linked(standing):
    standing.environment(*NAMES)
    return standing


@pytest.fixture
def start(linked, tmp_path: Path) -> Iterator:
    linked.apply(*LINKS, purge=True)
    no_mail(linked)
    with contextlib.ExitStack() as after:

        def program(name: str, **options) -> Program:
            made = Program(linked, name, tell(linked, name, tmp_path / name), **options)
            after.callback(made.leave)
            return made

        yield program


def taken(program: Program, count: int) -> list[str]:
    """Receive and acknowledge *count* messages; return their texts."""

    async def take() -> list[str]:
        found = []
        for _ in range(count):
            async with await program.mailbox.receive(timeout=PATIENCE * 4) as message:
                found.append(message.text)
        return found

    return program.run(take(), 600)


@pytest.mark.parametrize("peer", ["audit", "orders", "vault"])
def test_many_arrive_in_order_and_once(start, peer):
    web, reader = start("web"), start(peer)
    wanted = [str(number) for number in range(600)]
    ids = web.run(web.mailbox.send_many(peer, wanted), 300)
    assert len(set(ids)) == len(wanted)
    assert taken(reader, len(wanted)) == wanted
    with pytest.raises(Timeout):
        reader.receive(timeout=0.3)


def test_bodies_may_come_from_an_asynchronous_source(start):
    web, audit = start("web"), start("audit")

    async def source():
        for number in range(20):
            await asyncio.sleep(0)
            yield str(number)

    assert len(web.run(web.mailbox.send_many("audit", source()))) == 20
    assert taken(audit, 20) == [str(number) for number in range(20)]


def test_unconfirmed_messages_outlive_connections_and_broker(linked, start):
    web, audit = start("web"), start("audit")
    wanted = [str(number) for number in range(1500)]

    async def pour():
        async with web.mailbox.batch("audit", window=200, timeout=300) as batch:
            for number, body in enumerate(wanted):
                await batch.send(body)
                if number in (300, 900):
                    for session in web.mailbox._lines.sessions.values():
                        session._receiver._stream._transport.abort()
        return batch

    reading = audit.start(_take(audit, len(wanted)))
    pouring = web.start(pour())
    until(lambda: pouring.done() or audit.mailbox._arrivals._window._seen.get("web"), patience=PATIENCE)
    linked.kill_broker()
    batch = pouring.result(300)
    assert reading.result(300) == wanted
    assert batch.repeated and not batch.failed


async def _take(program: Program, count: int) -> list[str]:
    found = []
    for _ in range(count):
        async with await program.mailbox.receive(timeout=300) as message:
            found.append(message.text)
    return found


@pytest.mark.exhaustion
def test_each_message_that_fails_has_its_error(linked, start):
    web = start("web")
    with pytest.raises(BatchFailed, match=r"of 100 messages failed, the first: .*took no more") as caught:
        web.run(web.mailbox.send_many("till", [str(number) for number in range(100)]))
    failed = caught.value.failed
    assert {type(error) for error in failed.values()} == {MailboxFull}
    lane = linked.links.called.queue(FEW)
    assert messages(linked, lane) == 100 - len(failed) == 5


def test_message_that_may_not_be_sent_is_refused_at_once(start):
    web, audit, post = start("web"), start("audit"), start("post")

    async def pour() -> list[str]:
        said = []
        async with web.mailbox.batch("audit") as batch:
            await batch.send("first")
            for wrong, options in ((7, {}), ("x", {"id": 5}), ("x", {"content_type": "t" * 256})):
                try:
                    await batch.send(wrong, **options)
                except (TypeError, Refused) as err:
                    said.append(type(err).__name__)
            await batch.send("last")
        with pytest.raises(Closed):
            await batch.send("late")
        with pytest.raises(TooFast):
            await web.mailbox.send_many("post", map(str, range(50)))
        with pytest.raises(NotDeclared):
            await web.mailbox.send_many("nobody", ["x"])
        return said

    assert web.run(pour()) == ["TypeError", "TypeError", "Refused"]
    assert taken(audit, 2) == ["first", "last"]
    assert taken(post, 5) == list("01234")


@pytest.mark.revocation
def test_revoked_link_fails_what_is_on_its_way(linked, start):
    web = start("web")

    begun, gone = threading.Event(), asyncio.Event()

    async def pour():
        async with web.mailbox.batch("audit", timeout=60) as batch:
            await batch.send("before")
            await batch.confirmed()
            begun.set()
            await gone.wait()
            for number in range(10):
                await batch.send(str(number))

    pouring = web.start(pour())
    assert begun.wait(PATIENCE)
    linked.apply(*LINKS[1:])  # the program's card still has the link
    web._loop.call_soon_threadsafe(gone.set)
    with pytest.raises(BatchFailed) as caught:
        pouring.result(120)
    assert {type(error) for error in caught.value.failed.values()} == {Revoked}
    assert len(caught.value.failed) == 10


def test_no_more_than_the_window_is_unconfirmed(linked, start):
    web = start("web")
    web.send("audit", "connected")
    most = []

    async def pour() -> None:
        async with web.mailbox.batch("audit", window=7, timeout=300) as batch:
            for number in range(100):
                await batch.send(str(number))
                most.append(batch.unconfirmed)

    pid = linked.supervisor.observe()[node.NODE].pid
    until(web.reads, "else its wait for the frozen broker's answer ends the connection")
    os.kill(pid, signal.SIGSTOP)
    try:
        pouring = web.start(pour())
        until(lambda: len(most) == 7, patience=PATIENCE)
        assert not pouring.done()
    finally:
        os.kill(pid, signal.SIGCONT)
    pouring.result(300)
    assert max(most) == 7 and len(most) == 100


def test_broker_that_does_not_confirm_is_told_for_each(linked, start):
    web = start("web")
    web.send("audit", "connected")
    pid = linked.supervisor.observe()[node.NODE].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BatchFailed) as caught:
            web.run(web.mailbox.send_many("audit", ["1", "2"], timeout=1.0), 120)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [type(error) for error in caught.value.failed.values()] == [Timeout, Timeout]


def test_error_in_the_block_is_not_hidden_by_failures(start):
    web = start("web")

    async def pour() -> None:
        async with web.mailbox.batch("audit") as batch:
            await batch.send("sent")
            raise KeyError("the program's own")

    with pytest.raises(KeyError):
        web.run(pour())
    audit = start("audit")
    assert taken(audit, 1) == ["sent"]
