"""Renamed environments, for random sets of links: each queue has its reader, each message its sender."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.layout import Layout
from netspace.link import plan as planning
from netspace.link.card import card
from netspace.link.plan import DesiredLinks, Observed
from netspace.link.record import Record, read, write
from netspace.link.seal import keys as seals
from netspace.link.topology import draining, found_objects, objects, renaming
from netspace.link.topology.names import Names, account
from netspace.spec.types import FormerEnds, Link, LocalBroker
from netspace_client import seal
from netspace_client.card import parse as client_card
from netspace_client.errors import SealError
from netspace_client.keys import ring

CALLED = Names(b"a key of this test's")
VHOST = "netspace"
NOW = 1_800_000_000.0
ENDS = st.sampled_from(["a", "b", "c", "d@h2", "e@h2"])


def _links(ends: list[tuple[str, str, float | None, bool, bool]]) -> dict[str, Link]:
    found = {}
    for source, target, ttl, monitor, buffered in ends:
        far = "@" in source or "@" in target
        via = "buffered" if far and buffered else "direct"
        link = Link(source=source, target=target, ttl=ttl, monitor=monitor and via == "direct", via=via)
        if link.here and source != target:
            found[link.name] = link
    return found


LINKS = st.lists(
    st.tuples(ENDS, ENDS, st.sampled_from([None, 1.0]), st.booleans(), st.booleans()), min_size=1, max_size=6
).map(_links)


def renamed(links: dict[str, Link], old: str, new: str) -> dict[str, Link]:
    """Return the links after the environment *old* of either host got the name *new*."""

    def end(name: str) -> str:
        bare, at, host = name.partition("@")
        return f"{new}{at}{host}" if bare == old else name

    found = {}
    for link in links.values():
        ends = [old if name.partition("@")[0] == old else None for name in (link.source, link.target)]
        formerly = FormerEnds(*ends) if any(ends) else None
        changes = {"source": end(link.source), "target": end(link.target), "formerly": formerly}
        made = Link(**{**{key: getattr(link, key) for key in link.__struct_fields__}, **changes})
        found[made.name] = made
    return found


def there(links: dict[str, Link], kept: objects.Objects) -> found_objects.Found:
    """Return the objects of *links* as they are found on a broker, and what an earlier change left there."""
    made = {**kept, **objects.objects(links.values(), CALLED)}
    return found_objects.Found(made, {}, vhost=True)


@given(LINKS, st.sampled_from("abcde"), st.booleans())
def test_a_renamed_environment_has_a_reader_for_each_queue(links: dict[str, Link], old: str, killed: bool) -> None:
    after = renamed(links, old, "new")
    broker, wanted = there(links, {}), objects.objects(after.values(), CALLED)
    formers = draining.find(broker, wanted, after, (), 1.0)
    passed = draining.passed(broker, wanted, after, {})
    if killed:  # after the revocation: no exchange is left to tell
        rest = {key: value for key, value in broker.objects.items() if key[0] not in ("exchange", "binding")}
        broker = found_objects.Found(rest, {}, vhost=True)
    forgotten = {name: _unsaid(link) for name, link in after.items()}  # the declaration need not say it for ever
    formers = draining.find(broker, wanted, forgotten, formers, 2.0)
    passed = draining.passed(broker, wanted, forgotten, passed)
    reader = {one.queue: one for one in formers}
    for key in there(links, {}).objects:
        if key[0] == "queue" and objects_of_mail(key[1]):
            assert key in wanted or key[1] in reader, f"nobody reads {key[1]}"
    cards = {name: card(name, _of(name, after), VHOST, CALLED, formers, passed=passed) for name in "abcnew"}
    cards["new"] = card("new", _of("new", after), VHOST, CALLED, formers, passed=passed)
    for name, link in links.items():
        if link.to_host is not None:
            continue
        now = next(one for one in after.values() if name in (one.name, one.former_name))
        about = cards[now.target]
        senders = {one["exchange"]: one["from"] for one in about["senders"]}
        assert senders[CALLED.exchange(link)] == now.source, "a waiting message has the sender that it had"
        assert CALLED.queue(link) in about["queues"]
    for environment, queues in draining.read_under_former_names(formers).items():
        pattern = objects.reading(wanted["permission", account(environment)], queues)["read"]
        assert all(re.search(pattern, queue) for queue in queues)
        assert not re.search(pattern, CALLED.mailbox("other")) and not re.search(pattern, CALLED.mailbox(f"x{old}"))


def objects_of_mail(queue: str) -> bool:
    return queue.split(".")[0] in ("mailbox", "lane", "outbox")


def _of(name: str, links: dict[str, Link]) -> list[Link]:
    return [link for link in links.values() if name in (link.source, link.target)]


def _unsaid(link: Link) -> Link:
    return Link(**{**{key: getattr(link, key) for key in link.__struct_fields__}, "formerly": None})


@given(LINKS, LINKS, st.sampled_from("abc"))
def test_a_name_that_is_declared_keeps_its_own(links: dict[str, Link], others: dict[str, Link], old: str) -> None:
    """While an environment of the former name has a link, nobody gets its mailbox, whatever a link claims."""
    after = {**renamed(links, old, "new"), **others}
    if old not in objects.members(others.values()):
        return
    wanted = objects.objects(after.values(), CALLED)
    readers = draining.find(there({**links, **others}, {}), wanted, after, (), 1.0)
    assert CALLED.mailbox(old) not in {one.queue for one in readers}
    assert old not in renaming.of(after).environments


def test_a_name_that_returns_gets_its_mailbox_back() -> None:
    ask = Link(source="shop", target="www")
    first = {ask.name: ask}
    second = renamed(first, "www", "web")
    wanted = objects.objects(second.values(), CALLED)
    formers = draining.find(there(first, {}), wanted, second, (), 1.0)
    both = {**{name: _unsaid(link) for name, link in second.items()}, **first}
    wanted = objects.objects(both.values(), CALLED)
    assert draining.find(there(both, {}), wanted, both, formers, 2.0) == []


def test_of_two_renames_the_second_reads_what_is_left_of_both() -> None:
    ask = Link(source="shop", target="www")
    links, broker = {ask.name: ask}, there({ask.name: ask}, {})
    formers: list[draining.DrainingQueue] = []
    for old, new in (("www", "web"), ("web", "site")):
        after = renamed(links, old, new)
        broker = there(links, broker.objects)
        formers = draining.find(broker, objects.objects(after.values(), CALLED), after, formers, 1.0)
        links = {name: _unsaid(link) for name, link in after.items()}
    read_by = {one.queue: one.environment for one in formers}
    assert read_by == {CALLED.mailbox("www"): "site", CALLED.mailbox("web"): "site"}
    about = card("site", list(links.values()), VHOST, CALLED, formers)
    assert {one["from"] for one in about["senders"]} == {"shop"} and len(about["senders"]) == 3


def test_letters_of_a_former_link_belong_to_the_present_one() -> None:
    links = {link.name: link for link in (Link(source="shop", target="www"), Link(source="www", target="log"))}
    after = renamed(links, "www", "web")
    assert draining.renamed_links(after, (), {}) == {"shop.www": "shop.web", "www.log": "web.log"}
    # The declaration no longer says it. The records do, for as long as they have the exchanges.
    silent = {name: _unsaid(link) for name, link in after.items()}
    broker, wanted = there(links, {}), objects.objects(after.values(), CALLED)
    formers, passed = draining.find(broker, wanted, after, (), 1.0), draining.passed(broker, wanted, after, {})
    assert draining.renamed_links(silent, formers, passed) == {"shop.www": "shop.web", "www.log": "web.log"}
    assert draining.renamed_links(silent, (), {}) == {}
    # A link that has the name now keeps what is its own.
    both = {**after, **links}
    assert draining.renamed_links(both, formers, passed) == {}
    assert draining.renamed_links(links, formers, passed) == {}, "the present link is gone"


# -- the plan, the record and the keys ---------------------------------------------------------------
def test_a_rename_is_one_step_of_its_link() -> None:
    link = Link(source="shop", target="www", size=1024)
    after = renamed({link.name: link}, "www", "web")
    observed = Observed(Record(LocalBroker(), {link.name: link}), keys={})
    plan = planning.plan(Layout(), DesiredLinks(LocalBroker(), tuple(after.values())), observed, {link.name})
    steps = {step.name: step for step in plan.steps}
    assert steps["shop.web"].action == "rename" and "shop.www" not in steps
    assert steps["shop.web"].changes == {
        "to": {"old": "www", "new": "web"},
        "formerly": {"old": None, "new": {"to": "www"}},
    }
    mailbox = steps["broker"].changes["environments:web"]
    assert mailbox == {"old": "www", "new": "mailbox, account; it reads the mailbox of www until it is empty"}
    assert "environments:www" not in steps["broker"].changes


@pytest.mark.parametrize("empty", [False, True])
def test_a_plan_says_who_gets_old_mail(empty: bool) -> None:
    """Declare a name again whose mail waits: because another environment hasn't read it, or because it is parked."""
    web, www, log = (Link(source="shop", target=name) for name in ("web", "www", "log"))
    box = CALLED.mailbox("www")
    former = (draining.DrainingQueue(box, "web", {}, 1.0),)
    record = Record(LocalBroker(), {web.name: web}, ("log",), former=former)
    observed = Observed(record, keys={}, drained=(box,) if empty else (), emptied=("log",) if empty else ())
    desired = DesiredLinks(LocalBroker(), (web, www, log))
    (step,) = [one for one in planning.plan(Layout(), desired, observed).steps if one.name == "broker"]
    told = {key: change["new"] for key, change in step.changes.items() if key.startswith("environments:")}
    has = "mailbox, account"
    assert told == {
        "environments:log": has if empty else f"{has}, with the mail that is parked there",
        "environments:www": has if empty else f"{has}, with the mail there that web has not read yet",
    }


def test_the_record_keeps_former_exchanges(layout: Layout) -> None:
    known = Record(LocalBroker(), {}, passed={"link.www.orders": "web.orders"})
    write(layout, known)
    assert read(layout).passed == known.passed


def test_keys_of_a_former_name_pass_to_the_new_one(layout: Layout) -> None:
    seals.ensure(layout, ["www", "shop"], NOW, {})
    before = seals.read_all(layout)
    seals.inherit(layout, {"www": "web", "none": "other"})
    assert seals.read_all(layout) == {"web": before["www"], "shop": before["shop"]}
    seals.ensure(layout, ["www"], NOW + 1, {})  # a run that was killed had made keys for web already
    late = seals.read_all(layout)["www"]
    seals.inherit(layout, {"www": "web"})
    seals.inherit(layout, {"www": "web"})
    assert seals.read_all(layout)["web"] == [*late, *before["www"]]


@pytest.mark.parametrize("end", ["target", "source"])
def test_seals_from_before_a_rename_are_opened(layout: Layout, end: str) -> None:
    """Seal a message under the former name of either end, and open it under the new one."""
    link = Link(source="shop", target="www", seal=True)
    after = renamed({link.name: link}, getattr(link, end), "new")
    (now,) = after.values()
    seals.ensure(layout, ["shop", "www"], NOW, {})
    keys = seals.read_all(layout)
    told = seals.told(card("shop", [link], VHOST, CALLED), [link], keys)
    was = client_card(told).peers["www"].seal
    assert was is not None
    envelope = was.envelope("shop", "www", "message", "1", "", ours=True)
    body = seal.seal(b"hello", "text/plain", envelope, ring(keys["shop"], "", private=True), was.keys, NOW)

    wanted = objects.objects(after.values(), CALLED)
    broker = there({link.name: link}, {})
    formers = draining.find(broker, wanted, after, (), 1.0)
    passed = draining.passed(broker, wanted, after, {})
    seals.inherit(layout, renaming.of(after).environments)
    keys = seals.read_all(layout)
    about = client_card(seals.told(card(now.target, [now], VHOST, CALLED, formers, passed=passed), [now], keys))
    sender = about.senders[CALLED.exchange(link)]
    assert sender.name == now.source and sender.seal is not None
    mine = ring(keys[now.target], "", private=True)

    def opened(by: seal.Sealed) -> bytes:
        there = by.envelope(about.name, sender.name, "message", "1", "", ours=False)
        return bytes(seal.open_sealed(body, there, mine, by.keys, NOW + 1).body)

    assert opened(sender.seal) == b"hello"
    today = about.senders[CALLED.exchange(now)].seal
    assert today is not None
    with pytest.raises(SealError):  # a message of the former link is no message of the present one
        opened(today)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path)
