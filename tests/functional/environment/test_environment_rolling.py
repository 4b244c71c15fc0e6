"""Rolling updates: a second instance runs beside the first, a failed update has no effect, a killed run is repaired."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import sampling, waiting
from support.environments.environment_host import STAY, Host, shell
from support.hosts import faultpoints, faults_host

from netspace.environment import record, runtimes, services
from netspace.environment.apply import ApplyRun
from netspace.environment.container import oci_runtime
from netspace.environment.desired import DesiredEnvironment
from netspace.files import encode

pytestmark = pytest.mark.root

until = functools.partial(waiting.until, patience=60, pause=0.05)

BESIDE = "environment-web-NEXT"
CHECK = {"exec": ["/bin/sh", "-c", "[ -e /tmp/well ] || { echo not well; exit 3; }"], "interval": 0.2, "timeout": 60}
WELL = f"touch /tmp/well; {STAY}"


def desired(host: Host, script: str = WELL, **keys: Any) -> DesiredEnvironment:
    health = {**CHECK, "start_period": 300}
    return host.desired("web", command=shell(script), read_only=True, health=health, **keys)


@pytest.fixture
def runs(host: Host) -> Host:
    """Host with a healthy environment."""
    assert host.apply({"web": desired(host)})["web"].error == ""
    host.operations.wait(["web"])
    return host


def left(host: Host) -> list[str]:
    """Return all remains of a second instance."""
    found = [name for name in host.supervisor.observe() if "NEXT" in name]
    found += [one for kind in host.traces().values() for one in kind if "NEXT" in one]
    return [*found, *record.updating(host.layout)]


def watched(monkeypatch: pytest.MonkeyPatch, host: Host) -> list[tuple[str, set[str], bool]]:
    """Watch four steps of an update; return a list to which each step adds an entry.

    An entry has the step's name, the services that run, and the environment's value of ``updating``.
    """
    seen: list[tuple[str, set[str], bool]] = []

    def before(step: str) -> None:
        act: Callable[[ApplyRun], None] = getattr(ApplyRun, step)

        def look(applying: ApplyRun) -> None:
            status = host.supervisor.observe()
            up = {name for name, one in status.items() if one.state == "running" and name != services.HEALTH}
            seen.append((step, up, host.kind.list()["web"]["updating"]))
            act(applying)

        monkeypatch.setattr(ApplyRun, step, look)

    for step in ("_try_beside", "_stop", "_make", "_retire"):
        before(step)
    return seen


def test_the_new_one_is_healthy_before_the_old_one_is_stopped(runs: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    own, pid = oci_runtime.service_name("web"), runs.pid("web")
    better = desired(runs, f"sleep 0.3; {WELL}", env={"TURN": "2"})
    plan = runs.plan({"web": better})
    assert [(step.action, step.reason) for step in plan.steps] == [
        ("restart", "rolling update: a second instance is started beside it first")
    ]
    seen = watched(monkeypatch, runs)
    assert runs.apply({"web": better})["web"].error == ""
    assert seen == [
        ("_try_beside", {own}, False),
        ("_stop", {own, BESIDE}, True),
        ("_make", {BESIDE}, True),
        ("_retire", {own, BESIDE}, True),
    ]
    row = runs.kind.list()["web"]
    assert row["pid"] not in (0, pid) and not row["updating"] and row["health"] == "healthy"
    assert runs.sh("web", "echo $TURN; busybox hostname") == "2\nweb"
    assert left(runs) == []
    assert runs.plan({"web": better}).steps == []


@pytest.mark.parametrize("name", [name for name in runtimes.running("images") if name != runtimes.DEFAULT])
def test_it_is_so_under_another_runtime_too(host: Host, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if error := runtimes.look(name, {}).error:
        pytest.skip(f"{name}: {error}")
    assert host.apply({"web": desired(host, runtime=name)})["web"].error == ""
    host.operations.wait(["web"])
    seen = watched(monkeypatch, host)
    assert host.apply({"web": desired(host, runtime=name, env={"TURN": "2"})})["web"].error == ""
    assert [(step, updating) for step, up, updating in seen if BESIDE in up] == [
        ("_stop", True),
        ("_make", True),
        ("_retire", True),
    ]
    assert host.sh("web", "echo $TURN") == "2"
    assert left(host) == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (STAY, "it was not healthy within 1 s: exit 3: not well"),
        ("exit 7", "it ended (exit 7)"),
        ("exit 0", "it ended (exit 0)"),
    ],
)
def test_one_that_fails_is_never_noticed(runs: Host, script: str, reason: str) -> None:
    before = runs.kind.list()["web"]
    card = {"environment.json": encode({"peers": [], "values": {"of": 2}})}
    bad = desired(runs, script, update={"deadline": 1 if script == STAY else 60}, files=card, values={"of": 2})
    outcome = runs.apply({"web": bad})["web"]
    assert f"the update was not made: its second instance failed: {reason}" in outcome.error
    assert runs.kind.list()["web"] == before
    assert b"values" not in (runs.layout.inside("web") / "environment.json").read_bytes()
    assert [one for one in left(runs) if "/log/" not in one] == []
    # It is not tried again, and a retry tries it.
    plan = runs.plan({"web": bad})
    assert plan.steps == [] and reason in plan.refusals[0].message
    runs.operations.retry(["web"])
    assert "rolling" in runs.plan({"web": bad}).steps[0].reason
    assert runs.apply({"web": desired(runs, env={"TURN": "3"})})["web"].error == ""
    assert left(runs) == []


def test_what_can_not_even_be_started_is_never_noticed(runs: Host) -> None:
    pid = runs.pid("web")
    wanted = desired(runs)
    bad = msgspec.structs.replace(wanted, spec=msgspec.structs.replace(wanted.spec, command=("/no/such/program",)))
    error = runs.apply({"web": bad})["web"].error
    assert "can't be started" in error and "/no/such/program" in error
    assert runs.pid("web") == pid
    assert [one for one in left(runs) if "/log/" not in one] == []


def test_what_is_not_its_own_fault_is_tried_again(runs: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before, better = runs.kind.list()["web"], desired(runs, env={"TURN": "2"})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("netspace.environment.builder.Builder.hand_out", full)
        assert "No space left on device" in runs.apply({"web": better})["web"].error
    assert runs.kind.list()["web"] == before
    assert left(runs) == []
    assert "rolling" in runs.plan({"web": better}).steps[0].reason
    assert runs.apply({"web": better})["web"].error == ""


def test_two_are_never_beside_where_they_would_share_something(runs: Host, tmp_path: Path) -> None:
    for keys, reason in (
        ({"read_only": False}, "two instances would share its writable layer"),
        ({"update": {"rolling": False}}, "update:rolling is false"),
        ({"volumes": [{"source": str(tmp_path / "data"), "target": "/data"}]}, "two instances would share its volumes"),
        ({"interface": {"kind": "veth"}}, "two instances would share the addresses of its interface"),
        ({"health": {"mailbox": True}}, "only a health check with exec can check each of two instances"),
    ):
        wanted = runs.desired(
            "web", **{"command": shell(WELL), "read_only": True, "health": CHECK, "env": {"A": "1"}, **keys}
        )
        (step,) = runs.plan({"web": wanted}).steps
        assert f"its program is stopped before the new one is started: {reason}" in step.reason
        assert not step.data.rolling
    # One that isn't well has nothing to lose, and without a check nobody can tell.
    # It is not restarted, or it might be well again by then.
    assert runs.apply({"web": desired(runs, restart="never")})["web"].error == ""
    runs.sh("web", "busybox rm /tmp/well")
    until(lambda: runs.kind.list()["web"]["health"] != "healthy")
    assert not runs.plan({"web": desired(runs, restart="never", env={"A": "1"})}).steps[0].data.rolling


def test_a_stop_by_hand_ends_what_a_killed_run_left_beside(runs: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """Exception that stands for SIGKILL: no error handler catches it."""

    def killed(*_: Any) -> None:
        raise Killed

    for step in ("_stop", "_make", "_retire"):
        runs.operations.start(["web"])
        runs.operations.wait(["web"])
        with monkeypatch.context() as patch:
            patch.setattr(ApplyRun, step, killed)
            with pytest.raises(Killed):
                runs.apply({"web": desired(runs, env={"STEP": step})})
        assert runs.kind.list()["web"]["updating"]
        assert runs.plan({}).notes == [
            "environment web has a second instance: a killed run left it, and the next run removes it"
        ]
        if step == "_make":  # trust is lost
            assert runs.kind.withhold(["web"]) == {}
        else:
            assert runs.operations.stop(["web"]) == {"web": ""}
        assert left(runs) == []
        assert runs.apply({"web": desired(runs, env={"STEP": step})})["web"].error == ""


@pytest.mark.skipif(not faultpoints.SUPPORTED, reason="the tracer knows x86-64 only")
def test_a_run_killed_at_any_step_is_repaired_by_the_next(runs: Host) -> None:
    faults_host.warm_up()

    def update(number: int) -> list[str]:
        host = Host(runs.image)
        host.kind.sweep()
        wanted = {"web": desired(host, env={"TURN": str(number)})}
        return [outcome.error for outcome in host.apply(wanted).values()]

    reference = faultpoints.run(lambda: update(1))
    assert reference.error == "" and reference.value == [""]
    kinds: dict[str, faultpoints.Point] = {}
    for point in reference.changing[:-1]:
        if not point.what.startswith(("fsync", "fdatasync", "sync", "flock", "connect")):
            kinds.setdefault(point.what, point)
    assert len(kinds) > 30
    for turn, point in enumerate(sampling.todays(list(kinds.values()), 4), 2):
        killed = faultpoints.run(functools.partial(update, turn), at=point)
        assert killed.error == "" or killed.reached, killed.error
        again = faultpoints.run(functools.partial(update, turn), traced=False)
        assert (again.error, again.value) in (("", [""]), ("", [])), (point, again.error, again.value)
        assert left(runs) == [], point
        assert runs.operations.wait(["web"])["web"]["state"] == "running", point
        assert runs.sh("web", "echo $TURN") == str(turn), point
        assert runs.plan({"web": desired(runs, env={"TURN": str(turn)})}).steps == [], point
