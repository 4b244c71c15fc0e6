"""Decisions about children by a host's records alone; the records are in the test's folder, and no program runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netspace import files
from netspace.environment import record as records
from netspace.environment.desired import DesiredEnvironment
from netspace.environment.images import Image
from netspace.environment.images.sources import Defaults
from netspace.environment.observe import Observed
from netspace.errors import SpecError
from netspace.host import child_records
from netspace.host.child_records import Child, Run
from netspace.host.children import Refused
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.ledger import entries, journal
from netspace.link import host_peer
from netspace.link.mail import emptying
from netspace.link.record import Record
from netspace.link.topology.draining import DrainingQueue
from netspace.plan import Plan, Result
from netspace.spec import parse, peer, spawns, trust
from netspace.spec.types import Declaration, Link, LocalBroker

ASK = ["spawn", "end", "children"]
GONE = Run("another boot", 1, 1)


def template(**more: Any) -> dict[str, Any]:
    return {"image": "tar:/w.tar", "command": ["/bin/true"], "at_most": 2, **more}


def parent(**templates: Any) -> dict[str, Any]:
    return {"image": "tar:/w.tar", "command": ["/bin/true"], "host": ASK, "spawns": templates}


def run_of(pid: int) -> Run:
    """Return the run of a process that lasts."""
    there = child_records.process.stat(pid)
    assert there is not None
    return Run(files.boot_id(), pid, there.ticks)


def own_run() -> Run:
    return run_of(os.getpid())


def a_child(name: str = "w", **more: Any) -> Child:
    given = {"until": 7.0, "ends": 2.0**40, "within": own_run(), "begun": own_run(), **more}
    return Child(**{"parent": "web", "template": "worker", "name": name, "values": {}, **given})


def recorded(host: Host, declared: Declaration, names: set[str] | None = None) -> None:
    """Record the environments as an apply does."""
    for name, spec in declared.environments.items():
        if names is None or name in names:
            image = Image("d" * 64, "i", Defaults())
            records.write(host.layout, name, records.Record(spec, spec.state, 1 << 20, image, "c", "r", {}))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(Layout(root=tmp_path))
    made.layout.state.mkdir(parents=True)
    return made


@pytest.fixture
def declared(host: Host) -> Declaration:
    found = parse.declaration({"environments": {"web": parent(worker=template())}})
    recorded(host, found)
    return found


def test_child_of_another_parent_is_none_of_the_asker(host: Host, declared: Declaration) -> None:
    child_records.write(host.layout, "web-worker-1", a_child())
    child_records.write(host.layout, "web-worker-2", a_child("theirs", parent="web-worker"))
    assert list(host.children("web")) == ["web-worker-1"]
    with pytest.raises(Refused, match="has no child of this name"):
        host.end("web", "theirs")


def test_lifetime_is_not_by_the_clock_of_day(host: Host, declared: Declaration) -> None:
    child_records.write(host.layout, "web-worker-1", a_child())
    assert child_records.due(host.layout, "web-worker-1") == "", "until is long past"
    child_records.write(host.layout, "web-worker-1", a_child(until=2.0**40, ends=child_records.now()))
    assert child_records.due(host.layout, "web-worker-1") == "its lifetime is over"


@pytest.mark.parametrize(
    ("changed", "state"), [({}, "running"), ({"begun": GONE}, "stopped"), ({"ends": 1.0}, "stopped")]
)
def test_apply_starts_no_child_that_has_ended(
    host: Host, declared: Declaration, changed: dict[str, Any], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_records.write(host.layout, "web-worker-1", a_child(**changed))
    there = host.environments.recorded(["web-worker-1"])["web-worker-1"]
    required = trust.requirement(there.spec, declared.attestation)
    now = msgspec.structs.replace(there.spec, state="running", attestation=required)
    records.write(host.layout, "web-worker-1", msgspec.structs.replace(there, spec=now, state="running"))
    assert host._with_children(declared)["web-worker-1"].state == state
    refreshed: list[Collection[str]] = []
    monkeypatch.setattr(host, "_as_recorded", lambda known, _: refreshed.append(set(known)) or {})
    monkeypatch.setattr(host, "_run_environments", lambda *_, **__: Result(Plan()))
    host._refresh_cards(["web-worker-1"], False)
    assert refreshed == ([{"web-worker-1"}] if state == "running" else [])


@pytest.fixture
def asleep() -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends only if it is killed."""
    with subprocess.Popen(["/bin/sleep", "600"]) as made:
        try:
            yield made
        finally:
            made.kill()


class Applied:
    """Stand-in that notes the changes that a host would make, instead of making them."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: list[dict[str, str]] = []
        self.stopped: list[set[str]] = []
        monkeypatch.setattr(host, "_become", self.become)
        monkeypatch.setattr(host.environments, "stop", lambda names: self.stopped.append(set(names)) or {})

    def become(self, wanted: Mapping[str, records.Record]) -> dict[str, str]:
        self.states.append({name: one.spec.state for name, one in wanted.items()})
        return {}


def test_children_end_together_with_their_parent_at_once(
    host: Host, declared: Declaration, asleep: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = Applied(host, monkeypatch)
    child_records.write(host.layout, "web-worker-1", a_child(within=GONE, begun=run_of(asleep.pid)))
    child_records.write(host.layout, "web-worker-2", a_child("x", within=GONE, begun=GONE))
    due, errors = host.finish(child_records.places(host.layout))
    both = {"web-worker-1", "web-worker-2"}
    assert due == dict.fromkeys(both, child_records.PARENT_ENDED) and not errors
    assert applied.stopped == [both] and applied.states == [dict.fromkeys(both, "stopped")]
    assert asleep.wait(60) == -signal.SIGKILL and not child_records.places(host.layout)


def test_damaged_record_keeps_no_child_alive(
    host: Host, declared: Declaration, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.path(host.layout, "web").write_text("{")
    child_records.write(host.layout, "web-worker-1", a_child())
    assert child_records.due(host.layout, "web-worker-1") == "", "its template isn't known to be gone"
    records.path(host.layout, "web-worker-2").write_text("{")
    for place in ("web-worker-1", "web-worker-2"):
        child_records.write(host.layout, place, a_child(begun=GONE))
    applied = Applied(host, monkeypatch)
    due, errors = host.finish(["web-worker-1", "web-worker-2"])
    assert len(due) == 2 and not errors and not child_records.places(host.layout)
    assert applied.stopped == [{"web-worker-1", "web-worker-2"}] and applied.states == [{"web-worker-1": "stopped"}]


def test_spawn_takes_the_first_place_that_is_as_declared(host: Host, declared: Declaration) -> None:
    records.path(host.layout, "web-worker-1").unlink()
    web = declared.environments["web"]
    free = spawns.places("web", web)
    assert host._startable(free, "web", web, web.spawns["worker"])[0] == "web-worker-2"
    with pytest.raises(Refused, match="web-worker-1 isn't as web declares it"):
        host._startable(free[:1], "web", web, web.spawns["worker"])


def test_children_end_with_their_keeper(host: Host, declared: Declaration, monkeypatch: pytest.MonkeyPatch) -> None:
    child_records.write(host.layout, "web-worker-1", a_child())
    applied = Applied(host, monkeypatch)
    host_peer.folder(host.layout).mkdir(parents=True)
    monkeypatch.setattr(host, "_peer_service", lambda *_: Result(Plan()))
    monkeypatch.setattr(host, "_tell_peer", lambda _: None)
    host._peer(True, ())
    assert child_records.places(host.layout) == {"web-worker-1"} and not applied.stopped
    host._peer(False, ())
    assert not child_records.places(host.layout) and applied.stopped == [{"web-worker-1"}]


def test_parent_that_may_not_ask_any_more_keeps_no_child(
    host: Host, declared: Declaration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent may no longer ask its host: its child ends. The keeper stays, since another environment may spawn."""
    other = parse.declaration({"environments": {"other": parent(worker=template())}})
    recorded(host, other)
    child_records.write(host.layout, "web-worker-1", a_child())
    child_records.write(host.layout, "other-worker-1", a_child(parent="other"))
    applied = Applied(host, monkeypatch)
    (link,) = peer.links({"other": other.environments["other"]})
    monkeypatch.setattr(host, "_linked", lambda: Record(broker=LocalBroker(), links={link.name: link}))
    monkeypatch.setattr(host, "_peer_service", lambda *_: Result(Plan()))
    monkeypatch.setattr(host, "_tell_peer", lambda _: None)
    host._peer(False, (link,))
    assert child_records.places(host.layout) == {"other-worker-1"} and applied.stopped == [{"web-worker-1"}]


def test_child_that_ends_during_an_apply_is_not_started(
    host: Host, declared: Declaration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that ends after the apply has read its record, and before it looks at programs, isn't started again."""
    child_records.write(host.layout, "web-worker-1", a_child())
    wanted = dict.fromkeys(["web-worker-1", "web"], DesiredEnvironment(declared.environments["web"]))
    planned: list[set[str]] = []

    def observe(*_: object, **__: object) -> Observed:
        child_records.write(host.layout, "web-worker-1", a_child(begun=GONE))
        return Observed({}, {}, {}, "")

    monkeypatch.setattr(host.environments, "observe", observe)
    monkeypatch.setattr(host, "_run", lambda _, desired, *__: planned.append(set(desired)) or Result(Plan()))
    monkeypatch.setattr("netspace.host.recorded_calls.converge", lambda *_: Result(Plan()))
    host._run_environments(wanted, (), False, programs=False)
    assert planned == [{"web"}]


def test_next_run_of_a_parent_gets_no_child(host: Host, declared: Declaration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_records, "run_of", lambda _, name: own_run() if name == "web" else None)
    with pytest.raises(Refused, match="the program that sent the request has ended"):
        host.spawn("web", "worker", "w", {}, own_run().began - 0.01)
    monkeypatch.setattr(host, "_begin", lambda _place, _there, child: child)
    assert host.spawn("web", "worker", "w", {}, own_run().began)[0] == "web-worker-1"


def test_environment_alone_has_no_name_of_a_child(
    host: Host, declared: Declaration, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If nothing refuses, nothing is made on the host of the tests.
    monkeypatch.setattr(host, "_asserted", lambda *_: pytest.fail("the name isn't refused"))
    one = parse.declaration({"environments": {"web-worker-1": {"image": "tar:/w.tar"}}})
    with pytest.raises(SpecError, match="web-worker-1: is the name of a child of web"):
        host.converge_environments(one)


def test_damaged_record_keeps_no_link_from_revocation(host: Host, declared: Declaration) -> None:
    assert host._handed_on(["web.orders"]) == {"web-worker-1.orders", "web-worker-2.orders"}
    records.path(host.layout, "web").write_text("{")
    assert host._handed_on(["web.orders"]) == set()


class Broker:
    """A management API that notes what is deleted."""

    def __init__(self, bindings: list[dict[str, str]]) -> None:
        self.bindings, self.deleted = bindings, list[tuple[str, ...]]()

    def get(self, *_: str, query: str) -> list[dict[str, str]]:
        return self.bindings

    def delete(self, *path: str) -> bool:
        self.deleted.append(path)
        return True


def test_emptying_deletes_the_ways_of_late_answers(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Broker([{"source": "", "properties_key": "replies.w"}, {"source": "reply.host", "properties_key": "k"}])
    monkeypatch.setattr(emptying, "management", lambda *_: contextlib.nullcontext(api))
    asks = Link(source="w", target="host", pattern="request")
    former = (DrainingQueue("lane.a.w", "w"), DrainingQueue("lane.w.a", "a"))
    emptying.empty(host.layout, Record(LocalBroker(), {asks.name: asks}, former=former), "w")
    ways, *queues = api.deleted
    assert ways == ("bindings", "netspace", "e", "reply.host", "q", "replies.w", "k")
    assert [queue for _, _, queue, _ in queues] == ["lane.a.w", "replies.w"]


@pytest.mark.parametrize(
    ("about", "part", "refused"),
    [("web-worker-1", 0.51, True), ("other-worker-1", 0.51, False), ("other-worker-1", 0.76, True)],
)
def test_children_never_fill_the_ledger_of_their_host(
    host: Host, declared: Declaration, monkeypatch: pytest.MonkeyPatch, about: str, part: float, refused: bool
) -> None:
    """Starts of children never fill the ledger of runs.

    A full ledger would lower the host's trust level until the next boot.
    """
    monkeypatch.setattr(child_records, "run_of", lambda _, name: own_run() if name == "web" else None)
    monkeypatch.setattr(host, "_begin", lambda _place, _there, child: child)
    files.write_json(host.layout.records("attestation") / "ledger.json", {})
    line = entries.ended([about], 1)[0]
    files.write(journal.folder(host.layout) / "log", line * round(part * entries.MOST_LINES))
    if refused:
        with pytest.raises(Refused, match="no room for more starts of children") as told:
            host.spawn("web", "worker", "w", {})
        assert told.value.code == "too-many"
    else:
        assert host.spawn("web", "worker", "w", {})[0] == "web-worker-1"
