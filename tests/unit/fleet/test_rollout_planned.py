"""Rollouts of kept plans over a simulated bus, with the real compiler, store and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fleet.fleets import published, written
from support.fleet.minions import Minions

from netspace.errors import NetspaceError
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.planning import planner
from netspace.fleet.policy import Pace, Policy
from netspace.fleet.rollout import control, planned
from netspace.fleet.rollout.journal import Journal
from netspace.fleet.rollout.machine import Edges

IMAGE, NEWER = {"image": "tar:/srv/shop.tar"}, {"image": "tar:/srv/newer.tar"}
FLEET: dict[str, Any] = {
    "apply": "planned",
    "hosts": {host: {"address": f"198.51.100.{host[1]}"} for host in ("h1", "h2", "h3")},
    "environments": {"web": {"on": "h1", **IMAGE}, "db": {"on": "h2", **IMAGE}, "log": {"on": "h3", **IMAGE}},
    "links": [{"from": "web", "to": "db"}],
    "defaults": {"attestation": {"verifier": "master", "verifier_keys": ["A" * 43]}},
}
POLICY = Policy(settle=0.0, deadline=0.0)


class Master:
    def __init__(self, folder: Path) -> None:
        self.folder, self.attested, self.timeout = folder, list[str](), 5.0
        self.write()
        for facts in published(FLEET["hosts"]).values():
            self.declaration.register.write(facts)
        self.minions = Minions(self.declaration)
        assert self.rollout(max_fail=3, step=3)["hosts"] == {"good": 3}

    def write(self, **changes: dict[str, Any]) -> None:
        """Save the fleet's file, with other keys of environments."""
        environments = {name: {**body, **changes.get(name, {})} for name, body in FLEET["environments"].items()}
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump({**FLEET, "environments": environments}))

    @property
    def declaration(self) -> FleetDeclaration:
        return written(self.folder)

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "rollout")

    def edges(self, plan: str, pace: Pace) -> Edges:
        hosts = planned.RolledOut(self.declaration, plan, self.minions, self.attested.extend, pace, self.timeout)
        return Edges(hosts, wait=lambda seconds: None)

    def plan(self) -> str:
        return planner.make(self.declaration, (), self.minions, 5).id

    def rollout(self, **policy: Any) -> dict[str, Any]:
        self.minions.asked.clear()
        changes = planned.changes(self.declaration, self.plan())
        return control.start(self.journal, changes, Policy(**{"settle": 0.0, "deadline": 0.0, **policy}), self.edges)

    def asked(self, function: str) -> list[str]:
        return [minion for name, minion in self.minions.asked if name == f"netspace_fleet.{function}"]

    def image(self, minion: str, name: str) -> str:
        """Check that a minion runs the image that its pillar has; return the image."""
        pillar = self.declaration.answer(minion).pillar
        assert pillar is not None and pillar["netspace"]["environments"] == self.minions.has[minion]
        return str(self.minions.has[minion][name]["image"])


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


def test_receivers_of_new_links_apply_first(tmp_path: Path) -> None:
    master = Master(tmp_path)
    changed = {**FLEET, "links": [{"from": "web", "to": "log"}, {"from": "log", "to": "db"}]}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(changed))
    for name in ("h1", "h2", "h3"):  # the simulated minions plan by environments alone
        master.minions.has[name] = {}
    assert master.rollout(max_fail=3, step=3)["state"] == "done"
    assert master.asked("apply") == ["h2", "h3", "h1"]


def test_all_hosts_prepare_before_the_first_applies(master: Master) -> None:
    master.write(web=NEWER, db=NEWER)
    assert master.rollout()["hosts"] == {"good": 2}
    order = [name.removeprefix("netspace_fleet.") for name, _ in master.minions.asked if name != "netspace_fleet.plan"]
    assert order == ["prepare", "prepare", "apply", "ailing", "apply", "ailing"]
    assert master.attested[-2:] == ["h2", "h1"] and master.image("h2", "db") == NEWER["image"]


def test_a_failed_canary_gets_its_image_back(master: Master) -> None:
    master.write(web=NEWER, db=NEWER)
    master.minions.ailing["h1"] = ["web: running, unhealthy"]
    found = master.rollout(canary=("h1",))
    assert found["state"] == "stopped" and found["why"] == "the canary h1 failed: web: running, unhealthy"
    assert found["hosts"] == {"waiting": 1, "taken back, and bad": 1}, "its sickness stays in this simulation"
    assert master.image("h1", "web") == IMAGE["image"] and master.image("h2", "db") == IMAGE["image"]
    assert master.asked("apply") == ["h1", "h1"], "h2 was never asked"


def test_a_host_that_is_not_ready_is_left_out(master: Master) -> None:
    master.write(web=NEWER, db=NEWER, log=NEWER)
    master.minions.unready["h2"] = ["db: image tar:/srv/newer.tar: no such file"]
    found = master.rollout(canary=("h1",))
    assert found["failed"] == {"h2": "refused: db: image tar:/srv/newer.tar: no such file"}
    assert found["hosts"] == {"refused": 1, "good": 2} and not control.good(found)
    assert master.image("h2", "db") == IMAGE["image"]


@pytest.mark.parametrize("function", ["prepare", "apply", "ailing"])
def test_a_master_that_is_down_fails_nobody(master: Master, function: str) -> None:
    master.write(web=NEWER, db=NEWER)

    each = master.minions.each

    def asked(name: str, calls: Any, timeout: float, heard: Any) -> None:
        if name == f"netspace_fleet.{function}":
            raise NetspaceError("h1: can't be asked: the master is down")
        each(name, calls, timeout, heard)

    master.minions.each = asked  # type: ignore[method-assign, assignment]
    with pytest.raises(NetspaceError, match="the master is down"):
        master.rollout()
    assert "failed" not in control.status(master.journal)
    master.minions.each = each  # type: ignore[method-assign]
    assert control.resume(master.journal, master.edges)["hosts"] == {"good": 2}


def test_what_cannot_be_taken_back_is_not_rolled_out(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({**FLEET, "apply": "at-once"}))
    declaration = written(tmp_path)
    plan = planner.make(declaration, (), Minions(declaration), 5).id
    with pytest.raises(NetspaceError, match="without `apply: planned`"):
        planned.changes(declaration, plan)
    with pytest.raises(NetspaceError, match="no such plan"):
        planned.changes(declaration, f"p{'0' * 15}")


def test_many_plans_meanwhile_leave_that_of_a_rollout(master: Master) -> None:
    master.write(web=NEWER)
    plan = master.plan()
    hosts = master.edges(plan, Pace(step=1, max_fail=1, settle=0.0, gate=())).hosts
    for number in range(20):
        master.write(web=NEWER, log={"image": f"tar:/srv/{number}.tar"})
        master.plan()
        assert hosts.healthy(["h1"])["h1"].ok
    assert hosts.apply(["h1"])["h1"].ok and master.image("h1", "web") == NEWER["image"]


def test_hosts_that_lose_their_slice_need_no_preparation(master: Master) -> None:
    less = {**FLEET, "hosts": {host: FLEET["hosts"][host] for host in ("h1", "h2")}}
    less["environments"] = {name: FLEET["environments"][name] for name in ("web", "db")}
    (master.folder / "fleet.yaml").write_text(yaml.safe_dump(less))
    found = master.rollout(canary=0)
    assert found["hosts"] == {"good": 1} and master.asked("prepare") == []
    assert master.declaration.answer("h3").pillar is None


def test_a_lost_question_about_health_is_asked_again(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's health is asked for again after a lost answer, and the host doesn't fail.

    A master that is restarted loses the answers for which it waits.
    """
    each, waited, lost = master.minions.each, dict[str, float](), iter((True,))

    def asked(name: str, calls: Any, timeout: float, heard: Any) -> None:
        waited[name.partition(".")[2]] = timeout
        if name == "netspace_fleet.ailing" and next(lost, False):
            for minions, _ in calls:
                for minion in minions:
                    heard(minion, NetspaceError(f"did not answer within {timeout} s"))
            return
        each(name, calls, timeout, heard)

    monkeypatch.setattr(master.minions, "each", asked)
    master.write(web=NEWER)
    master.timeout = 900.0
    assert master.rollout(deadline=60.0)["hosts"] == {"good": 1}
    assert waited["apply"] == waited["prepare"] == 900 and waited["ailing"] == 20, "three looks until the deadline"
