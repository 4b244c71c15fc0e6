"""A hostile environment with real clients of both protocols: each attack is refused, and others are unharmed.

``test_link_broker`` has the attacks over AMQP 0-9-1 on single objects. This file has the other attacks, also over AMQP
1.0. The attacker knows every name, which a real attacker can't.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import ssl
import struct
import time

import pika
import pytest
from pika.exceptions import AMQPError, ChannelClosedByBroker
from support.links import amqp1
from support.waiting import until

from netspace.link.broker import versions
from netspace.link.mail.dead_letters import Letters
from netspace.link.pki import certificates
from netspace.link.topology.names import PLAIN
from netspace.spec.types import MESSAGE_SIZE, Link

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
BOUNDED = Link(source="audit", target="orders", length=5)
PATIENCE = 60.0


@pytest.fixture(scope="module")
def host(standing):
    standing.environment("web", "orders", "audit")
    standing.apply(ASK, TELL, BOUNDED)
    return standing


@pytest.fixture(autouse=True)
def _unharmed(host):
    """Check after each attack that the broker has the declared objects, and that other environments get messages."""
    yield
    assert host.plan(ASK, TELL, BOUNDED).steps == []
    with host.client("orders") as channel:
        channel.basic_publish(host.n("link.orders.audit"), "", b"well", mandatory=True)
    with host.client("audit") as channel:
        delivery, _, body = channel.basic_get(host.n("mailbox.audit"), auto_ack=True)
        assert (delivery.exchange, body) == (host.n("link.orders.audit"), b"well"), "no other mail is there"


def stream(host, name: str = "web") -> ssl.SSLSocket:
    """Return a TLS connection to the broker with the certificate of *name*, for bytes that the test makes."""
    about = host.card(name)["broker"]
    with host.inside(name):
        plain = socket.create_connection((about["host"], about["port"]), timeout=30)
    context = host.tls(certificates.path(host.layout, name))
    return context.wrap_socket(plain, server_hostname=about["tls"]["server_name"])


# -- names -------------------------------------------------------------------------------
def ask_whether_there_is(channel, kind: str, name: str) -> int:
    """Declare a queue or exchange passively; return 200 if it exists, else the reply code of the error.

    RabbitMQ 4.0 requires no permission for this. RabbitMQ 4.3 requires any one permission on the object.
    """
    try:
        if kind == "queue":
            channel.queue_declare(name, passive=True)
        else:
            channel.exchange_declare(name, passive=True)
    except ChannelClosedByBroker as err:
        return err.reply_code
    return 200


def test_no_guessed_name_exists(host):
    """Passive declares of all names that can be guessed find no object. RabbitMQ 4.0 answers them to every client."""
    names = [PLAIN.mailbox(one) for one in ("web", "orders", "audit")] + [PLAIN.dead, PLAIN.again]
    names += [f"{kind}.{one}" for kind in ("reply", "replies", "notices") for one in ("web", "orders", "audit")]
    names += [
        f"{kind}.{a}.{b}" for kind in ("link", "lane") for a, b in itertools.permutations(("web", "orders", "audit"), 2)
    ]
    with contextlib.closing(host.connect("web")) as connection:
        answers = {
            ask_whether_there_is(connection.channel(), kind, name) for kind in ("queue", "exchange") for name in names
        }
        told = ask_whether_there_is(connection.channel(), "queue", host.n("mailbox.audit"))
        # 4.3 refuses to tell of a name to which one has no right, whether it exists or not.
        assert (answers - {404}, told) == ((set(), 200) if versions.server() < (4, 3) else ({403}, 403))
    statuses = {manage(host, "GET", f"/queues/{name}") for name in (*names[:3], "nobody's")}
    assert len(statuses) == 1
    assert not statuses & {"200"}


# -- AMQP 0-9-1 -------------------------------------------------------------------------
TRICKS = {
    "an alternate exchange": lambda channel, n: channel.exchange_declare(
        "mine", arguments={"alternate-exchange": n("link.orders.audit")}
    ),
    "a dead-letter exchange": lambda channel, n: channel.queue_declare(
        "mine", arguments={"x-dead-letter-exchange": n("link.orders.audit"), "x-message-ttl": 0}
    ),
    "a queue of its own that the broker names": lambda channel, n: channel.queue_declare("", exclusive=True),
    "its own mailbox made anew with other arguments": lambda channel, n: channel.queue_declare(
        n("mailbox.web"), durable=True, arguments={"x-queue-type": "quorum", "x-dead-letter-exchange": "amq.fanout"}
    ),
    "an exchange between links": lambda channel, n: channel.exchange_bind(n("link.web.orders"), n("link.orders.audit")),
    "another's lane": lambda channel, n: channel.basic_get(n("lane")),
    "filling another's lane": lambda channel, n: channel.basic_publish("", n("lane"), b"x"),
    "direct reply-to of another": lambda channel, n: channel.basic_publish("", "amq.rabbitmq.reply-to.g1h2AA", b"x"),
    "the broker's events": lambda channel, n: channel.queue_bind(n("replies.web"), "amq.rabbitmq.event", "#"),
    "the broker's log": lambda channel, n: channel.queue_bind(n("replies.web"), "amq.rabbitmq.log", "#"),
    "the broker's trace": lambda channel, n: channel.queue_bind(n("replies.web"), "amq.rabbitmq.trace", "#"),
    "another's replies": lambda channel, n: channel.basic_get(n("replies.orders")),
    "answers put into its own link": lambda channel, n: channel.exchange_bind(n("reply.orders"), n("link.web.orders")),
    "another virtual host's name": lambda channel, n: channel.basic_publish("/other/link", "", b"x"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_are_refused(host, trick):
    def name(plain: str) -> str:
        return host.links.called.queue(BOUNDED) if plain == "lane" else host.n(plain)

    with host.client("web") as channel:
        with pytest.raises(ChannelClosedByBroker) as caught:
            TRICKS[trick](channel, name)
            channel.connection.process_data_events(5)
    assert caught.value.reply_code in (403, 404), caught.value


def test_headers_lead_nowhere(host):
    """Headers CC, BCC, a forged death and a foreign reply address bring a message only to the link's receiver."""
    elsewhere = [host.n("mailbox.audit"), host.n("link.orders.audit")]
    headers = {"CC": elsewhere, "BCC": elsewhere, "x-death": [{"exchange": elsewhere[1], "queue": elsewhere[0]}]}
    forged = pika.BasicProperties(headers=headers, reply_to=host.n("mailbox.audit"), app_id="audit", cluster_id="x")
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), elsewhere[0], b"forged", forged, mandatory=True)
    with host.client("orders") as channel:
        delivery, _, body = channel.basic_get(host.n("mailbox.orders"), auto_ack=True)
        assert (delivery.exchange, body) == (host.n("link.web.orders"), b"forged")
        assert channel.basic_get(host.n("mailbox.orders"), auto_ack=True)[0] is None


@pytest.mark.exhaustion
def test_a_message_larger_than_any_may_be_is_refused(host):
    with host.client("web") as channel, pytest.raises(ChannelClosedByBroker) as caught:
        channel.basic_publish(host.n("link.web.orders"), "", bytes(MESSAGE_SIZE + 1), mandatory=True)
    assert caught.value.reply_code == 406


@pytest.mark.exhaustion
def test_channels_are_bounded_over_all_connections(host):
    with contextlib.ExitStack() as stack:

        def one_has_all() -> bool:
            try:
                connection = host.connect("web")
                for _ in range(63):
                    connection.channel()
            except AMQPError:
                return False
            stack.enter_context(contextlib.closing(connection))
            return True

        # The broker counts channels a moment after they were opened or closed.
        until(one_has_all, "those of the tests before are gone", patience=PATIENCE, pause=0.5)
        more = []
        with pytest.raises(AMQPError):
            another = host.connect("web")
            while True:
                more.append(another.channel())
    assert len(more) <= 7


# -- dead letters ------------------------------------------------------------------------
def forgery(host) -> dict:
    """Return headers that make an attacker's dead letter look like another environment's."""
    exchange, queue = host.n("link.orders.audit"), host.n("mailbox.audit")
    said = {"exchange": exchange, "queue": queue, "reason": "rejected"}
    return {f"x-{which}-death-{key}": value for which in ("first", "last") for key, value in said.items()}


def letters_of_the_attacker(host, count: int) -> None:
    desk = Letters(host.layout)
    until(lambda: desk.count()["count"] == count, "they are dead", patience=PATIENCE)
    assert {one["link"] for one in desk.count()["letters"]} == {"web.orders"}
    assert desk.redeliver() == {"sent": {"web.orders": count}, "kept": {}}
    with host.client("orders") as channel:
        for _ in range(count):
            assert channel.basic_get(host.n("mailbox.orders"), auto_ack=True)[0].exchange == host.n("link.web.orders")


def test_a_dead_letter_comes_again_from_its_true_sender(host):
    forged = forgery(host)
    history = [{"exchange": host.n("link.orders.audit"), "queue": host.n("mailbox.audit"), "count": 1, "time": 1}]
    about = pika.BasicProperties(expiration="1", headers={**forged, "x-death": history})
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", b"x", about, mandatory=True)
    letters_of_the_attacker(host, 1)


def test_a_dead_letter_comes_again_from_its_true_sender_over_amqp_1(host):
    forged = forgery(host)
    annotations = {amqp1.Symbol(f"x-opt-{key[2:]}"): value for key, value in forged.items()}
    annotations |= {amqp1.Symbol(key): value for key, value in forged.items()}
    with client(host) as one:
        link = one.sender(f"/exchanges/{host.n('link.web.orders')}")
        one.send(link, ttl=1, application=forged)
        one.send(link, ttl=1, annotations=annotations)
        one.send(link, ttl=1, annotations=annotations, application=forged)
    letters_of_the_attacker(host, 3)


# -- AMQP 1.0 ---------------------------------------------------------------------------
@contextlib.contextmanager
def client(host, name: str = "web"):
    with contextlib.closing(stream(host, name)) as secured:
        yield amqp1.Client(secured, host.links.access().vhost)


def manage(host, method: str, path: str, body=None) -> str:
    try:
        with client(host) as one:
            return one.manage(method, path, body)
    except amqp1.RefusedError as err:
        return str(err)


def test_the_declared_is_possible_over_amqp_1(host):
    with client(host) as one:
        assert one.send(one.sender(f"/exchanges/{host.n('link.web.orders')}")) == "accepted"
        one.receiver(f"/queues/{host.n('mailbox.web')}")
    with host.client("orders") as channel:
        assert channel.basic_get(host.n("mailbox.orders"), auto_ack=True)[0].exchange == host.n("link.web.orders")


SENT = {
    "to another's link": lambda n: ("/exchanges/" + n("link.orders.audit"), {}),
    "to a mailbox, past the links": lambda n: ("/queues/" + n("mailbox.orders"), {}),
    "to the dead letters": lambda n: ("/exchanges/" + n("dead"), {}),
    "to a standard exchange": lambda n: ("/exchanges/amq.fanout", {}),
    "to where each message says, another's link": lambda n: (None, {"to": "/exchanges/" + n("link.orders.audit")}),
    "to where each message says, a mailbox": lambda n: (None, {"to": "/queues/" + n("mailbox.audit")}),
    "in another's name": lambda n: ("/exchanges/" + n("link.web.orders"), {"user_id": b"env.audit"}),
    "to an address of no form": lambda n: ("/amq/queue/" + n("mailbox.orders"), {}),
}


@pytest.mark.parametrize("sent", SENT)
def test_sending_is_refused_over_amqp_1(host, sent):
    address, properties = SENT[sent](host.n)
    with client(host) as one, pytest.raises(amqp1.RefusedError) as caught:
        outcome = one.send(one.sender(address), **properties)
        raise AssertionError(outcome)
    assert "amqp:" in str(caught.value)


@pytest.mark.parametrize("queue", ["mailbox.orders", "dead", "replies.orders"])
def test_reading_is_refused_over_amqp_1(host, queue):
    with client(host) as one, pytest.raises(amqp1.RefusedError, match=r"amqp:(unauthorized-access|not-found)"):
        one.receiver(f"/queues/{host.n(queue)}")


MANAGED = {
    "declare a queue": lambda n: ("PUT", "/queues/mine", {"durable": True}),
    "delete its mailbox": lambda n: ("DELETE", "/queues/" + n("mailbox.web"), None),
    "delete another's mailbox": lambda n: ("DELETE", "/queues/" + n("mailbox.orders"), None),
    "purge another's mailbox": lambda n: ("DELETE", f"/queues/{n('mailbox.orders')}/messages", None),
    "declare an exchange": lambda n: ("PUT", "/exchanges/mine", {"type": "fanout"}),
    "delete a link": lambda n: ("DELETE", "/exchanges/" + n("link.web.orders"), None),
    "bind": lambda n: (
        "POST",
        "/bindings",
        {
            "source": n("link.orders.audit"),
            "destination_queue": n("mailbox.web"),
            "binding_key": "",
            "arguments": {},
        },
    ),
}


@pytest.mark.parametrize("managed", MANAGED)
def test_management_is_refused_over_amqp_1(host, managed):
    answer = manage(host, *MANAGED[managed](host.n))
    assert answer.startswith(("403", "amqp:unauthorized-access", "amqp:not-found")), answer


# -- the wire ---------------------------------------------------------------------------
def closed(secured: ssl.SSLSocket) -> bool:
    """Read until the broker closes the connection; return True then."""
    try:
        while secured.recv(65536):
            pass
    except (ConnectionError, ssl.SSLError):
        return True
    return True


HELLO = b"AMQP\x00\x00\x09\x01"
FRAMES = {
    "a frame of 4 GB": HELLO + struct.pack(">BHI", 1, 0, 0xFFFFFFFF) + b"x" * 1000,
    "a frame larger than agreed": HELLO + struct.pack(">BHI", 1, 0, 200_000) + b"x" * 200_000,
    "a frame without its end": HELLO + struct.pack(">BHI", 1, 0, 4) + b"\x00\x0a\x00\x0b\xff",
    "an unknown type of frame": HELLO + struct.pack(">BHI", 99, 0, 4) + b"\x00\x0a\x00\x0b\xce",
    "an answer to nothing": HELLO + struct.pack(">BHI", 1, 7, 4) + b"\x00\x3c\x00\x28\xce",
    "no protocol": b"GET / HTTP/1.1\r\n\r\n",
    "an old protocol": b"AMQP\x01\x01\x00\x0a",
    "a frame of AMQP 1.0 of 4 GB": b"AMQP\x03\x01\x00\x00" + struct.pack(">IBBH", 0xFFFFFFFF, 2, 1, 0),
}


@pytest.mark.exhaustion
def test_bad_frames_end_their_own_connection(host):
    with contextlib.ExitStack() as stack:
        opened = {kind: stack.enter_context(contextlib.closing(stream(host))) for kind in FRAMES}
        for kind, secured in opened.items():
            with contextlib.suppress(OSError):
                secured.sendall(FRAMES[kind])
        assert [kind for kind, secured in opened.items() if not closed(secured)] == []


@pytest.mark.exhaustion
def test_random_frames_end_their_own_connection(host, repetition):
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(contextlib.closing(stream(host))) for _ in range(8)]
        for seed, secured in enumerate(opened):
            dice = random.Random(seed + 8 * repetition)
            with contextlib.suppress(OSError):
                secured.sendall(
                    dice.choice([HELLO, b"AMQP\x00\x01\x00\x00", b""]) + dice.randbytes(dice.randrange(8, 4000))
                )
        assert all(closed(secured) for secured in opened)


@pytest.mark.exhaustion
def test_whoever_is_slow_is_cut_off_and_takes_nobodys_place(host, record_property):
    """Twenty connections that send nothing, or one byte at a time, are closed; other environments connect meanwhile."""
    about = host.card("web")["broker"]

    def pause() -> float:
        begun = time.monotonic()
        with host.client("orders") as channel:
            channel.basic_publish(host.n("link.orders.audit"), "", b"x", mandatory=True)
        with host.client("audit") as channel:
            channel.basic_get(host.n("mailbox.audit"), auto_ack=True)
        return time.monotonic() - begun

    alone = min(pause() for _ in range(3))
    slow = []
    try:
        with host.inside("web"):
            for _ in range(20):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex((about["host"], about["port"]))
                slow.append(one)
        record_property("neighbour's time while it lasts, as a multiple", f"{pause() / alone:.2f}")
        until(
            lambda: len(slow) == sum(cut_off(one, bool(at % 2)) for at, one in enumerate(slow)), patience=120, pause=2
        )
    finally:
        for one in slow:
            one.close()
    until(lambda: connects(host, "web"), "it may come again when its connections are gone", patience=PATIENCE)


def cut_off(one: socket.socket, drips: bool) -> bool:
    """Return whether the connection is closed. If it isn't, and *drips* is set, send one more byte."""
    try:
        while one.recv(100):
            pass
    except BlockingIOError:
        if drips:
            with contextlib.suppress(OSError):
                one.send(b"\x16")
        return False
    except OSError:
        return True
    return True


def connects(host, name: str) -> bool:
    try:
        host.connect(name).close()
    except AMQPError:
        return False
    return True
