"""Ledger of runs: each start and each end of a real program is recorded, whatever caused it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from support.environments.environment_host import Host, shell
from support.waiting import until

from netspace.attestation.minion import run_ledger
from netspace.environment import record as records
from netspace.host import ledger
from netspace.host.host import Host as WholeHost
from netspace.ledger import journal
from netspace.ledger.entries import State
from netspace.spec.types import Attestation, Declaration

pytestmark = pytest.mark.root


@pytest.fixture
def kept(host: Host) -> Iterator[Host]:
    """A host without a TPM that keeps a ledger."""
    run_ledger.set_up(host.layout, None)
    yield host
    run_ledger.remove(host.layout)


def told(host: Host) -> State:
    return journal.current(host.layout)


def described(host: Host, name: str) -> tuple[str, str]:
    record = records.some(host.layout, [name])[name]
    return record.image.digest, record.config


def test_starts_and_ends_are_in_the_ledger(kept: Host) -> None:
    kept.run("web")
    first = told(kept)
    assert {name: run[:2] for name, run in first.running.items()} == {"web": described(kept, "web")}
    kept.run("web")
    assert told(kept) == first, "nothing was started"
    kept.run("web", command=shell("trap 'exit 0' TERM; while :; do sleep 0.1; done"))
    second = told(kept)
    assert second.running["web"][:2] == described(kept, "web") != first.running["web"][:2]
    assert second.count == first.count + 2, "an end and a start"
    assert kept.operations.stop(["web"]) is not None
    assert not told(kept).running
    kept.operations.start(["web"])
    assert set(told(kept).running) == {"web"}
    kept.apply({}, remove={"web"})
    assert not told(kept).running


def test_program_that_ended_by_itself_is_settled(kept: Host) -> None:
    kept.run("once", command=shell("sleep 0.3"), restart="never")
    kept.run("web")
    assert set(told(kept).running) == {"once", "web"}
    until(lambda: kept.kind.list()["once"]["state"] != "running", "it did not end")
    ledger.settle_now(kept.layout)
    assert set(told(kept).running) == {"web"}
    before = told(kept)
    ledger.settle_now(kept.layout)
    assert told(kept) == before


def test_restart_by_the_supervisor_is_no_event(kept: Host) -> None:
    kept.run("web", restart="always")
    before, pid = told(kept), kept.pid("web")
    os.kill(pid, signal.SIGKILL)
    until(lambda: kept.kind.list()["web"]["pid"] not in (0, pid), "it was not restarted")
    ledger.settle_now(kept.layout)
    assert told(kept) == before


def test_ledger_that_begins_later_has_what_runs(host: Host) -> None:
    host.run("web")
    assert not journal.content(host.layout)
    run_ledger.set_up(host.layout, None)
    ledger.settle_now(host.layout)
    assert told(host).running["web"][:2] == described(host, "web")
    run_ledger.remove(host.layout)


def test_start_that_cannot_be_recorded_is_refused(kept: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "_write", full)
    desired = kept.desired("web")
    outcome = kept.apply({"web": desired})["web"]
    assert "ledger of runs" in outcome.error and "No space left" in outcome.error
    assert kept.kind.list()["web"]["state"] != "running"
    monkeypatch.undo()
    kept.run("web")
    assert set(told(kept).running) == {"web"}


def test_restored_environments_are_in_the_new_boots_ledger(kept: Host) -> None:
    kept.run("web")
    kept.run("idle", state="stopped")
    journal.forget(kept.layout)
    kept.kind.restore()
    assert set(told(kept).running) == {"web"}


def test_apply_sets_the_ledger_up_and_removes_it(host: Host) -> None:
    host.run("web")
    whole = WholeHost(host.layout)
    on, off = (Attestation(minimum="L0", ledger=kept) for kept in (True, False))
    foretold = whole.converge_attestation(on, test=True)
    assert [str(step.name) for step in foretold.plan.steps] == ["host", "ledger"]
    assert not journal.content(host.layout)
    made = whole.converge_attestation(on)
    assert made.ok and made.plan.steps[1].changes == {"proved_by": {"old": None, "new": "a software key"}}
    assert set(told(host).running) == {"web"}, "what runs already is in it"
    assert set(whole.attestations.status()["ledger"]["running"]) == {"web"}
    ledger.note(host.layout, Declaration(attestation=on))
    assert told(host).declared == ledger.digest(Declaration(attestation=on))
    assert not whole.converge_attestation(on).plan.steps, "nothing to do"
    assert whole.converge_attestation(off).ok
    assert not journal.content(host.layout) and "ledger" not in whole.attestations.status()
    kind = whole.attestations
    kind.apply(kind.plan(off, kind.observe(), {"host"}).steps)
