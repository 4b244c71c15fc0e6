"""Two hosts whose broker objects get new names while all queues have messages: none is lost (docs/remote-links.md)."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec
import pytest
from support.sampling import EVERY, todays
from support.waiting import until

from netspace import files
from netspace.link import record
from netspace.link.topology import names, pair_keys
from netspace.link.topology.names import Names
from netspace.spec.types import FormerEnds, Link

pytestmark = pytest.mark.root

ASK = Link(source="web@h1", target="orders@h2", pattern="request", monitor=True)
FEW = Link(source="web@h1", target="audit@h2", length=50)
CARRY = Link(source="web@h1", target="log@h2", via="buffered")
LINKS = (ASK, FEW, CARRY)
READERS = {"orders": 3, "audit": 2, "log": 2}
ENVIRONMENTS = {"h1": ("web",), "h2": tuple(READERS)}


@pytest.fixture
def linked(both):
    both[2].mend()
    yield both
    both[2].mend()


def declare(both) -> None:
    """Declare the links on both hosts like an operator, without a purge."""
    for world in both[1::-1]:
        world.apply(*world.local(*LINKS))
        assert not world.plan(*world.local(*LINKS)).steps


def of_one_key(both, folder, monkeypatch) -> None:
    """Set up both hosts as earlier versions did: with one common key, from which all names derive."""
    shared = folder / "names.key"
    shared.write_text(secrets.token_hex(32))
    shared.chmod(0o600)
    for world in both[:2]:
        world.apply(purge=True)
        keyless = {name: msgspec.structs.replace(one, public_key=None) for name, one in world.broker.hosts.items()}
        world.broker = msgspec.structs.replace(world.broker, names_key=str(shared), hosts=keyless)
    with monkeypatch.context() as patched:
        for name in ("ensure", "declared", "used"):
            patched.setattr(names, name, lambda *_: Names(shared.read_text().encode()))
        declare(both)
        yield
    for world in both[:2]:
        path = world.layout.records("link") / "applied.json"
        known = files.read_json(path)
        files.write_json(path, {**known, "named": known["named"][""]})
        assert not (world.layout.records("link") / "names.json").exists()
        assert not world.links.called.pairs, "until it is applied, all goes on by the former names"


def the_same(both, folder, monkeypatch):
    """Keep the names that both hosts have now."""
    declare(both)
    yield


def shared_by_all(both, folder) -> None:
    """Change nothing: both hosts keep the declaration with one common key."""


def of_pairs(both, folder) -> None:
    for world in both[:2]:
        known = world.broker.hosts.items()
        told = {name: msgspec.structs.replace(one, public_key=pair_keys.public(folder / name)) for name, one in known}
        world.broker = msgspec.structs.replace(world.broker, names_key=None, hosts=told)


def other_keys(both, folder) -> None:
    """Delete both hosts' keys, so that new keys give all objects other names."""
    for world in both[:2]:
        (folder / str(world.broker.host) / pair_keys.FILE).unlink()
        (world.layout.records("link") / "names.json").unlink()
    of_pairs(both, folder)


@pytest.mark.parametrize(
    ("before", "after"),
    todays([(of_one_key, shared_by_all), (of_one_key, of_pairs), (the_same, other_keys)], 3, every=EVERY),
)
def test_naming_anew_loses_no_mail(linked, folder, program, monkeypatch, before: Callable, after: Callable):
    h1, h2, cable = linked
    stage = before(linked, folder, monkeypatch)
    next(stage)
    outbox = h1.links.called.outbox(h1.local(CARRY)[0])
    web = program(h1, "web")
    for reader in READERS:
        web.send(f"{reader}@h2", "1")
    until(lambda: waiting(h2, h2.n("mailbox.log")) == 1)
    cable.cut()
    web.send("log@h2", "2")
    web.leave()
    next(stage, None)

    after(linked, folder)
    declare(linked)
    assert outbox != h1.links.called.outbox(h1.local(CARRY)[0])
    until(lambda: waiting(h1, outbox) >= 1)  # the first as well, where the cut came before the other end's word
    cable.mend()
    web = program(h1, "web")
    web.send("orders@h2", "2")
    web.send("orders@h2", "3")
    web.send("audit@h2", "2")
    for name, count in READERS.items():
        reader = program(h2, name)
        assert sorted(reader.receive("web@h1") for _ in range(count)) == [str(one + 1) for one in range(count)], name

    for world in (h1, h2):
        settle(world)
    for world in (h2, h1):
        until(lambda world=world: gone(world))
    with h1.here(), h1.api() as api:
        assert not [one for one in api.get("parameters", "shovel", h1.layout.instance) if one["name"] == outbox]


@pytest.mark.parametrize("first", todays(["h1", "h2"], 2, every=EVERY))
def test_renamed_environments_keep_mail_between_hosts(linked, program, first):
    """Rename all ends on both hosts, of which one is applied first, while messages are on the way between them."""
    h1, h2, cable = linked
    declare(linked)
    for world in (h1, h2):
        world.no_mail()  # a carrier that was stopped may have sent a message twice, after its reader had left
    web = program(h1, "web")
    for reader in READERS:
        web.send(f"{reader}@h2", "1")
    until(lambda: waiting(h2, h2.n("mailbox.log")) == 1)
    cable.cut()
    web.send("log@h2", "2")
    web.leave()
    outbox = h1.links.called.outbox(h1.local(CARRY)[0])

    now = tuple(
        msgspec.structs.replace(
            link,
            source="shop@h1",
            target=link.target.replace("@", "-new@"),
            formerly=FormerEnds("web", link.target.partition("@")[0]),
        )
        for link in LINKS
    )
    h1.environment("shop")
    h2.environment(*(f"{name}-new" for name in READERS))
    cable.mend()
    for world in (h1, h2) if first == "h1" else (h2, h1):
        world.apply(*world.local(*now))
        assert not world.plan(*world.local(*now)).steps
    shop = program(h1, "shop")
    for reader in READERS:
        shop.send(f"{reader}-new@h2", "3")
    expected = {"orders": ["1", "3"], "audit": ["1", "3"], "log": ["1", "2", "3"]}
    for name, bodies in expected.items():
        reader = program(h2, f"{name}-new")
        assert sorted(reader.receive("shop@h1") for _ in bodies) == bodies, name
        reader.leave()
    shop.leave()
    for world in (h1, h2):
        settle(world)
    for world in (h2, h1):
        until(lambda world=world: gone_of(world, *now))
    with h1.here(), h1.api() as api:
        assert not [one for one in api.get("parameters", "shovel", h1.layout.instance) if one["name"] == outbox]


def gone_of(world, *links: Link) -> bool:
    return not world.apply(*world.local(*links)).steps and not record.read(world.layout).former


def waiting(world, queue: str) -> int:
    with world.here(), world.api() as api:
        body = {"count": 100, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 1}
        return len(api.post("queues", world.layout.instance, queue, "get", body=body) or [])


def settle(world) -> None:
    """Date every recorded renaming back to 1970, so that an apply trusts the broker's counts of messages at once.

    These counts may lag behind for some seconds.
    """
    known = record.read(world.layout)
    aged = tuple(msgspec.structs.replace(one, since=0.0) for one in known.former)
    record.write(world.layout, msgspec.structs.replace(known, former=aged))


def gone(world) -> bool:
    """Apply; return whether there was nothing to do and the record has no old names."""
    return not world.apply(*world.local(*LINKS)).steps and not record.read(world.layout).former
