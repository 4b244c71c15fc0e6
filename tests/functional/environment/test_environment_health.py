"""Health of real environments: probes, reports, waits, restarts, the order of starts, and rollbacks of updates."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.loader
from support import waiting
from support.environments.environment_host import STAY, Host, shell
from support.environments.supervised import daemon_pid, kill_daemon
from support.hosts.whole_host import unfolded

from netspace.environment import services
from netspace.environment.health import record as verdict
from netspace.environment.reconciler import Environments
from netspace.errors import NetspaceError
from netspace.files import encode
from netspace.supervision import definitions

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).resolve().parents[3]

until = functools.partial(waiting.until, patience=60, pause=0.05)

# Healthy while there is a file that the program makes a moment after its start, in memory of its own.
HASTY = {
    "exec": ["/bin/sh", "-c", "[ -e /tmp/well ] || { echo not well; exit 3; }"],
    "interval": 0.2,
    "retries": 2,
    "timeout": 60,
}
CHECK = {**HASTY, "start_period": 300}  # what gets healthy is given all the time that a busy machine needs
SERVES = shell("trap 'exit 0' TERM; sleep 0.3; touch /tmp/well; while :; do sleep 0.05; done")
SLOWLY = shell("trap 'exit 0' TERM; sleep 1; touch /tmp/well; while :; do sleep 0.05; done")
NEVER = shell(STAY)


def row(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = host.kind.list()[name]
    return found


def health_pid(host: Host) -> int:
    return host.supervisor.observe()[services.HEALTH].pid


class Salt:
    """The plugins, as Salt loads and calls them."""

    def __init__(self, folder: Path) -> None:
        opts = salt.config.DEFAULT_MINION_OPTS.copy()
        opts |= {"file_client": "local", "root_dir": str(folder), "cachedir": str(folder), "grains": {}}
        opts |= {f"{kind}_dirs": [str(CHECKOUT / f"_{kind}s")] for kind in ("module", "state", "beacon")}
        opts |= {"states_dirs": opts.pop("state_dirs"), "beacons_dirs": opts.pop("beacon_dirs")}
        self.modules = salt.loader.minion_mods(opts)
        self.states = salt.loader.states(opts, self.modules, {}, None)
        self.beacons = salt.loader.beacons(opts, self.modules, context={})

    def look(self) -> list[dict[str, Any]]:
        assert self.beacons["netspace_environment.validate"]([{"events": ["crashed"]}])[0] is True
        assert self.beacons["netspace_environment.validate"]([{"event": ["crashed"]}])[0] is False
        return list(self.beacons["netspace_environment.beacon"]([{"interval": 5}]))


def test_health_check_added_while_running_restarts_the_program(host: Host) -> None:
    ends_well = shell("trap 'exit 0' TERM; while :; do sleep 0.05; done")
    plain = host.desired("web", command=ends_well)
    host.apply({"web": plain})
    pid = host.pid("web")
    sick = {"exec": ["/bin/sh", "-c", "exit 1"], "interval": 0.2, "retries": 1}
    host.apply({"web": host.desired("web", command=ends_well, health=sick, update={"rollback": False})})
    # The program was not restarted for its check. When the check ends it, exit status 0 counts as a failure.
    until(lambda: row(host, "web")["restarts"] >= 3)
    assert row(host, "web")["state"] in ("running", "starting") and row(host, "web")["pid"] != pid
    # Without the check it runs at once, though its next start was to come later.
    host.apply({"web": plain})
    assert row(host, "web")["state"] == "running", row(host, "web")


def test_health_is_probed_told_and_acted_upon(host: Host, tmp_path: Path) -> None:
    host.apply({"web": host.desired("web", command=SERVES, health=CHECK), "plain": host.desired("plain")})
    assert host.operations.wait(["web", "plain"])["web"]["health"] == "healthy"
    assert row(host, "plain")["health"] == ""
    until(verdict.up(host.layout, "web").exists)
    pid = host.pid("web")

    called = Salt(tmp_path)
    assert called.modules["netspace_environment.wait"]("web")["web"]["state"] == "running"
    healthy = called.states["netspace_environment.healthy"]
    assert healthy("web") == {"name": "web", "result": True, "changes": {}, "comment": "web is healthy."}
    assert healthy("plain")["comment"] == "plain is running."
    assert "there is no environment wep; did you mean web?" in unfolded(healthy("wep")["comment"])
    assert called.look() == []

    # Unhealthy: it is ended and started again, by whatever keeps it running.
    host.sh("web", "busybox rm /tmp/well")
    until(lambda: host.pid("web") not in (0, pid))
    assert row(host, "web")["restarts"] >= 1
    events = called.look()
    assert "web/crashed" in [event["tag"] for event in events]
    assert {event["environment"] for event in events} == {"web"}
    assert host.operations.wait(["web"])["web"]["health"] == "healthy"

    # Stopped, it is neither healthy nor unhealthy, and nobody takes it for being up.
    assert host.operations.stop(["web"]) == {"web": ""}
    assert row(host, "web")["health"] == ""
    assert not verdict.up(host.layout, "web").exists()
    with pytest.raises(NetspaceError, match="environment web is stopped"):
        host.operations.wait(["web"])
    assert healthy("web")["result"] is False
    assert host.operations.start(["web"]) == {"web": ""}
    assert host.operations.wait(["web"])["web"]["health"] == "healthy"


def test_one_that_is_not_restarted_is_said_to_be_unhealthy_and_may_recover(host: Host) -> None:
    wanted = {"web": host.run("web", command=NEVER, restart="never", health=HASTY)}
    pid = host.pid("web")
    with pytest.raises(NetspaceError, match=r"not healthy within 0.2 s: environment web is (starting|unhealthy)"):
        host.operations.wait(["web"], timeout=0.2)
    until(lambda: row(host, "web")["health"] == "unhealthy")
    check = host.operations.inspect("web")["check"]
    assert check["failures"] >= 1
    assert check["detail"] == "exit 3: not well"
    plan = host.plan(wanted)
    assert plan.steps == []
    assert plan.notes[-1] == "environment web is unhealthy: exit 3: not well"
    host.sh("web", "touch /tmp/well")
    until(lambda: row(host, "web")["health"] == "healthy")
    assert host.pid("web") == pid


def test_the_watch_comes_back_after_a_kill_and_goes_on_where_it_was(host: Host) -> None:
    host.run("web", command=SERVES, health=CHECK)
    host.operations.wait(["web"])
    pid, since = host.pid("web"), verdict.read(host.layout, "web").since
    watch = health_pid(host)
    os.kill(watch, signal.SIGKILL)
    until(lambda: health_pid(host) not in (0, watch))
    host.sh("web", "busybox rm /tmp/well")
    until(lambda: host.pid("web") not in (0, pid))
    host.operations.wait(["web"])
    assert verdict.read(host.layout, "web").since > since
    assert host.plan({"web": host.desired("web", command=SERVES, health=CHECK)}).steps == []

    # Nothing of it is left when nobody needs it.
    host.apply({"web": host.desired("web", command=SERVES)})
    assert services.HEALTH not in host.supervisor.observe()


def test_where_nobody_would_start_it_again_an_unhealthy_one_is_left_running(host: Host) -> None:
    host.run("web", command=SERVES, health=CHECK)
    host.operations.wait(["web"])
    pid = host.pid("web")
    kill_daemon(host.layout)
    host.sh("web", "busybox rm /tmp/well")
    until(lambda: row(host, "web")["health"] == "unhealthy")
    failures = host.operations.inspect("web")["check"]["failures"]
    until(lambda: host.operations.inspect("web")["check"]["failures"] > failures, "it is probed on")
    assert host.pid("web") == pid
    host.supervisor.attend()
    until(lambda: host.pid("web") not in (0, pid), "and ended as soon as somebody is there")
    host.operations.wait(["web"])


def test_what_comes_after_another_is_started_when_that_is_healthy(host: Host) -> None:
    slow = {
        "web": host.desired("web", after=["db"]),
        "db": host.desired("db", command=SLOWLY, health=CHECK),
    }
    outcomes = host.apply(slow)
    assert {outcome.error for outcome in outcomes.values()} == {""}
    db, web = (row(host, name) for name in ("db", "web"))
    assert db["health"] == "healthy"
    assert web["state"] == "running"
    assert web["since"] >= verdict.read(host.layout, "db").since
    assert host.plan(slow).steps == []
    plan = host.plan({"db": host.desired("db", after=["web"])})
    assert plan.steps == [] and "wait for each other: db after web after db" in plan.refusals[0].message
    plan = host.plan({"other": host.desired("other", after=["nobody"])})
    assert plan.steps == [] and "no environment nobody" in plan.refusals[0].message

    # The same after a restart of both by hand, and without us when the supervisor itself was killed.
    assert host.operations.stop(["db", "web"]) == {"db": "", "web": ""}
    assert host.operations.start(["web"]) == {"web": ""}
    assert row(host, "web")["state"] == "starting", "db doesn't run"
    kill_daemon(host.layout)
    host.supervisor.resume()
    assert daemon_pid(host.layout)
    assert host.operations.start(["db"]) == {"db": ""}
    until(lambda: row(host, "web")["state"] == "running")
    assert row(host, "web")["since"] >= verdict.read(host.layout, "db").since


def test_marks_go_with_the_process_that_watches(host: Host) -> None:
    """When the last health check is removed, the process that watches health ends, and its marks are removed."""
    host.apply({"db": host.desired("db"), "web": host.desired("web", after=["db"])})
    until(verdict.up(host.layout, "db").exists)
    host.apply({"db": host.desired("db"), "web": host.desired("web")})
    assert services.HEALTH not in host.supervisor.observe()
    assert os.listdir(verdict.folder(host.layout)) == []
    assert row(host, "db")["state"] == "running"


def test_one_that_waits_in_vain_is_said_to_and_nothing_is_refused_for_it(host: Host, monkeypatch: Any) -> None:
    monkeypatch.setattr("netspace.environment.update.rollout._patience", lambda *_: 1.5)
    wanted = {
        "web": host.desired("web", after=["db"]),
        "db": host.desired("db", command=NEVER, restart="never", health=HASTY),
    }
    outcomes = host.apply(wanted)
    assert outcomes["db"].error == ""
    assert outcomes["web"].error.startswith("waits for db, which is ")
    assert row(host, "web")["state"] == "starting"
    assert row(host, "web")["problem"].startswith("waits for db, which is ")
    until(lambda: row(host, "db")["health"] == "unhealthy")  # what is said doesn't change from here on
    (refusal,) = host.plan(wanted).refusals
    assert (refusal.name, refusal.message[:34]) == ("web", "it does not run: waits for db, whi")
    assert host.plan({"web": wanted["web"]}).refusals == [refusal], "also of one that is declared by itself"
    with pytest.raises(NetspaceError, match=r"environment web is starting .waits for db, which is "):
        host.operations.wait(["web"], timeout=0)
    host.sh("db", "touch /tmp/well")
    until(lambda: row(host, "web")["state"] == "running")
    assert host.plan(wanted).steps == []
    assert host.plan(wanted).refusals == []


def test_an_unhealthy_one_that_waits_to_be_started_again_is_said_to_be_so_and_why(host: Host) -> None:
    # One that is ended for its health again and again waits longer and longer.
    host.run("web", command=NEVER, health=HASTY)
    shown: dict[str, Any] = {}

    def waits() -> bool:
        shown.update(row(host, "web"))
        return bool(shown["restarts"] >= 7 and shown["state"] == "starting")

    until(waits, patience=120)  # the last time for 6.4 s, which is time enough to ask
    assert (shown["state"], shown["pid"], shown["health"]) == ("starting", 0, "unhealthy")
    assert shown["problem"] == "it was ended, since its health check failed: exit 3: not well"
    with pytest.raises(NetspaceError, match=r"environment web is starting \(it was ended.*not well\)"):
        host.operations.wait(["web"], timeout=0)


# -- updates ---------------------------------------------------------------------------


def card(version: int) -> dict[str, bytes]:
    """Return the card of a version. Its values and its peer show which declaration wrote the card."""
    peer = {"to": "host", "verbs": ["whoami"], "later": version}
    return {"environment.json": encode({"peers": [peer], "values": {"of": version}})}


def test_an_update_that_does_not_become_healthy_is_taken_back(host: Host) -> None:
    old = host.run("web", command=SERVES, health=CHECK, files=card(1), values={"of": 1})
    host.operations.wait(["web"])
    bad = host.desired("web", command=NEVER, health=HASTY, files=card(2), values={"of": 2})
    outcome = host.kind.apply(host.plan({"web": bad}).steps)
    rollback, update = outcome
    assert rollback.step.action == "rollback" and rollback.error == ""
    assert "taken back, since its health check failed: exit 3: not well" in update.error
    assert host.operations.wait(["web"])["web"]["health"] == "healthy"
    assert host.kind.recorded()["web"].spec.command == old.spec.command
    assert host.kind.recorded()["web"].previous is None
    told = json.loads((host.layout.inside("web") / "environment.json").read_text())
    assert told == {"peers": [{"to": "host", "later": 2}], "values": {"of": 1}}, "the program's own values, later peers"

    # It doesn't flap: the same declaration is refused, and changes nothing, as often as it is applied.
    pid = host.pid("web")
    plan = host.plan({"web": bad})
    assert plan.steps == []
    assert "was taken back" in plan.refusals[0].message
    assert host.operations.inspect("web")["taken_back"]["reason"].startswith("its health check failed")

    # What was there before is no change, another declaration is tried, and so is the same after a retry.
    assert [step.action for step in host.plan({"web": old}).steps] == ["update"]  # its peers, no restart
    host.operations.retry(["web"])
    assert host.plan({"web": bad}).steps[0].action == "restart"
    better = host.desired("web", command=shell(f"touch /tmp/well; {STAY}"), health=CHECK)
    assert host.apply({"web": better})["web"].error == ""
    assert host.pid("web") != pid
    record = host.kind.recorded()["web"]
    assert (record.previous, record.failed) == (None, None)
    assert host.plan({"web": better}).steps == []


def test_an_image_that_fails_goes_and_the_layer_of_the_one_before_is_still_there(host: Host, writable: str) -> None:
    check = {"exec": ["/bin/sh", "-c", "[ -e /etc/motd ]"], "interval": 0.2, "retries": 2, "timeout": 60}
    host.run("web", image=writable, health=check)
    host.operations.wait(["web"])
    host.sh("web", "echo kept > /var/file")
    root = Path(writable.partition(":")[2])
    (root / "etc/motd").unlink()
    wanted = {"web": host.desired("web", image=writable, health=check)}
    before = host.kind.recorded()["web"].image.digest
    assert "taken back" in host.apply(wanted)["web"].error
    assert host.kind.recorded()["web"].image.digest == before
    assert host.sh("web", "cat /var/file") == "kept"
    assert host.plan(wanted).steps == []
    # Another content under the same name is another update.
    (root / "etc/motd").write_text("mended\n")
    assert host.plan(wanted).steps[0].action == "restart"
    assert host.apply(wanted)["web"].error == ""
    assert host.sh("web", "cat /etc/motd") == "mended"
    assert "No such file" in host.sh("web", "cat /var/file")
    assert host.plan(wanted).steps == []


def test_version_that_is_taken_back_is_told_before_its_start(host: Host) -> None:
    told: list[tuple[bool, str]] = []

    def tell() -> None:
        told.append((host.kind.list()["web"]["state"] == "running", host.kind.recorded()["web"].config))

    kind = Environments(host.layout, host.supervisor, tell=tell)
    asking = {"command": SERVES, "health": CHECK, "host": ["attest"]}
    host.run("web", **asking)
    host.operations.wait(["web"])
    bad = host.desired("web", **{**asking, "command": NEVER, "health": HASTY})
    (outcome,) = (one for one in kind.apply(host.plan({"web": bad}).steps) if one.step.action != "rollback")
    assert "taken back" in outcome.error
    (idle, update), (still_idle, before) = told
    assert not idle and not still_idle and update != before == host.kind.recorded()["web"].config


def test_a_run_that_was_killed_on_the_way_is_finished_by_the_next(host: Host, monkeypatch: Any) -> None:
    host.run("web", command=SERVES, health=CHECK)
    host.operations.wait(["web"])
    bad = host.desired("web", command=NEVER, health=HASTY)

    class Killed(BaseException):
        """Exception that stands for SIGKILL: no error handler catches it."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    places = (
        "netspace.environment.update.rollout.wait",
        "netspace.environment.apply.ApplyRun._take_back",
        "netspace.environment.apply.records.write",
        "netspace.environment.builder.Builder.assemble",
    )
    for place in places:
        steps = host.plan({"web": bad}).steps
        assert steps, f"nothing is left to do before {place}"
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            with pytest.raises(Killed):
                host.kind.apply(steps)
    host.apply({"web": bad})
    record = host.kind.recorded()["web"]
    assert record.failed is not None and record.previous is None
    assert host.operations.wait(["web"])["web"]["health"] == "healthy"
    assert host.plan({"web": bad}).steps == []


# A child that takes all that there is, once it is told to.
GREEDY = "(x=0123456789abcdef; while :; do x=$x$x; done)"
BOUND = {"memory": "16M"}


@pytest.fixture
def bounded(host: Host) -> Host:
    if "memory" not in host.kind.making.controllers:
        pytest.skip("this host has no memory controller")
    return host


@pytest.fixture
def apart(bounded: Host) -> Host:
    if bounded.kind.making.unified:
        pytest.skip("with cgroup version 2 the kernel kills all of an environment at once (memory.oom.group)")
    return bounded


def test_what_is_killed_for_want_of_memory_is_said_to_be(bounded: Host, tmp_path: Path) -> None:
    host, called = bounded, Salt(tmp_path)
    eats = shell(f"while [ ! -e /tmp/go ]; do sleep 0.05; done; {GREEDY[1:-1]}")
    wanted = {"web": host.desired("web", command=eats, restart="never", limits=BOUND)}
    host.apply(wanted)
    assert called.look() == []
    host.sh("web", "touch /tmp/go")
    until(lambda: row(host, "web")["state"] == "failed")
    assert row(host, "web")["exit"] == "oom"
    assert any("was last killed for lack of memory (limits:memory 16M)" in note for note in host.plan(wanted).notes)
    assert [event["tag"] for event in called.look()] == ["web/oom"]
    assert called.look() == []


def test_a_child_that_is_killed_for_want_of_memory_is_told_and_is_not_its_parents_end(
    apart: Host, tmp_path: Path
) -> None:
    host, called = apart, Salt(tmp_path)
    # It eats as often as a file is put there; its shell goes on.
    script = (
        f"trap 'exit 0' TERM; while :; do if [ -e /tmp/go ]; then busybox rm /tmp/go; {GREEDY}; fi; sleep 0.05; done"
    )
    wanted = {"web": host.run("web", command=shell(script), limits=BOUND)}
    pid = host.pid("web")
    assert called.look() == []
    host.sh("web", "touch /tmp/go")
    until(lambda: row(host, "web")["oom_kills"] == 1)
    assert [event["tag"] for event in called.look()] == ["web/oom"]
    assert called.look() == []
    until(lambda: definitions.read_trace(host.layout, "environment-web").oom_kills == 1)
    assert (host.pid("web"), row(host, "web")["exit"]) == (pid, "")
    assert host.operations.inspect("web")["oom_kills"] == 1
    plan = host.plan(wanted)
    assert plan.steps == []
    assert plan.notes == ["environment web: 1 of its processes were killed for lack of memory (limits:memory 16M)"]

    # Whoever ends its parent later, that is no want of memory: also by a supervisor that has seen nothing of it.
    os.kill(pid, signal.SIGKILL)
    until(lambda: host.pid("web") not in (0, pid))
    assert (row(host, "web")["exit"], row(host, "web")["oom_kills"]) == ("signal 9", 1)
    pid = host.pid("web")
    host.sh("web", "touch /tmp/go")
    until(lambda: row(host, "web")["oom_kills"] == 2)
    until(lambda: definitions.read_trace(host.layout, "environment-web").oom_kills == 2)
    kill_daemon(host.layout)
    host.supervisor.attend()
    os.kill(pid, signal.SIGKILL)
    until(lambda: host.pid("web") not in (0, pid))
    assert (row(host, "web")["exit"], row(host, "web")["oom_kills"]) == ("unknown", 2)
    host.operations.restart(["web"])
    assert row(host, "web")["oom_kills"] == 0, "it was asked to start"


def test_a_parent_that_ends_by_the_kill_of_its_child_has_its_own_exit_and_the_event_is_told(
    apart: Host, tmp_path: Path
) -> None:
    host, called = apart, Salt(tmp_path)
    script = f"while [ ! -e /tmp/go ]; do sleep 0.05; done; {GREEDY}; exit 5"
    host.run("web", command=shell(script), restart="never", limits=BOUND)
    assert called.look() == []
    host.sh("web", "touch /tmp/go")
    until(lambda: row(host, "web")["state"] == "failed")
    assert (row(host, "web")["exit"], row(host, "web")["oom_kills"]) == ("exit 5", 1)
    (event,) = called.look()
    assert (event["tag"], event["oom_kills"], event["exit"]) == ("web/oom", 1, "exit 5")
