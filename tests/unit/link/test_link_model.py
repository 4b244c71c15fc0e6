"""The desired state of the broker, and the changes that lead to it, for random sets of links."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.link.card import card
from netspace.link.topology import diff, found_objects, objects, policies
from netspace.link.topology.draining import DrainingQueue, find
from netspace.link.topology.names import PLAIN, Names, account, environments_of, owner, shown
from netspace.spec import peer
from netspace.spec.types import Link

NAMES = ["a", "b", "web", "web-1", "w_1"]
LINKS = st.builds(
    lambda ends: {
        f"{source}.{target}": Link(source=source, target=target, pattern=how, ttl=ttl, monitor=watched, durable=kept)
        for source, target, how, ttl, watched, kept in ends
    },
    st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.sampled_from(NAMES),
            st.sampled_from(["send", "request"]),
            st.sampled_from([None, None, 1.0, 2.5]),
            st.booleans(),
            st.booleans(),
        ).filter(lambda ends: ends[0] != ends[1])
    ),
).map(lambda links: list(links.values()))
VHOST = "netspace"
CALLED = Names(b"a key of this test's")
N = CALLED.of


class Broker:
    """A model of RabbitMQ's definitions, and of the changes that its API makes."""

    def __init__(self) -> None:
        self.objects: objects.Objects = {}
        self.hashes: dict[str, str] = {}

    def definitions(self) -> dict:
        sections: dict[str, list] = {f"{kind}s": [] for kind in ("user", "permission", "queue", "exchange", "binding")}
        sections["policies"] = []
        for key, value in self.objects.items():
            if key[0] == "user":
                entry = {"name": key[1], "password_hash": self.hashes[key[1]], **value}
            elif key[0] == "permission":
                entry = {"user": key[1], "vhost": VHOST, **value}
            elif key[0] == "binding":
                names = dict(zip(("source", "destination_type", "destination", "routing_key"), key[1:], strict=True))
                entry = {"vhost": VHOST, **names, **value}
            else:
                entry = {"name": key[1], "vhost": VHOST, **value}
            sections["policies" if key[0] == "policy" else f"{key[0]}s"].append(entry)
        return json.loads(json.dumps({**sections, "vhosts": [{"name": VHOST}]}))

    def delete(self, key: objects.Key) -> None:
        self.objects.pop(key, None)
        if key[0] == "user":
            self.objects.pop(("permission", key[1]), None)
        if key[0] in ("exchange", "queue"):
            for other in [other for other in self.objects if other[0] == "binding"]:
                if key == ("exchange", other[1]) or key == (other[2], other[3]):
                    del self.objects[other]

    def post(self, document: dict) -> None:
        for section, entries in document.items():
            for entry in entries:
                value = {k: v for k, v in entry.items() if k not in ("vhost", "name", "user")}
                if section == "bindings":
                    names = [value.pop(k) for k in ("source", "destination_type", "destination", "routing_key")]
                    key = ("binding", *names)
                elif section == "users":
                    key = ("user", entry["name"])
                    self.hashes[entry["name"]] = value.pop("password_hash")
                    value.pop("hashing_algorithm")
                else:
                    key = ({"policies": "policy"}.get(section, section[:-1]), entry.get("name") or entry["user"])
                if key[0] == "queue" and key in self.objects:
                    assert self.objects[key] == value, "arguments of a queue can't be changed"
                self.objects[key] = value

    def converge(self, links: list[Link], known: set[str], passwords: dict[str, str]) -> diff.Difference:
        wanted = objects.objects(links, CALLED)
        there = found_objects.found(self.definitions(), VHOST, known | objects.members(links), whole=True)
        change = diff.difference(wanted, there, passwords)
        for key in change.revoke:
            self.delete(key)
        passwords.update({name: f"secret of {name}" for name in objects.members(links)})
        self.post(diff.document(wanted, change, VHOST, passwords))
        for key in change.last:
            self.delete(key)
        return change


@given(LINKS, LINKS)
def test_after_a_change_there_is_no_difference_and_nothing_undeclared(first, second):
    broker, passwords = Broker(), {}
    broker.converge(first, set(), passwords)
    change = broker.converge(second, objects.members(first), passwords)
    assert not change.stuck
    wanted = objects.objects(second, CALLED)
    kept = {*objects.shared(CALLED), *(("queue", name) for name in change.left)}
    assert {key for key in broker.objects if key not in kept} == {key for key in wanted if key not in kept}
    assert all(broker.objects[key] == value for key, value in wanted.items())
    again = broker.converge(second, objects.members(first), passwords)
    assert again.empty
    assert again.left == change.left


def test_queue_of_requests_to_the_host_has_room_for_these_alone():
    asks, other = peer.link("web"), Link(source="web", target="till", durable=False)
    key = ("policy", policies.ASKING)
    wanted = objects.objects([asks, other], CALLED)
    policy = wanted[key]
    assert policy["definition"]["max-length-bytes"] == peer.LENGTH * peer.SIZE
    assert policy["definition"]["dead-letter-exchange"] == CALLED.late
    assert policy["priority"] > wanted["policy", "netspace.memory"]["priority"]
    assert re.search(policy["pattern"], CALLED.queue(asks)) and not re.search(policy["pattern"], CALLED.queue(other))
    assert policies.fullness(asks, 0, peer.LENGTH * peer.SIZE) == 1
    broker, passwords = Broker(), {}
    broker.converge([asks, other], set(), passwords)
    assert key in broker.objects
    broker.converge([other], {"web"}, passwords)
    assert key not in broker.objects


@given(LINKS, LINKS)
def test_mailboxes_are_never_revoked(first, second):
    broker, passwords = Broker(), {}
    broker.converge(first, set(), passwords)
    change = broker.converge(second, objects.members(first), passwords)
    assert not [key for key in change.revoke if key[0] == "queue" and not key[1].startswith(("replies.", "notices."))]
    gone = {owner(name) for name in change.left if name.startswith("mailbox.")}
    assert gone == objects.members(first) - objects.members(second)
    lanes = {name for name in change.left if name.startswith("lane.")}
    wanted = {CALLED.queue(link) for link in second}
    assert lanes == {CALLED.queue(link) for link in first if link.bounds} - wanted


@given(LINKS)
def test_an_account_may_do_what_its_links_say_and_nothing_else(links):
    made = objects.objects(links, CALLED)
    declared = {(link.source, link.target): link.pattern for link in links}
    names = [key[1] for key in made if key[0] in ("queue", "exchange")] + ["", "amq.default", "amq.topic", "other"]
    for one in objects.members(links):
        rights = made["permission", f"env.{one}"]
        may = {right: {name for name in names if re.search(rights[right], name)} for right in rights}
        assert may["configure"] <= {""}
        asked = {target for (source, target), pattern in declared.items() if source == one and pattern == "request"}
        asks_me = any(target == one and pattern == "request" for (_, target), pattern in declared.items())
        sent = {N(f"link.{one}.{target}") for source, target in declared if source == one}
        replies = {N(f"replies.{one}")} if asked else set()
        assert may["write"] - {""} == sent | replies | ({N(f"reply.{one}")} if asks_me else set())
        lanes = {name for name in names if environments_of(name, "lane") and name.split(".")[2] == one}
        assert may["read"] - {""} == {N(f"mailbox.{one}")} | lanes | replies | {
            N(f"reply.{target}") for target in asked
        } | {N(f"notices.{one}") for link in links if link.source == one and link.monitor}
        assert "amq.default" not in may["write"] | may["read"]


@given(LINKS)
def test_foreign_objects_are_not_ours(links):
    broker, passwords = Broker(), {}
    broker.converge(links, set(), passwords)
    foreign = {
        ("exchange", "orders"): {"type": "topic", "durable": True, "auto_delete": False, "internal": False},
        ("exchange", "link.x"): {"type": "topic"},
        ("queue", "mailbox.a.b"): {"durable": True, "auto_delete": False, "arguments": {}},
        ("policy", "all"): {"pattern": ".*", "definition": {}},
        ("permission", "bob"): {"configure": ".*", "write": ".*", "read": ".*"},
        ("user", "env.elsewhere"): {"tags": [], "limits": {}},
        ("binding", "orders", "queue", "mailbox.a.b", "k"): {"arguments": {}},
    }
    broker.hashes["env.elsewhere"] = ""
    broker.objects.update(foreign)
    broker.converge([], objects.members(links), passwords)
    left = objects.shared(CALLED).keys() | {("queue", CALLED.mailbox(name)) for name in objects.members(links)}
    left |= {("queue", CALLED.queue(link)) for link in links}
    assert broker.objects.keys() - left == foreign.keys()


def test_what_is_in_another_vhost_is_not_ours():
    broker = Broker()
    links = [Link(source="a", target="b")]
    broker.converge(links, set(), {})
    there = found_objects.found(broker.definitions(), "other", set(), whole=True)
    assert there.objects == {}
    assert not there.vhost


def test_on_a_shared_broker_other_hosts_environments_are_not_ours():
    broker = Broker()
    broker.converge([Link(source="a", target="b"), Link(source="c", target="d", pattern="request")], set(), {})
    there = found_objects.found(broker.definitions(), VHOST, {"a", "b"}, whole=False).objects
    assert ("exchange", N("link.a.b")) in there
    assert ("queue", N("mailbox.c")) not in there
    assert not [key for key in there if "c" in key[1].split(".") or "d" in key[1].split(".")]


def test_an_undeclared_way_into_a_mailbox_is_revoked():
    broker, passwords = Broker(), {}
    links = [Link(source="a", target="b")]
    broker.converge(links, set(), passwords)
    hole = ("binding", "amq.topic", "queue", N("mailbox.b"), "#")
    broker.objects[hole] = {"arguments": {}}
    broker.objects["exchange", N("link.b.a")] = {"type": "fanout"}
    change = broker.converge(links, set(), passwords)
    assert set(change.revoke) == {hole, ("exchange", N("link.b.a"))}


def test_bindings_to_answers_stay_while_the_request_link_does():
    broker, passwords = Broker(), {}
    links = [Link(source="a", target="b", pattern="request"), Link(source="c", target="b", pattern="request")]
    broker.converge(links, set(), passwords)
    own = ("binding", N("reply.b"), "queue", N("replies.a"), "some random key")
    broker.objects[own] = {"arguments": {}}
    assert broker.converge(links, set(), passwords).empty
    links[0] = Link(source="a", target="b")
    broker.objects["queue", N("replies.a")] = {"durable": True, "auto_delete": False, "arguments": {}}
    broker.converge(links, set(), passwords)
    assert own not in broker.objects


def binding(source: str, kind: str, target: str, properties_key: str = "key") -> dict:
    return {"source": source, "destination_type": kind, "destination": target, "properties_key": properties_key}


WAITING = binding(N("reply.b"), "queue", N("replies.a"))


@pytest.mark.parametrize(
    ("bindings", "anew"),
    [
        ([WAITING] * objects.ANSWERS, []),
        ([WAITING] * (objects.ANSWERS + 1), [("queue", N("replies.a"))]),
        ([binding(N("reply.b"), "queue", N("replies.a"), "~")], []),
        ([binding(N("reply.b"), "queue", N("replies.a"), "key~hash")], [("queue", N("replies.a"))]),
        ([binding(N("reply.b"), "queue", N("replies.a"), "~hash")], [("queue", N("replies.a"))]),
        ([binding(N("reply.b"), "exchange", N("link.a.b"))], [("exchange", N("link.a.b"))]),
        ([binding(N("reply.b"), "exchange", N("reply.a"))], [("exchange", N("reply.a"))]),
        ([binding(N("link.a.b"), "queue", N("mailbox.b"), "key~hash")], []),
        ([binding(N("reply.b"), "queue", "somebody's", "key~hash")], []),
        ([binding("", "queue", N("replies.a"), N("replies.a"))], []),
    ],
)
def test_what_environments_bind_beyond_need_is_made_anew(bindings, anew):
    assert (
        found_objects.flooded(bindings, "ab", whole=True) == found_objects.flooded(bindings, "ab", whole=False) == anew
    )


def test_on_a_shared_broker_other_hosts_bindings_are_theirs():
    theirs = [binding(N("reply.b"), "queue", N("replies.x"), "key~hash")]
    assert found_objects.flooded(theirs, "ab", whole=False) == []
    assert found_objects.flooded(theirs, "ab", whole=True) == [("queue", N("replies.x"))]


@given(LINKS, LINKS)
def test_what_the_record_says_must_go_is_revoked_by_the_difference_too(first, second):
    broker = Broker()
    broker.converge(first, objects.members([*first, *second]), {})
    keys = diff.undeclared(objects.objects(first, CALLED), objects.objects(second, CALLED))
    for key in keys:
        broker.delete(key)
    names = {CALLED.exchange(link) for link in second}
    assert not [key for key in broker.objects if key[1].startswith("link.") and key[1] not in names]
    accounts = {account(name) for name in objects.members(second)}
    assert {key[1] for key in broker.objects if key[0] in ("user", "permission")} <= accounts
    kept = objects.objects(second, CALLED)
    assert not [key for key in keys if key in kept or key in objects.shared(CALLED) or key[1].startswith("mailbox.")]


def test_drift_is_repaired():
    broker, passwords = Broker(), {}
    links = [Link(source="a", target="b")]
    broker.converge(links, set(), passwords)
    broker.objects["permission", "env.a"]["read"] = ".*"
    broker.objects["user", "env.b"]["tags"] = ["administrator"]
    broker.objects["exchange", N("link.a.b")]["type"] = "topic"
    broker.hashes["env.a"] = ""
    change = broker.converge(links, set(), passwords)
    assert change.revoke == (("exchange", N("link.a.b")),)
    assert ("binding", N("link.a.b"), "queue", N("mailbox.b"), "") in change.create
    assert change.passwords == ("env.a",)
    assert broker.converge(links, set(), passwords).empty


def test_a_mailbox_of_another_make_is_left_for_the_operator():
    broker, passwords = Broker(), {}
    broker.objects["queue", N("mailbox.b")] = {"durable": True, "auto_delete": False, "arguments": {}}
    links = [Link(source="a", target="b")]
    there = found_objects.found(broker.definitions(), VHOST, set(), whole=True)
    change = diff.difference(objects.objects(links, CALLED), there, passwords)
    assert change.stuck == (("queue", N("mailbox.b")),)
    assert ("queue", N("mailbox.b")) not in {*change.create, *change.change}


def test_link_gets_its_new_queue_before_it_leaves_the_old_one():
    broker, passwords = Broker(), {}
    broker.converge([Link(source="a", target="b"), Link(source="a", target="c")], set(), passwords)
    foreign = ("binding", N("link.a.b"), "queue", N("mailbox.c"), "")
    broker.objects[foreign] = {"arguments": {}}
    links = [Link(source="a", target="b", durable=False), Link(source="a", target="c")]
    there = found_objects.found(broker.definitions(), VHOST, {"a", "b", "c"}, whole=True)
    change = diff.difference(objects.objects(links, CALLED), there, passwords)
    assert change.last == (("binding", N("link.a.b"), "queue", N("mailbox.b"), ""),)
    assert foreign in change.revoke, "what leads to somebody else goes at once"
    assert ("binding", N("link.a.b"), "queue", CALLED.queue(links[0]), "") in change.create


@given(LINKS, LINKS)
def test_link_that_is_revoked_keeps_no_binding(first, second):
    broker = Broker()
    broker.post(diff.document(*_everything(first, CALLED)))
    wanted = objects.objects(second, CALLED)
    there = found_objects.found(broker.definitions(), VHOST, objects.members([*first, *second]), whole=True)
    change = diff.difference(wanted, there, dict.fromkeys(objects.members(first), "x"))
    for key in change.last:
        if key[0] == "binding":
            assert ("exchange", key[1]) in wanted
            assert environments_of(key[3], "mailbox", "lane")[-1] == environments_of(key[1], "link")[-1]


def test_nothing_is_revoked_after_something_was_granted_in_its_place():
    broker, passwords = Broker(), {}
    broker.converge([Link(source="a", target="b"), Link(source="a", target="c")], set(), passwords)
    links = [Link(source="a", target="b")]
    there = found_objects.found(broker.definitions(), VHOST, {"a", "b", "c"}, whole=True)
    change = diff.difference(objects.objects(links, CALLED), there, passwords)
    assert change.revoke == (("user", "env.c"), ("exchange", N("link.a.c")))


@given(st.text(), st.binary(min_size=4, max_size=4))
def test_hashes_verify(password, salt):
    assert diff.verify(password, diff.hashed(password, salt))
    assert not diff.verify(password + "x", diff.hashed(password, salt))


@pytest.mark.parametrize("known", ["", "x", "!!!", "AAAA", diff.hashed("other")])
def test_other_hashes_do_not(known):
    assert not diff.verify("password", known)


@pytest.mark.parametrize("known", ["x", "!!!", "AAAA", diff.hashed("other")])
def test_one_without_a_password_has_an_empty_hash_and_no_other(known):
    assert diff.hashed("") == ""
    assert diff.verify("", "")
    assert not diff.verify("", known)


def test_known_hash():
    # https://www.rabbitmq.com/docs/passwords: "test12" salted with 908D C60A
    assert diff.hashed("test12", bytes.fromhex("908DC60A")) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"


def test_card_of_both_ends():
    links = [Link(source="web", target="orders", pattern="request"), Link(source="web", target="audit")]
    web, orders, idle = (
        card(name, links, VHOST, CALLED, identity=f"spiffe://d/host/h/env/{name}") for name in ("web", "orders", "idle")
    )
    assert web["mailbox"] == N("mailbox.web")
    assert web["broker"]["username"] == "spiffe://d/host/h/env/web"
    assert card("web", links, VHOST, CALLED)["broker"]["username"] == "env.web"
    assert web["peers"] == [
        {"to": "audit", "pattern": "send", "exchange": N("link.web.audit")},
        {
            "to": "orders",
            "pattern": "request",
            "exchange": N("link.web.orders"),
            "replies": {"queue": N("replies.web"), "exchange": N("reply.orders")},
        },
    ]
    assert orders["peers"] == []
    assert orders["senders"] == [
        {"from": "web", "pattern": "request", "exchange": N("link.web.orders"), "reply_exchange": N("reply.orders")}
    ]
    assert idle == {"version": 2, "name": "idle", "peers": [], "senders": []}


# -- names -----------------------------------------------------------------------------
def test_a_card_names_every_queue_of_its_environment():
    lane = Link(source="audit", target="web", ttl=5)
    content = card("web", [lane, Link(source="orders", target="web")], VHOST, CALLED)
    assert content["queues"] == [N("mailbox.web"), CALLED.queue(lane)]
    assert CALLED.queue(lane) != CALLED.queue(Link(source="audit", target="web", ttl=6))


@given(LINKS, LINKS)
def test_no_environment_is_told_a_name_that_isnt_its_own(first, second):
    formers = [
        DrainingQueue(N(f"mailbox.{end}", "former"), end, {N(f"link.{link.name}", "x"): link.name})
        for link in second
        for end in [link.target]
    ]
    every = objects.objects(first, CALLED)
    for one in objects.members(first):
        told = json.dumps(card(one, first, VHOST, CALLED, formers))
        for key in every:
            if key[0] == "queue" and key[1] in told:
                # The news of one who may be monitored name its mailbox, so its monitor knows that.
                monitored = {N(f"mailbox.{link.target}") for link in first if link.source == one and link.monitor}
                ends = environments_of(key[1], "mailbox", "replies", "lane", "notices")
                assert key[1] in monitored or ends[-1] == one
            if key[0] == "exchange" and key[1] in told:
                ends = environments_of(key[1], "link", "reply")
                peers = {link.target for link in first if link.source == one and link.pattern == "request"}
                assert one in ends or set(ends) <= peers


def test_names_follow_from_the_key_alone_and_none_from_another():
    other = Names(b"another key, which is as good")
    assert CALLED.mailbox("a") == Names(CALLED.key).mailbox("a")
    assert len({one.mailbox("a").rpartition(".")[2] for one in (CALLED, other)}) == 2
    every = [N("mailbox.a"), N("mailbox.b"), N("replies.a"), N("reply.a"), N("link.a.b"), CALLED.dead]
    assert len({name.rpartition(".")[2] for name in every}) == len(every)
    assert shown(" ".join(every)) == "mailbox.a mailbox.b replies.a reply.a link.a.b dead"
    assert CALLED.key.decode() not in repr(CALLED)
    assert CALLED.fingerprints(()) != other.fingerprints(()) != PLAIN.fingerprints(()) == {"": ""}


def test_dead_letters_that_hosts_share_without_a_key_have_one_name():
    assert Names(b"one", apart=True).dead == Names(b"other", apart=True).dead == "dead"


@given(LINKS, LINKS)
def test_what_is_renamed_is_read_until_it_is_empty_and_has_no_way_in(first, second):
    """Renamed queues are read until they are empty, and no exchange leads to them any more.

    The old names are those of netspace's first versions, or were made with another key.
    """
    for old in (PLAIN, Names(b"the key that was lost")):
        broker = Broker()
        broker.post(diff.document(*_everything(first, old)))
        wanted = objects.objects(second, CALLED)
        there = found_objects.found(broker.definitions(), VHOST, objects.members([*first, *second]), whole=True)
        links = {link.name: link for link in second}
        formers = find(there, wanted, links, (), now=5.0)
        passwords = dict.fromkeys(objects.members(first), "x")
        change = diff.difference(wanted, there, passwords)
        assert {one.queue for one in formers} <= set(change.left), "none is revoked"
        mailboxes = {old.mailbox(name) for name in objects.members(first) & objects.members(second)}
        assert mailboxes <= {one.queue for one in formers}
        for one in formers:
            assert dict(one.senders) == {
                old.exchange(link): link.name for link in first if one.queue in (old.queue(link),)
            }
            ways = {key for key in there.objects if key[0] == "binding" and key[3] == one.queue}
            assert not one.environment or {("exchange", key[1]) for key in ways} <= set(change.revoke)
            if one.environment:
                assert re.search(wanted["permission", account(one.environment)]["read"], one.queue)
        # Killed after the revocation, the next run knows as much.
        later = found_objects.found({**broker.definitions(), "bindings": [], "exchanges": []}, VHOST, (), whole=True)
        again = find(later, wanted, links, formers, now=9.0)
        assert [(one.queue, one.senders, one.since) for one in again] == [
            (one.queue, one.senders, 5.0) for one in formers
        ]


def _everything(links: list[Link], called: Names):
    wanted = objects.objects(links, called)
    accounts = tuple(account(name) for name in objects.members(links))
    change = diff.Difference(create=tuple(wanted), passwords=accounts)
    return wanted, change, VHOST, dict.fromkeys(objects.members(links), "x")


def test_a_card_tells_the_senders_of_former_queues_by_their_exchange():
    links = [Link(source="a", target="b", pattern="request")]
    formers = [
        DrainingQueue("mailbox.b", "b", {"link.a.b": "a.b", "link.c.b": "c.b"}),
        DrainingQueue("mailbox.c", "c", {"link.a.c": "a.c"}),
    ]
    content = card("b", links, VHOST, CALLED, formers)
    assert content["queues"] == [N("mailbox.b"), "mailbox.b"]
    assert content["senders"][1:] == [{**content["senders"][0], "exchange": "link.a.b", "former": True}]


# -- monitoring --------------------------------------------------------------------------------
WATCHED = Link(source="web", target="orders", monitor=True)


def test_a_monitor_hears_of_the_consumers_of_one_mailbox_and_its_right_goes_with_the_link():
    made = objects.objects([WATCHED, Link(source="web", target="audit")], CALLED)
    watch, notices = CALLED.watch(WATCHED), CALLED.notices("web")
    assert made["exchange", watch]["type"] == "headers"
    assert made["binding", objects.EVENTS, "exchange", watch, "consumer.*"]
    about = made["binding", watch, "queue", notices, ""]["arguments"]
    assert about == {"x-match": "all", "queue": CALLED.mailbox("orders")}
    may = made["permission", "env.web"]
    assert re.fullmatch(may["read"], notices)
    for pattern in (may["write"], may["configure"]):
        assert not any(re.fullmatch(pattern, name) for name in (watch, notices, objects.EVENTS))
    assert not re.fullmatch(may["read"], watch)
    assert not re.fullmatch(made["permission", "env.orders"]["read"], notices)
    others = objects.objects([Link(source="web", target="orders"), Link(source="web", target="audit")], CALLED)
    assert set(made) - set(others) == {("queue", notices), *objects.of_link(WATCHED, CALLED)[2:]}
    assert ("queue", notices) not in others
    gone = diff.undeclared(made, others)
    assert gone == [("exchange", watch), ("queue", notices)]


def test_what_a_monitor_needs_is_found_again_and_repaired():
    made = objects.objects([WATCHED], CALLED)
    there = found_objects.Found({key: dict(value) for key, value in made.items()}, {}, True)
    assert not diff.difference(made, there, {}).touched - {("user", "env.web"), ("user", "env.orders")}
    binding = ("binding", CALLED.watch(WATCHED), "queue", CALLED.notices("web"), "")
    there.objects[binding] = {"arguments": {"x-match": "any"}}
    change = diff.difference(made, there, {})
    assert binding in change.revoke
    assert binding in change.create
