"""Control of rollouts by an operator: one rollout at a time, and each command works at any moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from support.fleet.simulated import Killed, Killer, Simulated
from support.waiting import until

from netspace.errors import NetspaceError
from netspace.fleet.policy import Pace, Policy
from netspace.fleet.rollout import control
from netspace.fleet.rollout.control import Changes
from netspace.fleet.rollout.journal import Busy, Journal
from netspace.fleet.rollout.machine import Edges, Event

POLICY = Policy(canary=1, step=1, settle=0.0, deadline=0.0)
TWO = Changes("9f", ("h1", "h2"), {}, {"h1": {"links": []}, "h2": {"links": []}})


class Master:
    """A master with a simulated fleet; each run of the runner is a new process."""

    def __init__(self, folder: Path, fails: dict[str, frozenset[str]] | None = None, kill: int = -1) -> None:
        self.folder = folder
        self.hosts = Simulated(fails or {}, 1, Killer({kill}))
        self.told: list[Event] = []
        self.paces: list[tuple[str, Pace]] = []
        self.gate: threading.Event | None = None

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "rollout")

    def edges(self, plan: str, pace: Pace) -> Edges:
        self.paces.append((plan, pace))
        return Edges(self.hosts, self.tell, lambda seconds: None)

    def tell(self, event: Event) -> None:
        self.told.append(event)
        if self.gate is not None and event == Event("h1", "applied"):
            assert self.gate.wait(300)


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path)


def killed(tmp_path: Path) -> Master:
    """Return a master that was killed while h1 applied."""
    made = Master(tmp_path, kill=2)
    with pytest.raises(Killed):
        control.start(made.journal, TWO, POLICY, made.edges)
    return made


def test_a_rollout_ends_with_all_hosts_good(master: Master) -> None:
    found = control.start(master.journal, TWO, POLICY, master.edges)
    assert found == {"plan": "9f", "state": "done", "hosts": {"good": 2}, "max_fail": 1} and control.good(found)
    assert control.status(master.journal) == found
    assert master.paces == [("9f", Pace(step=1, max_fail=1, settle=0.0, gate=("health", "trust")))]
    assert control.start(master.journal, TWO._replace(hosts=()), POLICY, master.edges)["state"] == "done"


def test_a_failed_canary_is_told_with_its_reason(tmp_path: Path) -> None:
    master = Master(tmp_path, {"h1": frozenset({"healthy"})})
    found = control.start(master.journal, TWO, POLICY, master.edges)
    assert found["state"] == "stopped" and found["hosts"] == {"waiting": 1, "taken back": 1}
    assert found["why"] == "the canary h1 failed: healthy failed" and not control.good(found)
    assert found["failed"] == {"h1": "taken back: healthy failed"} and "bad" not in found


def test_a_killed_rollout_is_shown_and_resumed(tmp_path: Path) -> None:
    master = killed(tmp_path)
    found = control.status(master.journal)
    assert found["state"] == "interrupted" and found["bad"] == ["h1"] and "resume" in found["remedy"]
    with pytest.raises(NetspaceError, match=r"9f isn't finished .interrupted.; resume or stop it"):
        control.start(master.journal, TWO, POLICY, master.edges)
    assert control.resume(master.journal, master.edges)["hosts"] == {"good": 2}
    assert master.hosts.applied == ["h1", "h1", "h2"], "only the host that was under way is asked again"
    with pytest.raises(NetspaceError, match="no rollout is under way"):
        control.resume(master.journal, master.edges)


def test_a_plan_is_not_applied_beside_a_rollout(master: Master, tmp_path: Path) -> None:
    """While a rollout runs or waits to be resumed, no other plan is applied, so that its limit of bad hosts holds."""
    with control.alone(master.journal), pytest.raises(Busy):
        control.start(master.journal, TWO, POLICY, master.edges)
    assert master.hosts.applied == [] and control.status(master.journal) == {}
    left = killed(tmp_path)
    with pytest.raises(NetspaceError, match="9f isn't finished"), control.alone(left.journal):
        pytest.fail("it has the right")
    control.resume(left.journal, left.edges)
    with control.alone(left.journal):
        assert control.status(left.journal)["state"] == "done"


def test_a_killed_rollout_is_stopped_by_taking_back(tmp_path: Path) -> None:
    master = killed(tmp_path)
    found = control.stop(master.journal, master.edges)
    assert (found["state"], found["why"]) == ("stopped", "the operator stopped it")
    assert found["hosts"] == {"waiting": 1, "taken back": 1} and master.hosts.returned == {"h1"}


def test_a_killed_rollout_can_be_paused_and_resumed(tmp_path: Path) -> None:
    master = killed(tmp_path)
    assert control.pause(master.journal)["state"] == "paused" and master.journal.asked() is None
    assert control.pause(master.journal)["state"] == "paused"
    assert control.resume(master.journal, master.edges)["state"] == "done"


def test_a_rollout_under_way_is_paused_resumed_and_stopped(master: Master) -> None:
    master.gate = threading.Event()
    run = threading.Thread(target=lambda: control.start(master.journal, TWO, POLICY, master.edges))
    run.start()
    try:
        until(lambda: Event("h1", "applied") in master.told)
        assert control.status(master.journal)["state"] == "running"
        for refused in (control.resume, lambda *given: control.start(given[0], TWO, POLICY, given[1])):
            with pytest.raises(Busy):
                refused(master.journal, master.edges)
        assert control.pause(master.journal, patience=0.0)["asked"] == "pause"
    finally:
        master.gate.set()
        run.join(300)
    found = control.status(master.journal)
    assert (found["state"], found["hosts"]) == ("paused", {"waiting": 1, "good": 1})
    found = control.stop(master.journal, master.edges, take_back=True)
    assert (found["state"], found["hosts"]) == ("stopped", {"waiting": 1, "taken back": 1})
    with pytest.raises(NetspaceError, match="no rollout is under way"):
        control.stop(master.journal, master.edges)
    with pytest.raises(NetspaceError, match="no rollout is under way"):
        control.pause(master.journal)
    assert master.journal.asked() is None


def test_a_stop_that_was_not_seen_counts_at_the_resume(tmp_path: Path) -> None:
    master = killed(tmp_path)
    with master.journal.lock():
        assert control.stop(master.journal, master.edges, patience=0.0)["asked"] == "stop"
    assert control.resume(master.journal, master.edges)["state"] == "stopped"


def test_a_preview_shows_the_batches_and_begins_nothing(master: Master) -> None:
    link = {"from": "web", "to": "db@h2"}
    new = {"h1": {"links": [link]}, "h2": {"links": [{"from": "web@h1", "to": "db"}]}}
    found = control.preview(TWO._replace(new=new), POLICY)
    assert [batch["hosts"] for batch in found["batches"]] == [["h2"], ["h1"]] and found["state"] == "not begun"
    assert control.status(master.journal) == {} and not master.journal.folder.joinpath("journal").exists()


def test_what_waits_behind_a_failure_is_told(tmp_path: Path) -> None:
    hosts = ("h1", "h2", "h3")
    new: dict[str, dict[str, Any]] = {
        "h2": {"links": [{"from": "web@h1", "to": "db"}]},
        "h1": {"links": [{"from": "web", "to": "db@h2"}]},
        "h3": {"links": []},
    }
    master = Master(tmp_path, {"h2": frozenset({"apply"})})
    master.hosts.max_fail = 2
    policy = Policy(canary=0, step=1, max_fail=2, settle=0.0, deadline=0.0)
    found = control.start(master.journal, Changes("9f", hosts, {}, new), policy, master.edges)
    assert found["state"] == "done" and not control.good(found) and found["bad"] == ["h2"]
    assert found["held"] == {"h1": "waits for h2"} and found["hosts"] == {"waiting": 1, "good": 1, "failed": 1}


def test_arguments_are_checked_like_the_declaration() -> None:
    chosen = control.chosen(Policy(), {"canary": "h1", "max_fail": "10%"}, ["h1"])
    assert chosen == Policy(canary=("h1",), max_fail="10%")
    for wrong, reason in (
        ({"canary": "h9"}, "canary: h9: no host"),
        ({"step": 0}, "step: 0"),
        ({"gate": "luck"}, "luck"),
    ):
        with pytest.raises(NetspaceError, match=reason):
            control.chosen(Policy(), wrong, ["h1"])
