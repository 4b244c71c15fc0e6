"""A real broker and real clients inside environments: requests that links permit, and requests that are refused."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import subprocess
import time
from pathlib import Path

import pika
import pytest
from pika.exceptions import (
    AMQPConnectionError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    UnroutableError,
)
from support.waiting import until

from netspace import files
from netspace.link import record
from netspace.link.broker import listening, management, node
from netspace.link.forwarder import process
from netspace.link.pki import certificates
from netspace.link.topology.names import shown
from netspace.spec import reach
from netspace.spec.types import Link, LocalBroker

pytestmark = pytest.mark.root

ASK = Link(source="web", target="orders", pattern="request")
TELL = Link(source="orders", target="audit")
LINKS = (ASK, TELL)
EXAMPLE = Path(__file__).parents[3] / "examples/mail_pika.py"


@pytest.fixture(scope="module")
def linked(standing):
    """Three environments with two links between them."""
    standing.environment("web", "orders", "audit")
    standing.apply(*LINKS)
    return standing


@pytest.fixture
def host(linked):
    """A host with the same links and empty mailboxes, whatever the previous test did."""
    linked.apply(*LINKS, purge=True)
    with linked.api() as api:
        for name in ("web", "orders", "audit"):
            api.delete("queues", "netspace", linked.n(f"mailbox.{name}"), "contents")
    return linked


# -- what is permitted -------------------------------------------------------------------
def test_the_documented_example_asks_and_answers_and_sends(host, tmp_path):
    code = EXAMPLE.read_text()
    cards = {name: host.write_cards(name, tmp_path / name) for name in ("web", "orders", "audit")}
    answering = host.run_inside("orders", code, "answer", cards=cards["orders"])
    try:
        with host.client("web") as channel:  # no message ends a service
            for body in (b"\xff\xfe no text", b"", b"\0" * 1000):
                about = pika.BasicProperties(reply_to=f"{host.n('reply.orders')}/\x7f", correlation_id="\ufffd" * 60)
                channel.basic_publish(host.n("link.web.orders"), "", body, about, mandatory=True)
        asking = host.run_inside("web", code, "request", "orders", "how much?", cards=cards["web"])
        said, complaint = asking.communicate(timeout=60)
        assert said.strip() == "web asked how much?", complaint
    finally:
        answering.kill()
        answering.communicate()
    sending = host.run_inside("orders", code, "send", "audit", "sold", cards=cards["orders"])
    assert sending.communicate(timeout=60) == ("", "")
    hearing = host.run_inside("audit", code, "receive", cards=cards["audit"])
    said, complaint = hearing.communicate(timeout=60)
    assert said.strip() == "orders: sold", complaint


# -- what is refused ------------------------------------------------------------------------
ATTACKS = {
    "another's link": lambda channel, n: channel.basic_publish(n("link.orders.audit"), "", b"x"),
    "a link against its direction": lambda channel, n: channel.basic_publish(n("link.orders.web"), "", b"x"),
    "the default exchange": lambda channel, n: channel.basic_publish("", n("mailbox.orders"), b"x"),
    "a standard exchange": lambda channel, n: channel.basic_publish("amq.fanout", "", b"x"),
    "the dead letters' exchange": lambda channel, n: channel.basic_publish(n("dead"), "", b"x"),
    "reading another's mailbox": lambda channel, n: channel.basic_get(n("mailbox.orders")),
    "consuming another's mailbox": lambda channel, n: channel.basic_consume(n("mailbox.orders"), print),
    "reading the dead letters": lambda channel, n: channel.basic_get(n("dead")),
    "purging another's mailbox": lambda channel, n: channel.queue_purge(n("mailbox.orders")),
    "deleting its own mailbox": lambda channel, n: channel.queue_delete(n("mailbox.web")),
    "deleting another's mailbox": lambda channel, n: channel.queue_delete(n("mailbox.orders")),
    "declaring a queue": lambda channel, n: channel.queue_declare("mine"),
    "declaring an exchange": lambda channel, n: channel.exchange_declare("mine"),
    "deleting a link": lambda channel, n: channel.exchange_delete(n("link.web.orders")),
    "listening on a link": lambda channel, n: channel.queue_bind(n("replies.web"), n("link.orders.audit")),
    "widening its mailbox": lambda channel, n: channel.queue_bind(n("mailbox.web"), "amq.fanout"),
    "answering for another": lambda channel, n: channel.basic_publish(n("reply.orders"), "key", b"x"),
    "unbinding a link": lambda channel, n: channel.queue_unbind(n("mailbox.orders"), n("link.web.orders")),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused(host, attack):
    with host.client("web") as channel:
        with pytest.raises(ChannelClosedByBroker) as caught:
            ATTACKS[attack](channel, host.n)
            channel.connection.process_data_events(1)
    assert caught.value.reply_code in (403, 404), caught.value


def sends(host, source: str, target: str) -> bool:
    """Return whether a message of *source* reaches the mailbox of *target*."""
    try:
        with host.client(source) as channel:
            channel.confirm_delivery()
            channel.basic_publish(host.n(f"link.{source}.{target}"), "", b"x", mandatory=True)
    except ChannelClosedByBroker:
        return False
    return True


def replies(host, source: str, target: str) -> bool:
    """Return whether an answer of *source* reaches *target*, which has bound its replies queue with a key."""
    queue, exchange = host.n(f"replies.{target}"), host.n(f"reply.{source}")
    try:
        with host.client(target) as asking, host.client(source) as answering:
            asking.queue_bind(queue, exchange, "key")
            answering.confirm_delivery()
            answering.basic_publish(exchange, "key", b"x", mandatory=True)
            asking.queue_unbind(queue, exchange, "key")
            asking.queue_purge(queue)
    except ChannelClosedByBroker:
        return False
    return True


def test_messages_pass_where_the_answer_is_yes(host):
    names = ("web", "orders", "audit")
    applied = reach.World(frozenset(names), links=tuple(record.read(host.layout).links.values()))

    def told(known, source: str, target: str) -> tuple[bool, bool]:
        found = reach.answer(known, source, target)
        return found.begins, any(edge.answers for edge in found.edges)

    pairs = list(itertools.permutations(names, 2))
    broker = {pair: (sends(host, *pair), replies(host, *pair)) for pair in pairs}
    assert {pair: told(applied, *pair) for pair in pairs} == broker
    for links in ((ASK,), (TELL,), (*LINKS, Link(source="audit", target="web"))):
        wrong = reach.World(frozenset(names), links=links)
        assert {pair: told(wrong, *pair) for pair in pairs} != broker


def test_a_forged_user_id_is_refused(host):
    with host.client("web") as channel, pytest.raises(ChannelClosedByBroker) as caught:
        channel.basic_publish(host.n("link.web.orders"), "", b"x", pika.BasicProperties(user_id="env.audit"))
    assert caught.value.reply_code == 406


@pytest.mark.exhaustion
def test_connections_are_bounded(host):
    opened = []

    def another() -> bool:
        try:
            opened.append(host.connect("web"))
        except AMQPConnectionError:
            return False
        return True

    try:
        # The broker counts one that was just closed a moment longer.
        until(lambda: another() and len(opened) == 8)
        assert not another()
        with host.client("orders") as channel:  # a neighbour is served all the same
            channel.basic_publish(host.n("link.orders.audit"), "", b"x", mandatory=True)
    finally:
        for connection in opened:
            connection.close()


def test_only_the_amqp_port_can_be_reached_from_inside(host):
    spec = LocalBroker()
    with host.inside("web"):
        socket.create_connection(("127.0.0.1", 5671), timeout=5).close()
        for port in (spec.port, spec.management_port, spec.distribution_port, spec.epmd_port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)


def test_no_local_user_keeps_the_broker_down_by_its_name(host):
    """A local user registers the broker's name at epmd; the broker restarts all the same, since it uses no epmd."""
    ports = (4369, host.broker.epmd_port)
    with contextlib.ExitStack() as after:
        for port in ports:
            command = ["/usr/bin/epmd", "-address", "127.0.0.1", "-port", str(port)]
            mapper = after.enter_context(subprocess.Popen(command, user=65534, group=65534))
            after.callback(mapper.kill)
            until(lambda: listening.holder(port) is not None)  # noqa: B023
            one = after.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            # ALIVE2_REQ: https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html#register-a-node-in-epmd
            name = host.layout.instance.encode()
            asked = b"x" + struct.pack(">HBBHHH", 1, 77, 0, 6, 5, len(name)) + name + b"\0\0"
            one.sendall(struct.pack(">H", len(asked)) + asked)
            assert one.recv(100)[:2] in (b"v\0", b"y\0"), "the name is taken"
        host.kill_broker()
        until(lambda: is_answered(host), "it is back", patience=60)
    host.evaluate("true = is_list(rabbit_networking:active_listeners()).")


def is_answered(host) -> bool:
    try:
        host.connect("web").close()
    except (AMQPConnectionError, OSError):
        return False
    return True


def test_the_broker_listens_on_loopback_only(host):
    listing = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout
    ours = [line for line in listing.splitlines() if '"beam.smp"' in line]
    assert len(ours) == 3 and '"epmd"' not in listing, listing
    addresses = {line.split()[3].rpartition(":")[0] for line in ours}
    assert addresses == {"127.0.0.1"}, listing


def of_processes(file: str) -> list[bytes]:
    """Return the content of one file in /proc, for each process that doesn't end in the meantime."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return found


def test_secrets_are_root_only_and_in_no_argument(host):
    secrets = [certificates.path(host.layout, name).read_text() for name in ("web", "orders", "audit")]
    secrets.append(node.login(host.layout).password)
    secrets.append((host.layout.broker / "data/.erlang.cookie").read_text())
    told = of_processes("cmdline") + of_processes("environ")
    for secret in secrets:
        assert not any(secret.encode() in text for text in told)
    for top in (host.layout.identities, host.layout.records("link"), host.layout.broker):
        for folder, _, names in os.walk(top):  # what goes meanwhile is passed over
            # Logs and data of the node lie in folders that others can't enter.
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    open_way = all(parent.stat().st_mode & 0o001 for parent in path.parents)
                    assert not (path.stat().st_mode & 0o004 and open_way), path
    assert (host.layout.broker / "data/.erlang.cookie").stat().st_mode & 0o777 == 0o400
    logged = "".join(path.read_text(errors="replace") for path in (host.layout.broker / "log").iterdir())
    assert not any(secret in logged for secret in secrets)


def test_guest_does_not_exist(host):
    with host.api() as api:
        assert {user["name"] for user in api.get("users")} == {
            "netspace.admin",
            *(host.links.access().identity(name) for name in ("web", "orders", "audit")),
        }


# -- applying -------------------------------------------------------------------------------
def test_a_second_apply_plans_nothing_and_writes_nothing(host):
    def state():
        folders = (
            host.layout.state,
            host.layout.run / "forwarder",
            host.layout.identities,
            host.layout.broker / "etc",
        )
        return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}

    before = state()
    plan = host.plan(*LINKS)
    assert (plan.steps, plan.refusals, plan.notes) == ([], [], [])
    assert host.links.apply(plan.steps) == []
    assert state() == before


def test_links_that_are_not_named_stay(host):
    host.environment("extra")
    more = Link(source="audit", target="extra")
    plan = host.apply(more, only=False)
    assert {step.name for step in plan.steps} == {"broker", "audit.extra", "forwarder"}
    assert host.links.names() == {ASK.name, TELL.name, more.name}


def test_no_secret_is_in_a_plan(host):
    plan = host.plan(Link(source="audit", target="web"), remove=[ASK.name])
    secret = certificates.path(host.layout, "web").read_text().splitlines()[2]
    assert len(plan.steps) >= 2
    assert secret not in repr(plan)


@pytest.mark.revocation
def test_revocation_reaches_a_live_sender_at_once_and_nobody_else(host):
    both = (*LINKS, Link(source="web", target="audit"))
    host.apply(*both)
    with host.client("web") as sender, host.client("orders") as other:
        second = sender.connection.channel()
        second.confirm_delivery()
        sender.basic_publish(host.n("link.web.audit"), "", b"1", mandatory=True)
        plan = host.apply(*LINKS)
        assert [step.name for step in plan.steps if step.action == "remove"] == ["web.audit"]
        with pytest.raises(ChannelClosedByBroker) as caught:
            sender.basic_publish(host.n("link.web.audit"), "", b"2", mandatory=True)
        assert caught.value.reply_code in (403, 404)
        second.basic_publish(host.n("link.web.orders"), "", b"3", mandatory=True)  # its connection goes on
        other.basic_publish(host.n("link.orders.audit"), "", b"4", mandatory=True)


@pytest.mark.revocation
def test_removing_an_environment_severs_its_connections_and_only_its(host):
    with host.client("web") as web, host.client("orders") as orders:
        host.apply(TELL)
        with pytest.raises((ConnectionClosedByBroker, pika.exceptions.StreamLostError)):
            until(lambda: web.connection.process_data_events(0.1), "it is not cut off")
        orders.basic_publish(host.n("link.orders.audit"), "", b"x", mandatory=True)
    assert not host.layout.identity("web").exists()
    until(lambda: not host.listens("web"), "the forwarder's former process leaves its socket")


def test_changing_the_pattern_takes_the_way_of_answers_away(host):
    with host.client("web") as asker, host.client("orders") as answerer:
        asker.queue_bind(host.n("replies.web"), host.n("reply.orders"), "key")
        answerer.basic_publish(host.n("reply.orders"), "key", b"x", mandatory=True)
        plan = host.apply(Link(source="web", target="orders"), TELL)
        changed = {step.name: step.changes for step in plan.steps}
        assert changed[ASK.name] == {"pattern": {"old": "request", "new": "send"}}
        with pytest.raises((ChannelClosedByBroker, UnroutableError)):
            answerer.basic_publish(host.n("reply.orders"), "key", b"x", mandatory=True)
    assert host.plan(Link(source="web", target="orders"), TELL).steps == []


def test_a_binding_for_answers_is_not_drift(host):
    with host.client("web") as asker:
        asker.queue_bind(host.n("replies.web"), host.n("reply.orders"), "a key/of ~its own")
        assert host.plan(*LINKS).steps == []


def by_arguments(channel, n) -> None:
    for number in range(20):
        channel.queue_bind(n("replies.web"), n("reply.orders"), str(number), arguments={"x": "x" * 100_000})


def by_number(channel, n) -> None:
    for number in range(1100):
        channel.queue_bind(n("replies.web"), n("reply.orders"), f"{number}" + "x" * 250)


def by_exchange(channel, n) -> None:
    for number in range(20):
        channel.exchange_bind(n("link.web.orders"), n("reply.orders"), str(number), arguments={"x": "x" * 100_000})


FLOODS = {"arguments": by_arguments, "number": by_number, "exchange": by_exchange}


@pytest.fixture(params=FLOODS)
def flooded(host, monkeypatch, request):
    """A broker whose definitions are too large to read.

    An environment has bound its queue for answers too often.
    """
    with host.unguarded(), host.client("web") as channel:
        FLOODS[request.param](channel, host.n)
    monkeypatch.setattr(management, "MAX_ANSWER", 250_000)
    return host


def answers_bound(host) -> list[dict]:
    with host.api() as api:
        return api.get("exchanges", "netspace", host.n("reply.orders"), "bindings", "source")


@pytest.mark.revocation
def test_no_environment_makes_its_link_irrevocable(flooded):
    with flooded.connect("web") as connection:
        flooded.apply(TELL)
        with pytest.raises((ConnectionClosedByBroker, ChannelClosedByBroker)):
            channel = connection.channel()
            channel.confirm_delivery()  # so that it waits to be told
            channel.basic_publish(flooded.n("link.web.orders"), "", b"x", mandatory=True)
    assert not flooded.plan(TELL).steps


def test_bindings_beyond_need_are_removed_and_named(flooded):
    told = flooded.links.list()["broker"]["detail"]
    assert "excess bindings to answers" in told
    assert shown(told) == told, "names that can't be guessed aren't told"
    plan = flooded.apply(*LINKS)
    assert [step.name for step in plan.steps] == ["broker"]
    assert "created again" in str(plan.steps[0].changes)
    assert answers_bound(flooded) == []
    assert not flooded.plan(*LINKS).steps
    with flooded.client("web") as channel:
        channel.queue_bind(flooded.n("replies.web"), flooded.n("reply.orders"), "key")
        assert not flooded.plan(*LINKS).steps
        channel.basic_publish(flooded.n("link.web.orders"), "", b"x", mandatory=True)
        channel.queue_unbind(flooded.n("replies.web"), flooded.n("reply.orders"), "key")


def test_bindings_too_many_to_be_listed_go_with_the_exchange_for_answers(host, monkeypatch):
    with host.unguarded(), host.client("web") as channel:
        by_number(channel, host.n)
    monkeypatch.setattr(management, "MAX_ANSWER", 100_000)
    host.apply(*LINKS)
    assert answers_bound(host) == []
    assert not host.plan(*LINKS).steps


def test_drift_is_repaired_and_named(host):
    with host.api() as api:
        api.delete("exchanges", "netspace", host.n("link.web.orders"))
        api.post("bindings", "netspace", "e", "amq.topic", "q", host.n("mailbox.audit"), body={"routing_key": "a/~b"})
    plan = host.apply(*LINKS)
    steps = {step.name: step for step in plan.steps}
    assert steps[ASK.name].action == "repair"
    assert "binding:amq.topic:queue:mailbox.audit:a/~b" in steps["broker"].changes
    assert host.plan(*LINKS).steps == []
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", b"x", mandatory=True)


def test_foreign_objects_are_untouched(host):
    foreign = {
        "vhosts": [{"name": "theirs"}],
        "users": [
            {"name": "bob", "password_hash": "", "tags": []},
            {"name": "env.bob", "password_hash": "", "tags": []},
        ],
        "permissions": [
            {"user": name, "vhost": "theirs", "configure": ".*", "write": ".*", "read": ".*"}
            for name in ("bob", "env.bob")
        ],
        "queues": [{"name": "mailbox.web", "vhost": "theirs", "durable": True, "auto_delete": False, "arguments": {}}],
        "exchanges": [
            {"name": "link.a.b", "vhost": "theirs", "type": "topic", "durable": True}
            | {"auto_delete": False, "internal": False, "arguments": {}}
        ],
    }
    with host.api() as api:
        api.post("definitions", body=foreign)
        host.apply(TELL)
        host.apply(*LINKS)
        there = api.get("definitions")
        for section, entries in foreign.items():
            for entry in entries:
                key = {name: entry[name] for name in ("name", "user", "vhost") if name in entry}
                assert [one for one in there[section] if key.items() <= one.items()], (section, key)
        api.delete("vhosts", "theirs")
        api.delete("users", "bob")
        api.delete("users", "env.bob")


def test_mail_is_parked_until_it_is_read_or_purged(host):
    with host.client("orders") as channel:
        channel.basic_publish(host.n("link.orders.audit"), "", b"kept", mandatory=True)
    host.apply(ASK)
    assert host.links.list()["parked"] == ["audit"]
    assert any("audit" in note for note in host.plan(ASK).notes)
    assert not host.layout.identity("audit").exists()
    host.apply(*LINKS)
    with host.client("audit") as channel:
        delivery, _, body = channel.basic_get(host.n("mailbox.audit"), auto_ack=True)
        assert (delivery.exchange, body) == (host.n("link.orders.audit"), b"kept")

    def unparked() -> bool:
        host.apply(*LINKS)
        host.apply(ASK)
        return host.links.list()["parked"] == []

    until(unparked, "the broker says that it is empty", pause=1.0)


def test_a_full_mailbox_refuses_and_a_changed_limit_is_repaired(host):
    with host.api() as api:
        policy = api.get("policies", "netspace", "netspace.mailbox")
        policy["definition"]["max-length"] = 2
        api.post("definitions", body={"policies": [policy]})
    with host.client("orders") as channel:

        def refused() -> bool:
            try:
                channel.basic_publish(host.n("link.orders.audit"), "", b"x")
            except NackError:
                return True
            return False

        until(refused, "the length of a quorum queue is a soft limit, and yet none", pause=0.02)
    plan = host.apply(*LINKS)
    assert set(plan.steps[0].changes) == {"policy:netspace.mailbox"}
    with host.api() as api:
        api.delete("queues", "netspace", host.n("mailbox.audit"), "contents")


def test_lists_and_health(host):
    listed = host.links.list()
    assert listed["broker"] == {"kind": "local", "state": "running", "vhost": "netspace"}
    assert listed["links"][ASK.name] == {"from": "web", "to": "orders", "pattern": "request", "state": "active"}
    assert listed["mailboxes"].keys() == {"web", "orders", "audit"}
    # What the broker counts is up to 5 s old: mail of the test before.
    until(lambda: host.links.health()["ok"], "health says that something is wrong")


# -- the forwarder ----------------------------------------------------------------------------
def test_a_namespace_made_anew_gets_a_new_socket(host):
    host.no_environment("audit")
    host.environment("audit")
    plan = host.apply(*LINKS)
    assert [step.name for step in plan.steps] == ["forwarder"]
    with host.client("audit") as channel:
        channel.basic_get(host.n("mailbox.audit"))  # it is served there


def test_a_missing_namespace_is_named_and_the_others_are_served(host):
    host.no_environment("audit")
    try:
        outcomes = host.links.apply(host.plan(*LINKS).steps)
        assert [(outcome.step.name, "audit" in outcome.error) for outcome in outcomes] == [("forwarder", True)]
        with host.client("web") as channel:
            channel.basic_publish(host.n("link.web.orders"), "", b"x", mandatory=True)
    finally:
        host.environment("audit")
    host.apply(*LINKS)


def old_workers(host) -> list[str]:
    listed = host.forwarder("show proc").partition("# old workers")[2].partition("#")[0]
    return listed.split("\n")[1:-1]


def test_live_connections_survive_changes_and_old_workers_are_bounded(host):
    host.environment("extra")
    with host.client("web") as channel:
        for _ in range(3):
            host.apply(*LINKS, Link(source="audit", target="extra"))
            host.apply(*LINKS)
        channel.basic_publish(host.n("link.web.orders"), "", b"x", mandatory=True)
        assert 1 <= len(old_workers(host)) <= process.OLD_WORKERS
    assert f"mworker-max-reloads {process.OLD_WORKERS}" in process.current(host.layout)
    until(lambda: old_workers(host) == [], "they end when their connections have", pause=0.1)


# -- broken and mended --------------------------------------------------------------------------
def test_killed_broker_comes_back_with_its_mail(host):
    with host.client("orders") as channel:
        channel.basic_publish(
            host.n("link.orders.audit"), "", b"survives", pika.BasicProperties(delivery_mode=2), mandatory=True
        )
    host.kill(node.NODE)
    time.sleep(0.2)
    plan = host.plan(*LINKS)
    assert plan.steps, "a broker that doesn't answer is never 'no change'"
    assert {link["state"] for link in host.links.list()["links"].values()} <= {"unknown"}
    host.apply(*LINKS)
    with host.client("audit") as channel:
        assert channel.basic_get(host.n("mailbox.audit"), auto_ack=True)[2] == b"survives"


def test_a_queue_that_was_just_made_keeps_its_mail_when_the_broker_is_killed(host):
    """A message in a new queue survives a kill of the broker just after the apply that made the queue.

    RabbitMQ itself records the owner of each queue's log only twice a second.
    """
    late = (*LINKS, Link(source="orders", target="late"))
    host.environment("late")
    host.apply(*late)
    with host.client("orders") as channel:
        persistent = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish(host.n("link.orders.late"), "", b"survives", persistent, mandatory=True)
    host.kill(node.NODE)
    host.apply(*late)
    with host.client("late") as channel:
        assert channel.basic_get(host.n("mailbox.late"), auto_ack=True)[2] == b"survives"
    host.apply(*LINKS)
    host.no_environment("late")


def test_a_queue_whose_log_the_broker_forgot_takes_mail_again(host):
    """A killed broker has forgotten which log each queue has; the next apply repairs the queues."""
    every = "dets:match_object(ra_directory_reverse, {'_','_'})"
    forget = f"[dets:delete(ra_directory_reverse, Name) || {{Name, _}} <- {every}], dets:sync(ra_directory_reverse)."
    host.evaluate(forget)
    host.kill(node.NODE)
    host.apply(*LINKS)
    with host.client("orders") as channel:
        channel.basic_publish(host.n("link.orders.audit"), "", b"taken", mandatory=True)
    with host.client("audit") as channel:
        assert channel.basic_get(host.n("mailbox.audit"), auto_ack=True)[2] == b"taken"


def test_restore_after_a_reboot(host):
    host.supervisor.stop([process.NAME, node.NODE])
    subprocess.run(["rm", "-r", str(host.layout.run / "forwarder")], check=True)
    assert host.links.restore() == {}
    host.apply(*LINKS)
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", b"x", mandatory=True)


LOST = [
    "run/netspace/identities/web/identity.pem",
    "var/lib/netspace/link/management.json",
    "var/lib/netspace/link/authority.json",
    "var/lib/netspace-broker/etc/tls/server.pem",
    "var/lib/netspace-broker/etc/tls/ca.pem",
]


@pytest.mark.parametrize("lost", LOST)
def test_lost_files_are_made_anew(host, lost):
    (host.layout.root / lost).unlink()
    assert host.plan(*LINKS).steps
    host.apply(*LINKS)
    assert host.plan(*LINKS).steps == []
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.orders"), "", b"x", mandatory=True)


def test_a_record_without_broker_objects_is_made_true(host):
    """The record has a link without broker objects, as after a killed run; the next apply repairs the link."""
    more = Link(source="web", target="audit")
    path = host.layout.records("link") / "applied.json"
    record = files.read_json(path)
    record["links"].append({"from": "web", "to": "audit", "pattern": "send"})
    files.write_json(path, record)
    plan = host.apply(*LINKS, more)
    assert [(step.name, step.action) for step in plan.steps if step.name == more.name] == [(more.name, "repair")]
    with host.client("web") as channel:
        channel.basic_publish(host.n("link.web.audit"), "", b"x", mandatory=True)


def test_the_last_link_takes_everything_along(host):
    with host.client("orders") as channel:
        channel.basic_publish(host.n("link.orders.audit"), "", b"x", mandatory=True)
    plan = host.apply()
    assert {step.action for step in plan.steps} == {"remove"}
    assert host.layout.broker.joinpath("data").exists(), "mail is parked"
    assert host.links.names() == set()
    assert not host.plan().steps
    host.apply(*LINKS)
    host.apply(purge=True)
    assert host.supervisor.observe() == {}
    commands = {command.strip() for command in of_processes("comm")}
    assert not commands & {b"beam.smp", b"epmd", b"haproxy", b"erl_child_setup", b"inet_gethost"}
    assert not (host.layout.run / "forwarder").exists()
    assert not host.layout.records("link").exists()
    assert not host.layout.records("credentials").exists()
    assert not host.layout.identities.exists()
    assert list(host.layout.broker.glob("*")) == []


def test_nothing_is_asked_where_nothing_was_declared(tmp_path):
    from netspace.layout import Layout
    from netspace.link.reconciler import DesiredLinks, Links

    links = Links(Layout(root=tmp_path), supervisor=None)
    assert links.plan(DesiredLinks(LocalBroker(), ()), links.observe()).steps == ()
    planned = links.plan(DesiredLinks(LocalBroker(), LINKS), links.observe()).steps
    assert [(step.name, step.action) for step in planned] == [
        ("broker", "create"),
        (TELL.name, "create"),
        (ASK.name, "create"),
        ("forwarder", "create"),
    ]
    assert list(tmp_path.iterdir()) == []
