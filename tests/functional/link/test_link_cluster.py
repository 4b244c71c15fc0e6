"""An external broker, declared by URL: netspace's objects on it, and foreign objects, which stay unchanged."""

from __future__ import annotations

import subprocess

import msgspec
import pytest
from support.waiting import until

from netspace.layout import Layout
from netspace.link import record
from netspace.link.broker import node as broker
from netspace.link.mail.dead_letters import LetterFilter, Letters
from netspace.link.pki import certificates
from netspace.link.reconciler import DesiredLinks, Links
from netspace.link.topology import policies
from netspace.link.topology.names import PLAIN
from netspace.spec.types import ClusterBroker, Link, LocalBroker
from netspace.supervision.daemon.client import DaemonSupervisor

pytestmark = pytest.mark.root

# Ours takes passwords too, for it is somebody's broker to the other instance.
OURS = LocalBroker(passwords=("web",))
LINK = Link(source="a", target="b", pattern="request")


@pytest.fixture
def shared(world, tmp_path):
    """A broker of one instance, which another instance declares as an external broker."""
    world.environment("web", "orders")
    world.apply(Link(source="web", target="orders"), broker=OURS)
    with world.api() as api:
        ours = {one["name"] for one in api.get("users")}
    login = broker.login(world.layout)
    secret = tmp_path / "credentials"
    secret.write_text(f"{login.username}:{login.password}\n")
    spec = LocalBroker()
    yield ClusterBroker(
        url=f"amqps://localhost:{spec.port}",
        ca=str(certificates.server_folder(world.layout) / certificates.ANCHORS),
        management=f"http://127.0.0.1:{spec.management_port}",
        credentials=str(secret),
        vhost="shared",
    )
    with world.api() as api:
        api.delete("vhosts", "shared", timeout=60)
        for name in {one["name"] for one in api.get("users")} - ours:
            api.delete("users", name)


@pytest.fixture
def other(world):
    layout = Layout("other")
    links = Links(layout, DaemonSupervisor(layout))
    for name in ("a", "b"):
        subprocess.run(["ip", "netns", "add", layout.netns_name(name)], check=True)
        subprocess.run(["ip", "-n", layout.netns_name(name), "link", "set", "lo", "up"], check=True)
    yield links
    links.purge()
    links.supervisor.purge()
    for name in ("a", "b"):
        subprocess.run(["ip", "netns", "del", layout.netns_name(name)], check=True)
    subprocess.run(["rm", "-rf", str(layout.state), str(layout.run), str(layout.logs)], check=True)


def converge(links: Links, where: ClusterBroker, *wanted: Link):
    plan = links.plan(DesiredLinks(where, wanted), links.observe(), links.names() - {link.name for link in wanted})
    assert not plan.refusals
    assert [outcome.error for outcome in links.apply(plan.steps) if outcome.error] == []
    return plan


def test_links_on_a_shared_broker(world, shared, other):
    assert converge(other, shared, LINK).steps
    assert not converge(other, shared, LINK).steps
    beside = type(world)()
    beside.layout, beside.links = other.layout, other
    with beside.client("a") as channel:
        channel.basic_publish(beside.n("link.a.b"), "", b"x", mandatory=True)
    listed = other.list()
    assert listed["broker"]["kind"] == "cluster"
    assert listed["links"][LINK.name]["state"] == "active"

    parked = beside.n("mailbox.b")
    plan = converge(other, shared)
    assert {step.action for step in plan.steps} == {"remove"}
    with world.api() as api:
        there = api.get("definitions")
    assert {one["name"] for one in there["policies"] if one["vhost"] == "shared"} == set(policies.policies(PLAIN))
    assert {user["name"] for user in there["users"]} == {
        "netspace.admin",
        "env.web",
        world.links.access().identity("orders"),
    }
    assert parked in {queue["name"] for queue in there["queues"]}, "its mail is parked"
    assert not world.plan(Link(source="web", target="orders"), broker=OURS).steps
    with world.client("web") as channel:
        channel.basic_publish(world.n("link.web.orders"), "", b"x", mandatory=True)


def test_dead_letters_on_a_shared_broker(world, shared, other):
    """Dead letters on a shared broker are counted, sent again and discarded, with its management login over TLS."""
    converge(other, shared, LINK)
    with world.api() as api:
        for body in ("1", "2"):
            sent = {
                "routing_key": "",
                "payload": body,
                "payload_encoding": "string",
                "properties": {"message_id": body},
            }
            exchange = other.called.exchange(LINK)
            assert api.post("exchanges", "shared", exchange, "publish", body=sent)["routed"]
        refuse = {"count": 2, "ackmode": "reject_requeue_false", "encoding": "auto"}
        assert len(api.post("queues", "shared", other.called.mailbox("b"), "get", body=refuse)) == 2
    desk = Letters(other.layout)
    until(lambda: desk.count()["count"] == 2, "they are dead")
    assert desk.redeliver(LetterFilter(message_id="1"))["sent"] == {"a.b": 1}
    assert desk.discard() == {"discarded": {"a.b": 1}, "kept": {}}
    with world.api() as api:
        (got,) = api.post(
            "queues", "shared", other.called.mailbox("b"), "get", body={**refuse, "ackmode": "ack_requeue_false"}
        )
    assert (got["payload"], got["exchange"]) == ("1", other.called.exchange(LINK))


def test_a_broker_out_of_reach_is_never_no_change(world, shared, other):
    converge(other, shared, LINK)
    world.supervisor.stop(["broker"])
    plan = other.plan(DesiredLinks(shared, (LINK,)), other.observe())
    assert plan.steps == ()
    assert [(refusal.name, "unknown" in refusal.message) for refusal in plan.refusals] == [("broker", True)]
    assert other.list()["links"][LINK.name]["state"] == "unknown"
    assert not other.health()["ok"]
    world.apply(Link(source="web", target="orders"), broker=OURS)
    assert not converge(other, shared, LINK).steps


def test_what_is_declared_no_more_is_revoked_though_names_can_not_be_made(world, shared, other, tmp_path):
    key = tmp_path / "names.key"
    key.write_text("k" * 32)
    key.chmod(0o600)
    shared = msgspec.structs.replace(shared, names_key=str(key))
    back = Link(source="b", target="a")
    converge(other, shared, LINK, back)
    ways = {link: other.called.exchange(link) for link in (LINK, back)}
    key.unlink()
    _, errors = attempt(other, shared, back)
    assert [error for error in errors if "broker:names_key" not in error] == [] != errors
    with world.api() as api:
        there = {one["name"] for one in api.get("exchanges", "shared")}
    assert ways[back] in there and ways[LINK] not in there
    key.write_text("k" * 32)
    key.chmod(0o600)
    converge(other, shared, back)
    assert not converge(other, shared, back).steps


NOWHERE = ClusterBroker(
    url="amqp://127.0.0.1:9", management="http://127.0.0.1:9", credentials="/nowhere", vhost="shared"
)


def attempt(links: Links, where: ClusterBroker, *wanted: Link, purge: bool = False):
    """Plan and apply, even if steps fail; return the plan and the errors."""
    plan = links.plan(DesiredLinks(where, wanted), links.observe(), links.names() - {link.name for link in wanted})
    return plan, {outcome.error for outcome in links.apply(plan.steps, purge=purge)}


def mistyped(shared: ClusterBroker) -> ClusterBroker:
    return ClusterBroker(
        url=NOWHERE.url, management=NOWHERE.management, credentials=shared.credentials, vhost=shared.vhost
    )


@pytest.mark.parametrize("readable", [True, False])
def test_a_broker_that_was_never_reached_is_simply_replaced(world, shared, other, readable):
    wrong = mistyped(shared) if readable else NOWHERE
    _, errors = attempt(other, wrong, LINK)
    assert errors != {""}
    assert other.names() == set()
    assert not converge(other, shared, LINK).notes
    _, errors = attempt(other, wrong, LINK)
    assert errors != {""}
    assert other.recorded_broker() == shared, "its links go on"
    assert not converge(other, shared, LINK).steps


def lose(links: Links, broker: ClusterBroker) -> None:
    """Record *broker* as the last broker, although it no longer answers."""
    record.write(links.layout, msgspec.structs.replace(record.read(links.layout), broker=broker))


@pytest.mark.parametrize("readable", [True, False])
def test_from_a_lost_broker_links_go_to_another_and_it_is_said(world, shared, other, readable):
    converge(other, shared, LINK)
    lose(other, mistyped(shared) if readable else NOWHERE)
    plan = converge(other, shared, LINK)
    assert "can't be revoked" in str(plan.notes)
    plan = converge(other, shared, LINK)
    assert not plan.steps
    assert not plan.notes


@pytest.mark.parametrize("readable", [True, False])
def test_a_lost_broker_is_given_up_by_a_purge_only(world, shared, other, readable):
    converge(other, shared, LINK)
    wrong = mistyped(shared) if readable else NOWHERE
    lose(other, wrong)
    plan, errors = attempt(other, wrong)
    assert "" not in errors
    assert "only a purge" in str(plan.notes)
    assert other.names() == {LINK.name}
    plan, errors = attempt(other, wrong, purge=True)
    assert errors == {""}
    assert "can't be revoked" in str(plan.notes)
    assert other.names() == set()
