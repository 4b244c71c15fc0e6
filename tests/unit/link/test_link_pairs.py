"""The keys from which names are derived: one for each host, and one for each pair of hosts. No broker."""

from __future__ import annotations

import json

import msgspec
import pytest

from netspace import files
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.link import record
from netspace.link.record import Record
from netspace.link.topology import names, pair_keys
from netspace.link.topology.names import PLAIN, Names
from netspace.spec.types import ClusterBroker, Link, LocalBroker, RemoteHost

HOSTS = ("h1", "h2", "h3")
LINK = Link(source="web", target="orders@h2")
SECRET = "a secret of all hosts that is long enough"


@pytest.fixture
def brokers(tmp_path) -> dict[str, LocalBroker]:
    """Return the brokers of three hosts; each declares the others."""
    public = {name: pair_keys.public(tmp_path / name) for name in HOSTS}
    return {
        name: LocalBroker(
            host=name,
            trust_domain=f"{name}.example.org",
            authority=str(tmp_path / name),
            hosts={
                other: RemoteHost(trust_domain=f"{other}.example.org", public_key=public[other])
                for other in HOSTS
                if other != name
            },
        )
        for name in HOSTS
    }


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(root=tmp_path / "host")


def keyless(broker: LocalBroker, path) -> LocalBroker:
    hosts = {name: msgspec.structs.replace(host, public_key=None) for name, host in broker.hosts.items()}
    return msgspec.structs.replace(broker, hosts=hosts, names_key=str(path))


def keys(broker: LocalBroker) -> dict[str, bytes]:
    return {name: pair.key for name, pair in pair_keys.between(broker, {}).items()}


def test_two_hosts_have_one_key_and_each_pair_another(brokers):
    made = {name: keys(broker) for name, broker in brokers.items()}
    assert made["h1"]["h2"] == made["h2"]["h1"] and made["h2"]["h3"] == made["h3"]["h2"]
    assert len({key for one in made.values() for key in one.values()}) == 3
    assert all(len(key) == 32 for one in made.values() for key in one.values())


def test_a_hosts_key_stays_and_is_its_own(tmp_path):
    first = pair_keys.public(tmp_path / "h1")
    assert pair_keys.public(tmp_path / "h1") == first != pair_keys.public(tmp_path / "h2")
    path = tmp_path / "h1" / pair_keys.FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "h1").stat().st_mode & 0o777 == 0o700
    path.write_text("no key")
    with pytest.raises(NetspaceError, match=r"it holds no key; remove it"):
        pair_keys.public(tmp_path / "h1")


def test_what_was_made_of_the_same_is_not_made_again(brokers, monkeypatch):
    made = pair_keys.between(brokers["h1"], {})
    monkeypatch.setattr(pair_keys, "_agreed", lambda *_: pytest.fail("again"))
    assert pair_keys.between(brokers["h1"], made) == made
    monkeypatch.undo()
    moved = msgspec.structs.replace(brokers["h1"], trust_domain="other.example.org")
    assert pair_keys.between(moved, made)["h2"].key != made["h2"].key


def test_one_secret_of_all_gives_each_pair_a_key(brokers, tmp_path):
    path = tmp_path / "names.key"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    made = {name: keys(keyless(broker, path)) for name, broker in brokers.items()}
    assert made["h1"]["h2"] == made["h2"]["h1"] != made["h1"]["h3"]
    one = {**brokers["h1"].hosts, "h3": msgspec.structs.replace(brokers["h1"].hosts["h3"], public_key=None)}
    both = keys(msgspec.structs.replace(brokers["h1"], hosts=one, names_key=str(path)))
    assert both == {"h2": keys(brokers["h1"])["h2"], "h3": made["h1"]["h3"]}


@pytest.mark.parametrize(
    ("key", "why"),
    [("A" * 43, "is not a key"), ("own", "this is our own key"), (None, "names_key is missing")],
)
def test_a_public_key_that_can_not_serve_is_told(brokers, key, why):
    own = brokers["h2"].hosts["h1"].public_key
    far = msgspec.structs.replace(brokers["h1"].hosts["h2"], public_key=own if key == "own" else key)
    with pytest.raises(NetspaceError, match=why):
        pair_keys.between(msgspec.structs.replace(brokers["h1"], hosts={"h2": far}), {})


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (None, 0o600, "No such file"),
        (SECRET, 0o640, "other users can read it"),
        ("short", 0o600, "32 random characters"),
    ],
)
def test_a_secret_that_can_not_serve_is_told(brokers, tmp_path, content, mode, why):
    path = tmp_path / "names.key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    for broker in (keyless(brokers["h1"], path), ClusterBroker("amqp://x", "http://x", "/x", names_key=str(path))):
        with pytest.raises(NetspaceError, match=f"broker:names_key: .*{why}"):
            names.ensure(Layout(root=tmp_path / "host"), broker)
    assert not (tmp_path / "host").exists()


def test_a_key_that_is_not_there_is_told_with_what_makes_it(brokers, tmp_path):
    (tmp_path / "h1" / pair_keys.FILE).unlink()
    with pytest.raises(NetspaceError, match=r"names\.key: No such file.*netspace_link\.public_key"):
        pair_keys.between(brokers["h1"], {})


# -- what is recorded ------------------------------------------------------------------------------------
def test_names_in_use_are_known_without_what_they_were_made_of(brokers, layout, tmp_path):
    assert names.used(layout, brokers["h1"]) == PLAIN and names.declared(layout, brokers["h1"]) is None
    made = names.ensure(layout, brokers["h1"])
    assert names.declared(layout, brokers["h1"]) == names.ensure(layout, brokers["h1"]) == made
    assert set(made.pairs) == {"h2", "h3"} and made.key not in made.pairs.values()
    for secret in (made.key.hex(), *(key.hex() for key in made.pairs.values())):
        assert secret not in repr(made)
    (tmp_path / "h1" / pair_keys.FILE).unlink()
    assert names.used(layout, brokers["h1"]) == made
    with pytest.raises(NetspaceError, match=r"names\.key"):
        names.declared(layout, brokers["h1"])


def test_on_a_shared_broker_all_names_follow_from_its_key_and_none_elsewhere(brokers, layout, tmp_path):
    path = tmp_path / "names.key"
    path.write_text(SECRET)
    path.chmod(0o600)
    shared = ClusterBroker("amqp://x", "http://x", "/x", names_key=str(path), host="h1")
    made = names.ensure(layout, shared)
    assert made == Names(SECRET.encode(), fleet=True)
    path.unlink()
    assert names.used(layout, shared) == made
    own = names.ensure(layout, brokers["h1"])
    assert own.key != made.key
    alone = msgspec.structs.replace(shared, names_key=None)
    assert names.ensure(layout, alone) == Names(own.key, apart=True, fleet=True)


def test_the_record_of_a_version_before_tells_what_all_was_called_by(brokers, layout, tmp_path):
    path = tmp_path / "names.key"
    path.write_text(SECRET)
    path.chmod(0o600)
    broker = keyless(brokers["h1"], path)
    former = Names(SECRET.encode())
    records = layout.records("link")
    for left in (None, {"key": "00" * 32}):  # of a time before the hosts' key
        if left:
            files.write_json(records / "names.json", left)
        assert names.used(layout, broker) == former
    made = names.ensure(layout, broker)
    assert made.key == bytes(32) and names.used(layout, broker) == made != former

    record.write(layout, Record(broker, {LINK.name: LINK}, named=former.fingerprints(())))
    value = json.loads((records / "applied.json").read_text())
    files.write_json(records / "applied.json", {**value, "named": value["named"][""]})
    assert record.read(layout).named == former.fingerprints(())


def test_a_record_that_is_damaged_is_told(layout):
    for left in ({"key": "x"}, {"key": "00" * 32, "pairs": {"h2": {}}}, {"key": "00" * 32, "pairs": []}):
        files.write_json(layout.records("link") / "names.json", left)
        with pytest.raises(NetspaceError, match=r"names\.json: .*remove the file"):
            names.used(layout, LocalBroker())


def test_what_is_between_two_hosts_is_called_alike_by_both_and_by_nobody_else(brokers, tmp_path):
    made = {name: names.ensure(Layout(root=tmp_path / f"of-{name}"), broker) for name, broker in brokers.items()}
    there, third = made["h1"].over("h2", "h1"), made["h3"].over("h2", "h1")
    link = Link(source="web@h1", target="orders", pattern="request", monitor=True, ttl=5)
    common = {
        "exchange": lambda called: called.exchange(link),
        "queue": lambda called: called.queue(link),
        "watched": lambda called: called.watched(link),
        "replies": lambda called: called.replies("web@h1"),
        "reply": lambda called: called.reply("orders", "h1"),
        "notices": lambda called: called.notices("web@h1"),
    }
    for what, name in common.items():
        assert name(there) == name(made["h2"]) != name(third), what
        assert name(made["h2"]) != name(made["h3"]) and name(made["h2"]) != name(Names(made["h2"].key)), what
    for name in ("mailbox", "reply"):
        assert getattr(made["h1"], name)("orders") != getattr(made["h2"], name)("orders")
    unwatched = msgspec.structs.replace(link, monitor=False)
    assert made["h2"].queue(unwatched) not in (there.queue(unwatched), made["h2"].queue(link))


def test_of_a_host_that_is_declared_no_more_nobody_there_knows_a_name():
    link = Link(source="web@h9", target="orders")
    assert Names(b"k" * 32).exchange(link) == Names(b"k" * 32, pairs={"h9": b"k" * 32}).exchange(link)
    assert set(Names(b"k" * 32).fingerprints([link])) == {"", "h9"}
