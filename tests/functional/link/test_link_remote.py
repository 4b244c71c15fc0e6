"""Direct links between two hosts: the sender logs in at the receiver's broker as itself (docs/remote-links.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest
from support.links.linked_hosts import ADDRESSES, PORT, domain
from support.links.programs import Program, tell
from support.links.streams import Stream
from support.waiting import until

from netspace.host.host import Host
from netspace.link.broker import access, node
from netspace.link.forwarder import process
from netspace.link.pki import authority, certificates
from netspace.link.pki.authority import Issuer
from netspace.link.topology import pair_keys, spiffe
from netspace.spec.types import Appraised, Attestation, Declaration, Link
from netspace_client import Change, LinkError, MailboxFull, NotAdmitted, Revoked, Timeout, Unreachable

pytestmark = pytest.mark.root

ASK = Link(source="web@h1", target="orders@h2", pattern="request", monitor=True)
TELL = Link(source="web@h1", target="audit@h2", length=20)
BACK = Link(source="orders@h2", target="web@h1")
ALONE = Link(source="other@h1", target="web@h1")
LINKS = (ASK, TELL, BACK, ALONE)
ENVIRONMENTS = {"h1": ("web", "other"), "h2": ("orders", "audit")}
EXAMPLES = Path(__file__).parents[3] / "examples"
GO = Path("/usr/share/gocode/src/github.com/rabbitmq/amqp091-go")


@pytest.fixture
def linked(declared):
    return declared


def test_the_same_list_is_declared_on_both_and_a_second_apply_changes_nothing(linked):
    h1, h2, _ = linked
    assert h1.links.names() == {"web.orders@h2", "web.audit@h2", "orders@h2.web", "other.web"}
    assert h2.links.names() == {"web@h1.orders", "web@h1.audit", "orders.web@h1"}
    assert not h1.plan(*h1.local(*LINKS)).steps
    assert not h2.plan(*h2.local(*LINKS)).steps

    def states() -> set[str]:
        with h1.here():
            return {one["state"] for one in h1.links.list()["links"].values()}

    until(lambda: states() == {"active"})  # a busy host may take too long to tell


def test_a_direct_link_that_the_other_host_does_not_have_is_told(linked):
    h1, h2, cable = linked

    def said(name: str) -> tuple[str, bool]:
        with h1.here():
            about, findings = h1.links.list()["links"][name], h1.links.health()["findings"]
        assert (about["state"] == "active") == ("why" not in about)
        return about["state"], any(one["subject"] == name and "h2's broker" in one["text"] for one in findings)

    until(lambda: said("web.orders@h2") == ("active", False))
    h2.declare(TELL, BACK)
    until(lambda: (said("web.orders@h2"), said("web.audit@h2")) == (("missing", True), ("active", False)))
    h2.declare(BACK)  # then nothing lets it in there
    until(lambda: said("web.orders@h2") == said("web.audit@h2") == ("missing", True))
    cable.cut()
    until(lambda: said("web.orders@h2") == ("unknown", True))


def test_a_request_is_answered_across_hosts_and_both_know_each_other_for_certain(linked, program):
    h1, h2, _ = linked
    web, orders = program(h1, "web"), program(h2, "orders")

    async def answer():
        async with await orders.mailbox.receive() as question:
            await question.reply(f"{question.sender} asked {question.text}")

    answering = orders.start(answer())

    async def ask():
        return await web.mailbox.call("orders@h2", "how much?", timeout=30)

    reply = web.run(ask())
    assert (reply.sender, reply.text) == ("orders@h2", "web@h1 asked how much?")
    answering.result(60)
    orders.send("web@h1", "done")  # the way back is a link of its own
    assert web.receive("orders@h2") == "done"


def test_a_local_name_follows_a_peer_to_another_host(linked, program, tmp_path):
    h1, h2, _ = linked
    here = Link(source="web@h1", target="other@h1", pattern="request", local="shop")
    there = msgspec.structs.replace(ASK, local="shop")
    others = (TELL, BACK)
    named = h1.plan(*h1.local(there, *others, ALONE))
    assert {step.name: step.changes for step in named.steps} == {"web.orders@h2": {"as": {"old": None, "new": "shop"}}}
    assert not h2.plan(*h2.local(there, *others, ALONE)).steps, "it is nothing of the receiver's host"

    h1.declare(here, *others)
    web, other, orders = program(h1, "web"), program(h1, "other"), program(h2, "orders")

    def serve(served: Program):
        async def work(message):
            return f"{served.name}, asked by {message.sender}"

        return served.start(served.mailbox.serve(work))

    serving = [serve(other), serve(orders)]
    ask = lambda: web.run(web.mailbox.call("shop", "who are you?", 60)).text  # noqa: E731
    assert ask() == "other, asked by web"
    h1.declare(there, *others)
    tell(h1, "web", tmp_path / "web")
    assert ask() == "orders, asked by web@h1"
    for one in serving:
        one.cancel()
    orders.send("web@h1", "done")
    assert web.receive("shop") == "done", "the program receives by the local name, too"


def test_any_client_needs_no_more_than_its_card(linked):
    h1, h2, _ = linked
    peer = next(one for one in h1.card("web")["peers"] if one["to"] == "orders@h2")
    with h1.client("web", to="orders@h2") as channel:
        channel.basic_publish(peer["exchange"], "", b"hello", mandatory=True)
    with h2.client("orders") as channel:
        got = [channel.basic_get(queue, auto_ack=True) for queue in h2.card("orders")["queues"]]
    ((method, body),) = [(method, body) for method, _, body in got if method]
    sender = next(one for one in h2.card("orders")["senders"] if one["from"] == "web@h1")
    assert (body, method.exchange) == (b"hello", sender["exchange"])


@pytest.mark.parametrize("example", ["mail_pika.py", "mail.go"])
def test_the_examples_reach_another_host(linked, tmp_path, example):
    h1, h2, _ = linked
    program = [sys.executable, str(EXAMPLES / example)]
    if example == "mail.go":
        if not GO.is_dir() or not shutil.which("go"):
            pytest.skip("no golang-github-rabbitmq-amqp091-go-dev")
        signal.alarm(0)  # a minute, where its cache is empty
        program = [str(tmp_path / "mail")]
        variables = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(EXAMPLES.parent / ".cache/go")}
        build = ["go", "build", "-o", *program, str(EXAMPLES / example)]
        subprocess.run(build, check=True, timeout=300, env={**os.environ, **variables})
    for world, name, words, printed in (
        (h1, "web", ["send", "orders@h2", "sold"], ""),
        (h2, "orders", ["receive"], "web@h1: sold"),
    ):
        place = world.place(name, world.write_cards(name, tmp_path / name))
        done = subprocess.run([*place, *program, *words], capture_output=True, text=True, timeout=50)
        assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr


def test_a_monitor_is_told_across_hosts(linked, program):
    h1, h2, _ = linked
    web = program(h1, "web")

    async def watched():
        return web.mailbox.monitor("orders@h2")

    monitor = web.run(watched())
    until(lambda: len(web.mailbox._notices.ears) == 1)
    orders = program(h2, "orders")
    assert web.run(monitor.change(30)) == Change("orders@h2", "up")
    orders.die()
    assert web.run(monitor.down(30)) == Change("orders@h2", "down")


# -- who may what ------------------------------------------------------------------------------
def test_at_the_other_host_an_environment_may_use_its_links_and_nothing_else(linked):
    """An environment logs in at the other host's broker, and is refused everything except its links.

    It knows every name there, which a real attacker can't.
    """
    h1, h2, _ = linked
    attempts = {
        "read a mailbox": lambda channel: channel.basic_get(h2.n("mailbox.orders")),
        "read another's lane": lambda channel: channel.basic_get(h2.links.called.queue(h2.local(TELL)[0])),
        "read dead letters": lambda channel: channel.basic_get(h2.links.called.dead),
        "answer in another's name": lambda channel: channel.basic_publish(h2.n("reply.orders"), "x", b""),
        "use another's link": lambda channel: channel.basic_publish(h2.n("link.orders.web@h1"), "", b""),
        "write into a mailbox": lambda channel: channel.basic_publish("", h2.n("mailbox.orders"), b""),
        "declare a queue": lambda channel: channel.queue_declare("mine"),
        "declare an exchange": lambda channel: channel.exchange_declare("mine"),
        "bind its answers to a link": lambda channel: channel.queue_bind(
            h2.n("replies.web@h1"), h2.n("link.web@h1.orders"), ""
        ),
        "purge a mailbox": lambda channel: channel.queue_purge(h2.n("mailbox.orders")),
    }
    for what, attempt in attempts.items():
        with h1.client("web", to="orders@h2") as channel:
            with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
                attempt(channel)
                channel.queue_declare("", passive=True)  # a publication is refused a moment later
            assert refused.value.reply_code in (403, 404), what


def test_one_host_can_be_no_other_whatever_it_issues(linked, tmp_path):
    """An attacker with h1's CA issues certificates for names of h2; brokers and clients refuse them."""
    h1, h2, _ = linked
    known = authority.read(h1.layout)
    forged = {
        "an environment of h2": dataclasses.replace(known, host=spiffe.host_id(domain("h2"), "h2")),
    }
    for what, whose in forged.items():
        path = tmp_path / "forged.pem"
        path.write_bytes(Issuer(whose).environment("orders", time.time()))
        with pytest.raises((ssl.SSLError, OSError, pika.exceptions.AMQPError)):
            pytest.fail(f"{what}: {h1.connect('web', to='orders@h2', certificate=path)}")
    # Nor can it be another host's broker: clients check the name by the same constraints.
    serving = tmp_path / "server.pem"
    serving.write_bytes(Issuer(known).server(time.time(), serves=domain("h2")))
    assert "permitted subtree violation" in _handshake(h1, serving, domain("h2"))
    assert _handshake(h2, certificates.server_folder(h2.layout) / certificates.SERVER, domain("h2")) == ""


def _handshake(world, certificate, name: str) -> str:
    """Return the error of a client that expects *name* from a server with *certificate*; empty if there is no error."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    client = world.tls()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(incoming, outgoing, server_hostname=name)
    answering_in, answering_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    answering = server.wrap_bio(answering_in, answering_out, server_side=True)
    for _ in range(6):
        try:
            asking.do_handshake()
            return ""
        except ssl.SSLWantReadError:
            answering_in.write(outgoing.read())
        except ssl.SSLError as err:
            return str(err)
        with contextlib.suppress(ssl.SSLWantReadError):
            answering.do_handshake()
        incoming.write(answering_out.read())
    return "no end"


def test_who_has_no_link_there_does_not_get_there(linked):
    """A client without a link to h2 asks its port for h2's broker, and reaches only its own host's broker.

    So a client that expects h2's certificate refuses the connection.
    """
    h1, _, _ = linked
    with h1.inside("other"):
        with socket.create_connection(("127.0.0.1", 5671), timeout=10) as stream:
            with pytest.raises(ssl.SSLCertVerificationError, match=r"h2\.example\.org"):
                h1.tls(certificates.path(h1.layout, "other")).wrap_socket(stream, server_hostname=domain("h2"))


def test_from_elsewhere_only_the_broker_is_reached_and_only_by_certificate(linked):
    h1, _, _ = linked
    with h1.here():
        for port in (5672, 5682, 15682, 25682, 4379):
            with pytest.raises(OSError):
                socket.create_connection((ADDRESSES["h2"], port), timeout=2)
        with socket.create_connection((ADDRESSES["h2"], PORT), timeout=10) as stream:
            tls = h1.tls().wrap_socket(stream, server_hostname=domain("h2"))
            with pytest.raises(OSError):  # TLS 1.3 tells only once something is read
                tls.sendall(b"AMQP\0\0\x09\x01")
                if tls.recv(8) == b"":
                    raise OSError("hung up")
        for name in ("localhost", domain("h1")):  # who asks for another isn't let through, whatever he thinks of it
            unsure = h1.tls(certificates.path(h1.layout, "web"))
            unsure.check_hostname = False
            with socket.create_connection((ADDRESSES["h2"], PORT), timeout=10) as stream:
                with pytest.raises(OSError):
                    unsure.wrap_socket(stream, server_hostname=name)


# -- what happens ---------------------------------------------------------------------------------
@pytest.mark.revocation
def test_revoked_at_the_receivers_host_the_sender_is_told_at_once(linked):
    h1, h2, _ = linked
    ways = {one["to"]: one["exchange"] for one in h1.card("web")["peers"]}
    with h1.client("web", to="orders@h2") as channel:
        channel.basic_publish(ways["orders@h2"], "", b"1", mandatory=True)
        h2.declare(TELL, BACK)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as told:
            channel.basic_publish(ways["orders@h2"], "", b"2", mandatory=True)
        assert told.value.reply_code == 404
        again = channel.connection.channel()  # its other link there goes on, over the same connection
        again.confirm_delivery()
        again.basic_publish(ways["audit@h2"], "", b"3", mandatory=True)


def test_receiver_refuses_a_sender_whose_host_lost_its_level(linked):
    """The level of h1 falls, expires, is unknown: h2 revokes the link that demands it, and restores it."""
    h1, h2, _ = linked
    ways = {one["to"]: one["exchange"] for one in h1.card("web")["peers"]}
    wanted = h2.local(msgspec.structs.replace(ASK, attested="L3"), TELL, BACK)
    now = time.time()

    def apply(**told: Any) -> str:
        """Apply the links with the master's statement about h1 (*told*: its fields); return why a link is refused."""
        levels = {"h1": Appraised(**told)} if told else {}
        declared = Declaration(broker=h2.broker, links=wanted, attestation=Attestation(appraised=levels))
        with h2.here():
            result = Host(h2.layout).converge_links(declared, whole=True)
        assert not result.plan.steps or all(not one.error for one in result.outcomes), result
        assert {one.name for one in result.plan.refusals} <= {"web@h1.orders"}
        return "".join(one.message for one in result.plan.refusals)

    def sent() -> bool:
        with h1.client("web", to="orders@h2") as channel:
            try:
                channel.basic_publish(ways["orders@h2"], "", b"1", mandatory=True)
            except pika.exceptions.AMQPError:
                return False
            return True

    assert apply(level="L3", until=now + 3600) == "" and sent()
    assert not h2.plan(*wanted).steps
    for told, why in (
        ({"level": "L2", "until": now + 3600}, "h1 has L2"),
        ({"level": "L5", "until": now - 1}, "has expired"),
        ({}, "has reported no level of h1"),
    ):
        assert why in apply(**told) and h2.links.names() == {"web@h1.audit", "orders.web@h1"}
        assert not sent()
        assert apply(level="L4", until=now + 3600) == "" and sent()
    with h2.here():
        assert h2.links.list()["links"]["web@h1.orders"]["attested"] == "L3"


@pytest.mark.revocation
def test_who_has_not_said_yet_whom_he_wants_is_not_led_by_what_is_revoked(linked):
    """A connection names h2 only after the links to h2 were revoked; it doesn't reach h2.

    It was opened before. So it stays with an old process of the forwarder, which still has the old routes.
    """
    h1, _, _ = linked

    def severed() -> bool:
        """Return whether the early connection was cut; False if it reached the environment's own broker instead."""
        h1.declare(*LINKS)
        with h1.inside("web"):
            early = socket.create_connection(("127.0.0.1", 5671), timeout=20)
        with early:
            h1.declare(BACK, ALONE)
            try:
                h1.tls(certificates.path(h1.layout, "web")).wrap_socket(early, server_hostname=domain("h2"))
            except OSError as err:
                return not isinstance(err, ssl.SSLCertVerificationError)
        pytest.fail("he was led there")

    until(severed)


def test_peers_of_one_name_are_not_taken_for_each_other(linked, program, tmp_path):
    """Two peers named orders, on two hosts, get the right requests, answers and monitors.

    With a common key, the objects of both peers have the same names, but on different brokers.
    """
    h1, h2, _ = linked
    near = (Link(source="web@h1", target="orders@h1", pattern="request", monitor=True),)
    h1.environment("orders")
    h1.declare(*LINKS, *near)
    web = program(h1, "web")

    async def serve(mailbox, text):
        async def answer(_):
            return text

        await mailbox.serve(answer)

    async def ask(peer):
        return await web.mailbox.call(peer, "who?", timeout=30)

    async def watched(peer):
        return web.mailbox.monitor(peer)

    monitors = [web.run(watched(peer)) for peer in ("orders", "orders@h2")]
    until(lambda: len(web.mailbox._notices.ears) == 2)
    far, local = program(h2, "orders"), Program(h1, "orders", tell(h1, "orders", tmp_path / "near"))
    try:
        working = [far.start(serve(far.mailbox, "far")), local.start(serve(local.mailbox, "near"))]
        for peer, text in (("orders", "near"), ("orders@h2", "far"), ("orders", "near")):
            answer = web.run(ask(peer))
            assert (answer.sender, answer.text) == (peer, text)
        until(lambda: all(len(monitor._readers._known) == 1 for monitor in monitors))
        far.die()
        assert web.run(monitors[1].down(30)) == Change("orders@h2", "down")
        assert len(monitors[0]._readers._known) == 1
        for one in working:
            one.cancel()
    finally:
        local.leave()


@pytest.mark.revocation
def test_revoked_at_the_senders_host_its_connections_there_are_ended(linked):
    h1, _, _ = linked
    own, there = h1.connect("web"), h1.connect("web", to="orders@h2")
    try:
        h1.declare(BACK, ALONE)
        assert _ended(there)
        own.channel().close()  # what leads elsewhere goes on
        assert h1.card("web")["peers"] == []
    finally:
        own.close()


@pytest.mark.revocation
def test_links_of_a_host_end_at_once_and_an_apply_mends_them(linked):
    h1, h2, _ = linked
    own, there = h1.connect("web"), h1.connect("web", to="orders@h2")
    way = next(one["exchange"] for one in h2.card("orders")["peers"] if one["to"] == "web@h1")
    pid = h1.supervisor.observe()[process.NAME].pid
    try:
        with h1.here():  # a run that goes on meanwhile delays nothing: no lock is taken
            assert h1.links.part(h1.local(ASK, TELL, BACK)) == []
        assert _ended(there)
        with pytest.raises((pika.exceptions.AMQPError, OSError)):
            h1.connect("web", to="audit@h2")
        with h2.client("orders", to="web@h1") as channel:
            with pytest.raises(pika.exceptions.ChannelClosedByBroker) as told:
                channel.basic_publish(way, "", b"1", mandatory=True)
            assert told.value.reply_code == 404
        own.channel().close()  # what leads elsewhere goes on
        assert "web.orders@h2" in h1.links.names(), "the record stays, so that a run removes what is left"
    finally:
        own.close()
    h1.declare(*LINKS)
    assert h1.supervisor.observe()[process.NAME].pid == pid
    h1.connect("web", to="audit@h2").close()
    with h2.client("orders", to="web@h1") as channel:
        channel.basic_publish(way, "", b"2", mandatory=True)
    assert not h1.plan(*h1.local(*LINKS)).steps


def test_its_ways_are_closed_though_its_own_broker_does_not_answer(linked):
    h1, _, _ = linked
    there = h1.connect("web", to="orders@h2")
    plan = h1.plan(*h1.local(BACK), remove=h1.links.names())  # of which that to its own broker is to go, too
    pid = h1.supervisor.observe()[node.NODE].pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with h1.here():
            assert all(outcome.error for outcome in h1.links.apply(plan.steps))
        assert _ended(there)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_what_is_declared_no_more_is_revoked_though_names_can_not_be_made(linked):
    """The key for names can't be read: no object is made, but links are revoked, and other links keep working."""
    h1, h2, _ = linked
    key = Path(str(h2.broker.authority)) / pair_keys.FILE
    ways = {one["to"]: one["exchange"] for one in h1.card("web")["peers"]}
    key.chmod(0o640)
    try:
        plan = h2.plan(*h2.local(*LINKS))
        assert not plan.steps and ["other users can read it" in one.message for one in plan.refusals] == [True]
        news = Link(source="audit@h2", target="web@h1")
        plan = h2.plan(*h2.local(TELL, BACK, news), remove={"web@h1.orders"})
        assert "other users can read it" in str(plan.notes)
        with h2.here():
            assert {"other users can read it" in outcome.error for outcome in h2.links.apply(plan.steps)} == {True}
        with h1.client("web", to="orders@h2") as channel:
            with pytest.raises(pika.exceptions.ChannelClosedByBroker) as told:
                channel.basic_publish(ways["orders@h2"], "", b"x", mandatory=True)
            assert told.value.reply_code == 404
            again = channel.connection.channel()
            again.confirm_delivery()
            again.basic_publish(ways["audit@h2"], "", b"x", mandatory=True)

        def missing() -> bool:
            with h2.here():
                return h2.links.list()["links"]["audit.web@h1"]["state"] == "missing"

        until(missing)
        assert h2.card("audit")["senders"]
    finally:
        key.chmod(0o600)
    h2.declare(*LINKS)
    assert not h2.plan(*h2.local(*LINKS)).steps


def test_it_is_revoked_though_the_brokers_definitions_can_not_be_read(linked, monkeypatch):
    """A link is revoked although the broker's definitions can't be read; the record has the names in use."""
    h1, h2, _ = linked
    key = Path(str(h2.broker.authority)) / pair_keys.FILE
    exchange = next(one["exchange"] for one in h1.card("web")["peers"] if one["to"] == "orders@h2")
    key.chmod(0o640)
    try:
        plan = h2.plan(*h2.local(TELL, BACK), remove={"web@h1.orders"})
        for step in plan.steps:
            object.__setattr__(step.data, "observed", dataclasses.replace(step.data.observed, definitions=None))
        monkeypatch.setattr(access, "definitions", lambda *_: 1 / 0)
        with h2.here(), pytest.raises(ZeroDivisionError):
            h2.links.apply(plan.steps)
        with h2.here(), h2.api() as api:
            assert api.get("exchanges", h2.layout.instance, exchange) is None
    finally:
        key.chmod(0o600)
        monkeypatch.undo()
    h2.declare(*LINKS)


def _ended(connection: pika.BlockingConnection) -> bool:
    try:
        for _ in range(120):
            connection.process_data_events(time_limit=0.5)
    except pika.exceptions.AMQPError:
        return True
    return connection.is_closed


def test_an_environment_that_is_declared_no_more_loses_its_account_there(linked):
    h1, h2, _ = linked
    there = h1.connect("web", to="orders@h2")
    h2.declare(BACK)
    assert _ended(there)
    with pytest.raises((OSError, pika.exceptions.AMQPError)):
        h1.connect("web", to="orders@h2")


def test_a_host_that_is_declared_no_more_is_gone_from_the_broker(linked):
    h1, h2, _ = linked
    other = msgspec.structs.replace(h2.broker, hosts={})
    h2.apply(Link(source="orders", target="audit"), broker=other)
    with h2.here(), h2.api() as api:
        assert not [one["name"] for one in api.get("users") if "/h1/" in one["name"]]
    with pytest.raises((OSError, pika.exceptions.AMQPError)):
        h1.connect("web", to="orders@h2")


def test_a_full_mailbox_there_is_told_here(linked, program):
    h1, h2, _ = linked
    web = program(h1, "web")

    async def pour():
        for number in range(200):
            await web.mailbox.send("audit@h2", str(number))

    with pytest.raises(MailboxFull):
        web.run(pour())
    assert program(h2, "audit").receive() == "0"


def test_a_host_out_of_reach_is_told_and_its_own_broker_goes_on(linked, program):
    h1, _, cable = linked
    web, other = program(h1, "web"), program(h1, "other")
    cable.cut()
    with pytest.raises((Timeout, Unreachable)):  # whether it knows already that the connection is gone
        web.send("orders@h2", "x", timeout=2.0)
    other.send("web", "near")
    assert web.receive("other") == "near"


def test_a_host_that_does_not_declare_the_sender_is_told_from_one_out_of_reach(linked, program):
    h1, h2, _ = linked
    web = program(h1, "web")
    until(lambda: len(web.connections()) == 2)

    def told(how: Callable[..., Coroutine[Any, Any, Any]], text: str) -> type[LinkError] | None:
        """Send by *how*, with time to reconnect; return the error's class if its message contains *text*."""
        try:
            web.run(how("orders@h2", "x", timeout=3.0))
        except LinkError as err:
            return type(err) if text in str(err) else None
        return None

    h2.declare(BACK)  # it has the way back, and nothing that web may send
    for how in (web.mailbox.send, web.mailbox.call):
        until(lambda how=how: told(how, "its host has to declare the link") is NotAdmitted)
    h2.declare()  # it has no link with h1 at all, and isn't there for it
    until(lambda: told(web.mailbox.send, "has no link with ours") is Unreachable)


def test_nothing_is_lost_though_brokers_die_and_the_cable_is_cut(linked, program):
    """10,000 messages arrive, although each broker is killed and the network is cut for 15 seconds."""
    h1, h2, cable = linked
    stream = Stream(program(h1, "web", confirm=5.0), program(h2, "orders"), "orders@h2", "web@h1", 10_000)
    stream.until(1_500)
    h2.kill_broker()
    h2.declare(*LINKS)
    stream.until(3_500)
    h1.kill_broker()
    stream.until(5_000)  # it isn't on the way
    h1.declare(*LINKS)
    cable.cut()
    time.sleep(15)
    cable.mend()
    assert stream.failed() == []
    assert stream.got() == list(range(10_000))  # each once, in order


def test_after_a_boot_the_way_is_there_again(linked, program):
    """As after a boot without Salt, the forwarder's configuration is made from the records, and a message arrives."""
    h1, h2, _ = linked
    for world in (h1, h2):
        shutil.rmtree(process.folder(world.layout))
        world.kill(process.NAME)
        with world.here():
            assert world.links.restore() == {}
            world.supervisor.start([process.NAME])
    web, orders = program(h1, "web"), program(h2, "orders")
    web.send("orders@h2", "again")
    assert orders.receive() == "again"


def test_a_link_that_is_gone_for_good_is_told_by_the_client(linked, program):
    h1, h2, _ = linked
    web = program(h1, "web")
    web.send("orders@h2", "x")
    h2.declare(TELL, BACK)
    with pytest.raises(Revoked):
        web.send("orders@h2", "y")
