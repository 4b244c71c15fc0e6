"""The broker's guard refuses every request that a program doesn't need for its links, before RabbitMQ handles it.

The attacker has a card and a link, and knows every name, which a real attacker can't.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Access, Basic, Exchange, Queue
from support.links import amqp1
from support.links.programs import Program, tell
from support.waiting import until
from test_link_attacks import client, manage

from netspace.link.broker import access, admission, node, refusals
from netspace.link.broker.refusals import MOST
from netspace.link.mail.dead_letters import Letters
from netspace.link.mail.refused import asked_in_vain
from netspace.spec.types import Link
from netspace_client import NotDeclared

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")


@pytest.fixture(scope="module")
def host(standing):
    standing.environment("web", "orders", "audit")
    standing.apply(ASK, TELL)
    return standing


@pytest.fixture(autouse=True)
def _unharmed(host):
    """Check after each test that the broker is unharmed: the same process, the declared objects, and a delivery."""
    before = host.supervisor.observe()[node.NODE].pid
    with host.client("orders") as neighbour:
        yield
        neighbour.basic_publish(host.n("link.orders.audit"), "", b"well", mandatory=True)
    with host.client("audit") as channel:
        assert channel.basic_get(host.n("mailbox.audit"), auto_ack=True)[2] == b"well"
    assert host.supervisor.observe()[node.NODE].pid == before
    host.no_mail()
    assert host.plan(ASK, TELL).steps == []


def refusal(
    host, ask: Callable[[pika.adapters.blocking_connection.BlockingChannel], object], name: str = "web"
) -> tuple[int, str]:
    """Return the error with which the broker closes the channel, within a time limit."""
    with host.client(name) as channel:
        channel.connection.call_later(20, lambda: channel.connection.close())
        with pytest.raises(ChannelClosedByBroker) as caught:
            ask(channel)
            channel.connection.process_data_events(5)
    return caught.value.reply_code, caught.value.reply_text


# -- names that RabbitMQ would decode ----------------------------------------------------
PREFIX = "amq.rabbitmq.reply-to"


def process(name: str) -> str:
    """Return a direct-reply queue's name that would make RabbitMQ call its internal process *name*."""
    term = bytes([131, 119, len(name)]) + name.encode()
    return f"{PREFIX}.{base64.b64encode(term).decode()}.x"


@pytest.mark.parametrize("called", ["rabbit_sup", "rabbit", "kernel_sup", "no_such_process"])
@pytest.mark.parametrize("passive", [True, False])
def test_one_frame_of_an_environment_never_ends_the_broker(host, called, passive):
    code, text = refusal(host, lambda channel: channel.queue_declare(process(called), passive=passive))
    assert (code, "netspace: " in text) == (403, True), text


REPLIES = {
    "declared": lambda channel, name: channel.queue_declare(name, passive=True),
    "consumed": lambda channel, name: channel.basic_consume(name, lambda *_: None, auto_ack=True),
    "read": lambda channel, name: channel.basic_get(name),
    "purged": lambda channel, name: channel.queue_purge(name),
    "deleted": lambda channel, name: channel.queue_delete(name),
    "bound": lambda channel, name: channel.queue_bind(name, "amq.fanout"),
    "written": lambda channel, name: channel.basic_publish("", name, b"x"),
}
NAMES = {
    "itself": PREFIX,
    "a process": process("rabbit_sup"),
    "without an end": f"{PREFIX}.",
    "with line breaks": "amq.\nrabbitmq.\rreply-to.x.y",
    "line breaks within": f"{PREFIX}\r\n.x.y",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("how", REPLIES)
def test_direct_replies_are_refused_in_all_methods(host, how, kind):
    code, text = refusal(host, lambda channel: REPLIES[how](channel, NAMES[kind]))
    assert (code, "netspace: " in text) == (403, True), text


@pytest.mark.parametrize("address", [PREFIX, process("rabbit_sup")])
def test_a_message_asks_for_no_direct_reply(host, address):
    about = pika.BasicProperties(reply_to=address)
    code, text = refusal(host, lambda channel: channel.basic_publish(host.n("link.web.orders"), "", b"x", about))
    assert (code, "netspace: " in text) == (403, True), text
    with host.client("orders") as channel:
        assert channel.basic_get(host.n("mailbox.orders"), auto_ack=True)[0] is None


@pytest.mark.parametrize("name", NAMES)
def test_direct_replies_are_refused_over_amqp_1(host, name):
    quoted = NAMES[name].replace("\r", "%0D").replace("\n", "%0A").replace("/", "%2F").replace("=", "%3D")
    for attach in (
        lambda one: one.sender(f"/queues/{quoted}"),
        lambda one: one.receiver(f"/queues/{quoted}"),
        lambda one: one.receiver(f"/amq/queue/{quoted}"),
        lambda one: one.sender(f"/queue/{quoted}"),
        lambda one: one.send(one.sender(None), to=f"/queues/{quoted}"),
    ):
        with client(host) as one, pytest.raises(amqp1.RefusedError, match="amqp:"):
            raise AssertionError(attach(one))
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("DELETE", "/messages")):
        answer = manage(host, method, f"/queues/{quoted}{path}", {} if method == "PUT" else None)
        assert answer.startswith(("40", "amqp:not-found", "amqp:unauthorized-access")), answer


# -- all that isn't needed ------------------------------------------------------------------
def told(host, method: pika.amqp_object.Method) -> tuple[int, str]:
    """Send *method* without pika's checks; return the error with which the broker closes the channel."""

    def ask(channel: pika.adapters.blocking_connection.BlockingChannel) -> None:
        channel.connection._impl._send_method(channel.channel_number, method)
        channel.queue_declare(host.n("mailbox.web"), passive=True)  # by which pika looks at what it is told

    return refusal(host, ask)


UNKNOWN = {
    "queues to make": lambda n: Queue.Declare(queue="mine", durable=True, nowait=True),
    "one that the broker names": lambda n: Queue.Declare(queue="", exclusive=True, nowait=True),
    "its own mailbox, made anew": lambda n: Queue.Declare(queue=n("mailbox.web"), durable=True, nowait=True),
    "queues to delete": lambda n: Queue.Delete(queue=n("mailbox.web"), nowait=True),
    "a queue of another kind": lambda n: Queue.Declare(queue="mine", passive=True, nowait=True),
    "an exchange of another kind": lambda n: Exchange.Declare(exchange="amq.topic", passive=True, nowait=True),
    "exchanges to make": lambda n: Exchange.Declare(exchange=n("link.web.orders"), type="fanout", nowait=True),
    "exchanges to delete": lambda n: Exchange.Delete(exchange=n("link.web.orders"), nowait=True),
    "exchanges to join": lambda n: Exchange.Bind(destination=n("link.web.orders"), source=n("reply.orders")),
    "exchanges to part": lambda n: Exchange.Unbind(destination=n("link.web.orders"), source=n("reply.orders")),
    "a mailbox to bind": lambda n: Queue.Bind(queue=n("mailbox.web"), exchange=n("reply.orders"), nowait=True),
    "answers from elsewhere": lambda n: Queue.Bind(queue=n("replies.web"), exchange="amq.topic", nowait=True),
    "consumers with arguments": lambda n: Basic.Consume(
        queue=n("mailbox.web"), nowait=True, arguments={"x-stream-offset": "first"}
    ),
    "a priority that is none": lambda n: Basic.Consume(
        queue=n("mailbox.web"), nowait=True, arguments={"x-priority": {"deep": {}}}
    ),
    "bindings with arguments": lambda n: Queue.Bind(
        queue=n("replies.web"), exchange=n("reply.orders"), nowait=True, arguments={"x": "x"}
    ),
    "realms": lambda _: Access.Request(),
}


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_what_a_card_does_not_need_is_refused(host, unknown):
    code, text = told(host, UNKNOWN[unknown](host.n))
    assert (code, "netspace: " in text) == (403, True), text


def test_what_a_card_does_need_is_admitted(host):
    """The broker admits all methods that a client of AMQP 0-9-1 can use, with each kind of name."""
    with host.client("web") as channel:
        mailbox, replies, reply = host.n("mailbox.web"), host.n("replies.web"), host.n("reply.orders")
        channel.queue_declare(mailbox, passive=True, durable=True, arguments={"x-queue-type": "quorum"})
        channel.exchange_declare(host.n("link.web.orders"), passive=True)
        channel.basic_qos(prefetch_count=10)
        channel.queue_bind(replies, reply, "key")
        tags = [
            channel.basic_consume(mailbox, lambda *_: None, arguments={"x-priority": 3}),
            channel.basic_consume(replies, lambda *_: None, auto_ack=True),
        ]
        about = pika.BasicProperties(headers={"a": [1, {"b": "c"}]}, reply_to=replies, expiration="60000")
        channel.basic_publish(host.n("link.web.orders"), "", b"x", about, mandatory=True)
        for tag in tags:
            channel.basic_cancel(tag)
        channel.queue_unbind(replies, reply, "key")
        channel.queue_purge(mailbox)
        channel.basic_recover(requeue=True)
        channel.flow(True)
    with contextlib.closing(host.connect("orders")) as connection:
        channel = connection.channel()
        channel.tx_select()
        delivery, properties, _ = channel.basic_get(host.n("mailbox.orders"))
        assert properties.headers == {"a": [1, {"b": "c"}]}
        channel.basic_publish(host.n("link.orders.audit"), "", b"x")
        channel.basic_ack(delivery.delivery_tag)
        channel.tx_rollback()
        channel.tx_commit()


# -- what is recorded ------------------------------------------------------------------------
def test_refusals_are_counted_by_account_and_text(host):
    for exchange in (*["link.audit.web"] * 3, "amq.topic", *(f"link.audit.x{number}" for number in range(MOST))):
        refusal(host, lambda channel, exchange=exchange: channel.basic_publish(exchange, "", b"x"), "audit")

    def counted() -> dict[str, int]:
        return {one.exchange or one.what: one.times for one in asked_in_vain(host.layout, "audit").refusals}

    until(lambda: sum(counted().values()) == MOST + 4, "all are told", patience=60)
    found = counted()
    assert found.pop("link.audit.web") == 3
    assert found.pop("basic.publish: basic.publish is not for 'amq.topic' (access_refused)") == 1
    assert found.pop("others: too many different ones") == 2
    assert found == {f"link.audit.x{number}": 1 for number in range(MOST - 2)}
    assert not any("audit" in one.exchange for one in asked_in_vain(host.layout, "orders").refusals)


@pytest.mark.parametrize("there", [True, False])
def test_refusals_that_wait_to_be_counted_are_bounded(host, there):
    """5,000 refusals are logged while the guard's process is suspended or not registered.

    Its Erlang message queue stays short, and the logger keeps the guard's filter.
    """
    said = """#{level => error, meta => #{}, msg => {"Channel error on connection ~tp (~ts, ~ts, ~ts, ~ts), ~tp:~n~ts",
                [self(), <<"c">>, <<"v">>, <<"nobody">>, 1, "operation"]}}"""
    host.evaluate(
        "Guard = whereis(netspace_guard), ok = sys:suspend(Guard), "
        + ("" if there else "true = unregister(netspace_guard), ")
        + f"try [netspace_guard:plain({said}, []) || _ <- lists:seq(1, 5000)], "
        "{message_queue_len, Waiting} = process_info(Guard, message_queue_len), "
        + ("true = Waiting >= 1000, true = Waiting < 1100 " if there else "true = Waiting < 1000 ")
        + f"after {'ok' if there else 'true = register(netspace_guard, Guard)'}, ok = sys:resume(Guard) end, "
        "#{filters := Filters} = logger:get_primary_config(), {_, _} = lists:keyfind(netspace_guard, 1, Filters)."
    )


@pytest.mark.parametrize("audited", [True, False])
def test_client_has_the_broker_refuse_what_is_audited(host, tmp_path, audited):
    folder = tell(host, "orders", tmp_path / "orders")
    file = folder / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **({"audit": True} if audited else {})}))
    peer = f"nobody-{audited}".lower()
    program = Program(host, "orders", folder)
    try:
        for _ in range(2):
            with pytest.raises(NotDeclared):
                program.send(peer, "x")
        program.send("audit", "well")
    finally:
        program.leave()
    with host.client("audit") as channel:
        assert channel.basic_get(host.n("mailbox.audit"), auto_ack=True)[2] == b"well"

    def attempts() -> list[int]:
        found = asked_in_vain(host.layout, "orders").refusals
        return [one.times for one in found if one.exchange == f"link.orders.{peer}"]

    if audited:
        until(attempts, "it is told", patience=60)
    assert attempts() == ([1] if audited else [])


def test_refusals_go_with_the_account(host):
    host.environment("guest")
    host.apply(ASK, TELL, Link(source="guest", target="orders"))
    refusal(host, lambda channel: channel.basic_publish("link.guest.web", "", b"x"), "guest")
    until(lambda: asked_in_vain(host.layout, "guest").refusals, "it is told", patience=60)
    account = access.accounts(host.layout, host.broker).there("env.guest")

    def kept() -> bool:
        with access.management(host.layout, host.broker) as api:
            return api.get("global-parameters", refusals.parameter(account)) is not None

    assert kept()
    host.apply(ASK, TELL)
    until(lambda: not kept(), "it is forgotten", patience=60)
    assert asked_in_vain(host.layout, "guest").unseen == "it has no link, so it can't log in to the broker"


# -- messages that can't be read ------------------------------------------------------------
def nested(depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(depth - 1):
        found = {"x": found}
    return found


@pytest.mark.parametrize("depth", [admission.DEPTH + 1, 200])
def test_headers_within_each_other_are_bounded(host, depth):
    with host.client("web") as channel:
        channel.basic_publish(
            host.n("link.web.orders"), "", b"x", pika.BasicProperties(headers=nested(admission.DEPTH))
        )
    about = pika.BasicProperties(headers=nested(depth))
    code, text = refusal(host, lambda channel: channel.basic_publish(host.n("link.web.orders"), "", b"x", about))
    assert (code, f"more than {admission.DEPTH} deep" in text) == (406, True), text


def nested_annotations(depth: int) -> amqp1.Encoded:
    found = amqp1.encode("x")
    for _ in range(depth):
        found = amqp1.encode({"x": amqp1.Encoded(found)})
    return amqp1.Encoded(found)


@pytest.mark.parametrize("where", ["annotations", "application"])
@pytest.mark.parametrize("depth", [admission.DEPTH + 1, 1500])
def test_annotations_within_each_other_are_bounded_over_amqp_1(host, where, depth):
    """Deeply nested annotations are refused over AMQP 1.0, because they could break a reader's recursive decoder."""
    address = f"/exchanges/{host.n('link.web.orders')}"
    key = amqp1.Symbol("x-deep") if where == "annotations" else "deep"
    with client(host) as one:
        few = nested_annotations(admission.DEPTH - 1)
        assert one.send(one.sender(address), **{where: {key: few}}) == "accepted"
        with pytest.raises(amqp1.RefusedError, match=f"precondition-failed .* more than {admission.DEPTH} deep"):
            one.send(one.sender(address), **{where: {key: nested_annotations(depth)}})
    with host.client("orders") as channel:
        got = [channel.basic_get(host.n("mailbox.orders"), auto_ack=True)[0] for _ in range(2)]
    assert got[0] is not None and got[1] is None


# -- what people read ---------------------------------------------------------------------
FORGED = "x\n2026-11-27 00:00:00.000000+00:00 [info] <0.1.0> forged\x1b]0;title\x07\x1b[2J\u009b31m\u202e"


def test_a_client_s_name_ends_no_line_of_the_log(host):
    with contextlib.closing(host.connect("web", client_properties={"connection_name": FORGED})) as connection:
        assert connection.is_open
    log = host.layout.broker / "log/broker.log"
    until(lambda: "forged" in log.read_text(), "it is logged")
    text = log.read_text()
    assert not {one for one in text if not one.isprintable()} - {"\n", "\t"}
    assert not any(
        line.endswith("forged") or line.startswith("2026-11-27 00:00:00.000000") for line in text.splitlines()
    )


def test_a_letter_steers_no_terminal(host):
    about = pika.BasicProperties(expiration="1", message_id=FORGED[:99], content_type="a\x1b[2J")
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", f"two\nlines{FORGED}".encode(), about, mandatory=True)
    desk = Letters(host.layout)
    until(lambda: desk.count()["count"] == 1, "it is dead", patience=60)
    (letter,) = desk.count(payload=True)["letters"]
    assert all(letter[key].isprintable() for key in ("message_id", "content_type"))
    assert letter["content_type"] == "a\\x1b[2J"
    assert letter["payload"].startswith("two\nlines") and letter["payload"].replace("\n", "").isprintable()


# -- that it is there -------------------------------------------------------------------------
def test_an_interceptor_that_is_gone_is_to_be_made_anew(host):
    (beam,) = host.layout.broker.rglob(f"{admission.MODULE}.beam")
    aside = beam.rename(beam.with_name(f"{beam.name}.aside"))
    try:
        assert [step.name for step in host.plan(ASK, TELL).steps] == ["broker"]
    finally:
        aside.rename(beam)


def test_the_interceptor_stays_when_the_guard_has_ended(host):
    with host.unwatched():
        code, _ = refusal(host, lambda channel: channel.queue_declare(process("rabbit_sup"), passive=True))
    assert code == 403
    host.admits()
