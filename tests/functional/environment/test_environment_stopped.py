"""``state: stopped``: everything of the environment exists, but the program doesn't run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.environments.environment_host import STAY, Host, shell
from support.waiting import until

from netspace.environment.desired import DesiredEnvironment
from netspace.environment.health import alarms
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError
from netspace.plan import Step
from netspace.supervision import definitions

pytestmark = pytest.mark.root

STOPPED = {"state": {"old": "running", "new": "stopped"}}
STARTED = {"state": {"old": "stopped", "new": "running"}}
SERVICE = "environment-web"


def stopped(host: Host, name: str = "web", **keys: Any) -> DesiredEnvironment:
    """Return an environment whose declaration says that it shall not run."""
    want = host.desired(name, state="stopped", **keys)
    return msgspec.structs.replace(want, spec=msgspec.structs.replace(want.spec, state="stopped"))


def apply(host: Host, want: DesiredEnvironment) -> Step:
    """Apply a declaration that needs one step, and check that no step is left; return the step."""
    (step,) = host.plan({"web": want}).steps
    assert host.apply({"web": want})["web"].error == ""
    again = host.plan({"web": want})
    assert (again.steps, again.refusals) == ([], [])
    return step


def row(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = host.kind.list()["web"]
    return found


def test_it_is_made_whole_and_started_once_that_is_declared(host: Host, tmp_path: Path) -> None:
    volumes = [{"source": str(tmp_path / "data"), "target": "/data"}]
    assert apply(host, stopped(host, volumes=volumes)).action == "create"
    now = row(host)
    assert (now["state"], now["wanted"], now["declared_stopped"]) == ("stopped", "stopped", True)
    assert (now["exit"], now["problem"], now["health"]) == ("", "", "")
    assert host.operations.inspect("web")["spec"]["state"] == "stopped"
    mounted = mounts.table()
    assert str(host.layout.bundle("web") / "rootfs") in mounted and (tmp_path / "data").is_dir()
    with pytest.raises(NetspaceError, match=r"^environment web is stopped, as it is declared \(state: stopped\)$"):
        host.operations.wait(["web"])

    step = apply(host, host.desired("web", volumes=volumes))
    assert (step.action, step.changes) == ("start", STARTED)
    assert (row(host)["state"], row(host)["declared_stopped"]) == ("running", False)
    step = apply(host, stopped(host, volumes=volumes))
    assert (step.action, step.changes) == ("stop", STOPPED)
    assert row(host)["state"] == "stopped"


def test_what_does_not_end_is_killed_after_its_stop_timeout(host: Host) -> None:
    stubborn = {"command": shell("trap '' TERM; while :; do sleep 0.05; done"), "stop_timeout": 0.3}
    host.run("web", **stubborn)
    began = time.monotonic()
    apply(host, stopped(host, **stubborn))
    assert time.monotonic() - began >= 0.3
    assert (row(host)["state"], row(host)["exit"]) == ("stopped", "signal 9")


def test_another_image_is_prepared_and_starts_nothing(host: Host, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(host.image, root, symlinks=True)
    apply(host, stopped(host, image=f"dir:{root}"))
    before = row(host)["digest"]
    (root / "etc/motd").write_text("changed\n")
    step = apply(host, stopped(host, image=f"dir:{root}"))
    assert (step.action, list(step.changes)) == ("change", ["image"])
    assert row(host)["state"] == "stopped" and row(host)["digest"] != before
    assert (host.layout.bundle("web") / "rootfs/etc/motd").read_text() == "changed\n"
    # With a check, an update is neither rolling nor on trial: there is nothing that runs to be lost.
    health = {"health": {"exec": ["true"], "interval": 0.1}, "read_only": True}
    apply(host, stopped(host, image=f"dir:{root}", **health))
    (root / "etc/motd").write_text("again\n")
    apply(host, stopped(host, image=f"dir:{root}", **health))
    assert row(host)["state"] == "stopped" and host.kind.recorded()["web"].previous is None
    apply(host, host.desired("web", image=f"dir:{root}", **health))
    assert host.operations.wait(["web"])["web"]["health"] == "healthy"
    assert host.sh("web", "cat /etc/motd") == "again"


def test_a_start_by_hand_lasts_until_the_next_apply_as_a_stop_by_hand_does(host: Host) -> None:
    apply(host, stopped(host))
    assert host.operations.start(["web"]) == {"web": ""}
    assert (row(host)["state"], row(host)["wanted"], row(host)["declared_stopped"]) == ("running", "running", True)
    step = apply(host, stopped(host))
    assert (step.action, step.changes) == ("stop", STOPPED)
    assert row(host)["state"] == "stopped"
    apply(host, host.desired("web"))
    assert host.operations.stop(["web"]) == {"web": ""}
    assert not row(host)["declared_stopped"]
    step = apply(host, host.desired("web"))
    assert (step.action, step.changes) == ("start", STARTED)


@pytest.mark.parametrize(
    ("script", "restart", "state"), [("exit 3", "never", "failed"), ("exit 3", "always", "starting")]
)
def test_one_that_fails_or_crashes_again_and_again_is_none_once_it_is_declared_to_be_stopped(
    host: Host, script: str, restart: str, state: str
) -> None:
    keys = {"command": shell(script), "restart": restart}
    host.apply({"web": host.desired("web", **keys)})
    until(lambda: row(host)["state"] == state)
    apply(host, stopped(host, **keys))
    now = row(host)
    assert (now["state"], now["problem"], now["health"], now["flapping"]) == ("stopped", "", "", False)
    assert alarms.news(None, {"web": now}) == []
    # Its own end counts no longer: what is declared to run again is begun anew.
    (step,) = host.plan({"web": host.desired("web", **keys)}).steps
    assert step.action == "start"


def test_a_job_that_was_done_is_run_again_after_a_declared_stop(host: Host) -> None:
    job = {"command": shell("echo run"), "restart": "never"}
    host.run("web", **job)
    until(lambda: row(host)["state"] == "stopped")
    apply(host, stopped(host, **job))
    host.apply({"web": host.desired("web", **job)})
    until(lambda: host.operations.logs("web")["lines"] == ["run", "run"])


def test_no_boot_and_no_crash_of_the_supervisor_starts_it(host: Host) -> None:
    host.run("web")
    apply(host, stopped(host))
    assert SERVICE not in definitions.desired(host.layout)
    host.supervisor.resume()
    assert row(host)["state"] == "stopped"
    for target in mounts.table():
        if Path(target).is_relative_to(host.layout.run):
            mounts.unmount(Path(target))
    for folder in ("environments", "images"):
        shutil.rmtree(host.layout.run / folder)
    definitions.remove_trace(host.layout, SERVICE)
    assert host.kind.restore() == {}
    host.supervisor.resume()
    host.namespace("web")
    assert host.plan({"web": stopped(host)}).steps == []
    assert row(host)["state"] == "stopped"


def test_what_comes_after_it_says_what_it_waits_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netspace.environment.update.rollout.SLACK", 3600.0)  # nobody waits for what is not to come
    apply(host, stopped(host))
    later = host.desired("later", after=["web"], command=shell(STAY))
    error = host.apply({"later": later})["later"].error
    assert "waits for web, which is stopped, as it is declared (state: stopped)" in error
    assert host.apply({"web": host.desired("web")})["web"].error == ""
    until(lambda: host.kind.list()["later"]["state"] == "running")
    # That is about starts alone.
    apply(host, stopped(host))
    assert host.kind.list()["later"]["state"] == "running"
