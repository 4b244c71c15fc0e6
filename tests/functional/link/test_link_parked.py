"""A real broker: messages whose link was removed stay, until an operator deletes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.links.link_world import World
from support.links.mail import messages, read, refuse, send
from support.waiting import until

from netspace.host.host import Host
from netspace.link import record
from netspace.link.mail.dead_letters import Letters
from netspace.spec.types import Link

pytestmark = pytest.mark.root

DOOMED = Link(source="web", target="orders")
BOUNDED = Link(source="web", target="audit", length=5)
OTHER = Link(source="orders", target="audit")
LEFT = Link(source="audit", target="web")


@pytest.fixture
def host(world) -> Iterator[World]:
    world.environment("web", "orders", "audit")
    world.apply(DOOMED, BOUNDED, OTHER)
    yield world
    world.hand_over()


def planned(result) -> dict:
    return {step.name: step.changes for step in result.plan.steps}


@pytest.mark.parametrize("by", ["link", "environment"])
def test_parked_mail_is_purged_later(host, by):
    desk = Host(host.layout)

    def purge(test: bool = False):
        if by == "link":
            return desk.remove_links({"web.orders"}, purge=True, test=test)
        return desk.remove_environments({"orders"}, purge=True, test=test)

    send(host, DOOMED, b"1", b"2", b"3")
    send(host, BOUNDED, b"another's")
    host.apply(LEFT)
    assert host.links.list()["parked"] == ["orders", "web.audit"]
    told = {"mail": {"orders": {"old": "3 messages", "new": None}}}
    until(lambda: planned(purge(test=True)) == told, "the broker has counted them")
    assert host.links.list()["parked"] == ["orders", "web.audit"], "a test drops nothing"
    assert not planned(desk.remove_links({"audit.orders2"}, purge=True)), "nor does another's purge"

    result = purge()
    assert planned(result) == told and result.ok and len(result.outcomes) == 1
    assert host.links.list()["parked"] == ["web.audit"]
    assert messages(host, host.n("mailbox.orders")) is None
    assert not purge().plan.steps, "once"
    host.apply(LEFT, BOUNDED)
    assert read(host, "audit", 1) == [("web", b"another's")]


def test_a_renamed_receiver_is_emptied_under_its_old_name(host):
    """A receiver gets another name by the steps in the page on fleets: mail under the old name is still read.

    The sender's program uses the local name ``orders`` all the time. Without the steps, the mail is only parked.
    """
    send(host, DOOMED, b"1", b"2")
    old, new = (
        Link(source="web", target=name, local=local) for name, local in (("orders", "old"), ("audit", "orders"))
    )
    host.apply(old, new)
    assert host.links.list()["parked"] == []
    send(host, new, b"3")
    assert read(host, "orders", 2) == [("web", b"1"), ("web", b"2")] and read(host, "audit", 1) == [("web", b"3")]
    until(lambda: host.links.list()["mailboxes"]["orders"]["messages"] == 0, "the broker has counted it", pause=0.1)
    host.apply(new)
    assert host.links.list()["parked"] == []
    send(host, new, b"4")
    host.apply(Link(source="orders", target="web"))
    assert host.links.list()["parked"] == ["audit"], "at once, without the steps, mail is only kept"


def test_parked_mail_is_purged_where_no_link_is_left(host):
    send(host, DOOMED, b"1")
    send(host, OTHER, b"refused")
    refuse(host, "audit")
    until(lambda: Letters(host.layout).count()["count"] == 1, "it is dead")
    until(lambda: host.links.list()["mailboxes"]["audit"]["messages"] == 0, "the broker has counted it", pause=0.1)
    host.apply()
    assert record.read(host.layout).parked == ("dead", "orders")
    about = host.links.health()
    assert not about["ok"] and about["dead"] is None and "dead, orders" in about["problems"][0]
    desk = Host(host.layout)
    (mail,) = planned(desk.remove_links({"web.orders"}, purge=True, test=True)).values()
    assert set(mail) == {"dead", "orders"}
    assert desk.remove_links({"web.orders"}, purge=True).ok
    assert record.read(host.layout).parked == () and not host.supervisor.observe()
    assert not (host.layout.broker / "data").exists()
    host.apply(DOOMED)
    assert messages(host, host.n("mailbox.orders")) == 0


def test_other_parked_mail_stays_where_no_link_is_left(host):
    send(host, DOOMED, b"1")
    send(host, BOUNDED, b"stays")
    host.apply()
    assert Host(host.layout).remove_links({"web.orders"}, purge=True).ok
    assert record.read(host.layout).parked == ("web.audit",)
    assert not host.supervisor.observe()
    host.apply(BOUNDED)
    assert read(host, "audit", 1) == [("web", b"stays")]


def test_what_a_purge_takes_along_with_a_link_is_told(host):
    send(host, DOOMED, b"1", b"2")
    desk = Host(host.layout)
    told = {"orders": {"old": "2 messages", "new": None}}
    host.apply(DOOMED, LEFT)
    until(lambda: planned(desk.remove_links({"web.orders"}, purge=True, test=True)).get("mail") == told)
    result = desk.remove_links({"web.orders"}, purge=True)
    assert result.ok and planned(result)["mail"] == told
    assert host.links.list()["parked"] == []
