"""Programs with ``netspace-client`` inside environments, on the real broker: promises of ``docs/client.md``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pika
import pytest
from aiormq import spec
from support.links.mail import messages
from support.links.programs import Program, no_mail, tell
from support.waiting import until

from netspace.link.broker import node, versions
from netspace.link.mail.dead_letters import Letters
from netspace.spec.types import Link
from netspace_client import (
    Change,
    InboxFull,
    LinkError,
    MailboxFull,
    NotDeclared,
    Refused,
    Revoked,
    Timeout,
    TooFast,
    Unreachable,
    jose,
)
from netspace_client.outlet import Parcel

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="web", target="audit")
ALSO = Link(source="orders", target="audit", monitor=True)
SEALED = Link(source="web", target="vault", pattern="request", seal=True)
OTHERS = Link(source="orders", target="vault", seal=True)
LINKS = (ASK, TELL, ALSO, SEALED, OTHERS)
NAMES = ("web", "orders", "audit", "vault")
CLIENT = Path(__file__).parents[3] / "client"


class Town:
    """Some environments, their cards, and the programs in them."""

    def __init__(self, world, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.programs: list[Program] = []

    def apply(self, *links: Link) -> None:
        """Apply these links, and write the environments' cards."""
        self.world.apply(*links, purge=True)
        for name in {end for link in links for end in (link.source, link.target)}:
            tell(self.world, name, self.folder / name)

    def card(self, name: str) -> dict:
        return json.loads((self.folder / name / "environment.json").read_text())

    def program(self, name: str, **options) -> Program:
        self.programs.append(Program(self.world, name, self.folder / name, **options))
        return self.programs[-1]

    def example(self, name: str, which: str, *arguments: str, before: str = "") -> subprocess.Popen[str]:
        """Run one of the client's examples, after the code *before*, inside an environment; return its process."""
        path = f"import sys; sys.path[:0] = [{str(CLIENT / 'src')!r}, *{sys.path!r}]\n{before}\n"
        code = path + (CLIENT / f"examples/{which}.py").read_text()
        return self.world.run_inside(name, code, *arguments, cards=str(self.folder / name))


def cut() -> int:
    """Break all connections of this process's programs at the same time, without a notice; return their number."""
    broken = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as end:
            if end.type == socket.SOCK_STREAM and end.getpeername() == ("127.0.0.1", 5671):
                end.shutdown(socket.SHUT_RDWR)
                broken += 1
    return broken


@pytest.fixture(scope="module")
def linked(standing, tmp_path_factory) -> Town:
    standing.environment(*NAMES)
    town = Town(standing, tmp_path_factory.mktemp("cards"))
    town.apply(*LINKS)
    return town


@pytest.fixture
def town(linked) -> Iterator[Town]:
    with contextlib.ExitStack() as after:  # of all these, each is done, even if another can't be
        after.callback(no_mail, linked.world)
        after.callback(linked.apply, *LINKS)
        yield linked
        after.callback(linked.programs.clear)
        for program in linked.programs:
            after.callback(program.leave)


async def every(work) -> list:
    return await asyncio.gather(*work, return_exceptions=True)


# -- what it does ------------------------------------------------------------------------------
def test_a_message_arrives_and_its_sender_is_known(town):
    web, audit = town.program("web"), town.program("audit")
    identity = web.send("audit", "sold")

    async def take():
        async with await audit.mailbox.receive(timeout=30) as message:
            return message.sender, message.id, message.text, message.content_type, message.wants_reply

    assert audit.run(take()) == ("web", identity, "sold", "text/plain", False)


def test_links_are_those_of_the_card_as_it_is_now(town):
    web = town.program("web")
    seen = lambda: {(link.direction, link.peer, link.pattern) for link in web.mailbox.links()}  # noqa: E731
    assert seen() == {("to", "orders", "request"), ("to", "audit", "send"), ("to", "vault", "request")}
    with pytest.raises(NotDeclared, match="may send to"):
        web.send("nobody", "x")
    with pytest.raises(NotDeclared, match="for sending only"):
        web.run(web.mailbox.call("audit", "x"))
    town.apply(ASK)
    assert seen() == {("to", "orders", "request")}


def test_a_call_is_answered_to_the_asker(town):
    web, orders = town.program("web"), town.program("orders")

    async def work(message):
        return f"{message.sender} asked {message.text}"

    serving = orders.start(orders.mailbox.serve(work))
    answers = web.run(every(web.mailbox.call("orders", str(number), 60) for number in range(20)))
    assert [answer.text for answer in answers] == [f"web asked {number}" for number in range(20)]
    assert {answer.sender for answer in answers} == {"orders"}
    serving.cancel()


def test_a_program_asks_whoever_has_the_local_name_now(town):
    def on_the_broker():
        with town.world.here(), town.world.api() as api:
            return {
                section: sorted(map(json.dumps, entries)) if isinstance(entries, list) else entries
                for section, entries in api.get("definitions").items()
            }

    def named(link: Link) -> Link:
        return msgspec.structs.replace(link, local="shop")

    def serve(program: Program):
        async def work(message):
            return f"{program.name}, asked by {message.sender}"

        return program.start(program.mailbox.serve(work))

    others, before = (TELL, ALSO, OTHERS), on_the_broker()
    for changes in ([(ASK.name, "change")], []):
        plan = town.world.apply(named(ASK), SEALED, *others)
        assert [(step.name, step.action) for step in plan.steps] == changes
    assert on_the_broker() == before, "it is the card's alone"

    town.apply(named(ASK), *others)
    web, orders, vault = town.program("web"), town.program("orders"), town.program("vault")
    serving = [serve(orders), serve(vault)]
    ask = lambda: web.run(web.mailbox.call("shop", "who are you?", 60))  # noqa: E731
    assert ask().text == "orders, asked by web"
    town.apply(named(SEALED), *others)
    assert (ask().text, ask().sender) == ("vault, asked by web", "vault")
    assert {(link.peer, link.pattern) for link in web.mailbox.links()} == {("shop", "request"), ("audit", "send")}
    for one in serving:
        one.cancel()


def test_a_call_that_nobody_answers_times_out_and_its_late_answer_is_dropped(town):
    web, orders = town.program("web"), town.program("orders")

    def in_vain() -> bool:
        """Return whether a request was sent and then timed out. On a busy machine it may time out before it is sent."""
        try:
            web.run(web.mailbox.call("orders", "first", 1.0))
        except LinkError as err:
            return isinstance(err, Timeout) and "didn't answer" in str(err)
        pytest.fail("nobody is there to answer")

    until(in_vain)

    async def work(message):
        return message.text

    serving = orders.start(orders.mailbox.serve(work))
    assert web.run(web.mailbox.call("orders", "second", 60)).text == "second"
    serving.cancel()


def test_an_answer_to_one_who_left_is_said_to_be_in_vain(town):
    web, orders = town.program("web"), town.program("orders")
    asking = web.start(web.mailbox.call("orders", "anybody?", 60))
    until(lambda: len(orders.mailbox._arrivals.inbox) == 1)
    asking.cancel()
    web.leave()

    async def answer():
        async with await orders.mailbox.receive(timeout=30) as message:
            return await message.reply("yes")

    assert orders.run(answer()) is False


def test_receive_is_selective_and_others_stay_in_order(town):
    web, orders, audit = town.program("web"), town.program("orders"), town.program("audit")
    for number in range(5):
        web.send("audit", f"web {number}")
    orders.send("audit", "orders 0")
    assert audit.receive("orders") == "orders 0"
    assert audit.receive(lambda message: message.text.endswith("3")) == "web 3"
    assert [audit.receive() for _ in range(4)] == ["web 0", "web 1", "web 2", "web 4"]
    with pytest.raises(Timeout):
        audit.receive(timeout=0.2)


def test_what_cannot_be_sent_is_refused_and_no_other_message_is_told_wrong(town):
    web, audit = town.program("web"), town.program("audit")
    web.send("audit", "before")
    for wrong in ({"id": "i" * 256}, {"content_type": "t" * 256}, {"id": "\ud800"}):
        with pytest.raises(Refused, match=r"can carry|can't be sent"):
            web.send("audit", "bad", **wrong)
    for body, wrong in (("bad", {"id": 5}), ({"a": 1}, {}), (7, {}), (None, {})):
        with pytest.raises(TypeError, match="expected"):
            web.send("audit", body, **wrong)
    with pytest.raises(Refused):
        web.run(web.mailbox.call("orders", "bad", content_type="t" * 256))

    async def unforeseen():
        """Send a message that only aiormq refuses, among valid messages."""
        outlet = next(iter(web.mailbox._lines.outlets.values()))
        bad = outlet.publish(Parcel(b"bad", spec.Basic.Properties(message_id=["no text"])), 60)
        return await every([bad, *(web.mailbox.send("audit", str(number)) for number in range(3))])

    failed, *sent = web.run(unforeseen())
    assert isinstance(failed, TypeError)
    assert [type(one) for one in sent] == [str] * 3
    web.send("audit", "after")
    assert [audit.receive() for _ in range(5)] == ["before", "0", "1", "2", "after"]


def test_what_is_urgent_comes_before_others_that_wait(town):
    web, orders = town.program("web"), town.program("orders")
    for number in range(9):
        web.send("audit", str(number))
    orders.send("audit", "urgent", urgent=True)
    asking = web.start(web.mailbox.call("vault", "sealed", urgent=True))
    audit, vault = town.program("audit"), town.program("vault")
    got = [audit.receive() for _ in range(10)]
    # With 4.3 the guard gives all messages the same priority: its queues would deliver all urgent ones first.
    assert got.index("urgent") < 3 if versions.server() < (4, 3) else got[9] == "urgent"
    assert [text for text in got if text != "urgent"] == list("012345678")
    assert vault.receive() == "sealed"
    asking.cancel()


def test_whoever_calls_all_of_his_urgent_does_not_keep_the_others_from_coming(town):
    web, orders = town.program("web"), town.program("orders")
    for number in range(12):
        orders.send("audit", "urgent", urgent=True)
        if number < 3:
            web.send("audit", "patient")
    audit = town.program("audit")
    got = [audit.receive() for _ in range(15)]
    assert got.index("patient") < 3
    assert got[:9].count("patient") == 3


def test_a_receiver_that_waits_for_what_cannot_come_is_told(town):
    web, audit = town.program("web"), town.program("audit", capacity=3)
    for number in range(5):
        web.send("audit", str(number))
    with pytest.raises(InboxFull, match="3 messages wait here"):
        audit.receive("orders", timeout=50)
    assert [audit.receive() for _ in range(5)] == list("01234")


def test_no_more_is_taken_while_many_bytes_are_here(town):
    web, audit = town.program("web"), town.program("audit", memory=1000)
    held = audit.mailbox._arrivals.inbox
    until(audit.reads)
    web.send("audit", "x" * 1001)
    until(lambda: len(held) == 1, patience=60)
    until(lambda: all(ear._consumer is None for ear in audit.mailbox._arrivals._ears), patience=60)
    for number in range(3):
        web.send("audit", str(number))
    with pytest.raises(InboxFull, match="1 messages wait here"):
        audit.receive("orders", timeout=1)
    time.sleep(0.5)
    assert len(held) == 1
    assert audit.receive() == "x" * 1001
    assert [audit.receive() for _ in range(3)] == list("012")


def test_what_was_rejected_is_received_when_it_is_sent_again(town):
    web, audit, letters = town.program("web"), town.program("audit"), Letters(town.world.layout)
    web.send("audit", "too early", id="one")

    async def reject():
        await (await audit.mailbox.receive(timeout=30)).reject()

    audit.run(reject())
    until(lambda: letters.count()["count"] == 1, patience=60)
    assert letters.redeliver()["sent"] == {"web.audit": 1}
    assert audit.receive() == "too early"


def test_what_no_link_leads_to_any_more_is_forgotten(town):
    web, orders = town.program("web"), town.program("orders")

    async def work(message):
        return "well"

    serving = orders.start(orders.mailbox.serve(work))
    assert web.run(web.mailbox.call("orders", "how are you?", 60)).text == "well"
    web.send("audit", "x")
    assert (len(web.mailbox._lines.outlets), len(orders.mailbox._lines.outlets)) == (2, 1)
    assert len(web.mailbox._answers._keys) == len(web.mailbox._answers._bound) == 1
    town.apply(TELL, ALSO, SEALED, OTHERS)
    until(lambda: len(web.mailbox._lines.outlets) == 1, patience=60)
    until(lambda: not orders.mailbox._lines.outlets, patience=60)
    assert not web.mailbox._answers._keys
    assert not web.mailbox._answers._bound
    web.send("audit", "y")
    serving.cancel()


def test_work_that_fails_comes_again_and_unfinished_work_goes_to_a_successor(town):
    web, audit = town.program("web"), town.program("audit")
    web.send("audit", "hard")

    async def fail():
        async with await audit.mailbox.receive(timeout=30):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        audit.run(fail())
    audit.run(audit.mailbox.receive(timeout=30))  # and is not acknowledged
    audit.die()
    assert town.program("audit").receive() == "hard"


def test_the_examples_work_as_they_stand_and_are_short(town):
    assert all(len((CLIENT / f"examples/{name}.py").read_text().splitlines()) <= 30 for name in ("echo", "asker"))
    serving = town.example("orders", "echo")
    try:
        web = town.program("web")
        for body in (b"\xff\xfe no text", b"", b"\0" * 1000):  # no message ends a service
            web.run(web.mailbox.send("orders", body))
        asking = town.example("web", "asker", "orders", "hello")
        assert asking.communicate(timeout=60) == ("web said HELLO\n", "")
        assert serving.poll() is None
    finally:
        serving.kill()
        serving.communicate()


def test_a_confined_program_asks_as_before(town):
    confined = "from netspace_client import confine; confine()"
    serving = town.example("orders", "echo", before=confined)
    try:
        asking = town.example("web", "asker", "orders", "hello", before=confined)
        assert asking.communicate(timeout=60) == ("web said HELLO\n", "")
        assert serving.poll() is None
    finally:
        serving.kill()
        serving.communicate()


# -- what it stands -------------------------------------------------------------------------------
def test_nothing_is_lost_and_nothing_comes_twice_though_connections_and_broker_die(town):
    """A thousand messages arrive once each, although all connections are cut repeatedly and the broker is killed."""
    web, audit = town.program("web", confirm=5.0), town.program("audit")
    got: list[str] = []

    async def collect():
        async for message in audit.mailbox.messages():
            async with message:
                got.append(message.text)

    collecting = audit.start(collect())
    web.send("audit", "first")
    until(lambda: got == ["first"], patience=60)

    async def pour():
        return await every(
            web.mailbox.send("audit", str(number), timeout=150, id=f"m{number}") for number in range(1000)
        )

    def both_anew() -> bool:
        return len((web.connections() | audit.connections()) - former) == 2

    pouring, former = web.start(pour()), set()
    for goal in (100, 300):
        until(lambda goal=goal: len(got) > goal, f"{len(got)} of 1000", patience=60)
        until(both_anew)
        former |= web.connections() | audit.connections()
        assert cut() >= 2
    until(lambda: len(got) > 500, f"{len(got)} of 1000", patience=60)
    town.world.kill_broker()
    town.world.apply(*LINKS)
    assert [result for result in pouring.result(160) if isinstance(result, Exception)] == []
    until(lambda: len(got) >= 1001, f"{len(got)} of 1000", patience=60)
    # In order, each once.
    assert got == ["first", *map(str, range(1000))]
    collecting.cancel()


def test_order_is_kept_though_the_broker_notices_late_that_a_receiver_is_gone(town, monkeypatch):
    monkeypatch.setattr("netspace_client.ear.LEFT_SECONDS", 60.0)
    web, audit = town.program("web"), town.program("audit", capacity=10)
    web.send("audit", "first")
    assert audit.receive() == "first"

    async def lose() -> list[int]:
        """End the connection without the broker's notice, while ten messages are on their way to this program."""
        for number in range(10):
            web.send("audit", str(number))
        held = []
        for transport in asyncio.get_running_loop()._transports.values():
            if transport.get_extra_info("peername") == ("127.0.0.1", 5671):
                held.append(os.dup(transport.get_extra_info("socket").fileno()))
                transport.abort()
        return held

    former = audit.connections()
    held = audit.run(lose())
    assert len(held) == 1
    for number in range(10, 20):
        web.send("audit", str(number))

    async def take() -> tuple[str, bool]:
        async with await audit.mailbox.receive(timeout=30) as message:
            return message.text, message._delivery.redelivered

    taking = audit.start(take())
    try:
        until(lambda: audit.connections() - former)
        time.sleep(0.5)
        assert not taking.done(), "it reads beside its former self"
    finally:
        for fd in held:
            os.close(fd)
    got = [taking.result(60), *(audit.run(take()) for _ in range(19))]
    assert got == [(str(number), number < 10) for number in range(20)]


def test_who_reads_beside_another_is_not_kept_from_it(town):
    web, audit = town.program("web"), town.program("audit")
    web.send("audit", "first")
    assert audit.receive() == "first"
    second = town.program("audit", capacity=1)
    taking = second.start(second.mailbox.receive(timeout=50))
    until(lambda: web.send("audit", "more") and taking.done(), pause=0.2)
    assert taking.result().text == "more"


@pytest.mark.replay
def test_what_a_sender_repeats_is_received_once(town):
    web, audit = town.program("web"), town.program("audit")
    for _ in range(3):
        web.send("audit", "once", id="the same")
    web.send("audit", "twice")
    assert [audit.receive(), audit.receive()] == ["once", "twice"]
    assert audit.mailbox.duplicates == 2
    orders = town.program("orders")
    orders.send("audit", "of another", id="the same")
    assert audit.receive() == "of another"


def test_work_in_hand_outlives_a_lost_connection_and_is_done_once(town):
    web, audit = town.program("web"), town.program("audit")
    web.send("audit", "long work")
    web.send("audit", "next")
    message = audit.run(audit.mailbox.receive(timeout=30))
    held = audit.mailbox._arrivals.inbox
    until(lambda: len(held) == 1, patience=60)
    former = message._delivery
    assert cut() == 2
    until(lambda: message._delivery is not former, patience=60)  # handed out again, and known
    until(lambda: all(one._delivery.channel is message._delivery.channel for one in held._held))
    audit.run(message.ack())
    assert audit.receive() == "next"
    with pytest.raises(Timeout):
        audit.receive(timeout=0.3)
    audit.leave()
    until(lambda: messages(town.world, town.card("audit")["mailbox"]) == 0)


@pytest.fixture
def impatient(town) -> Iterator[None]:
    """A broker that closes channels that hold a message for a second, unless the queue's policy permits more."""
    setting = "[application:set_env(rabbit, Key, Value) || {{Key, Value}} <- [{}]]."
    settings = "{{consumer_timeout, {}}}, {{channel_tick_interval, {}}}"
    town.world.evaluate(setting.format(settings.format(1000, 500)))
    yield
    town.world.evaluate(setting.format(settings.format(1_800_000, 60_000)))


def test_a_message_may_be_in_hand_for_longer_than_the_brokers_own_limit(town, impatient):
    web, audit = town.program("web"), town.program("audit")
    web.send("audit", "long work")
    web.send("audit", "waits here")
    message = audit.run(audit.mailbox.receive(timeout=30))
    channel = message._delivery.channel
    time.sleep(5)
    assert not channel.is_closed
    audit.run(message.ack())
    assert audit.receive() == "waits here"


def test_work_that_takes_longer_than_any_may_is_done_once(town, impatient):
    changed(town, "netspace.mailbox", "consumer-timeout", 1000)
    web, audit = town.program("web"), town.program("audit")
    web.send("audit", "endless work")
    message = audit.run(audit.mailbox.receive(timeout=30))
    former = message._delivery
    until(lambda: message._delivery is not former, patience=60)
    audit.run(message.ack())
    with pytest.raises(Timeout):
        audit.receive(timeout=0.3)


@pytest.mark.revocation
def test_a_revoked_link_is_told_and_the_others_go_on(town):
    web, audit, orders = (town.program(name) for name in ("web", "audit", "orders"))
    web.send("audit", "before")
    town.world.apply(ASK, ALSO, purge=True)  # the cards still tell of the link
    with pytest.raises(Revoked):
        web.send("audit", "after")

    async def work(message):
        return "well"

    serving = orders.start(orders.mailbox.serve(work))
    assert web.run(web.mailbox.call("orders", "how are you?", 60)).text == "well"
    orders.send("audit", "from another")
    assert audit.receive("orders") == "from another"
    town.apply(ASK, ALSO)
    with pytest.raises(NotDeclared):
        web.send("audit", "after")
    town.apply(*LINKS)
    web.send("audit", "again")
    assert audit.receive("web", 30) in ("before", "again")
    serving.cancel()


@pytest.mark.revocation
def test_nothing_of_a_revoked_sender_is_handed_out_though_it_was_here_before(town):
    web, orders, audit = town.program("web"), town.program("orders"), town.program("audit")
    for number in range(3):
        web.send("audit", str(number))
    orders.send("audit", "of another")
    until(lambda: len(audit.mailbox._arrivals.inbox) == 4, patience=60)
    town.apply(ASK, ALSO, SEALED, OTHERS)
    assert audit.receive() == "of another"
    with pytest.raises(Timeout):
        audit.receive(timeout=0.3)
    assert audit.mailbox.strays == 3
    until(lambda: Letters(town.world.layout).count()["count"] == 3, patience=60)


def test_a_service_outlives_an_asker_that_is_revoked_amid_its_question(town):
    web, orders = town.program("web"), town.program("orders")
    begun, gate = threading.Event(), asyncio.Event()

    async def work(message):
        if message.text == "slow":
            begun.set()
            await gate.wait()
        return message.text

    async def open_gate():
        gate.set()

    serving = orders.start(orders.mailbox.serve(work))
    asking = web.start(web.mailbox.call("orders", "slow", 30))
    assert begun.wait(60)
    town.world.apply(TELL, ALSO, purge=True)  # the answer has nowhere to go
    orders.run(open_gate())
    town.apply(*LINKS)

    def quick() -> bool:
        # An answer finds no way back until the asker has noticed that its queue for answers is another.
        with contextlib.suppress(LinkError):
            return web.run(web.mailbox.call("orders", "quick", 5)).text == "quick"
        return False

    until(quick, patience=100)
    assert not serving.done()
    asking.cancel()
    serving.cancel()


def changed(town, policy: str, key: str, value: int) -> None:
    """Change one limit in the broker's policies of queues; the next apply restores it."""
    with town.world.api() as api:
        policies = [one for one in api.get("policies", "netspace") if one["name"].startswith(policy)]
        for one in policies:
            one["definition"][key] = value
        api.post("definitions", body={"policies": policies})


@pytest.mark.exhaustion
def test_a_full_mailbox_is_told_and_takes_more_when_it_was_read(town):
    web, orders = town.program("web"), town.program("orders")
    changed(town, "netspace.mailbox", "max-length", 2)

    async def pour():
        sent = 0
        while True:
            await web.mailbox.send("orders", str(sent))
            sent += 1

    with pytest.raises(MailboxFull):
        web.run(pour())
    town.world.apply(*LINKS)

    def again() -> bool:
        with contextlib.suppress(MailboxFull):
            return bool(web.send("orders", "more"))
        return False

    until(again, patience=60)
    assert orders.receive() == "0"


@pytest.mark.exhaustion
def test_an_asker_who_does_not_read_his_answers_has_no_work_done_twice(town):
    web, orders, done = town.program("web"), town.program("orders"), Counter()
    changed(town, "netspace.replies", "max-length", 1)

    async def work(message):
        done[message.text] += 1
        return "done"

    ask = next(peer for peer in town.card("web")["peers"] if peer["to"] == "orders")
    web.leave()
    with town.world.client("web") as channel:
        channel.queue_bind(ask["replies"]["queue"], ask["replies"]["exchange"], "k")
        about = pika.BasicProperties(reply_to=f"{ask['replies']['exchange']}/k", correlation_id="c")
        for number in range(5):
            channel.basic_publish(ask["exchange"], "", str(number).encode(), about, mandatory=True)
        channel.basic_publish(ask["exchange"], "", b"last", mandatory=True)
        serving = orders.start(orders.mailbox.serve(work))
        until(lambda: done["last"], patience=60)  # what is done again comes before it
    assert set(done.values()) == {1}
    assert not serving.done()
    serving.cancel()


def stopped(pid: int) -> bool:
    """Return whether all threads of a process are stopped (proc_pid_stat(5)). Some threads go on for a moment."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


def test_a_broker_out_of_reach_is_told(town):
    web = town.program("web")
    web.send("audit", "x")
    pid = town.world.supervisor.observe()[node.NODE].pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: stopped(pid), "all threads of the broker stop")
        with pytest.raises((Timeout, Unreachable)):
            web.send("audit", "y", timeout=1.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    web.send("audit", "z")


def test_a_program_waits_for_a_broker_that_is_not_up_yet(town):
    subprocess.run(["ip", "-n", town.world.layout.netns_name("web"), "link", "set", "lo", "down"], check=True)
    try:
        web = town.program("web")
        with pytest.raises(Unreachable, match="wasn't reached"):
            web.send("audit", "x", timeout=0.5)
        sending = web.start(web.mailbox.send("audit", "patient"))
    finally:
        subprocess.run(["ip", "-n", town.world.layout.netns_name("web"), "link", "set", "lo", "up"], check=True)
    sending.result(60)
    assert town.program("audit").receive() == "patient"


def test_senders_wait_their_turn_beyond_what_may_be_in_flight(town):
    web = town.program("web", in_flight=3)
    most = 0

    async def pour():
        nonlocal most

        async def watch():
            nonlocal most
            while True:
                most = max(most, *(len(outlet._pending) for outlet in web.mailbox._lines.outlets.values()), 0)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        results = await every(web.mailbox.send("audit", str(number)) for number in range(100))
        watching.cancel()
        return results

    assert not [result for result in web.run(pour()) if isinstance(result, Exception)]
    assert 1 <= most <= 3


def test_no_letter_keeps_its_receiver_from_the_others(town):
    """Messages with undecodable properties are received, and so are the messages after them.

    The broker runs without its guard, which would refuse such messages.
    """
    nested: dict = {}
    for _ in range(350):
        nested = {"x": nested}
    letters = [
        pika.BasicProperties(content_type=b"\xff"),
        pika.BasicProperties(message_id=b"\xc3"),
        pika.BasicProperties(timestamp=2**62),
        pika.BasicProperties(headers=nested),
        pika.BasicProperties(message_id="fine"),
    ]
    audit = town.program("audit")
    with town.world.unguarded(), town.world.client("web") as channel:
        exchange = next(peer["exchange"] for peer in town.card("web")["peers"] if peer["to"] == "audit")
        for number, about in enumerate(letters):
            key = b"\xff" if number == 4 else ""
            channel.basic_publish(exchange, key, str(number).encode(), about, mandatory=True)
    town.program("orders").send("audit", "honest")

    async def take():
        async with await audit.mailbox.receive(timeout=50) as message:
            return message.text, message.id, message.redelivered

    got = [audit.run(take()) for _ in range(6)]
    assert [text for text, _, _ in got] == ["0", "1", "2", "3", "4", "honest"]
    assert [identity for _, identity, _ in got[:5]] == [None, None, None, None, "fine"]
    assert not any(redelivered for _, _, redelivered in got)


# -- narrowed links ---------------------------------------------------------------------------------
def narrowed(town, **more) -> tuple[Program, str]:
    """Declare limits for web's link to audit; return audit's program, and the exchange for hostile messages."""
    links = (ASK, Link(source="web", target="audit", **more), ALSO, SEALED, OTHERS)
    town.apply(*links)
    assert not town.world.plan(*links).steps
    exchange = next(peer["exchange"] for peer in town.card("web")["peers"] if peer["to"] == "audit")
    return town.program("audit"), exchange


def test_a_link_is_narrowed_at_both_ends(town):
    audit, exchange = narrowed(town, size=5, content_type="application/json")
    web = town.program("web")
    web.send("audit", "12345", content_type="application/json")
    for body, kind in (("123456", "application/json"), ("12345", "text/plain"), ("12345", None)):
        with pytest.raises(Refused, match=r"the link to audit: .* permits"):
            web.send("audit", body, content_type=kind)
    with town.world.client("web") as channel:
        for body, kind in ((b"123456", "application/json"), (b"12345", "text/plain"), (b"1", "application/json")):
            channel.basic_publish(exchange, "", body, pika.BasicProperties(content_type=kind), mandatory=True)
    assert [audit.receive() for _ in range(2)] == ["12345", "1"]
    assert audit.mailbox.refused == 2
    until(lambda: Letters(town.world.layout).count()["count"] == 2, patience=60)


@pytest.mark.exhaustion
def test_a_rate_is_kept_though_the_sender_does_not(town):
    audit, exchange = narrowed(town, rate=2, length=5)
    web, begun = town.program("web"), time.monotonic()
    web.send("audit", "1")
    web.send("audit", "2")
    with pytest.raises(TooFast, match="retry in"):
        for _ in range(20):
            web.send("audit", "3")
    got: list[float] = []

    async def collect():
        async for message in audit.mailbox.messages("web"):
            async with message:
                got.append(time.monotonic() - begun)

    collecting = audit.start(collect())
    refused = 0
    with town.world.client("web") as channel:
        for _ in range(300):
            try:
                channel.basic_publish(exchange, "", b"x", mandatory=True)
            except pika.exceptions.NackError:
                refused += 1
        town.program("orders").send("audit", "of another")  # nobody waits for web's mail
        assert audit.receive("orders") == "of another"
        until(lambda: len(got) >= 8, patience=60)
    collecting.cancel()
    # All that came, came at the rate, but for a second's worth at once.
    assert all(place <= 2 + 2 * at for place, at in enumerate(got, 1)), got
    assert refused


# -- monitoring -------------------------------------------------------------------------------------
def test_a_monitor_is_told_of_a_death_of_a_return_and_of_the_end_of_the_link(town):
    orders = town.program("orders")
    monitor = orders.run(watched(orders, "audit"))
    serving = town.example("audit", "echo")
    try:
        assert orders.run(monitor.change(50)) == Change("audit", "up")
    finally:
        serving.kill()
        serving.communicate()
    assert orders.run(monitor.change(50)) == Change("audit", "down")
    first, second = town.program("audit"), town.program("audit")
    assert orders.run(monitor.change(50)) == Change("audit", "up")
    until(lambda: len(monitor._readers._known) == 2, patience=60)
    first.leave()  # which leaves another
    until(lambda: len(monitor._readers._known) == 1, patience=60)
    second.die()
    assert orders.run(monitor.down(50)) == Change("audit", "down")
    town.apply(ASK, TELL, SEALED, OTHERS)
    assert orders.run(ended(monitor)) == [Change("audit", "revoked")]
    with pytest.raises(Revoked):
        orders.run(monitor.change(1))


async def watched(program: Program, peer: str):
    return program.mailbox.monitor(peer)


async def ended(monitor) -> list[Change]:
    return [change async for change in monitor]


def test_only_a_declared_peer_is_monitored_and_nothing_else_is_told(town):
    web, orders = town.program("web"), town.program("orders")
    with pytest.raises(NotDeclared, match="monitor: true"):
        web.run(watched(web, "audit"))
    monitor = orders.run(watched(orders, "audit"))
    for _ in range(3):
        vault = town.program("vault")
        until(vault.reads)
        vault.die()
    town.program("audit")
    assert orders.run(monitor.change(50)) == Change("audit", "up")


# -- sealed links ------------------------------------------------------------------------------------
class Relay:
    """A relay of all messages for *name*: it can read, take and publish any message."""

    def __init__(self, town: Town, name: str) -> None:
        self.town = town
        self.queue = town.card(name)["mailbox"]
        self.exchanges = {sender["from"]: sender["exchange"] for sender in town.card(name)["senders"]}

    def take(self) -> dict:
        """Remove the next message from the queue, and return it."""
        got: list[dict] = []

        def ask() -> bool:
            body = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "base64"}
            with self.town.world.api() as api:
                got.extend(api.post("queues", "netspace", self.queue, "get", body=body))
            return bool(got)

        until(ask, patience=60)
        return got[0]

    def put(self, letter: dict, sender: str, payload: bytes | None = None, **changed: str) -> None:
        """Publish *letter* over the link of *sender*."""
        letter = {
            "properties": {**letter["properties"], **changed},
            "routing_key": "",
            "payload": base64.b64encode(payload).decode() if payload is not None else letter["payload"],
            "payload_encoding": "base64",
        }
        with self.town.world.api() as api:
            answer = api.post("exchanges", "netspace", self.exchanges[sender], "publish", body=letter)
        assert answer == {"routed": True}


def test_a_sealed_link_is_used_as_any_other(town):
    web, vault = town.program("web"), town.program("vault")

    async def work(message):
        return f"{message.sender}, {message.content_type}, {message.sealed_at is not None}: {message.text}"

    serving = vault.start(vault.mailbox.serve(work))
    answer = web.run(web.mailbox.call("vault", "the plan", 60))
    assert answer.text == "web, text/plain, True: the plan"
    assert answer.sealed_at is not None
    serving.cancel()


def test_the_broker_sees_nothing_of_what_is_sealed(town):
    web, relay = town.program("web"), Relay(town, "vault")
    asking = web.start(web.mailbox.call("vault", "the plan", 60, content_type="text/secret"))
    letter = relay.take()
    raw = base64.b64decode(letter["payload"])
    seen = [raw, *(base64.urlsafe_b64decode(part + b"===") for part in raw.split(b"."))]
    assert not any(word in part for part in seen for word in (b"the plan", b"secret"))
    assert letter["properties"]["content_type"] == "application/jose"
    relay.put(letter, "web")
    vault = town.program("vault")

    async def answer():
        async with await vault.mailbox.receive(timeout=30) as message:
            return message.text, message.content_type, await message.reply("yes")

    assert vault.run(answer()) == ("the plan", "text/secret", True)
    assert asking.result(60).text == "yes"


@pytest.mark.replay
def test_a_relay_that_changes_or_repeats_what_is_sealed_is_refused(town):
    web, relay = town.program("web"), Relay(town, "vault")
    web.send("vault", "genuine")
    letter = relay.take()
    vault = town.program("vault")
    relay.put(letter, "orders")  # as if it were another's
    relay.put(letter, "web", message_id="another")
    relay.put(letter, "web", correlation_id="another")
    relay.put(letter, "web", payload=b"in clear")
    relay.put(letter, "web", payload=b"in clear", message_id="new", content_type="text/plain")
    until(lambda: vault.mailbox.refused == 5, patience=60)
    relay.put(letter, "web")
    assert vault.receive() == "genuine"
    relay.put(letter, "web")  # once more
    web.send("vault", "after")
    assert vault.receive() == "after"
    assert (vault.mailbox.refused, vault.mailbox.duplicates) == (5, 1)
    with pytest.raises(Timeout):
        vault.receive(timeout=0.3)


@pytest.mark.replay
def test_a_repetition_that_is_no_longer_remembered_is_refused_by_its_age(town):
    web, relay = town.program("web"), Relay(town, "vault")
    web.send("vault", "first")
    letter = relay.take()
    vault = town.program("vault", window=2)
    relay.put(letter, "web")
    for number in range(4):
        web.send("vault", str(number))
    assert [vault.receive() for _ in range(5)] == ["first", "0", "1", "2", "3"]
    relay.put(letter, "web")
    until(lambda: vault.mailbox.refused == 1, patience=60)


@pytest.mark.replay
def test_an_answer_to_another_question_is_not_taken(town):
    """An answer sealed for one request is sent as the answer to another; the asker refuses it."""
    web, vault = town.program("web"), town.program("vault")
    asking = [web.start(web.mailbox.call("vault", question, 60)) for question in ("one", "two")]

    async def cross():
        first, second = await vault.mailbox.receive(timeout=30), await vault.mailbox.receive(timeout=30)
        sealing = vault.mailbox._sealing
        real = sealing.prepared

        def crossed(*given, **about):
            raw, properties = real(*given, **about)
            properties.correlation_id = second.correlation_id
            return raw, properties

        sealing.prepared = crossed
        await first.reply("to one")
        sealing.prepared = real
        await second.reply("to two")
        await first.reply("to one")

    vault.run(cross())
    assert {answer.result(60).text for answer in asking} == {"to one", "to two"}
    assert web.mailbox.refused == 1


def test_new_keys_amid_a_stream_lose_nothing(town):
    """The keys of both ends are renewed twice during a stream of messages; none is lost.

    The ends get each new key at different times.
    """
    web, vault = town.program("web"), town.program("vault")
    got: list[str] = []
    kids: set[str] = set()

    async def collect():
        async for message in vault.mailbox.messages():
            kids.add(jose.decoded(message._delivery.body.partition(b".")[0])["kid"])
            async with message:
                got.append(message.text)

    async def pour():
        number = 0
        while not enough:
            await web.mailbox.send("vault", str(number))
            number += 1
            await asyncio.sleep(0.005)
        return number

    enough: list[bool] = []
    collecting, pouring = vault.start(collect()), web.start(pour())
    for order in (("web", "vault"), ("vault", "web")):
        known = {key["kid"] for key in town.world.links.keys()["vault"]}
        town.world.links.renew_keys(["web", "vault"], lead=5.0)
        for name in order:
            tell(town.world, name, town.folder / name)
            until(lambda: got, patience=60)
        until(lambda known=known: kids - known, f"only {len(kids)} keys in use", patience=60)
    enough.append(True)
    sent = pouring.result(60)
    until(lambda: len(got) >= sent, patience=60)
    assert got == [str(number) for number in range(sent)]
    assert (vault.mailbox.refused, len(kids)) == (0, 3)
    collecting.cancel()


def test_keys_are_made_once_and_are_nobody_elses(town):
    folder = town.world.layout.records("seals")
    assert {path.name for path in folder.iterdir()} == {"web.json", "orders.json", "vault.json"}
    assert not town.world.plan(*LINKS).steps
    secrets = {name: [key["d"] for key in keys] for name, keys in town.world.links.keys().items()}
    for name in NAMES:
        seen = "".join(path.read_text() for path in (town.folder / name).iterdir())
        for other, numbers in secrets.items():
            assert all((number in seen) is (other == name) for number in numbers)
