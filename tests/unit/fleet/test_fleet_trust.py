"""Trust in a fleet's hosts: the master's own results decide, links are cut and restored, and minions are informed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkout
from support.fleet.fleets import fleets, published, written

from netspace.errors import NetspaceError, StateError
from netspace.fleet import compile as compiler
from netspace.fleet import in_force, leaving, trust, trust_watch
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.trust import Book, Distrust, HostTrust

PAGE = checkout.ROOT / "docs/fleet-trust.md"
IMAGE = {"image": "tar:/srv/shop.tar"}
JUDGED = {"verifier": "master", "verifier_keys": ["A" * 43]}
FLEET: dict[str, Any] = {
    "defaults": {"attestation": JUDGED},
    "hosts": {
        "h1": {"address": "198.51.100.1"},
        "h2": {"address": "198.51.100.2", "minion": "m2"},
        "h3": {"address": "198.51.100.3"},
    },
    "environments": {name: {"on": host, **IMAGE} for name, host in (("web", "h1"), ("db", "h2"), ("log", "h3"))},
    "links": [{"from": "web", "to": "db"}, {"from": "web", "to": "log"}],
}
GOOD = HostTrust("trusted", "", "as asked for")
FAILED = HostTrust("failed", "ak-unknown", "the software key differs")
STALE = HostTrust("stale", "", "the last result expired")
MINIONS = ("h1", "m2", "h3")
CLOCK_REALTIME_COARSE = 5
"""The clock that stamps files, clock_gettime(2); Python's module has no name for it."""


class Master:
    """A master with results that a test sets, and minions that answer with *answers*."""

    def __init__(self) -> None:
        self.results = dict.fromkeys(MINIONS, GOOD)
        self.answers: dict[str, Any] = {}
        self.after: dict[str, HostTrust] = {}
        self.looked: list[set[str]] = []
        self.attested: list[set[str]] = []
        self.asked: list[tuple[set[str], list[str], bool]] = []
        self.rounds: list[int] = []
        self.ended: list[tuple[set[str], list[str]]] = []
        """Minions that were told to end their links with these hosts at once."""
        self.told: list[tuple[str, str]] = []
        self.error: NetspaceError | None = None

    def states(self, minions: Collection[str]) -> Mapping[str, HostTrust]:
        if self.error is not None:
            raise self.error
        self.looked.append(set(minions))
        return {minion: self.results[minion] for minion in minions}

    def attest(self, minions: Collection[str]) -> None:
        self.attested.append(set(minions))
        self.results |= {minion: one for minion, one in self.after.items() if minion in minions}

    def ask(self, minions: Collection[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError(f"{function} was not expected")

    def ask_at_once(self, function: str, calls: Sequence[tuple[Collection[str], Mapping[str, Any]]]) -> dict[str, Any]:
        assert function == trust_watch.REVISE
        self.rounds.append(len(calls))
        self.asked += [(set(some), list(arguments["hosts"]), bool(arguments["own"])) for some, arguments in calls]
        self.ended += [(set(some), list(arguments["cut"])) for some, arguments in calls if "cut" in arguments]
        minions = [minion for some, _ in calls for minion in some]
        return {minion: self.answers.get(minion, []) for minion in minions if self.answers.get(minion, []) is not None}

    def tell(self, event: str, data: Mapping[str, Any]) -> None:
        self.told.append((str(data["host"]), event))


def write(folder: Path, data: Any) -> None:
    (folder / "fleet.yaml").write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))


def made(folder: Path, data: dict[str, Any]) -> FleetDeclaration:
    write(folder, data)
    declared = written(folder)
    for name, facts in published(["h1", "h2", "h3"]).items():
        fields = {field: getattr(facts, field) for field in facts.__struct_fields__}
        declared.register.write(type(facts)(**{**fields, "minion": "m2" if name == "h2" else name}))
    assert declared.apply() is None
    return declared


@pytest.fixture
def declared(tmp_path: Path) -> FleetDeclaration:
    return made(tmp_path, FLEET)


@pytest.fixture
def master() -> Master:
    return Master()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds since 1970, as the only element of a list."""
    now = [time.time()]
    monkeypatch.setattr(trust_watch.time, "time", lambda: now[0])
    return now


def peers(declared: FleetDeclaration, minion: str = "h1") -> list[str]:
    pillar = declared.answer(minion).pillar
    assert pillar is not None and pillar.keys() == {"netspace"}
    return sorted(pillar["netspace"]["broker"].get("hosts", {}))


def test_a_distrusted_host_is_cut_and_restored(declared: FleetDeclaration, master: Master) -> None:
    before = {minion: declared.answer(minion).pillar for minion in MINIONS}
    assert trust_watch.look(declared, master) == {"hosts": 3, "distrusted": {}, "asked_again": {}, "waiting": {}}
    master.results["m2"] = FAILED
    found = trust_watch.look(declared, master, ["m2"])
    lost = found["distrusted"]["h2"]
    assert (lost["kind"], lost["state"], lost["code"], lost["reason"]) == ("judged", *FAILED[:3])
    assert (lost["minion"], lost["cut"], lost["reported"], found["waiting"]) == ("m2", ["web@h1.db"], [], {})
    assert peers(declared) == ["h3"] and peers(declared, "m2") == []
    assert master.asked == [({"h1"}, ["h2"], False), ({"m2"}, ["h2"], True)]
    section = (declared.answer("m2").pillar or {})["netspace"]
    assert "listen" not in section["broker"] and section["broker"]["trust_domain"] and section["environments"]
    # The same again is no news.
    assert trust_watch.look(declared, master)["distrusted"] == found["distrusted"] and len(master.asked) == 2
    master.results["m2"] = GOOD
    assert trust_watch.look(declared, master)["distrusted"] == {}
    assert {minion: declared.answer(minion).pillar for minion in MINIONS} == before
    assert master.told == [("h2", "distrusted"), ("h2", "restored")] and len(master.asked) == 4


def test_one_look_of_the_pages_schedule_is_enough(declared: FleetDeclaration, master: Master) -> None:
    """Lose the event. Of the 60 s after the evidence, the schedule takes at most half, and one look does all."""
    (text,) = re.findall(r"^```yaml\n(# master configuration\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(text)["schedule"]["trust"]["seconds"] <= 30
    trust_watch.look(declared, master)
    assert master.rounds == []
    master.results["m2"] = FAILED
    found = trust_watch.look(declared, master)
    assert found["distrusted"].keys() == {"h2"} and found["waiting"] == {} and peers(declared) == ["h3"]
    assert master.rounds == [2], "one round of messages"
    assert [minions for minions, *_ in master.asked] == [{"h1"}, {"m2"}], "the peer first"
    assert master.ended == [({"h1"}, ["h2"])]


@pytest.mark.parametrize(
    ("change", "cut"),
    [
        ({}, True),
        ({"defaults": {"attestation": JUDGED, "on_distrust": "report"}}, False),
        ({"defaults": {"attestation": JUDGED, "on_expiry": "report"}}, True),
        ({"host": {"on_distrust": "report"}}, False),
        ({"defaults": {"attestation": JUDGED, "on_distrust": "report"}, "host": {"on_distrust": "cut"}}, True),
        ({"link": {"on_distrust": "report"}}, False),
        ({"host": {"on_distrust": "report"}, "link": {"on_distrust": "cut"}}, True),
        ({"defaults": {}}, False),
        ({"defaults": {}, "host": {"attestation": JUDGED}}, True),
    ],
)
def test_the_declaration_says_what_is_cut(tmp_path: Path, master: Master, change: dict[str, Any], cut: bool) -> None:
    data = {**FLEET, **({"defaults": change["defaults"]} if "defaults" in change else {})}
    data["hosts"] = {**FLEET["hosts"], "h2": FLEET["hosts"]["h2"] | change.get("host", {})}
    data["links"] = [FLEET["links"][0] | change.get("link", {}), FLEET["links"][1]]
    declared = made(tmp_path, data)
    master.results["m2"] = FAILED
    trust_watch.look(declared, master)
    assert peers(declared) == (["h3"] if cut else ["h2", "h3"])
    assert peers(declared, "m2") == ([] if cut else ["h1"])
    told = {minion for minions, *_ in master.asked for minion in minions}
    assert ("h1" in told) == cut and "h3" not in told
    assert master.ended == ([({"h1"}, ["h2"])] if cut else [])


def test_only_who_loses_all_links_is_cut_before_pillar_is_read(tmp_path: Path, master: Master) -> None:
    kept = {"from": "db", "to": "web", "on_distrust": "report"}
    declared = made(tmp_path, {**FLEET, "links": [*FLEET["links"], kept]})
    master.results["m2"] = FAILED
    lost = trust_watch.look(declared, master)["distrusted"]["h2"]
    assert (lost["cut"], lost["reported"]) == (["web@h1.db"], ["db.web@h1"])
    assert {"h1"} in [minions for minions, *_ in master.asked] and master.ended == []


def test_an_earlier_minion_is_told_without_the_new_argument(
    declared: FleetDeclaration, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = master.ask_at_once

    def earlier(function: str, calls: Sequence[tuple[Collection[str], Mapping[str, Any]]]) -> dict[str, Any]:
        told = asked(function, calls)
        why = NetspaceError("revise() got an unexpected keyword argument 'cut'")
        return told | {minion: why for some, arguments in calls for minion in some if "cut" in arguments}

    monkeypatch.setattr(master, "ask_at_once", earlier)
    master.results["m2"] = FAILED
    assert trust_watch.look(declared, master)["waiting"] == {}
    assert master.asked == [({"h1"}, ["h2"], False), ({"m2"}, ["h2"], True), ({"h1"}, ["h2"], False)]


def test_a_host_that_is_trusted_again_is_not_cut_at_once(declared: FleetDeclaration, master: Master) -> None:
    master.results["m2"] = FAILED
    trust_watch.look(declared, master)
    master.results["m2"] = GOOD
    trust_watch.look(declared, master)
    assert master.ended == [({"h1"}, ["h2"])] and len(master.asked) == 4, "the host itself gets no such word either"


def test_a_reaction_that_there_is_not_is_refused(tmp_path: Path) -> None:
    for path, data in {
        "links:0:on_distrust": {**FLEET, "links": [{"from": "web", "to": "db", "on_distrust": "stop"}]},
        "hosts:h1:on_expiry": {**FLEET, "hosts": {**FLEET["hosts"], "h1": {"on_expiry": "stop"}}},
        "defaults:on_distrust": {**FLEET, "defaults": {"on_distrust": "stop"}},
    }.items():
        write(tmp_path, data)
        assert [one.path for one in written(tmp_path).check().problems] == [path]


def test_a_silent_host_is_asked_again_before_it_is_cut(
    declared: FleetDeclaration, master: Master, clock: list[float]
) -> None:
    master.results["m2"] = STALE
    assert list(trust_watch.look(declared, master)["asked_again"]) == ["h2"] and master.attested == [{"m2"}]
    assert trust_watch.look(declared, master, ["h2"])["distrusted"] == {} and len(master.attested) == 1
    for _ in range(4):
        clock[0] += 60
        assert trust_watch.look(declared, master)["distrusted"] == {} and peers(declared) == ["h2", "h3"]
    clock[0] += 60
    found = trust_watch.look(declared, master)["distrusted"]["h2"]
    assert (found["kind"], found["state"]) == ("expired", "stale") and peers(declared) == ["h3"]
    master.results["m2"] = GOOD
    assert trust_watch.look(declared, master)["distrusted"] == {}


def test_a_host_that_answers_in_time_is_not_cut(declared: FleetDeclaration, master: Master, clock: list[float]) -> None:
    master.results["m2"] = STALE
    trust_watch.look(declared, master)
    clock[0] += 299
    master.after = {"m2": GOOD}
    found = trust_watch.look(declared, master)
    assert found["distrusted"] == {} == found["asked_again"] and master.told == []


def test_a_master_that_was_away_cuts_nobody_for_that(
    declared: FleetDeclaration, master: Master, clock: list[float]
) -> None:
    master.results["m2"] = STALE
    trust_watch.look(declared, master)
    clock[0] += 7200  # the master was down
    master.results = dict.fromkeys(MINIONS, STALE)
    found = trust_watch.look(declared, master)
    assert found["distrusted"] == {} and set(found["asked_again"]) == {"h1", "h2", "h3"}
    assert peers(declared) == ["h2", "h3"]
    clock[0] += 30
    found = trust_watch.look(declared, master)
    assert set(found["distrusted"]) == {"h2"}, "it had been silent before, and is still"
    assert set(found["asked_again"]) == {"h1", "h3"} and peers(declared) == ["h3"]
    clock[0] += trust.GRACE
    assert set(trust_watch.look(declared, master)["distrusted"]) == {"h1", "h2", "h3"}


@pytest.mark.parametrize("pause", [trust.GRACE + 60, 24 * 3600.0])
def test_rare_looks_do_not_keep_a_silent_hosts_links(
    declared: FleetDeclaration, master: Master, clock: list[float], pause: float
) -> None:
    """The master checks trust more rarely than a silent host's time limit: the host loses its links all the same."""
    master.results["m2"] = STALE
    for _ in range(2):
        assert trust_watch.look(declared, master)["distrusted"] == {}
        clock[0] += pause
    assert set(trust_watch.look(declared, master)["distrusted"]) == {"h2"} and peers(declared) == ["h3"]


def test_a_clock_that_is_set_back_prolongs_no_trust(
    declared: FleetDeclaration, master: Master, clock: list[float]
) -> None:
    master.results["m2"] = STALE
    trust_watch.look(declared, master)
    clock[0] -= 7200
    for _ in range(3):
        trust_watch.look(declared, master)
        clock[0] += trust.GRACE / 2
    assert set(trust_watch.look(declared, master)["distrusted"]) == {"h2"}


def test_a_change_within_a_tick_of_the_clock_is_seen(
    declared: FleetDeclaration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A declaration is replaced within one tick of the file system's clock; the change is noticed."""
    hosts = FLEET["hosts"]
    write(tmp_path, {**FLEET, "hosts": {**hosts, "h3": {**hosts["h3"], "attestation": {"verifier": "self"}}}})
    later, exact, ticks = declared._compile(), in_force.stamp, [0]

    def coarse(path: Path | str) -> in_force.Stamp:
        found = exact(path)
        if found is None:
            return None
        times = [max(tick for tick in ticks if tick <= one) for one in (found[0], found[-1])]
        return times[0], 4096 if Path(path).is_dir() else found[1], found[2], times[1]

    def sleep(seconds: float) -> None:
        # A file gets the time of the kernel's last tick, which is behind the exact clock.
        time.sleep(0.02)
        ticks.append(time.clock_gettime_ns(CLOCK_REALTIME_COARSE))
        monkeypatch.setattr(in_force, "SETTLED", 0)

    monkeypatch.setattr(in_force, "stamp", coarse)
    monkeypatch.setattr(in_force, "SETTLED", time.time_ns() * 2)
    monkeypatch.setattr(in_force, "time", SimpleNamespace(time=time.time, time_ns=time.time_ns, sleep=sleep))
    assert list(trust_watch.judged(declared).hosts.values()) == ["h1", "h2", "h3"]
    declared.store.commit(*later)
    assert list(trust_watch.judged(declared).hosts.values()) == ["h1", "h2"]


def test_results_that_cannot_be_read_change_nothing(declared: FleetDeclaration, master: Master) -> None:
    master.results["m2"] = FAILED
    trust_watch.look(declared, master)
    master.results["m2"], master.error = GOOD, NetspaceError("the master's cache can't be reached")
    with pytest.raises(NetspaceError, match="cache"):
        trust_watch.look(declared, master)
    assert peers(declared) == ["h3"]


def test_a_forged_event_has_the_masters_own_results_read(declared: FleetDeclaration, master: Master) -> None:
    trust_watch.look(declared, master)
    for name in ("h3", "m2", "stranger", "*", "", "../h1"):
        trust_watch.look(declared, master, [name])
    assert peers(declared) == ["h2", "h3"] and master.told == [] and master.asked == []
    assert all(len(looked) == 1 for looked in master.looked[1:]) and len(master.looked) == 3


def test_requests_that_wait_for_each_other_are_one_look(declared: FleetDeclaration, master: Master) -> None:
    master.results["m2"] = FAILED
    begun, go = threading.Event(), threading.Event()
    states = master.states

    def slow(minions: Collection[str]) -> Mapping[str, HostTrust]:
        begun.set()
        assert go.wait(60)
        return states(minions)

    master.states = slow  # type: ignore[method-assign]
    threads = [threading.Thread(target=trust_watch.look, args=(declared, master, ["h2"])) for _ in range(12)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    waiting = time.monotonic()
    while time.monotonic() - waiting < 0.5:
        time.sleep(0.05)  # the others ask meanwhile
    go.set()
    for thread in threads:
        thread.join(60)
    assert len(master.looked) <= 3 and len(master.asked) == 2 and peers(declared) == ["h3"]


def test_a_minion_that_is_away_is_named_and_told_again(declared: FleetDeclaration, master: Master) -> None:
    master.results["m2"] = FAILED
    master.answers = {"h1": None, "m2": ["link web@h1.db: remove: the broker is away"]}
    found = trust_watch.look(declared, master, ["h2"])
    assert found["waiting"] == {"h1": "it did not answer", "m2": master.answers["m2"][0]}
    assert trust_watch.look(declared, master, ["h2"])["waiting"].keys() == {"h1", "m2"} and len(master.asked) == 2
    master.answers = {"m2": NetspaceError("no")}
    assert trust_watch.look(declared, master)["waiting"] == {"m2": "no"}
    master.answers = {}
    assert trust_watch.look(declared, master)["waiting"] == {}
    assert trust_watch.look(declared, master)["waiting"] == {} and len(master.asked) == 5


def test_a_host_is_told_at_once_though_a_peer_is_silent(declared: FleetDeclaration, master: Master) -> None:
    """Minions are told of a cut without waiting for the answer of a silent peer."""
    master.results["m2"] = FAILED
    master.answers = {"h1": None}
    trust_watch.look(declared, master, ["h2"])
    assert master.rounds == [2] and [minions for minions, _, _ in master.asked] == [{"h1"}, {"m2"}], "peers first"


def test_what_a_lying_peer_answers_is_escaped(declared: FleetDeclaration, master: Master) -> None:
    master.results["m2"] = FAILED
    master.answers = {"h1": ["\x1b[2J\u202eall is well\n"], "m2": NetspaceError("\x1b]0;" + "x" * 5000)}
    waiting = trust_watch.look(declared, master)["waiting"]
    assert "".join(waiting.values()).isprintable() and len(waiting["m2"]) == trust.MAX_REASON


def test_a_change_while_a_minion_was_told_is_told_again() -> None:
    book = trust.to_wait(Book(), {"h1": ["h2"]})
    told = book.waiting
    later = trust.to_wait(book, {"h1": ["h2"], "h3": ["h2"]})
    assert trust.confirmed(later, told).waiting == {"h1": {"h2": 2}, "h3": {"h2": 2}}
    assert trust.confirmed(later, later.waiting).waiting == {}


def test_many_changes_are_few_messages() -> None:
    waiting = {f"m{number}": {f"h{number}": 1, f"h{number + 1}": 1} for number in range(50)}
    groups = trust_watch._groups({f"m{number}": f"h{number}" for number in range(25)}, waiting)
    assert list(groups.items()) == [(((), False), list(waiting)[25:]), (((), True), list(waiting)[:25])]


def test_a_damaged_book_grants_nothing_and_is_made_again(declared: FleetDeclaration, master: Master) -> None:
    master.results["m2"] = FAILED
    trust_watch.look(declared, master)
    declared.trust.path.write_text("{")
    with pytest.raises(StateError, match=r"trust.json: .*netspace_trust.look makes it again"):
        declared.answer("h1")
    with pytest.raises(StateError):
        trust_watch.look(declared, master, ["h1"])
    assert list(trust_watch.look(declared, master)["distrusted"]) == ["h2"] and peers(declared) == ["h3"]


def test_a_damaged_book_restores_no_expired_host(declared: FleetDeclaration, master: Master) -> None:
    master.results["m2"] = STALE
    declared.trust.path.write_text("{")
    found = trust_watch.look(declared, master)
    assert (found["distrusted"]["h2"]["kind"], found["asked_again"], master.attested) == ("expired", {}, [{"m2"}])
    assert peers(declared) == ["h3"]
    declared.trust.path.write_text("{")
    master.after = {"m2": GOOD}
    assert trust_watch.look(declared, master)["distrusted"] == {} and peers(declared) == ["h2", "h3"]


@pytest.mark.parametrize("broken", ["{", {**FLEET, "links": [{"from": "web", "to": "dbb"}]}])
def test_a_broken_declaration_hinders_no_cut(
    declared: FleetDeclaration, master: Master, tmp_path: Path, broken: Any
) -> None:
    write(tmp_path, broken)
    assert declared.apply() is not None
    master.results["m2"] = FAILED
    trust_watch.look(declared, master)
    assert peers(declared) == ["h3"]
    # A host that leaves meanwhile changes nothing of that.
    leaving.leave(declared, ["h3"], None)
    assert peers(declared) == []
    master.results["m2"] = GOOD
    trust_watch.look(declared, master)
    assert peers(declared) == ["h2"]


def test_a_host_that_is_judged_no_longer_is_not_distrusted(
    declared: FleetDeclaration, master: Master, tmp_path: Path
) -> None:
    master.results["m2"] = FAILED
    trust_watch.look(declared, master)
    write(
        tmp_path,
        {**FLEET, "hosts": {**FLEET["hosts"], "h2": {**FLEET["hosts"]["h2"], "attestation": {"verifier": "self"}}}},
    )
    assert declared.apply() is None
    assert peers(declared) == ["h2", "h3"]
    assert trust_watch.look(declared, master)["distrusted"] == {} and "m2" not in declared.trust.read().hosts


def test_a_host_whose_minion_is_another_is_judged_anew(
    declared: FleetDeclaration, master: Master, tmp_path: Path
) -> None:
    master.results["m2"] = FAILED
    trust_watch.look(declared, master)
    host = FLEET["hosts"]["h2"]
    write(tmp_path, {**FLEET, "hosts": {"h1": FLEET["hosts"]["h1"], "h3": FLEET["hosts"]["h3"], "h9": host},
                     "environments": {**FLEET["environments"], "db": {"on": "h9", **IMAGE}}})  # fmt: skip
    facts = declared.register.read("m2")
    assert facts is not None
    fields = {field: getattr(facts, field) for field in facts.__struct_fields__}
    declared.register.write(type(facts)(**{**fields, "trust_domain": "h9.netspace.internal"}))
    assert declared.apply() is None and peers(declared) == ["h3"], "its new name hides nothing"


@settings(max_examples=60, deadline=None)
@given(fleets(), st.data())
def test_a_cut_leaves_what_other_hosts_have(data: dict[str, Any], draws: st.DataObject) -> None:
    data["defaults"] = {"attestation": JUDGED}
    compiled = compiler.fleet({"fleet.yaml": data}, published(data["hosts"]), {}, {})
    lost = draws.draw(st.sets(st.sampled_from(sorted(data["hosts"]))))
    distrusted = {host: Distrust("judged", "failed", "", "", 0.0) for host in lost}
    without: Mapping[str, Any] = {minion: one["netspace"] for minion, one in compiled.slices.items()}
    for host in lost:
        without = leaving.without(without, host)
    for host, whole in compiled.slices.items():
        served = trust.served(whole, host, distrusted, {})["netspace"]
        expected = dict(without[host])
        if host in lost:  # it keeps its name and its key, so that it can be restored
            expected["broker"] = {**whole["netspace"]["broker"], **expected["broker"]}
            for key in ("listen", "hosts"):
                expected["broker"].pop(key, None)
        assert served == expected
        assert trust.served(whole, host, {}, {})["netspace"] == whole["netspace"]


def test_what_was_given_and_what_is_planned_is_cut(declared: FleetDeclaration, master: Master, tmp_path: Path) -> None:
    """Links to a distrusted host leave the pillar that minions get now, and that of a declaration that waits."""
    write(tmp_path, {**FLEET, "apply": "planned"})
    assert declared.answer("h1").pillar is not None and declared.given.active()
    _, candidate = declared.candidate()
    assert candidate is not None
    master.results["m2"] = FAILED
    assert list(trust_watch.look(declared, master)["distrusted"]) == ["h2"]
    assert peers(declared) == ["h3"] and peers(declared, "m2") == []
    planned = declared.planned_pillar(candidate.generation, "h1")
    assert list(planned) == ["netspace"] and list(planned["netspace"]["broker"]["hosts"]) == ["h3"]
    leaving.leave(declared, ["h3"], None)
    assert peers(declared) == []
    master.results["m2"] = GOOD
    assert trust_watch.look(declared, master)["distrusted"] == {} and peers(declared) == ["h2"]


@pytest.mark.parametrize("linked", [True, False])
def test_distrust_outlasts_a_slice_that_goes_first(linked: bool) -> None:
    """A distrusted host that has left stays distrusted as long as a peer has a link with it."""
    book = Book(hosts={"m2": Distrust("judged", "failed", "", "its boot log differs", 1.0)})
    after = trust.decide(book, [], {}, 2.0, whole=True, asked=True, linked=["m2"] if linked else [])
    assert ("m2" in after.hosts) is linked


# -- links that demand a level of the sender's host --------------------------------------------
ATTESTED = {**FLEET, "links": [{"from": "web", "to": "db", "attested": "L3"}, {"from": "web", "to": "log"}]}


def levelled(level: int, until: float = 5000.0, state: str = "trusted") -> HostTrust:
    return HostTrust(state, "", "why", level, until)


def told(declared: FleetDeclaration, minion: str) -> Any:
    section = (declared.answer(minion).pillar or {})["netspace"]
    return section["attestation"].get("appraised")


def test_receivers_host_is_told_the_level_of_the_senders(tmp_path: Path, master: Master) -> None:
    declared = made(tmp_path, ATTESTED)
    assert told(declared, "m2") is None, "nobody has looked yet"
    master.results["h1"] = levelled(3)
    trust_watch.look(declared, master)
    assert told(declared, "m2") == {"h1": {"level": "L3", "until": 5000.0}}
    assert [told(declared, minion) for minion in ("h1", "h3")] == [None, None], "they need no level of another host"
    assert [link.get("attested") for link in (declared.answer("m2").pillar or {})["netspace"]["links"]] == ["L3"]
    assert master.asked == [({"m2"}, ["h1"], False)], "the receiver alone"
    # The result is renewed: there is nothing to do, and the next pillar has the new end.
    master.results["h1"] = levelled(3, 9000.0)
    trust_watch.look(declared, master)
    assert told(declared, "m2") == {"h1": {"level": "L3", "until": 9000.0}} and len(master.asked) == 1
    # A lower level, by which the host is still trusted: the receiver revises its link.
    master.results["h1"] = levelled(2, 9000.0)
    found = trust_watch.look(declared, master, ["h1"])
    assert found["distrusted"] == {} and told(declared, "m2")["h1"]["level"] == "L2"
    assert master.asked[1:] == [({"m2"}, ["h1"], False)]
    master.results["h1"] = levelled(4, 9000.0)
    trust_watch.look(declared, master, ["h1"])
    assert told(declared, "m2")["h1"]["level"] == "L4" and len(master.asked) == 3


def test_receiver_that_is_away_is_told_the_level_again(tmp_path: Path, master: Master) -> None:
    declared = made(tmp_path, ATTESTED)
    master.results["h1"], master.answers["m2"] = levelled(3), None
    assert set(trust_watch.look(declared, master)["waiting"]) == {"m2"}
    master.answers["m2"] = []
    assert trust_watch.look(declared, master)["waiting"] == {} and len(master.asked) == 2


def test_level_of_a_silent_host_ends_with_its_distrust(tmp_path: Path, master: Master, clock: list[float]) -> None:
    declared = made(tmp_path, {**ATTESTED, "defaults": {"attestation": JUDGED, "on_expiry": "report"}})
    master.results["h1"] = levelled(3, clock[0] + 10)
    trust_watch.look(declared, master)
    master.results["h1"] = levelled(0, clock[0] + 10, "stale")
    until = told(declared, "m2")["h1"]["until"]
    trust_watch.look(declared, master)
    assert told(declared, "m2") == {"h1": {"level": "L3", "until": until}}, "the receiver sees that it has expired"
    clock[0] += trust.GRACE + 1
    trust_watch.look(declared, master)
    trust_watch.look(declared, master)
    assert told(declared, "m2") == {"h1": {"level": "L0", "until": 0.0}}
    assert "web@h1.db" in [trust.named(link) for link in (declared.answer("m2").pillar or {})["netspace"]["links"]]


def test_level_of_a_refused_host_is_told_where_its_links_stay(tmp_path: Path, master: Master) -> None:
    declared = made(tmp_path, {**ATTESTED, "defaults": {"attestation": JUDGED, "on_distrust": "report"}})
    master.results["h1"] = levelled(3)
    trust_watch.look(declared, master)
    master.results["h1"] = levelled(0, 0.0, "failed")
    trust_watch.look(declared, master)
    assert told(declared, "m2") == {"h1": {"level": "L0", "until": 0.0}}


def test_attested_link_from_a_host_that_nobody_judges_is_refused(tmp_path: Path) -> None:
    hosts = {**FLEET["hosts"], "h1": {"address": "198.51.100.1", "attestation": {"verifier": "self"}}}
    declared = made(tmp_path, FLEET)
    write(tmp_path, {**ATTESTED, "hosts": hosts})
    alarm = declared.apply()
    assert alarm is not None and "links:0:attested" in str(alarm) and "doesn't judge h1" in str(alarm), alarm


def test_book_of_an_earlier_version_has_no_levels(tmp_path: Path, master: Master) -> None:
    declared = made(tmp_path, ATTESTED)
    master.results["h1"] = levelled(3)
    trust_watch.look(declared, master)
    raw = msgspec.json.decode(declared.trust.path.read_bytes())
    assert raw.pop("levels") == {"h1": {"level": 3, "until": 5000.0}}
    declared.trust.path.write_bytes(msgspec.json.encode(raw))
    assert told(declared, "m2") is None
    trust_watch.look(declared, master)
    assert told(declared, "m2") == {"h1": {"level": "L3", "until": 5000.0}}


def test_the_beacon_has_all_that_a_revision_loads() -> None:
    """The beacon imports each module that a revision needs, so that no job of a revision has to import it."""
    names = "{one for one in sys.modules if one.startswith('netspace.')}"
    script = (
        "import json, runpy, sys; "
        "beacon = runpy.run_path('_beacons/netspace_trust.py'); "
        f"before = {names}; assert beacon['beacon']([]) == [] and beacon['validate']([{{'interval': 60}}])[0]; "
        f"loaded = {names}; import _modules.netspace_trust, _modules.netspace_link; "
        f"print(json.dumps([len(before), len(loaded), sorted({names} - loaded)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=checkout.ROOT,
        env={**os.environ, "PYTHONPATH": "_utils:."},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    before, loaded, missing = json.loads(done.stdout)
    assert before < 5 and loaded > 50 and missing == [], missing
