"""Parts of ``netspace-client`` that need no broker: the card, the window of ids, selective receive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pamqp.commands
import pamqp.frame
import pamqp.header
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace_client import (
    CardError,
    Change,
    Closed,
    LinkError,
    Mailbox,
    Monitor,
    NotDeclared,
    Refused,
    Revoked,
    Timeout,
    card,
    frames,
    narrowing,
)
from netspace_client.inbox import Inbox, Waiter
from netspace_client.monitor import Readers
from netspace_client.outlet import Parcel
from netspace_client.window import Window

STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CARD = {
    "version": 1,
    "name": "web",
    "mailbox": "box",
    "notices": "n",
    "broker": {
        "host": "127.0.0.1",
        "port": 5672,
        "vhost": "a/b",
        "username": "u",
        "password_file": "/run/netspace/password",
    },
    "peers": [
        {"to": "orders", "pattern": "request", "exchange": "x1", "replies": {"queue": "q", "exchange": "r"}},
        {
            "to": "audit",
            "pattern": "send",
            "exchange": "x2",
            "monitor": {"exchange": "e", "queue": "q2"},
            "something": "new",
        },
    ],
    "senders": [{"from": "audit", "pattern": "request", "exchange": "x3", "reply_exchange": "y"}],
}


# -- the card ----------------------------------------------------------------------------------
def test_every_name_of_the_card_is_taken_as_it_stands():
    read = card.parse(CARD, Path("/elsewhere"))
    assert read.peers["orders"].exchange == "x1"
    assert read.peers["orders"].replies == ("q", "r")
    assert read.peers["audit"].replies is None
    assert read.senders == {"x3": card.Sender("audit", "request", "x3", "y")}
    assert read.queues == ("box",)
    assert (read.peers["audit"].notices, read.peers["orders"].notices) == ("n", None)
    assert (read.peers["audit"].monitor, read.peers["orders"].monitor) == (("e", "q2"), None)
    assert read.broker is not None
    assert read.broker.password_file == Path("/elsewhere/password")
    assert read.broker.certificate is None


def test_a_certificate_and_a_broker_of_a_peers_own_are_read():
    tls = {"ca_file": "/run/netspace/ca.pem", "certificate_file": "/run/netspace/c", "key_file": "/etc/k"}
    far = {"host": "127.0.0.1", "port": 5673, "vhost": "v", "tls": {**tls, "server_name": "far"}}
    peers = [{**CARD["peers"][1], "broker": far}]
    broker = card.parse({**CARD, "peers": peers}).peers["audit"].broker
    assert (broker.port, broker.server_name) == (5673, "far")
    assert (broker.authority, broker.key) == (Path("/run/netspace/ca.pem"), Path("/etc/k"))


def named(**locals: str) -> dict:
    """Return the card, with these local names of peers."""
    return {
        **CARD,
        "peers": [{**peer, **({"as": locals[peer["to"]]} if peer["to"] in locals else {})} for peer in CARD["peers"]],
    }


def test_a_peer_is_called_by_its_local_name_and_by_its_own():
    read = card.parse(named(orders="shop"))
    orders, audit = read.peers["orders"], read.peers["audit"]
    assert read.called == {"shop": orders, "orders": orders, "audit": audit}
    assert (orders.name, orders.called, audit.called) == ("orders", "shop", "audit")
    with pytest.raises(CardError, match="peers:0: as is"):
        card.parse(named(orders=""))


def test_a_local_name_leads_to_whoever_has_it_now(tmp_path):
    """A program sends to a local name before and after another environment takes the peer's place."""
    place = tmp_path / "environment.json"

    async def play() -> None:
        place.write_text(json.dumps(named(audit="shop")))
        async with Mailbox(tmp_path) as mailbox:
            assert [(link.peer, link.pattern) for link in mailbox.links()][:2] == [
                ("orders", "request"),
                ("shop", "send"),
            ]
            watch, wanted = mailbox.monitor("shop"), mailbox._matcher("shop")
            with pytest.raises(NotDeclared, match="may send to orders, shop"):
                await mailbox.send("nobody", "x")
            assert wanted(SimpleNamespace(sender="audit")) and not wanted(SimpleNamespace(sender="shop"))

            place.write_text(json.dumps({**named(orders="shop"), "peers": named(orders="shop")["peers"][:1]}))
            assert mailbox._host.peer("shop").name == "orders"
            assert wanted(SimpleNamespace(sender="orders")) and not wanted(SimpleNamespace(sender="audit"))
            assert await watch.down(10) == Change("shop", "revoked"), "the one that was monitored is no peer any more"

    asyncio.run(play())


def test_what_a_peer_may_have_is_not_sent_to_another_that_has_its_local_name_by_now(tmp_path):
    place = tmp_path / "environment.json"
    published = []

    class Replaced:
        """A stand-in for the outlet of a peer that is replaced by another during the send."""

        async def publish(self, *letter: object, **options: object) -> None:
            published.append(letter)
            place.write_text(json.dumps(named(orders="shop")))
            raise Revoked("so it is")

    async def play() -> None:
        place.write_text(json.dumps({**named(audit="shop"), "peers": named(audit="shop")["peers"][1:]}))
        async with Mailbox(tmp_path) as mailbox:
            mailbox._lines.outlet = lambda *about: Replaced()
            with pytest.raises(Revoked):
                await mailbox.send("shop", "x")
            assert mailbox.card.called["shop"].name == "orders" and len(published) == 1

    asyncio.run(play())


@pytest.mark.parametrize("unknown", [False, True])
def test_message_of_a_renamed_link_may_have_come_by_its_old_one(tmp_path, unknown):
    place = tmp_path / "environment.json"
    repeats = []

    class Renamed:
        """A stand-in for the outlet of a peer whose link gets another exchange during the send."""

        async def publish(self, parcel: Parcel, timeout: float) -> None:
            repeats.append(parcel.sent)
            if len(repeats) == 1:
                place.write_text(json.dumps({**CARD, "peers": [{**CARD["peers"][1], "exchange": "another"}]}))
                error = Revoked("so it is")
                error.unknown = unknown
                raise error

    async def play() -> None:
        place.write_text(json.dumps(CARD))
        async with Mailbox(tmp_path) as mailbox:
            mailbox._lines.outlet = lambda *about: Renamed()
            await mailbox.send("audit", "x")

    asyncio.run(play())
    assert repeats == [False, unknown]


def test_all_queues_are_read_and_a_sender_may_have_a_former_exchange():
    former = {"from": "audit", "pattern": "send", "exchange": "old", "former": True}
    read = card.parse({**CARD, "queues": ["box", "beside"], "senders": [*CARD["senders"], former]})
    assert read.queues == ("box", "beside")
    assert {sender.name for sender in read.senders.values()} == {"audit"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 99}, "version 99 is not known"),
        ({"name": None}, "name is missing"),
        ({"peers": {}}, None),
        ({"peers": [1]}, "peers:0: expected a mapping"),
        ({"peers": [{"to": "a", "pattern": "send"}]}, "peers:0: exchange is missing"),
        ({"broker": None}, "there is no broker"),
        ({"queues": [""]}, "queues:0"),
        ({"broker": {**CARD["broker"], "port": "5672"}}, "broker:port"),
    ],
)
def test_a_card_that_is_not_understood_is_told(change, said):
    if said is None:
        assert card.parse({**CARD, **change}).peers == {}
        return
    with pytest.raises(CardError, match=said):
        card.parse({**CARD, **change})


odd = st.sampled_from([None, True, 0, 70_000, "", "x", [], [[]], [None], {}, {"to": 1}, {"host": []}, [{"from": {}}]])


@STEADY
@given(st.dictionaries(st.sampled_from(list(CARD)), odd), st.dictionaries(st.sampled_from(list(CARD["broker"])), odd))
def test_no_card_is_anything_but_read_or_refused(change, broker):
    with contextlib.suppress(CardError):
        read = card.parse({**CARD, "broker": {**CARD["broker"], **broker}, **change})
        assert isinstance(read, card.Card)


def test_a_missing_and_a_damaged_file_are_told(tmp_path):
    with pytest.raises(CardError, match="is this an environment"):
        card.load(tmp_path)
    for content in ("{", "[" * 100_000, '"text"'):
        (tmp_path / "environment.json").write_text(content)
        with pytest.raises(CardError, match=r"environment\.json"):
            card.load(tmp_path)


# -- the window ---------------------------------------------------------------------------------
@STEADY
@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123456789"))))
def test_the_window_holds_the_newest_ids_of_each_sender_and_no_others(size, added):
    window = Window(size)
    model: dict[str, OrderedDict[str, None]] = {}
    for sender, identity in added:
        window.add(sender, identity)
        ids = model.setdefault(sender, OrderedDict())
        ids.pop(identity, None)
        ids[identity] = None
    for sender in "abc":
        newest = list(model.get(sender, ()))[-size:]
        for identity in "123456789":
            assert ((sender, identity) in window) == (identity in newest)
    assert len(window) <= 2 * size


# -- selective receive ---------------------------------------------------------------------------
actions = st.lists(
    st.tuples(st.just("put"), st.integers(0, 9))
    | st.tuples(st.just("take"), st.sets(st.integers(0, 9)))
    | st.tuples(st.just("wait"), st.sets(st.integers(0, 9)))
    | st.tuples(st.just("leave"), st.integers(0, 3))
)


@STEADY
@given(actions)
def test_receive_gives_the_first_that_matches_and_keeps_the_others_in_order(steps):
    """The inbox is compared with a model: a list of messages and a list of waiters, both searched from the front."""

    async def play() -> None:
        inbox: Inbox[int] = Inbox()
        held: list[int] = []
        waiting: list[tuple[set[int], Waiter[int]]] = []
        for step, value in steps:
            if step == "put":
                taker = next(((wanted, waiter) for wanted, waiter in waiting if value in wanted), None)
                inbox.put(value)
                if taker is None:
                    held.append(value)
                else:
                    waiting.remove(taker)
                    assert taker[1].future.result() == value
            elif step == "take":
                expected = next((item for item in held if item in value), None)
                assert inbox.take(lambda item, value=value: item in value) == expected
                if expected is not None:
                    held.remove(expected)
            elif step == "wait":
                waiter = Waiter(lambda item, value=value: item in value, asyncio.get_running_loop().create_future())
                inbox.wait(waiter)
                waiting.append((value, waiter))
            elif waiting:
                inbox.leave(waiting.pop(value % len(waiting))[1])
            assert list(inbox._held) == held
            assert inbox.waiting == len(waiting)
            assert not any(waiter.future.done() for _, waiter in waiting)

    asyncio.run(play())


def test_a_match_that_fails_is_its_waiters_error_and_loses_nothing():
    async def play() -> None:
        inbox: Inbox[int] = Inbox()
        broken = Waiter(lambda item: 1 // item > 0, asyncio.get_running_loop().create_future())
        inbox.wait(broken)
        assert not inbox.put(0)
        assert isinstance(broken.future.exception(), ZeroDivisionError)
        assert inbox.take(lambda item: True) == 0

    asyncio.run(play())


# -- frames --------------------------------------------------------------------------------------
def frame(kind: int, payload: bytes) -> tuple[bytes, bytes]:
    return struct.pack(">BHI", kind, 1, len(payload)), payload + b"\xce"


values = st.recursive(
    st.booleans() | st.integers(0, 2**31) | st.text(max_size=5) | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@STEADY
@given(st.dictionaries(st.text("ab", max_size=3), values, max_size=4), st.data())
def test_what_can_be_decoded_is_left_as_it_was_and_of_anything_else_the_body_is_known(headers, data):
    about = pamqp.commands.Basic.Properties(headers=headers, message_id="m", content_type="t")
    raw = pamqp.header.ContentHeader(0, 7, about).marshal()
    head, payload = frame(frames.HEADER, raw)
    assert frames.harmless(head, payload) == payload
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(12, len(raw) - 1))] = data.draw(st.integers(0, 255))
    head, payload = frame(frames.HEADER, bytes(changed))
    _, _, header = pamqp.frame.unmarshal(head + frames.harmless(head, payload))
    assert header.body_size == 7


@STEADY
@given(st.integers(0, 0xFFFF), st.binary(max_size=80))
def test_any_bytes_as_properties_are_decoded_or_left_out(flags, properties):
    head, payload = frame(frames.HEADER, struct.pack(">HHQH", 60, 0, 7, flags) + properties)
    _, _, header = pamqp.frame.unmarshal(head + frames.harmless(head, payload))
    assert header.body_size == 7


@pytest.mark.parametrize(
    ("flags", "properties"),
    [
        (0x0001, b""),  # more flags follow, for ever
        (0x2000, struct.pack(">I", 7) + b"\x01aA" + struct.pack(">I", 99)),  # an array longer than all there is
        (0x2000, struct.pack(">I", 2**32 - 1)),
        (0x2000, (struct.pack(">I", 9) + b"\x01xF") * 40),
    ],
)
def test_false_lengths_are_not_followed(flags, properties):
    head, payload = frame(frames.HEADER, struct.pack(">HHQH", 60, 0, 7, flags) + properties)
    assert frames.harmless(head, payload)[12:14] == b"\0\0"


@STEADY
@given(st.text("abc", max_size=20), st.text("xyz.", max_size=20), st.binary(max_size=200))
def test_a_delivery_is_decoded_whatever_its_routing_key(tag, exchange, key):
    def short(raw: bytes) -> bytes:
        return bytes([len(raw)]) + raw

    content = short(tag.encode()) + struct.pack(">QB", 5, 0) + short(exchange.encode()) + short(key)
    head, payload = frame(frames.METHOD, struct.pack(">HH", 60, 60) + content)
    _, _, delivery = pamqp.frame.unmarshal(head + frames.harmless(head, payload))
    assert (delivery.consumer_tag, delivery.delivery_tag, delivery.exchange) == (tag, 5, exchange)


def test_other_frames_are_left_as_they_are():
    for kind, payload in ((3, b"\xff" * 20), (8, b""), (1, b"\xff" * 20), (2, b"\xff")):
        head, whole = frame(kind, payload)
        assert frames.harmless(head, whole) == whole


# -- monitoring -----------------------------------------------------------------------------------
@STEADY
@given(st.lists(st.sampled_from("abc")))
def test_a_peer_is_up_from_its_first_reader_to_its_last(turns):
    """Readers of a peer's mailbox begin and stop at random. The peer is reported as up as long as it has a reader."""
    readers, there = Readers(), set()
    for reader in turns:
        before = bool(there)
        there ^= {reader}
        told = readers.told(reader in there, reader)
        assert told == (None if bool(there) == before else "up" if there else "down")


def test_a_monitor_tells_what_came_after_it_and_ends_with_the_link():
    async def play() -> None:
        monitor = Monitor("orders")
        monitor.told(False, "unknown", monitor._since - 1)
        monitor.told(False, "unknown", monitor._since + 1)
        assert await monitor.change(1) == Change("orders", "down")
        with pytest.raises(Timeout):
            await monitor.change(0.01)
        monitor.told(True, "new", monitor._since + 2)
        monitor.revoked()
        monitor.revoked()
        assert (await monitor.down(1)).state == "revoked"
        assert [change async for change in monitor] == []
        with pytest.raises(Revoked):
            await monitor.change()
        flood = Monitor("orders")
        for number in range(1000):
            flood.told(number % 2 == 0, "one", flood._since + number)
        assert len(flood._changes) == 100

    asyncio.run(play())


# -- the mailbox, without a broker ------------------------------------------------------------------
def test_what_needs_no_broker_needs_none(tmp_path):
    """A mailbox without links, or whose broker is away, can be opened and closed; its calls fail in time."""

    async def play() -> None:
        (tmp_path / "environment.json").write_text(json.dumps({"version": 1, "name": "alone"}))
        async with Mailbox(tmp_path) as mailbox:
            assert mailbox.name == "alone"
            assert mailbox.links() == []
            with pytest.raises(NotDeclared):
                await mailbox.send("orders", "x")
            with pytest.raises(NotDeclared):
                await mailbox.receive()
        with pytest.raises(Closed):
            await mailbox.receive()
        away = {**CARD, "broker": {**CARD["broker"], "port": 1}}
        (tmp_path / "environment.json").write_text(json.dumps(away))
        async with Mailbox(tmp_path) as mailbox:
            with pytest.raises(Timeout):
                await mailbox.receive(timeout=0.05)
            with pytest.raises(LinkError, match="wasn't reached"):
                await mailbox.send("audit", "x", timeout=0.05)
            waiting = asyncio.create_task(mailbox.receive())
            await asyncio.sleep(0)
        with pytest.raises(Closed):
            await waiting

    asyncio.run(play())


def test_a_mailbox_that_was_not_opened_tells_how_to(tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps(CARD))

    async def play() -> None:
        with pytest.raises(Closed, match="async with"):
            await Mailbox(tmp_path).receive()

    asyncio.run(play())


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"capacity": 65536}, {"memory": 0}, {"in_flight": 0}])
def test_bounds_that_let_nothing_through_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Mailbox(**wrong)


# -- narrowed links ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("narrowed", "body", "kind", "passes"),
    [
        (card.Narrowed(), b"x" * 99, None, True),
        (card.Narrowed(size=3), b"xxx", None, True),
        (card.Narrowed(size=3), b"xxxx", None, False),
        (card.Narrowed(content_type="text/plain"), b"", "Text/Plain; charset=utf-8", True),
        (card.Narrowed(content_type="text/plain"), b"", "text/plainer", False),
        (card.Narrowed(content_type="text/plain"), b"", None, False),
    ],
)
def test_what_a_link_is_not_for_is_refused(narrowed, body, kind, passes):
    with contextlib.nullcontext() if passes else pytest.raises(Refused):
        narrowing.check(narrowed, body, kind)


@STEADY
@given(st.sampled_from([0.25, 1.0, 2.0, 10.0]), st.lists(st.floats(0, 2), max_size=60))
def test_in_no_time_do_more_come_than_the_rate_and_a_second_of_it(rate, gaps):
    pace, now, came = narrowing.Pace(rate), 100.0, []
    for gap in gaps:
        now += gap
        if not pace.wait(now):
            pace.take(now)
            came.append(now)
    for index, begin in enumerate(came):
        for number, end in enumerate(came[index:], 1):
            assert number <= max(1.0, rate) + (end - begin) * rate + 1e-6
    assert narrowing.Pace(rate).wait(now) == 0


def test_what_a_card_says_of_its_messages_is_read_or_refused():
    narrowed = {"size": 5, "content_type": "text/plain", "rate": 2}
    read = card.parse({**CARD, "senders": [{**CARD["senders"][0], **narrowed}]})
    assert read.senders["x3"].narrowed == card.Narrowed(5, "text/plain", 2)
    for wrong in ({"size": 0}, {"content_type": 5}, {"rate": 0}, {"rate": "5"}, {"rate": True}):
        with pytest.raises(CardError):
            card.parse({**CARD, "senders": [{**CARD["senders"][0], **narrowed, **wrong}]})
