"""AMQP 1.0 through the guard: limits before the log-in, and only the frames and addresses that links need."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal

import pika
import pytest
from support.links import amqp1
from support.links.amqp1 import Described, Encoded, Symbol, encode

from netspace.link.broker import node
from netspace.link.pki import certificates
from netspace.spec.types import Link

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
Namer = Callable[[str], str]


@pytest.fixture(scope="module")
def host(standing):
    """One broker for all tests. After them it must have the declared objects, and no messages."""
    standing.environment("web", "orders", "audit")
    standing.apply(ASK, TELL)
    yield standing
    standing.no_mail()
    assert standing.plan(ASK, TELL).steps == []


@pytest.fixture(autouse=True)
def _same_node(host):
    before = host.supervisor.observe()[node.NODE].pid
    yield
    assert host.supervisor.observe()[node.NODE].pid == before


@contextlib.contextmanager
def secured(host, name: str = "web") -> Iterator[ssl.SSLSocket]:
    """Connect directly to the broker's port, since the forwarder admits only eight connections a second."""
    context = host.tls(certificates.path(host.layout, name))
    plain = socket.create_connection(("127.0.0.1", host.broker.port), timeout=30)
    with contextlib.closing(context.wrap_socket(plain, server_hostname="localhost")) as stream:
        yield stream


@contextlib.contextmanager
def client(host, name: str = "web") -> Iterator[amqp1.Client]:
    with secured(host, name) as stream:
        yield amqp1.Client(stream, host.links.access().vhost)


def number(host, expression: str) -> int:
    """Evaluate *expression* in the broker; return the number, which comes back in a global parameter."""
    return int(host.evaluate(f"{expression}."))


# -- bounds ---------------------------------------------------------------------------------
def claims(count: int, kind: int) -> Encoded:
    """Return an array that claims to have *count* elements of a type that takes no bytes."""
    return Encoded(b"\xf0" + struct.pack(">II", 6, count) + bytes([kind]) + b"\x00")


def before_login(host, value: Encoded) -> None:
    with secured(host) as stream:
        stream.sendall(b"AMQP\x03\x01\x00\x00")
        body = encode(Described(amqp1.INIT, [value]))
        stream.sendall(struct.pack(">IBBH", len(body) + 8, 2, 1, 0) + body)
        with contextlib.suppress(OSError):
            while stream.recv(4096):
                pass


def after_login(host, value: Encoded) -> None:
    with client(host) as one, pytest.raises(amqp1.RefusedError, match="netspace: an array of values without bytes"):
        one._send(amqp1.BEGIN, [None, 0, 1, 1, None, value])
        one._until(amqp1.ATTACH)


def in_a_message(host, value: Encoded) -> None:
    with client(host) as one, pytest.raises(amqp1.RefusedError, match=r"netspace: .* an array of values without bytes"):
        one.send(one.sender(f"/exchanges/{host.n('link.web.orders')}"), annotations={Symbol("x-many"): value})


def in_a_body(host, value: Encoded) -> None:
    with client(host) as one, pytest.raises(amqp1.RefusedError, match=r"netspace: .* an array of values without bytes"):
        one.send(one.sender(f"/exchanges/{host.n('link.web.orders')}"), body=value)


@pytest.mark.exhaustion
@pytest.mark.parametrize("said", [before_login, after_login, in_a_message, in_a_body])
def test_a_claim_of_many_values_takes_no_memory(host, said):
    """An array that claims 16 million elements takes less than 64 MiB of the broker's memory.

    Without the limit, it would take 256 MiB.
    """
    host.evaluate("_ = spawn(fun() -> register(peak, self()), (fun F(Most) -> receive {most, To} -> To ! {most, Most}"
                  " after 5 -> F(max(Most, erlang:memory(total))) end end)(0) end).")  # fmt: skip
    before = number(host, "erlang:memory(total)")
    said(host, claims(1 << 24, 0x45))
    peak = number(host, "(fun() -> peak ! {most, self()}, receive {most, Most} -> Most end end)()")
    assert peak < before + 64 * 1048576


def nested(depth: int) -> Encoded:
    found = encode("x")
    for _ in range(depth):
        found = encode([Encoded(found)])
    return Encoded(found)


def sized(claimed: int) -> Encoded:
    return Encoded(b"\xd0" + struct.pack(">II", claimed, 1) + b"\x40")


UNBOUNDED = {
    "an array of nothing": claims(1, 0x40),
    "an array of described values": Encoded(b"\xf0" + struct.pack(">II", 9, 1) + b"\x00\x53\x01\x40\x40"),
    "deep": nested(20),
    "described on and on": Encoded(b"\x00" * 20 + b"\x40"),
    "many values": Encoded(encode(["x"] * 600)),
    "a list that is shorter than it says": sized(400),
    "a list of more than it says": Encoded(b"\xd0" + struct.pack(">II", 6, 1) + b"\x40\x40"),
    "a map of three": Encoded(b"\xd1" + struct.pack(">II", 7, 3) + b"\x40\x40\x40"),
    "an array of more than it says": Encoded(b"\xf0" + struct.pack(">II", 7, 1) + b"\x50\x01\x02"),
    "a text that is no UTF-8": Encoded(b"\xa1\x01\xff"),
    "a symbol that is no ASCII": Encoded(b"\xa3\x01\xff"),
    "an unknown type": Encoded(b"\x57\x00"),
}


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_values_are_bounded_and_well_formed(host, kind):
    with client(host) as one, pytest.raises(amqp1.RefusedError, match="amqp:decode-error netspace: "):
        one._send(amqp1.BEGIN, [None, 0, 1, 1, None, UNBOUNDED[kind]])
        one._until(amqp1.ATTACH)


def test_what_stands_before_a_message_is_bounded(host):
    with client(host) as one, pytest.raises(amqp1.RefusedError, match="more than 8192 bytes before its message"):
        one._send(amqp1.TRANSFER, [0, 0, b"x" * 9000, 0])
        one._until(amqp1.DISPOSITION)


# -- frames ---------------------------------------------------------------------------------
def receives(n: Namer, *source: object, **fields: object) -> tuple[int, list[object]]:
    """Return an attach frame for a receiver; *source* are further fields after the source's address."""
    about = [
        fields.get(key) for key in ("unsettled", "incomplete", "count", "most", "offered", "desired", "properties")
    ]
    source = Described(amqp1.SOURCE, [f"/queues/{n('mailbox.web')}", *source])
    return amqp1.ATTACH, ["x", 0, True, None, None, source, Described(amqp1.TARGET, ["me"]), *about]


def sends(n: Namer, target: object, *fields: object) -> tuple[int, list[object]]:
    return amqp1.ATTACH, ["x", 0, False, None, None, Described(amqp1.SOURCE, ["me"]), target, *fields]


def to(address: object) -> Described:
    return Described(amqp1.TARGET, [address])


NEEDLESS = {
    "a node that the broker makes": lambda n: receives(n, None, None, None, True),
    "properties of such a node": lambda n: receives(n, None, None, None, None, {Symbol("lifetime-policy"): "x"}),
    "a filter": lambda n: receives(n, *[None] * 6, {Symbol("rabbitmq:stream-offset-spec"): "first"}),
    "an unknown ability of a source": lambda n: receives(n, *[None] * 9, Symbol("topic")),
    "an unknown ability of a link": lambda n: receives(n, desired=Symbol("DELAYED_DELIVERY")),
    "an unknown property of a link": lambda n: receives(n, properties={Symbol("paired"): True, Symbol("x"): 1}),
    "a link to resume": lambda n: receives(n, unsettled={b"1": None}),
    "transactions": lambda n: sends(n, Described(0x30, [f"/exchanges/{n('link.web.orders')}"])),
    "an outcome of a transaction": lambda n: (amqp1.DISPOSITION, [True, 0, 0, True, Described(0x34, [b"1"])]),
    "a transfer of a transaction": lambda n: (amqp1.TRANSFER, [0, 0, b"", 0, False, False, None, Described(0x34, [])]),
    "a transfer to resume": lambda n: (amqp1.TRANSFER, [0, 0, b"", 0, False, False, None, None, True]),
    "a transfer that is given up": lambda n: (amqp1.TRANSFER, [0, 0, b"", 0, False, False, None, None, None, True]),
    "a message of another format": lambda n: (amqp1.TRANSFER, [0, 0, b"", 1]),
    "annotations of an outcome": lambda n: (
        amqp1.DISPOSITION,
        [True, 0, 0, True, Described(0x27, [True, False, {Symbol("x-a"): 1}])],
    ),
    "a frame of a log-in": lambda n: (amqp1.OUTCOME, [None]),
    "a source that stands alone": lambda n: (amqp1.SOURCE, []),
    "a frame that nobody knows": lambda n: (0x7F, []),
    "a field of another type": lambda n: (amqp1.FLOW, ["x"]),
    "a field too many": lambda n: (amqp1.END, [None, None]),
    "a link of no direction": lambda n: (amqp1.ATTACH, ["x", 0]),
    "a long name": lambda n: (amqp1.ATTACH, ["x" * 256, 0, True]),
}


@pytest.mark.parametrize("needless", NEEDLESS)
def test_a_frame_that_a_card_does_not_need_is_refused(host, needless):
    code, fields = NEEDLESS[needless](host.n)
    with client(host) as one, pytest.raises(amqp1.RefusedError, match=r"netspace: a frame .*that no client of ours"):
        one._send(code, fields)
        one._until(amqp1.ATTACH)


def test_a_frame_that_no_number_describes_is_refused(host):
    body = b"\x00" + encode(Symbol("amqp:end:list")) + encode([])
    with client(host) as one, pytest.raises(amqp1.RefusedError, match="netspace: a frame that no number describes"):
        one._stream.sendall(struct.pack(">IBBH", len(body) + 8, 2, 0, 0) + body)
        one._until(amqp1.END)


NOWHERE = {
    "the dead letters": lambda n: sends(n, to(f"/exchanges/{n('dead')}")),
    "a standard exchange": lambda n: sends(n, to("/exchanges/amq.topic/key")),
    "a mailbox, past the links": lambda n: sends(n, to(f"/queues/{n('mailbox.orders')}")),
    "an old form of address": lambda n: sends(n, to(f"/exchange/{n('link.web.orders')}")),
    "a key too long": lambda n: sends(n, to(f"/exchanges/{n('link.web.orders')}/{'k' * 256}")),
    "a name that is quoted wrongly": lambda n: sends(n, to("/exchanges/link.%zz")),
    "no target": lambda n: sends(n, None),
    "no address at all": lambda n: (amqp1.ATTACH, ["x", 0, True, None, None, Described(amqp1.SOURCE, []), to("me")]),
    "an exchange to receive from": lambda n: (
        amqp1.ATTACH,
        ["x", 0, True, None, None, Described(amqp1.SOURCE, [f"/exchanges/{n('link.web.orders')}"]), to("me")],
    ),
}


@pytest.mark.parametrize("nowhere", NOWHERE)
def test_an_address_that_no_link_leads_to_is_refused(host, nowhere):
    code, fields = NOWHERE[nowhere](host.n)
    with client(host) as one, pytest.raises(amqp1.RefusedError, match="unauthorized-access netspace: an address"):
        one._send(code, fields)
        one._until(amqp1.ATTACH)


def test_what_a_card_does_need_is_admitted_over_amqp_1(host):
    """The guard admits addresses with and without quoting, a priority, each outcome, and the end of a link."""
    quoted = host.n("link.web.orders").replace(".", "%2E")
    with client(host) as one:
        for address in (f"/exchanges/{host.n('link.web.orders')}", f"/exchanges/{quoted}/key", None):
            assert one.send(one.sender(address), to=f"/exchanges/{host.n('link.web.orders')}") == "accepted"
    with client(host, "orders") as one:
        source = Described(amqp1.SOURCE, [f"/queues/{host.n('mailbox.orders')}", 0, Symbol("session-end"), 0, False])
        priority = {Symbol("rabbitmq:priority"): Encoded(b"\x54\x05")}
        able = Encoded(b"\xf0" + struct.pack(">II", 14, 1) + b"\xb3" + struct.pack(">I", 5) + b"queue")
        one._send(
            amqp1.ATTACH,
            [
                "x",
                0,
                True,
                None,
                None,
                source,
                to("me"),
                {},
                None,
                None,
                Encoded(b"\x80" + struct.pack(">Q", 1 << 20)),
                able,
                None,
                priority,
            ],
        )
        one._until(amqp1.ATTACH)
        one._send(amqp1.FLOW, [one._next, 2048, 0, 2048, 0, 0, 100, None, False, False, {}])
        outcomes = [(0x27, [True, False]), (0x26, []), (0x25, [])]  # what is given back comes again
        for code, fields in [*outcomes, (0x24, []), (0x24, [])]:
            got = one._until(amqp1.TRANSFER)
            one._send(amqp1.DISPOSITION, [True, got[1], got[1], True, Described(code, fields)])
        one._send(amqp1.DETACH, [0, True])
        with pytest.raises(amqp1.RefusedError, match="no reason"):
            one._until(amqp1.DETACH)


# -- requests to /management ------------------------------------------------------------------
def bound(n: Namer, **other: object) -> dict[str, object]:
    ends = {"source": n("reply.orders"), "destination_queue": n("replies.web"), "binding_key": "k", "arguments": {}}
    return {**ends, **other}


def path(n: Namer, source: str, kind: str, destination: str, arguments: str = "") -> str:
    return f"/bindings/src={n(source)};dst{kind}={n(destination)};key=k;args={arguments}"


REQUESTS = {
    "its own mailbox": lambda n: ("GET", f"/queues/{n('mailbox.web')}", None),
    "a binding that is there": lambda n: (
        "GET",
        f"/bindings?src={n('reply.orders')}&dstq={n('replies.web')}&key=",
        None,
    ),
    "mail of its own to drop": lambda n: ("DELETE", f"/queues/{n('mailbox.web')}/messages", None),
    "a queue": lambda n: ("PUT", "/queues/mine", {}),
    "a binding with arguments": lambda n: ("POST", "/bindings", bound(n, arguments={"x": "x"})),
    "a link's exchange": lambda n: ("POST", "/bindings", bound(n, source=n("link.web.orders"))),
    "a mailbox": lambda n: ("POST", "/bindings", bound(n, destination_queue=n("mailbox.web"))),
    "a key too long": lambda n: ("POST", "/bindings", bound(n, binding_key="k" * 256)),
    "an exchange as an end": lambda n: (
        "POST",
        "/bindings",
        {"source": n("reply.orders"), "destination_exchange": n("link.web.orders"), "binding_key": "", "arguments": {}},
    ),
    "a binding of a mailbox": lambda n: ("DELETE", path(n, "link.web.orders", "q", "mailbox.orders"), None),
    "a binding of an exchange": lambda n: ("DELETE", path(n, "reply.orders", "e", "link.web.orders"), None),
    "a path that leads elsewhere": lambda n: (
        "DELETE",
        path(n, "reply.orders", "q", "replies.web").replace("key=k", "key=/../../queues/mine"),
        None,
    ),
    "a binding that has arguments": lambda n: ("DELETE", path(n, "reply.orders", "q", "replies.web", "x"), None),
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_that_is_the_host_s_is_refused(host, request_):
    with client(host) as one, pytest.raises(amqp1.RefusedError, match="netspace: a request that is the host's to make"):
        raise AssertionError(one.manage(*REQUESTS[request_](host.n)))


def test_an_asker_binds_and_unbinds_over_amqp_1(host):
    def bindings() -> int:
        with host.api() as api:
            return len(api.get("exchanges", "netspace", host.n("reply.orders"), "bindings", "source"))

    with client(host) as one:
        assert one.manage("POST", "/bindings", bound(host.n)) == "204"
        assert bindings() == 1
    with client(host) as one:
        assert one.manage("DELETE", path(host.n, "reply.orders", "q", "replies.web")) == "204"
        assert bindings() == 0


# -- messages that both versions can carry ------------------------------------------------------
def raw(code: int, value: bytes = b"") -> Encoded:
    return Encoded(bytes([code]) + value)


NOT_CARRIED = {
    "a UUID among its properties": {"application": {"x": raw(0x98, bytes(16))}},
    "a letter": {"application": {"x": raw(0x73, b"\0\0\0a")}},
    "a decimal number": {"application": {"x": raw(0x74, bytes(4))}},
    "no number": {"application": {"x": raw(0x72, b"\x7f\xc0\0\0")}},
    "a number too large": {"application": {"x": raw(0x80, b"\xff" * 8)}},
    "a time before 1970": {"application": {"x": raw(0x83, b"\xff" * 8)}},
    "a value that is described": {"application": {"x": Described(1, "x")}},
    "a long name": {"application": {"x" * 256: "x"}},
    "a UUID among its annotations": {"annotations": {Symbol("x-a"): raw(0x98, bytes(16))}},
    "a large number within a list": {"annotations": {Symbol("x-a"): [raw(0x80, b"\0" * 7 + b"\1")]}},
    "a number as a key": {"annotations": {Symbol("x-a"): {5: "x"}}},
    "a key that is no symbol": {"annotations": {"x-a": "x"}},
    "a history of deaths": {"annotations": {Symbol("x-opt-deaths"): ["x"]}},
    "a number as its type": {"annotations": {Symbol("x-basic-type"): 1}},
    "a text as its priority": {"annotations": {Symbol("x-basic-priority"): "x"}},
    "others that get it": {"annotations": {Symbol("x-cc"): ["x"]}},
    "a number as its id": {"message_id": Encoded(b"\x54\x01")},
    "a list as the id that it answers": {"correlation_id": ["x"]},
    "a number as its subject": {"subject": 1},
    "a long address": {"to": "x" * 256},
    "a direct answer": {"reply_to": "amq.rabbitmq.reply-to"},
}
CARRIED = {
    "id": {"message_id": raw(0x98, bytes(16)), "correlation_id": raw(0x80, b"\0" * 8)},
    "binary id": {"message_id": b"\xff\0", "correlation_id": "x" * 300},
    "properties": {
        "application": {
            "text": "x" * 1000, "bytes": b"\xff", "yes": True, "none": None, "small": Encoded(b"\x51\xff"),
            "number": 7, "large": raw(0x80, b"\x7f" + b"\xff" * 7), "float": raw(0x82, struct.pack(">d", 1.5)),
            "time": raw(0x83, struct.pack(">q", 1_700_000_000_000)),
        }
    },
    "annotations": {
        "annotations": {
            Symbol("x-list"): ["a", 1, None, {"b": "c"}], Symbol("x-basic-type"): "type",
            Symbol("x-exchange"): "forged", Symbol("x-routing-key"): "forged",
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_CARRIED)
def test_a_message_that_0_9_1_cannot_carry_is_refused(host, kind):
    with (
        client(host) as one,
        pytest.raises(amqp1.RefusedError, match="amqp:precondition-failed netspace: a message with"),
    ):
        raise AssertionError(one.send(one.sender(f"/exchanges/{host.n('link.web.orders')}"), **NOT_CARRIED[kind]))


@pytest.mark.parametrize("kind", CARRIED)
def test_a_message_that_0_9_1_can_carry_is_read_there(host, kind):
    with client(host) as one:
        assert one.send(one.sender(f"/exchanges/{host.n('link.web.orders')}"), **CARRIED[kind]) == "accepted"
    with host.client("orders") as channel:
        delivery, _, _ = channel.basic_get(host.n("mailbox.orders"), auto_ack=True)
        assert delivery.exchange == host.n("link.web.orders")


def section(code: int, value: object) -> bytes:
    return encode(Described(code, value))


BODY = section(amqp1.DATA, b"x")
TWICE = struct.pack(">I", 4) + (encode(Symbol("x-exchange")) + encode("x")) * 2
SECTIONS = {
    "no body": section(amqp1.HEADER, []),
    "sections in another order": section(amqp1.PROPERTIES, []) + section(amqp1.HEADER, []) + BODY,
    "a section twice": section(amqp1.ANNOTATIONS, {}) * 2 + BODY,
    "bodies of two kinds": BODY + section(amqp1.VALUE, "x"),
    "two values": section(amqp1.VALUE, "x") * 2,
    "many bodies": BODY * 65,
    "a footer that cannot be decoded": BODY + section(0x78, {Symbol("signature"): b"x"}),
    "something behind the footer": BODY + section(0x78, {}) + BODY,
    "a section that no number describes": b"\0" + encode(Symbol("amqp:data:binary")) + encode(b"x"),
    "a large head": section(amqp1.APPLICATION, {"x": "x" * 65536}) + BODY,
    "a priority that is a text": section(amqp1.HEADER, [True, "x"]) + BODY,
    "a content type too long": section(amqp1.PROPERTIES, [None] * 6 + [Encoded(b"\xb3\0\0\1\0" + b"x" * 256)]) + BODY,
    "the true sender, and a forged one": section(amqp1.ANNOTATIONS, Encoded(b"\xd1" + struct.pack(">I", 40) + TWICE))
    + BODY,
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_sections_of_a_message_are_as_specified(host, kind):
    with (
        client(host) as one,
        pytest.raises(amqp1.RefusedError, match="amqp:precondition-failed netspace: a message with"),
    ):
        handle = one.sender(f"/exchanges/{host.n('link.web.orders')}")
        one._send(amqp1.TRANSFER, [handle, 0, b"x", 0, False], SECTIONS[kind])
        raise AssertionError(one._until(amqp1.DISPOSITION))


LATE = 2**63 // 1000 + 1
"""Seconds that are no time in AMQP 1.0."""


class Timed(pika.BasicProperties):
    """A header with a time that no client accepts."""

    def encode(self) -> list[bytes]:
        field = b"\1xT" + struct.pack(">Q", LATE)
        return [struct.pack(">HI", 1 << 13, len(field)), field]


ONLY_0_9_1 = {
    "a decimal number": pika.BasicProperties(headers={"x": Decimal("1.5")}),
    "a decimal number among others": pika.BasicProperties(headers={"x": [1, {"y": Decimal("1.5")}]}),
    "a time too late": pika.BasicProperties(timestamp=LATE),
    "a time too late in a header": Timed(),
    "an id that is no UUID": pika.BasicProperties(message_id="urn:uuid:" + "z" * 36),
    "an answer to what is no UUID": pika.BasicProperties(correlation_id="urn:uuid:" + "0" * 36),
    "what was converted before": pika.BasicProperties(type="amqp-1.0"),
    "a section that was converted before": pika.BasicProperties(headers={"x-amqp-1.0-properties": "x"}),
}


@pytest.mark.parametrize("kind", ONLY_0_9_1)
def test_a_message_that_1_0_cannot_carry_is_refused(host, kind):
    with host.client("web") as channel:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
            channel.basic_publish(host.n("link.web.orders"), "", b"x", ONLY_0_9_1[kind], mandatory=True)
    assert (caught.value.reply_code, "that AMQP 1.0 can't carry" in caught.value.reply_text) == (406, True)


def test_body_that_was_converted_before_is_sent_on(host):
    """A message whose body was already converted to AMQP 1.0 is delivered over AMQP 1.0.

    A shovel converts bodies in this way, and so does sending a dead letter again.
    """
    with host.client("web") as channel:
        about = pika.BasicProperties(type="amqp-1.0")
        channel.basic_publish(host.n("link.web.orders"), "", b"\x00\x53\x77\xa1\x01x", about, mandatory=True)
    with client(host, "orders") as one:
        one.receiver(f"/queues/{host.n('mailbox.orders')}")
        assert one.receive()[2] == "x"


def test_a_message_that_1_0_can_carry_is_read_there(host):
    about = pika.BasicProperties(
        headers={"text": "x", "list": [1, True, None, {"a": b"b"}], "time": datetime(2026, 1, 1), "x-large": 2**62},
        message_id="urn:uuid:01234567-89ab-cdef-0123-456789ABCDEF",
        correlation_id="urn:uuid:none",
        timestamp=LATE - 2,
        type="type",
        expiration="60000",
        priority=9,
    )
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", b"carried", about, mandatory=True)
    with client(host, "orders") as one:
        one.receiver(f"/queues/{host.n('mailbox.orders')}")
        annotations, _, body = one.receive()
    assert (annotations["x-exchange"], body) == (host.n("link.web.orders"), b"carried")
