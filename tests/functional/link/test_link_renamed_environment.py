"""A real broker: an environment that gets another name keeps the messages that wait for it, and those that it sent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from support.links.mail import letters, messages, read, refuse, send
from support.waiting import until

from netspace.link import record
from netspace.link.broker.management import Management
from netspace.link.mail.dead_letters import Letters
from netspace.link.mail.waiting import waiting
from netspace.spec.types import FormerEnds, Link

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("unhurried")]

TO = Link(source="shop", target="www")
LANE = Link(source="till", target="www", length=50)
BY = Link(source="www", target="audit")
LINKS = (TO, LANE, BY)
MOST = 60
"""More than the broker's management API is called in one renaming."""


class Killed(BaseException):
    """Exception that stands for the kill of an apply. The library doesn't catch it."""


def named(old: str, new: str, links: tuple[Link, ...] = LINKS) -> tuple[Link, ...]:
    """Return the links, of which *old* is an end, under the name *new*."""
    found = []
    for link in links:
        source, target = (new if end == old else end for end in (link.source, link.target))
        formerly = FormerEnds(old if source == new else None, old if target == new else None)
        found.append(msgspec.structs.replace(link, source=source, target=target, formerly=formerly))
    return tuple(found)


@pytest.fixture
def host(standing):
    standing.environment("shop", "till", "audit", "www")
    standing.apply(*LINKS, purge=True)
    standing.no_mail()
    return standing


def test_a_renamed_environment_keeps_its_mail(host):
    mailbox, lane = host.n("mailbox.www"), host.links.called.queue(LANE)
    send(host, TO, b"1", b"2")
    send(host, LANE, b"3")
    send(host, BY, b"4")
    held = host.connect("www").channel()
    until(lambda: held.basic_get(mailbox)[2] == b"1")
    until(lambda: waiting(host.layout, record.read(host.layout), ["www"]) == {"www": 3}, patience=20)
    host.environment("web")
    now = named("www", "web")

    plan = host.plan(*now, remove={link.name for link in LINKS})
    assert {step.name: step.action for step in plan.steps if "." in step.name} == {
        "shop.web": "rename",
        "till.web": "rename",
        "web.audit": "rename",
    }
    host.apply(*now)
    assert not host.plan(*now).steps, "it stays as it is while there is mail"
    assert not held.connection.is_open or messages(host, mailbox) == 2, "the former name can't read any more"
    send(host, now[0], b"5")
    send(host, now[2], b"6")
    assert host.card("web")["queues"] == [
        host.n("mailbox.web"),
        host.links.called.queue(now[1]),
        *sorted((lane, mailbox)),
    ]
    assert sorted(read(host, "web", 4)) == [("shop", b"1"), ("shop", b"2"), ("shop", b"5"), ("till", b"3")]
    assert sorted(read(host, "audit", 2)) == [("web", b"4"), ("web", b"6")]

    said = tuple(msgspec.structs.replace(link, formerly=None) for link in now)
    host.apply(*said)  # the declaration needn't say it for ever: what is recorded goes on
    assert mailbox in host.card("web")["queues"]
    until(lambda: settled(host, *said), "the former queues are empty, and go", patience=60, pause=1.0)
    assert messages(host, mailbox) is None and messages(host, lane) is None
    assert host.card("web")["queues"] == [host.n("mailbox.web"), host.links.called.queue(now[1])]
    with host.api() as api:
        (right,) = [one for one in api.get("permissions") if one["user"].endswith("/web")]
    assert "www" not in right["read"]


def test_dead_letters_of_a_renamed_link_are_sent_by_it(host):
    send(host, TO, b"1", message_id="m-1")
    send(host, BY, b"2")
    refuse(host, "www")
    refuse(host, "audit")
    letters(host, 2)
    host.environment("web")
    now = named("www", "web")
    host.apply(*now)
    both = {"shop.www": 1, "www.audit": 1}
    assert Letters(host.layout).redeliver(test=True) == {"sent": both, "kept": {}}
    # A sealed link can't carry what was sealed, or sent, under another name.
    host.apply(*(msgspec.structs.replace(link, seal=link.target == "audit") for link in now))
    done = Letters(host.layout).redeliver()
    why = "the link is web.audit now, and the letter is sealed under the former name; discard it"
    assert done == {"sent": {"shop.www": 1}, "kept": {"www.audit": {"number": 1, "why": why}}}
    assert read(host, "web", 1) == [("shop", b"1")]
    host.apply(*now)
    assert Letters(host.layout).redeliver()["sent"] == {"www.audit": 1}
    assert read(host, "audit", 1) == [("web", b"2")]


def settled(host, *links: Link) -> bool:
    known = record.read(host.layout)
    aged = tuple(msgspec.structs.replace(one, since=0.0) for one in known.former)
    record.write(host.layout, msgspec.structs.replace(known, former=aged))
    host.apply(*links)
    return not record.read(host.layout).former and not host.plan(*links).steps


def test_a_rename_killed_at_any_step_is_repaired(host, monkeypatch):
    """Rename again and again, each time killed at a later call of the broker: all mail follows to the last name."""
    send(host, TO, b"1", b"2")
    send(host, LANE, b"3")
    send(host, BY, b"4")
    called = {name: getattr(Management, name) for name in ("get", "post", "delete")}
    links, last, ended = LINKS, "www", False
    for number in range(1, MOST):
        new, left = f"w{number}", [number]
        host.environment(new)

        def dying(name: str, left: list[int] = left) -> Any:
            def call(*given: Any, **more: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return called[name](*given, **more)

            return call

        after = named(last, new, links)
        with monkeypatch.context() as patched:
            for name in called:
                patched.setattr(Management, name, dying(name))
            try:
                host.apply(*after)
                ended = True
            except Killed:
                pass
        host.apply(*after)
        send(host, after[0], f"by {new}".encode())
        links, last = after, new
        if ended:
            break
    assert ended and number > 5, "else it died nowhere"
    sent = [("shop", f"by w{one}".encode()) for one in range(1, number + 1)]
    assert sorted(read(host, last, 3 + number)) == sorted([("shop", b"1"), ("shop", b"2"), ("till", b"3"), *sent])
    assert read(host, "audit", 1) == [(last, b"4")]


def test_mail_of_a_name_that_is_in_use_stays_its_own(host):
    """An environment claims, as its former name, the name of one that still exists: it gets none of the other's mail.

    A minion's slice or a single state could contain such a claim.
    """
    send(host, TO, b"private")
    host.environment("thief")
    claim = Link(source="thief", target="audit", formerly=FormerEnds(source="www"))
    host.apply(*LINKS, claim)
    about = host.card("thief")
    assert about["queues"] == [host.n("mailbox.thief")] and not record.read(host.layout).former
    with host.api() as api:
        (right,) = [one for one in api.get("permissions") if one["user"].endswith("/thief")]
    assert "www" not in right["read"]
    assert read(host, "www", 1) == [("shop", b"private")]
