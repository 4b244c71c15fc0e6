"""Delegations by a host's records alone; the records are in the test's folder, and neither program nor broker runs.

Attackers ask in the name of others, for more than their right, late and repeatedly, while links, runs and clocks
change. After each step, each delegated right must come from a holder who has this right, with limits at least as wide.
"""

from __future__ import annotations

import math
import os
import random
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.waiting import until

from netspace import files
from netspace.environment import record as records
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.errors import NetspaceError
from netspace.host import child_records, delegation_records, keeper, metrics, pace, program_keys
from netspace.host import delegations as use_cases
from netspace.host.child_records import Run
from netspace.host.children import Refused
from netspace.host.delegations import Limits
from netspace.host.host import Host
from netspace.host.peer.verbs import sign
from netspace.layout import Layout
from netspace.link import host_peer
from netspace.link import record as link_record
from netspace.plan import Plan, Result
from netspace.spec import delegations, parse, peer
from netspace.spec.types import Broker, Link, LocalBroker

ASK = ["delegate", "revoke", "delegations"]
NAMES = ("web", "till", "aid", "orders", "host", "web.orders", "..", "web-w-1")


def whole() -> dict[str, Any]:
    image = {"image": "tar:/x.tar", "command": ["/bin/true"]}
    template = {"image": "tar:/x.tar", "command": ["/bin/true"], "from_parent": {}}
    bound = {"to": ["till", "web-w-1"], "rate": 5, "size": "4K", "lifetime": 60, "at_most": 1}
    return {
        "environments": {
            "web": {**image, "host": [*ASK, "spawn"], "spawns": {"w": template}, "delegates": {"orders": bound}},
            "till": {**image, "host": ASK, "delegates": {"orders": {"to": ["aid"], "length": 10, "lifetime": 1000}}},
            "aid": {**image, "host": ["whoami", "sign"]},
            "orders": image,
        },
        "links": [
            {"from": "web", "to": "orders", "rate": 9, "length": 500, "size": "8K"},
            {"from": "web", "to": "till"},
            {"from": "till", "to": "aid"},
        ],
    }


FREE = Limits()


class World:
    """A host with the links of its record. The test sets its clocks, and the runs of its programs."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.layout = Layout(root=root)
        self.layout.state.mkdir(parents=True)
        self.now, self.today = 1000.0, 1_800_000_000.0
        self.runs = {name: Run("boot", number, 0) for number, name in enumerate(("web", "till", "aid", "web-w-1"))}
        self.ended: set[Run] = set()
        self.severed: list[set[str]] = []
        self.broker = True
        patch.setattr(Run, "lasts", lambda run: run not in self.ended)
        patch.setattr(child_records, "now", lambda: self.now)
        patch.setattr(child_records, "run_of", lambda _, name: self.runs.get(name))
        patch.setattr(use_cases.time, "time", lambda: self.today)
        patch.setattr(Host, "_links", self._links)
        patch.setattr(Host, "_refresh_cards", lambda *_: Result(Plan()))
        patch.setattr(Host, "_tell_peer", lambda *_: None)
        patch.setattr("netspace.link.reconciler.Links.sever", self._sever)
        self.declared = parse.declaration(whole())
        image = Image("d" * 64, "i", Defaults())
        for name, spec in self.declared.environments.items():
            records.write(self.layout, name, records.Record(spec, spec.state, 1 << 20, image, "c", "r", {}))
        every = {link.name: link for link in self.declared.links if link.name not in self.possible}
        every |= {link.name: link for link in peer.links(self.declared.environments)}
        self.record(every)

    @property
    def possible(self) -> dict[str, delegations.Possible]:
        return delegations.possible(self.declared.environments)

    @property
    def links(self) -> dict[str, Link]:
        return dict(link_record.read(self.layout).links)

    def record(self, links: dict[str, Link]) -> None:
        link_record.write(self.layout, link_record.Record(LocalBroker(), links))

    def _sever(self, doomed: Collection[Link]) -> None:
        if not self.broker:
            raise NetspaceError("the broker is down")
        self.severed.append({link.name for link in doomed})

    def _links(
        self, _broker: Broker, permitted: tuple[Link, ...], considered: Collection[str], whole: bool, test: bool
    ) -> Result:
        there = self.links
        keep = {name: link for name, link in there.items() if not whole and name not in considered}
        self.record({**keep, **{link.name: link for link in permitted}})
        return Result(Plan())

    def delegate(self, holder: str, link: str, to: str, limits: Limits = FREE, asked: float = math.inf) -> None:
        Host(self.layout).delegate(holder, link, to, limits, asked)

    def revoke(self, holder: str, link: str, to: str) -> None:
        Host(self.layout).revoke(holder, link, to)

    def settle(self) -> dict[str, str]:
        return Host(self.layout).settle_delegations()[0]

    def restart(self, name: str) -> None:
        self.ended.add(self.runs[name])
        self.runs[name] = Run("boot", len(self.ended) + 100, round(self.now * child_records._TICKS))

    def apply(self, changed: dict[str, Any]) -> None:
        """Apply the declaration, with the first link changed, as an operator does."""
        data = whole()
        data["links"][0] |= changed
        host, self.declared = Host(self.layout), parse.declaration(data)
        permitted = host._permitted(
            peer.with_links(self.declared), {link.name: _Allowed() for link in peer.with_links(self.declared).links}
        )
        lapsed = host._lapsed(permitted, self.declared.environments)
        result = host._end_with(lapsed, lambda: self._links(LocalBroker(), permitted, (), True, False))
        assert not result.failures

    def without(self, name: str) -> None:
        """Revoke a link, as an operator does by a single state."""
        host = Host(self.layout)
        gone = host._lapsed([link for link in self.links.values() if link.name != name])
        after = {one: link for one, link in self.links.items() if one != name and one not in gone}

        def run() -> Result:
            self.record(after)
            return Result(Plan())

        host._end_with(gone, run)


class _Allowed:
    allowed, on_loss = True, ""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def refused(code: str, work: Callable[[], object]) -> None:
    with pytest.raises(Refused) as err:
        work()
    assert err.value.code == code, err.value


def test_right_is_the_least_of_all_limits(world: World) -> None:
    world.delegate("web", "orders", "till", Limits(rate=2, until=world.today + 10**6))
    made, known = world.links["till.orders"], delegation_records.read(world.layout, "till.orders")
    assert (made.rate, made.size, made.length) == (2, 4096, 500) and known is not None and known.made
    assert known.ends == world.now + 60 and known.until == world.today + 60
    world.now += 20
    world.delegate("till", "orders", "aid")
    below = delegation_records.read(world.layout, "aid.orders")
    assert below is not None and below.ends == known.ends and below.under == known.id
    assert (world.links["aid.orders"].rate, world.links["aid.orders"].length) == (2, 10)


def test_delegated_link_is_marked_and_counted(world: World) -> None:
    world.delegate("web", "orders", "till", Limits(until=world.today + 30))
    rows: dict[str, dict[str, Any]] = {name: {"from": link.source} for name, link in world.links.items()}
    delegation_records.mark(world.layout, rows)
    marked = {name: row for name, row in rows.items() if len(row) > 1}
    assert marked == {"till.orders": {"from": "till", "delegated_by": "web", "until": world.today + 30}}
    given, born = metrics._programs(world.layout)
    assert (list(given.values), list(born.values)) == ([1], [])
    world.revoke("web", "orders", "till")
    assert not next(iter(metrics._programs(world.layout))).values


def test_revocation_severs_what_was_made_of_it(world: World) -> None:
    world.delegate("web", "orders", "till")
    world.delegate("till", "orders", "aid")
    refused("delegation-unknown", lambda: world.revoke("till", "orders", "till"))
    refused("delegation-unknown", lambda: world.revoke("aid", "orders", "aid"))
    world.severed.clear()
    world.revoke("web", "orders", "till")
    assert world.severed[0] == {"till.orders", "aid.orders"} and not delegation_records.names(world.layout)
    assert not {"till.orders", "aid.orders"} & world.links.keys()


def test_right_ends_when_its_holder_may_not_ask_any_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder may no longer ask its host: its delegation ends.

    The keeper stays, since another environment may delegate.
    """
    monkeypatch.setattr(Host, "_peer_service", lambda *_: Result(Plan()))
    monkeypatch.setattr(Host, "_library", lambda *_, **__: "")
    world.delegate("web", "orders", "till")
    Host(world.layout)._peer(False, ())
    assert "till.orders" in world.links, "its holder may ask"
    (asks,) = (link.name for link in peer.links({"web": world.declared.environments["web"]}))
    world.without(asks)
    Host(world.layout)._peer(False, ())
    assert "till.orders" not in world.links and not delegation_records.names(world.layout)


def test_right_is_not_forgotten_while_the_broker_is_down(world: World) -> None:
    world.delegate("web", "orders", "till")
    world.broker = False
    with pytest.raises(NetspaceError, match="can't be deleted now"):
        world.revoke("web", "orders", "till")
    assert delegation_records.due(world.layout) == {"till.orders": "it was revoked"}
    world.broker = True
    assert world.settle() and not delegation_records.names(world.layout)


def test_damaged_record_is_no_right(world: World) -> None:
    world.delegate("web", "orders", "till")
    path = world.layout.records(delegation_records.KIND) / "till.orders.json"
    good = path.read_bytes()
    path.write_bytes(b"{")
    assert world.settle() == {"till.orders": "its record is damaged"} and "till.orders" not in world.links
    (path.parent).mkdir(exist_ok=True)
    (path.parent / "aid.orders.json").write_bytes(good)
    assert world.settle() == {"aid.orders": "its record is damaged"}, "it is another's"


@pytest.mark.parametrize("end", ["time", "program", "revocation"])
def test_right_that_ended_meanwhile_is_not_handed_on(world: World, end: str) -> None:
    """While a request waits for the lock, such as for an apply, the holder's own right ends: nothing is delegated."""
    world.delegate("web", "orders", "till")
    made = delegation_records.read(world.layout, "till.orders")
    assert made is not None
    if end == "time":
        world.now += 61
    elif end == "program":
        world.restart("web")
    else:
        delegation_records.write(world.layout, msgspec.structs.replace(made, revoked=True))
    refused("link-unknown", lambda: world.delegate("till", "orders", "aid"))
    assert not {"till.orders", "aid.orders"} & world.links.keys() and not delegation_records.names(world.layout)


def test_right_of_a_child_ends_with_the_child(world: World) -> None:
    refused("not-available", lambda: world.delegate("web", "orders", "web-w-1"))
    run = world.runs["web-w-1"]
    child = child_records.Child("web", "w", "c", {}, 0.0, 2.0**40, world.runs["web"], run)
    child_records.write(world.layout, "web-w-1", child)
    world.delegate("web", "orders", "web-w-1")
    with pytest.raises(Refused, match="children run already, which is the limit"):
        Host(world.layout).spawn("web", "w", "other", {})
    world.ended.add(run)
    assert world.settle() == {"web-w-1.orders": "the child that had it has ended"}


def test_keeper_answers_by_the_records_alone(world: World) -> None:
    host_peer.folder(world.layout).mkdir(parents=True)
    made = keeper.Keeper(world.layout, 0)

    def said(asker: str, verb: str, **arguments: Any) -> Any:
        body = {"id": 1, "asker": asker, "verb": verb, "at": world.now, "arguments": arguments}
        found = msgspec.json.decode(made.answer(msgspec.json.encode(body)))
        return found["answer"] or found["code"]

    assert said("aid", "delegate", link="orders", to="till") == "verb-not-permitted"
    assert said("nobody", "delegate", link="orders", to="till") == "verb-not-permitted"
    assert said("web", "delegate", link="orders", to="till", rate=math.pi * 1e9) == "arguments-invalid"
    assert said("web", "delegate", link="orders", to="till", holder="till") == "arguments-invalid"
    found = said("web", "delegate", link="orders", to="till", size=100)
    assert found == {
        "link": "orders",
        "to": "till",
        "environment": "till",
        "rate": 5.0,
        "size": 100,
        "until": world.today + 60,
    }
    assert said("web", "delegations") == {"delegations": [found]}
    assert said("till", "delegations") == {"delegations": []}
    assert made.settle() == world.now + keeper.TICK
    world.now += 50
    assert made.settle() == world.now + 10, "it wakes up when the right ends"
    assert made._runs("till.orders") == set()
    assert said("web", "revoke", link="orders", to="till") == {"link": "orders", "to": "till"}
    assert made.settle() is None


@pytest.fixture
def kept(world: World) -> Iterator[tuple[keeper.Keeper, socket.socket]]:
    """A keeper that listens, and the peer's end of its connection."""
    host_peer.folder(world.layout).mkdir(parents=True)
    mine = keeper.Keeper(world.layout, os.getuid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer_end:
        peer_end.settimeout(60)
        peer_end.connect(str(host_peer.folder(world.layout) / host_peer.KEEPER))
        yield mine, peer_end
    mine._leave()
    mine._door.close()


def ask(end: socket.socket, number: int, asker: str, verb: str, **arguments: str) -> None:
    body = {"id": number, "asker": asker, "verb": verb, "at": 2.0**40, "arguments": arguments}
    end.send(msgspec.json.encode(body))


def told(end: socket.socket) -> tuple[int, str]:
    """Return the number of the next answer, and its code if it is a refusal."""
    found = msgspec.json.decode(end.recv(keeper.MOST))
    return found["id"], "" if found["answer"] else found["code"]


def test_keeper_works_for_nobody_without_end(world: World, kept: tuple[keeper.Keeper, socket.socket]) -> None:
    """An environment that has used up its time waits, and others don't. Its revocations come soon."""
    mine, end = kept
    world.delegate("web", "orders", "till")
    mine._pace.spend("web", pace.BURST + 1, child_records.now())
    ask(end, 1, "web", "delegations")
    ask(end, 2, "web", "revoke", link="orders", to="till")
    ask(end, 3, "till", "delegations")
    for _ in range(4):
        mine._serve()
    assert [told(end), told(end)] == [(2, ""), (3, "")]
    assert 0 < (mine._pause() or 0) <= 2 / pace.SHARE + 1
    assert [one.id for turns in mine._waiting.values() for one in turns] == [1]
    world.now += 3 / pace.SHARE
    mine._serve()
    assert told(end) == (1, "")


def test_revocation_waits_for_no_request_that_waits(world: World, kept: tuple[keeper.Keeper, socket.socket]) -> None:
    """While another environment's request waits for an apply, a revoked right is removed from the broker."""
    mine, end = kept
    world.delegate("web", "orders", "till")
    world.severed.clear()
    with ThreadPoolExecutor(1) as pool:
        with files.locked(world.layout.lock):
            ask(end, 1, "till", "delegate", link="orders", to="aid")
            ask(end, 2, "web", "revoke", link="orders", to="nobody")
            ask(end, 3, "aid", "revoke", link="orders", to="till")  # its declaration permits nothing
            ask(end, 4, "web", "revoke", link="orders", to="till")
            served = pool.submit(mine._serve)
            until(lambda: {"till.orders"} in world.severed, "the apply goes on, and the right is still there")
            assert not served.done()
        served.result(60)
    for _ in range(3):
        mine._serve()
    wanted = [(1, "link-unknown"), (2, "delegation-unknown"), (3, "verb-not-permitted"), (4, "")]
    assert sorted(told(end) for _ in wanted) == wanted
    assert not delegation_records.names(world.layout) and "till.orders" not in world.links


def test_revocation_waits_for_no_key(
    world: World, kept: tuple[keeper.Keeper, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a TPM is in use by others, a revoked right is removed from the broker."""
    mine, end = kept
    world.delegate("web", "orders", "till")
    world.severed.clear()
    free = threading.Event()

    def answer(*_: object) -> sign.Answer:
        assert free.wait(60)
        return sign.Answer("", {}, "tpm", True)

    monkeypatch.setattr(program_keys, "answer", answer)
    with ThreadPoolExecutor(1) as pool:
        ask(end, 1, "aid", "sign", digest="A" * 43)
        ask(end, 2, "web", "revoke", link="orders", to="till")
        served = pool.submit(mine._serve)
        try:
            until(lambda: {"till.orders"} in world.severed, "the right is still there")
            assert not served.done()
        finally:
            free.set()
        served.result(60)
    mine._serve()
    assert [told(end), told(end)] == [(1, ""), (2, "")]


def test_right_whose_time_is_over_waits_for_no_request(world: World, kept: tuple[keeper.Keeper, socket.socket]) -> None:
    mine, end = kept
    world.delegate("web", "orders", "till")
    world.severed.clear()
    with ThreadPoolExecutor(1) as pool:
        with files.locked(world.layout.lock):
            ask(end, 1, "till", "delegate", link="orders", to="aid")
            served = pool.submit(mine._serve)
            world.now += 61
            until(lambda: {"till.orders"} in world.severed, "the apply goes on, and the right is still there")
        served.result(60)
    assert told(end) == (1, "link-unknown")


def test_environments_take_turns_at_the_keeper(world: World, kept: tuple[keeper.Keeper, socket.socket]) -> None:
    mine, end = kept
    for number in range(1, 6):
        ask(end, number, "till", "delegations")
    ask(end, 6, "web", "delegate", link="orders", to="till")
    ask(end, 7, "web", "revoke", link="orders", to="till")
    for _ in range(7):
        mine._serve()
    assert [told(end)[0] for _ in range(7)] == [1, 6, 2, 7, 3, 4, 5], "each in its own order"
    assert not delegation_records.names(world.layout)


# -- attackers -----------------------------------------------------------------------------------------------------
def sound(world: World) -> None:
    """End due delegations; check that each holder has the right that it delegated, with limits at least as wide."""
    world.settle()
    there = world.links
    known = {name: delegation_records.read(world.layout, name) for name in delegation_records.names(world.layout)}
    rights = {name for name in there if name in world.possible}
    assert rights == known.keys(), "each right has a record, and no other link"
    for name in rights:
        mine, one, made = there[name], world.possible[name], known[name]
        assert made is not None and made.holder == one.holder
        most = there[one.of]  # its maker has it, too
        bound = world.declared.environments[one.holder].delegates[one.target]
        for key in ("rate", "size", "length"):
            limits = [limit for limit in (getattr(most, key), getattr(bound, key)) if limit is not None]
            assert not limits or (getattr(mine, key) or math.inf) <= min(limits), f"{name}: {key}"
        assert world.now < made.ends <= world.now + bound.lifetime
        assert world.runs[one.holder] == made.within, "its maker's program runs"
        if above := known.get(one.of):
            assert made.ends <= above.ends and made.under == above.id
        assert f"{one.holder}.{one.to}" in there or one.to.startswith("web-w-")
    assert len({"till.orders", "web-w-1.orders"} & rights) <= 1


def attack(world: World, chance: random.Random) -> None:
    """Take one random step: ask for something, or change the host."""
    who = [chance.choice(NAMES) for _ in range(3)]
    if chance.random() < 0.6:
        who = list(chance.choice([("web", "orders", "till"), ("till", "orders", "aid"), ("web", "orders", "web-w-1")]))
    if who[2] == "web-w-1":
        child = child_records.Child("web", "w", "c", {}, 0.0, 2.0**40, world.runs["web"], world.runs["web-w-1"])
        child_records.write(world.layout, "web-w-1", child)
    limits = (
        FREE
        if chance.random() < 0.6
        else Limits(
            chance.choice([None, 1.0, 5.0, 9.0, 1e5]),
            chance.choice([None, 100, 4096, 8192, 2**40]),
            chance.choice([None, world.today + 10, world.today - 1, 0.0, 2.0**40]),
        )
    )
    step = chance.randrange(10)
    try:
        if step < 4:
            world.delegate(*who, limits, chance.choice([math.inf, world.now, world.now - 100]))
        elif step == 4:
            world.revoke(*who)
        elif step == 5:
            world.now += chance.choice([1.0, 30.0, 61.0])
        elif step == 6:
            world.today += chance.choice([-(10.0**6), 10.0**6])
        elif step == 7:
            world.restart(chance.choice(["web", "till", "aid", "web-w-1"]))
        elif step == 8:
            world.apply(chance.choice([{}, {"rate": 5}, {"rate": 7, "size": "5K"}, {"length": 100}]))
        else:
            world.without("web.orders")
            sound(world)
            world.apply({})
    except (Refused, NetspaceError):
        pass


def tried(world: World, steps: int, seed: int) -> int:
    chance, rights = random.Random(seed), 0
    for _ in range(steps):
        attack(world, chance)
        sound(world)
        rights += len(delegation_records.names(world.layout))
    return rights


def test_attackers_get_no_right_that_nobody_had(world: World) -> None:
    assert tried(world, 300, 1) > 50, "there are rights"


def _no_end(_: object, lifetime: float, until: float | None, above: object) -> tuple[float, float]:
    return 0.0, child_records.now() + (lifetime if until is None else until)


@pytest.mark.parametrize(
    ("of", "check", "without"),
    [
        (delegations, "exceeds", lambda *_: ""),
        (Host, "_room", lambda *_: None),
        (Host, "_end", _no_end),
        (Host, "_lapsed", lambda *_: set()),
        (Run, "lasts", lambda _: True),
        (delegation_records, "due", lambda _: {}),
    ],
)
def test_attackers_find_a_check_that_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch, of: Any, check: str, without: Any
) -> None:
    monkeypatch.setattr(of, check, without)
    with pytest.raises((AssertionError, KeyError)):
        tried(world, 300, 2)  # it ends with the first hole
