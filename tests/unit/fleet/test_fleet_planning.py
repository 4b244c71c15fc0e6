"""Plans made and applied over a simulated bus, with the real compiler and store, and real plans of hosts."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleet.fleets import published, written
from support.fleet.minions import Minions

from netspace import files
from netspace.errors import NetspaceError
from netspace.fleet import hosts, join_hosts, leaving
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.given import NONE
from netspace.fleet.planning import planner, records
from netspace.fleet.planning.records import PlanRecord
from netspace.fleet.published import Register

IMAGE = {"image": "tar:/srv/shop.tar"}
NEWER = {"image": "tar:/srv/newer.tar"}
FLEET: dict[str, Any] = {
    "apply": "planned",
    "hosts": {"h1": {"address": "198.51.100.1"}, "h2": {"address": "198.51.100.2", "minion": "m2"}},
    "environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": "h2", **IMAGE}},
    "links": [{"from": "web", "to": "db"}],
}


class Fleet:
    """A declaration, and simulated minions."""

    def __init__(self, folder: Path, data: Mapping[str, Any] = FLEET) -> None:
        self.folder = folder
        self.data = copy.deepcopy(dict(data))
        self.write()
        for facts in published(("h1", "m2")).values():
            domain = facts.trust_domain.replace("m2", "h2")
            Register(folder / "kept/hosts").write(type(facts)(facts.minion, domain, facts.chain, facts.public_key))
        self.minions = Minions(self.declaration)

    @property
    def declaration(self) -> FleetDeclaration:
        """The declaration, as another process of the master would load it."""
        return written(self.folder)

    def write(self, **changes: Any) -> None:
        self.data.update(changes)
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump(self.data))

    def image(self, name: str, body: Mapping[str, Any]) -> None:
        self.data["environments"][name].update(body)
        self.write()

    def plan(self, *names: str) -> PlanRecord:
        return planner.make(self.declaration, names, self.minions, 5)

    def acting(self, name: str) -> planner.PlannedHosts:
        record = planner.plans_of(self.declaration).read(name)
        return planner.PlannedHosts(self.declaration, record, self.minions, 5)

    def apply(self, name: str, *names: str) -> dict[str, hosts.Outcome]:
        acting = self.acting(name)
        return dict(acting.apply(names or planner.plans_of(self.declaration).read(name).changing()))

    def applied(self) -> PlanRecord:
        """Plan and apply all; return the plan."""
        record = self.plan()
        assert all(one.ok for one in self.apply(record.id).values())
        return record

    def given(self, minion: str) -> Any:
        pillar = self.declaration.answer(minion).pillar
        return pillar and {name: one["image"] for name, one in pillar["netspace"]["environments"].items()}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def actions(record: PlanRecord) -> dict[str, list[str]]:
    return {host: [f"{step.action} {step.name}" for step in one.steps] for host, one in record.plans.items()}


def test_a_saved_file_gives_no_host_anything(fleet: Fleet) -> None:
    assert fleet.given("h1") is None and fleet.given("m2") is None
    fleet.applied()
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"} and fleet.given("m2") == {"db": "tar:/srv/shop.tar"}
    fleet.image("web", NEWER)
    assert fleet.declaration.apply() is None
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}
    fleet.plan()
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}
    (fleet.folder / "fleet.yaml").write_text("hosts: [")
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}
    with pytest.raises(NetspaceError, match="problems"):
        fleet.plan()


def test_a_renamed_environment_may_move_after_its_apply(fleet: Fleet) -> None:
    fleet.applied()
    for host in ("h1", "h2"):
        site = {"on": host, **IMAGE, "formerly": "web"}
        fleet.write(environments={"db": FLEET["environments"]["db"], "site": site}, links=[])
        fleet.applied()
    assert set(fleet.given("m2")) == {"db", "site"}


def test_a_fleet_in_force_is_planned_from_the_line_on(fleet: Fleet) -> None:
    fleet.write(apply="at-once")
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}
    fleet.image("web", NEWER)
    assert fleet.given("h1") == {"web": "tar:/srv/newer.tar"}
    fleet.data["environments"]["web"].update(IMAGE)
    fleet.write(apply="planned")
    assert fleet.given("h1") == {"web": "tar:/srv/newer.tar"}, "it holds back what came with it"
    fleet.applied()
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}


def test_a_fleet_leaves_the_mode_by_a_plan(fleet: Fleet) -> None:
    fleet.applied()
    fleet.data["environments"]["web"].update(NEWER)
    fleet.write(apply="at-once")
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}, "a lost line puts nothing in force"
    record = fleet.plan()
    fleet.apply(record.id)
    assert not fleet.declaration.given.active()
    assert fleet.given("h1") == {"web": "tar:/srv/newer.tar"}
    fleet.image("db", NEWER)
    assert fleet.given("m2") == {"db": "tar:/srv/newer.tar"}
    assert fleet.declaration.store.placed() == {"web": ("h1",), "db": ("h2",)}


def test_an_apply_does_what_was_planned_and_gives_it(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    record = fleet.plan()
    assert actions(record) == {"h1": ["restart web"], "h2": []} and record.changing() == ["h1"]
    fleet.image("db", NEWER)  # saved after the plan: no part of it
    assert fleet.apply(record.id, "h1", "h2") == {"h1": (True, ""), "h2": (True, "it has this slice already")}
    assert fleet.given("h1") == {"web": "tar:/srv/newer.tar"} and fleet.given("m2") == {"db": "tar:/srv/shop.tar"}
    assert fleet.minions.has["h1"]["web"]["image"] == "tar:/srv/newer.tar"
    assert ("saltutil.refresh_pillar", ["h1"]) in fleet.minions.told
    assert fleet.apply(record.id, "h1") == {"h1": (True, "it has this slice already")}


def test_a_host_that_changed_refuses_and_keeps_its_slice(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    fleet.image("db", NEWER)
    record = fleet.plan()
    del fleet.minions.has["m2"]["db"]
    found = fleet.apply(record.id)
    assert found["h1"].ok and found["h2"] == (False, "its plan is no longer the same")
    assert fleet.given("m2") == {"db": "tar:/srv/shop.tar"} and fleet.given("h1") == {"web": "tar:/srv/newer.tar"}
    again = fleet.plan()
    assert actions(again) == {"h1": [], "h2": ["create db"]} and again.id != record.id
    assert fleet.apply(again.id) == {"h2": (True, "")}


@pytest.mark.parametrize("mode", ["planned", "at-once"])
def test_a_host_that_fails_or_is_away_is_told_of(fleet: Fleet, mode: str) -> None:
    fleet.write(apply=mode)
    fleet.applied()
    fleet.image("web", NEWER)
    fleet.image("db", NEWER)
    fleet.minions.away = {"m2"}
    record = fleet.plan()
    assert set(record.silent) == {"h2"} and actions(record) == {"h1": ["restart web"]}
    fleet.minions.failing = {"h1"}
    found = fleet.apply(record.id, "h1", "h2", "h9")
    assert "restart environment web" in found["h1"].reason and "the disk is full" in found["h1"].reason
    assert "it has no plan: did not answer" in found["h2"].reason and "it has no plan; plan" in found["h9"].reason
    assert not any(one.ok for one in found.values())
    if mode == "planned":
        assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}


def test_without_the_mode_a_newer_file_is_refused(fleet: Fleet) -> None:
    fleet.write(apply="at-once")
    fleet.applied()
    fleet.image("web", NEWER)
    record = fleet.plan()
    fleet.image("web", {"image": "tar:/srv/other.tar"})
    assert fleet.apply(record.id) == {"h1": (False, "its plan is no longer the same")}
    assert fleet.acting(record.id).take_back(["h1"])["h1"].reason.startswith("without `apply: planned`")


def test_taken_back_hosts_have_what_they_had(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    fleet.image("db", NEWER)
    record = fleet.plan()
    fleet.minions.failing = {"m2"}
    found = fleet.apply(record.id)
    assert found["h1"].ok and not found["h2"].ok
    fleet.minions.failing = set()
    acting = fleet.acting(record.id)
    for _ in range(2):
        assert acting.take_back(["h1", "h2"]) == {"h1": (True, ""), "h2": (True, "")}
        assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"} and fleet.given("m2") == {"db": "tar:/srv/shop.tar"}
        assert {one["image"] for has in fleet.minions.has.values() for one in has.values()} == {"tar:/srv/shop.tar"}
    assert {host: one.ok for host, one in fleet.apply(record.id).items()} == {"h1": True, "h2": True}, "and once more"


def test_a_first_slice_can_not_be_taken_back_to_nothing(fleet: Fleet) -> None:
    record = fleet.applied()
    found = fleet.acting(record.id).take_back(["h1"])["h1"]
    assert not found.ok and "it had no slice before" in found.reason
    assert fleet.given("h1") is None


def test_an_older_plan_is_refused_after_a_newer_one(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    older = fleet.plan()
    fleet.image("web", {"image": "tar:/srv/other.tar"})
    fleet.applied()
    fleet.minions.asked.clear()
    assert fleet.apply(older.id) == {"h1": (False, "the host got another slice in the meantime; plan again")}
    ((taken, why),) = fleet.acting(older.id).take_back(["h1"]).values()
    assert not taken and "got another slice in the meantime, and keeps it" in why, "it has nothing of that plan"
    assert ("netspace_fleet.plan", "h1") not in fleet.minions.asked
    assert fleet.given("h1") == {"web": "tar:/srv/other.tar"}


def test_a_slice_that_another_gave_meanwhile_is_kept(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    older = fleet.plan()
    fleet.image("web", {"image": "tar:/srv/other.tar"})
    newer = fleet.plan()
    once = [newer.id]

    def meanwhile(function: str, minion: str) -> None:
        """Apply the newer plan while the minion applies the older plan."""
        if function == "netspace_fleet.apply" and once:
            name = once.pop()
            has = dict(fleet.minions.has["h1"])
            assert fleet.apply(name)["h1"].ok
            fleet.minions.has["h1"] = has

    fleet.minions.before = meanwhile
    (found,) = fleet.apply(older.id).values()
    assert not found.ok and "the host got another slice in the meantime" in found.reason
    assert fleet.given("h1") == {"web": "tar:/srv/other.tar"}


def test_a_plan_of_a_mode_that_has_ended_is_refused(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    record = fleet.plan()
    fleet.write(apply="at-once")
    fleet.applied()
    assert "plan again" in fleet.apply(record.id)["h1"].reason
    assert not fleet.acting(record.id).take_back(["h1"])["h1"].ok
    assert not list((fleet.folder / "kept/compiled").glob("given*")), "nothing is written for a mode that has ended"


def test_a_host_that_joined_waits_for_a_plan(fleet: Fleet) -> None:
    compiled, declared = hosts.compiled(fleet.declaration)
    assert not fleet.declaration.given.has("h1", compiled.slices["h1"])
    assert fleet.declaration.answer("h1").pillar is None  # the mode begins
    (told,) = join_hosts._waiting(fleet.declaration, compiled, declared, "h1")
    assert "waits for a plan" in told
    fleet.applied()
    assert join_hosts._waiting(fleet.declaration, compiled, declared, "h1") == []


def test_health_is_each_hosts_own(fleet: Fleet) -> None:
    record = fleet.applied()
    fleet.minions.ailing["m2"] = ["db: failed", "b", "c", "d"]
    assert fleet.acting(record.id).healthy(["h1", "h2", "h9"]) == {
        "h1": (True, ""), "h2": (False, "db: failed; b; c"), "h9": (False, "it isn't in the plan"),
    }  # fmt: skip


def test_a_host_that_is_declared_no_longer_loses_its_slice(fleet: Fleet) -> None:
    fleet.applied()
    fleet.write(
        hosts={"h1": FLEET["hosts"]["h1"]}, environments={"web": FLEET["environments"]["web"]}, links=[]
    )  # fmt: skip
    record = fleet.plan()
    assert actions(record)["h2"] == ["leave h2"]
    assert fleet.given("m2") is not None
    assert fleet.apply(record.id, "h2")["h2"].ok
    assert fleet.given("m2") is None and "m2" in fleet.minions.has
    assert actions(fleet.plan()).keys() == {"h1"}


def test_a_moved_environment_is_where_its_hosts_were_given_it(fleet: Fleet) -> None:
    fleet.write(environments={"web": {"on": "h1", **IMAGE}, "db": {"on": "h*", **IMAGE}}, links=[])
    fleet.applied()
    home = fleet.declaration.given.placed()["db"]
    other = ({"h1", "h2"} - set(home)).pop()
    fleet.write(environments={"web": {"on": "h1", **IMAGE}, "db": {"on": other, **IMAGE}})
    record = fleet.plan()
    assert record.moves and fleet.apply(record.id, other)[other].ok
    assert fleet.declaration.given.placed()["db"] == (other, *home), "the newest first"
    assert fleet.apply(record.id, *home)[home[0]].ok
    assert fleet.declaration.given.placed()["db"] == (other,)
    fleet.acting(record.id).take_back(["h1", "h2"])
    assert fleet.declaration.given.placed()["db"] == home
    fleet.write(environments={"web": {"on": "h1", **IMAGE}, "db": {"on": "h*", **IMAGE}})
    assert not fleet.plan().changing(), "it stays where it is"


def test_a_host_that_leaves_is_cut_out_at_once_and_of_all_plans(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    record = fleet.plan()
    fleet.apply(record.id)
    found = leaving.leave(fleet.declaration, ["h2"], None)
    assert found["h2"]["left"] and "error" not in found["h2"]
    pillar = fleet.declaration.answer("h1").pillar
    assert pillar is not None and "h2" not in str(pillar) and pillar["netspace"]["environments"]["web"] == NEWER
    assert not list((fleet.folder / "kept/compiled/candidates").iterdir())
    for outcome in (fleet.apply(record.id, "h1"), fleet.acting(record.id).take_back(["h1"])):
        assert not outcome["h1"].ok or "h2" not in str(fleet.declaration.answer("h1").pillar)
    one = fleet.declaration.given.read("h1")
    assert one is not None and b"h2" not in bytes(one.previous) + bytes(one.slice)


class Killed(BaseException):
    """Exception that stands for a kill of the master at this step."""


@given(st.integers(0, 40), st.sampled_from(("apply", "take_back")))
@settings(max_examples=25, deadline=None)
def test_killed_at_any_step_each_host_has_one_slice(
    tmp_path_factory: pytest.TempPathFactory, step: int, action: str
) -> None:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = Fleet(folder)
    fleet.applied()
    fleet.image("web", NEWER)
    fleet.image("db", NEWER)
    record = fleet.plan()
    if action == "take_back":
        fleet.apply(record.id)
    left = [step]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "_put", "remove"):
            patch.setattr(files, name, counted(getattr(files, name)))
        patch.setattr(fleet.minions, "each", counted(fleet.minions.each))
        patch.setattr(fleet.minions, "netspace_fleet_apply", counted(fleet.minions.netspace_fleet_apply))
        with contextlib.suppress(Killed):
            getattr(fleet.acting(record.id), action)(["h1", "h2"])
    for minion, name in (("h1", "web"), ("m2", "db")):
        assert fleet.given(minion) in ({name: "tar:/srv/shop.tar"}, {name: "tar:/srv/newer.tar"})
    wanted = "tar:/srv/newer.tar" if action == "apply" else "tar:/srv/shop.tar"
    assert all(one.ok for one in getattr(fleet.acting(record.id), action)(["h1", "h2"]).values()), "repeated, it ends"
    assert fleet.given("h1") == {"web": wanted} and fleet.given("m2") == {"db": wanted}
    assert {one["image"] for has in fleet.minions.has.values() for one in has.values()} == {wanted}
    shutil.rmtree(folder)


def test_a_damaged_slice_is_that_hosts_alone_and_replaced(fleet: Fleet) -> None:
    fleet.applied()
    (fleet.folder / "kept/compiled/given/h1.json").write_text("{")
    with pytest.raises(NetspaceError, match="plan and apply to this host again"):
        fleet.declaration.answer("h1")
    assert fleet.given("m2") == {"db": "tar:/srv/shop.tar"}
    record = fleet.plan()
    assert record.hosts["h1"].old == NONE and fleet.apply(record.id)["h1"].ok
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}


def test_a_changed_slice_is_damaged(fleet: Fleet) -> None:
    fleet.applied()
    path = fleet.folder / "kept/compiled/given/h1.json"
    path.write_text(path.read_text().replace("shop.tar", "evil.tar"))
    with pytest.raises(NetspaceError, match="was edited"):
        fleet.declaration.answer("h1")


def test_what_is_lost_gives_no_host_what_was_long_ago(fleet: Fleet) -> None:
    fleet.write(apply="at-once")
    assert fleet.given("h1") == {"web": "tar:/srv/shop.tar"}
    fleet.write(apply="planned")
    fleet.image("web", NEWER)
    fleet.applied()
    shutil.rmtree(fleet.folder / "kept/compiled/given")
    assert fleet.given("h1") is None and fleet.given("m2") is None
    fleet.applied()
    assert fleet.given("h1") == {"web": "tar:/srv/newer.tar"}


def test_old_plans_and_their_candidates_are_forgotten(fleet: Fleet) -> None:
    first = fleet.plan()
    for number in range(records.MAX_PLANS):
        fleet.image("web", {"image": f"tar:/srv/{number}.tar"})
        last = fleet.plan()
        if number == 3:
            kept = last
        if number > 3:
            planner.plans_of(fleet.declaration).read(kept.id)
    with pytest.raises(NetspaceError, match="there is no such plan"):
        planner.plans_of(fleet.declaration).read(first.id)
    compiled = fleet.folder / "kept/compiled"
    assert len(list((compiled / "plans").iterdir())) == records.MAX_PLANS
    assert len(list((compiled / "candidates").iterdir())) == records.MAX_PLANS
    assert fleet.apply(last.id)["h1"].ok


@pytest.mark.parametrize("name", ["", "..", "0" * 16, "../../etc/passwd", "p" + "0" * 16, 12, None, "p" + "A" * 15])
def test_what_is_no_id_names_no_file(fleet: Fleet, name: Any) -> None:
    with pytest.raises(NetspaceError, match="is not the id of a plan"):
        planner.plans_of(fleet.declaration).read(name)


def test_drift_compares_with_what_was_given(fleet: Fleet) -> None:
    fleet.applied()
    fleet.image("web", NEWER)
    found = planner.drift(fleet.declaration, (), fleet.minions, 5)
    assert not found.changing() and found.id == planner.drift(fleet.declaration, (), fleet.minions, 5).id
    fleet.minions.has["m2"] = {}
    found = planner.drift(fleet.declaration, (), fleet.minions, 5)
    assert actions(found) == {"h1": [], "h2": ["create db"]}
    assert actions(planner.drift(fleet.declaration, ("h1",), fleet.minions, 5)) == {"h1": []}
    with pytest.raises(NetspaceError, match="h9: not a host or minion of the fleet"):
        planner.drift(fleet.declaration, ("h9",), fleet.minions, 5)


def test_a_plan_of_one_host_asks_only_it(fleet: Fleet) -> None:
    assert actions(fleet.plan("m2")) == {"h2": ["create db"]}
    assert fleet.minions.asked == [("netspace_fleet.plan", "m2")]
    with pytest.raises(NetspaceError, match="h9: not a host of the fleet"):
        fleet.plan("h9")
