"""One environment floods the broker with its links alone: the broker limits it, and serves other environments."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker, NackError
from support.links import amqp1, hostile
from support.sampling import todays
from support.waiting import until

from netspace.link.broker import node, plugin
from netspace.link.pki import certificates
from netspace.link.topology.objects import ANSWERS
from netspace.spec.types import MESSAGE_SIZE, Link

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
OTHER = Link(source="web", target="audit")
TELL = Link(source="orders", target="audit")
QUICK = Link(source="audit", target="web", durable=False)
LINKS = (ASK, OTHER, TELL, QUICK)
MEMORY = 400_000_000  # what the broker may have here, so that filling it takes seconds
PATIENCE = 60.0
TIMES = 2.0
"""How much longer a neighbour's message may take while an environment does its worst."""


@pytest.fixture(scope="module")
def host(world):
    world.environment("web", "orders", "audit")
    world.apply(*LINKS)
    # This, and the report of cut-offs, stays as long as the broker runs: no other module gets this host.
    world.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({{absolute,{MEMORY}}}).")
    return world


@pytest.fixture(scope="module")
def cards(host, tmp_path_factory) -> Path:
    return Path(host.write_cards("web", tmp_path_factory.mktemp("cards") / "web"))


@pytest.fixture(autouse=True)
def _well(host):
    """Check after each test that the broker has the declared objects, and that no unknown messages are left."""
    yield
    host.forgive()
    host.no_mail()
    until(lambda: host.plan(*LINKS).steps == [], "the broker has what was declared", patience=PATIENCE)


@contextlib.contextmanager
def attacker(host, cards: Path, attack: str) -> Iterator[subprocess.Popen[str]]:
    command = ["ip", "netns", "exec", host.layout.netns_name("web"), sys.executable, hostile.__file__, attack, cards]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


class Neighbour:
    """A sender and a receiver in two other environments, for measuring the broker's delay."""

    def __init__(self, host) -> None:
        self.host = host
        self.blocked: list[object] = []
        self.sender = host.connect("orders")
        self.sender.add_on_connection_blocked_callback(lambda *why: self.blocked.append(why))
        self.out = self.sender.channel()
        self.out.confirm_delivery()
        self.receiver = host.connect("audit")
        self.box = self.receiver.channel()

    def pause(self) -> float:
        """Send a message; return the seconds until it is confirmed and read."""
        self.sender.process_data_events(0)  # so that what the broker said of it meanwhile is heard
        begun = time.monotonic()
        self.out.basic_publish(self.host.n("link.orders.audit"), "", b"well", mandatory=True)
        while True:
            delivery, _, body = self.box.basic_get(self.host.n("mailbox.audit"), auto_ack=True)
            if delivery is not None and body == b"well":
                return time.monotonic() - begun

    def leave(self) -> None:
        for connection in (self.sender, self.receiver):
            with contextlib.suppress(AMQPError):
                connection.close()


@pytest.fixture
def neighbour(host) -> Iterator[Neighbour]:
    one = Neighbour(host)
    yield one
    one.leave()


def cut_offs(host, name: str) -> int:
    """Return how often an environment was disconnected since the broker started; health reports it for an hour."""
    found = re.search(rf"\b{name} was cut off (\d+) times", str(host.links.health()["problems"]))
    return int(found[1]) if found else 0


# -- memory ------------------------------------------------------------------------------
@pytest.mark.exhaustion
@pytest.mark.parametrize("attack", ["transaction", "unfinished", "unfinished_amqp_1"])
def test_who_has_the_broker_keep_too_much_is_cut_off_and_nobody_else_is_stopped(host, cards, neighbour, attack):
    before = cut_offs(host, "web")
    with attacker(host, cards, attack) as process:
        assert process.stdout is not None
        said: list[str] = []
        deadline = time.monotonic() + 3 * PATIENCE
        while cut_offs(host, "web") < before + 3:
            said.append(next(process.stdout))
            neighbour.pause()
            assert time.monotonic() < deadline, f"it goes on: {said}"
    # By AMQP 1.0 it writes without a look at what it is told, and may find the connection gone.
    assert attack.endswith("amqp_1") or any("keep too much" in one for one in said)
    neighbour.pause()
    assert neighbour.blocked == [], "the memory alarm never stopped it"
    assert cut_offs(host, "orders") == 0


@pytest.mark.exhaustion
def test_reader_that_keeps_memory_unacknowledged_is_cut_off(host, neighbour):
    """A reader that takes messages of a memory link and acknowledges none is disconnected; others are served."""
    over = threading.Event()
    lane, exchange = host.links.called.queue(QUICK), host.n("link.audit.web")

    def take() -> None:
        while not over.is_set():
            with contextlib.suppress(AMQPError), host.client("web") as channel:
                channel.basic_consume(lane, lambda *_: None)
                while not over.is_set():
                    channel.connection.process_data_events(0.1)

    def pour() -> None:
        body = b"x" * (MESSAGE_SIZE - 4096)
        while not over.is_set():
            with contextlib.suppress(AMQPError), host.client("audit") as channel:
                while not over.is_set():
                    with contextlib.suppress(NackError):
                        channel.basic_publish(exchange, "", body, mandatory=True)

    before = cut_offs(host, "web")
    threads = [threading.Thread(target=work, daemon=True) for work in (take, pour)]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 3 * PATIENCE
        while cut_offs(host, "web") < before + 3:
            neighbour.pause()
            assert time.monotonic() < deadline, "it goes on"
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    neighbour.pause()
    assert neighbour.blocked == [], "the memory alarm never stopped it"
    assert cut_offs(host, "orders") == 0


def test_consumers_are_bounded(host):
    with host.client("web") as channel:
        for _ in range(node.CONSUMERS):
            channel.basic_consume(host.n("mailbox.web"), lambda *_: None)
        with pytest.raises(ConnectionClosedByBroker, match="maximum"):
            channel.basic_consume(host.n("mailbox.web"), lambda *_: None)


# -- time ----------------------------------------------------------------------------------
def multiple(neighbour: Neighbour, process: subprocess.Popen[str], phases: int = 5, each: int = 30) -> float:
    """Return how many times longer another environment waits during the attack than while the attacker sleeps.

    Both times are measured in turn, so that other load on the machine affects both.
    """
    found: dict[int, list[float]] = {signal.SIGCONT: [], signal.SIGSTOP: []}
    for number in range(2 * phases):
        told = (signal.SIGSTOP, signal.SIGCONT)[number % 2]
        process.send_signal(told)
        time.sleep(0.3)
        found[told] += [neighbour.pause() for _ in range(each)]
    return statistics.median(found[signal.SIGCONT]) / statistics.median(found[signal.SIGSTOP])


@pytest.mark.exhaustion
@pytest.mark.parametrize("attack", todays(list(hostile.ATTACKS), 3))
def test_a_neighbour_waits_little_longer_while_an_environment_does_its_worst(
    host, cards, neighbour, attack, record_property
):
    with attacker(host, cards, attack) as process:
        assert process.stdout is not None
        next(process.stdout)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # else it would wait for a reader at last
        time.sleep(1.0)
        deadline = time.monotonic() + 140
        tries: list[float] = []
        while min(tries, default=TIMES + 1) > TIMES and time.monotonic() < deadline:
            tries.append(multiple(neighbour, process))
        record_property("a neighbour's time while it lasts, as a multiple", f"{min(tries):.2f}")
        process.send_signal(signal.SIGCONT)
    assert min(tries) <= TIMES


# -- bindings ------------------------------------------------------------------------------
def answers_bound(host) -> list[dict]:
    with host.api() as api:
        return api.get("exchanges", "netspace", host.n("reply.orders"), "bindings", "source")


@pytest.fixture
def unbound(host) -> None:
    """Remove all bindings to answers that an earlier flood left.

    The broker may still read what a killed program had sent, so bindings are removed until none is there.
    """

    def removed() -> bool:
        found = answers_bound(host)
        for entry in found:
            kind = "q" if entry["destination_type"] == "queue" else "e"
            ends = ("e", entry["source"], kind, entry["destination"], entry["properties_key"])
            api.delete("bindings", host.layout.instance, *ends)
        return not found

    with host.here(), host.api() as api:
        until(removed, patience=PATIENCE)


def by_arguments(host) -> None:
    with host.client("web") as channel:
        channel.queue_bind(host.n("replies.web"), host.n("reply.orders"), "key", arguments={"x": "x" * 100_000})


def by_number(host) -> None:
    with host.client("web") as channel:
        for number in itertools.count():
            channel.queue_bind(host.n("replies.web"), host.n("reply.orders"), str(number))


def by_exchange(host) -> None:
    with host.client("web") as channel:
        channel.exchange_bind(host.n("link.web.audit"), host.n("reply.orders"), "key")


def _by_amqp_1(host, bound: dict) -> None:
    about = host.card("web")["broker"]
    with host.inside("web"):
        plain = hostile.socket.create_connection((about["host"], about["port"]), timeout=30)
    secured = host.tls(certificates.path(host.layout, "web")).wrap_socket(plain, server_hostname="localhost")
    with contextlib.closing(secured):
        client = amqp1.Client(secured, host.links.access().vhost)
        for _ in iter(int, 1):
            client.manage("POST", "/bindings", bound)


def by_exchange_over_amqp_1(host) -> None:
    ends = {"source": host.n("reply.orders"), "destination_exchange": host.n("link.web.audit")}
    _by_amqp_1(host, {**ends, "binding_key": "key", "arguments": {}})


def by_arguments_over_amqp_1(host) -> None:
    ends = {"source": host.n("reply.orders"), "destination_queue": host.n("replies.web")}
    _by_amqp_1(host, {**ends, "binding_key": "key", "arguments": {"x": "x" * 100_000}})


def test_answers_beyond_their_number_are_undone_and_cost_their_maker(host, unbound):
    before = cut_offs(host, "web")
    with pytest.raises((AMQPError, OSError)):
        by_number(host)
    until(lambda: len(answers_bound(host)) <= ANSWERS, patience=PATIENCE)
    until(lambda: cut_offs(host, "web") > before, patience=PATIENCE)
    with host.client("web") as channel:  # what asking does need is as it was
        channel.queue_bind(host.n("replies.web"), host.n("reply.orders"), "0")
        channel.queue_unbind(host.n("replies.web"), host.n("reply.orders"), "0")
        for entry in answers_bound(host):
            channel.queue_unbind(host.n("replies.web"), host.n("reply.orders"), entry["routing_key"])


@pytest.mark.parametrize("attack", [by_arguments, by_exchange])
def test_what_asking_does_not_need_is_refused_over_amqp_0_9_1(host, unbound, attack):
    with pytest.raises(ChannelClosedByBroker) as caught:
        attack(host)
    assert (caught.value.reply_code, answers_bound(host)) == (403, [])


@pytest.mark.parametrize("attack", [by_arguments_over_amqp_1, by_exchange_over_amqp_1])
def test_what_asking_does_not_need_is_refused_over_amqp_1(host, unbound, attack):
    with pytest.raises(amqp1.RefusedError, match="netspace: a request that is the host's to make"):
        attack(host)
    assert answers_bound(host) == []


@pytest.mark.parametrize("attack", [by_exchange, by_exchange_over_amqp_1])
def test_no_answer_is_led_where_there_is_no_link(host, unbound, attack):
    """An asker tries to bind its link's exchange to the exchange for its answers; the broker refuses this.

    The asker may write to the link's exchange, and read from the exchange for its answers.
    """
    with pytest.raises((AMQPError, amqp1.RefusedError, OSError)):
        attack(host)
    until(lambda: answers_bound(host) == [], patience=PATIENCE)
    with host.client("orders") as channel, pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish(host.n("reply.orders"), "key", b"x", mandatory=True)
    with host.client("audit") as channel:
        assert channel.basic_get(host.n("mailbox.audit"), auto_ack=True)[0] is None


def test_health_sees_bindings_beyond_need_without_an_apply(host):
    with host.unguarded(), host.client("web") as channel:
        channel.exchange_bind(host.n("link.web.audit"), host.n("reply.orders"), "key")
        assert "excess bindings to answers: of link.web.audit" in str(host.links.health()["problems"])
        channel.exchange_unbind(host.n("link.web.audit"), host.n("reply.orders"), "key")
        assert "doesn't need" not in str(host.links.health()["problems"])


def test_a_guard_that_is_damaged_is_made_anew(host):
    assert node.installed(host.layout, host.broker)
    (beam,) = host.layout.broker.rglob(f"{plugin.NAME}.beam")
    content = beam.read_bytes()
    beam.unlink()
    assert [step.name for step in host.plan(*LINKS).steps] == ["broker"]
    beam.write_bytes(content)
