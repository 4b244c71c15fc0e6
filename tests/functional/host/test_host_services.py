"""``netspace_environment.exhaust`` tries attacks of one environment on each service of the host, and cleans up.

Each day it tries two of the attacks; ``NETSPACE_ATTACKS=all`` tries all.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from support.environments.twins import bare_root, traces
from support.hosts.whole_host import CHECKOUT, all_true
from support.sampling import EVERY, todays
from support.waiting import until

from netspace.host import restore, service_exhaustion, trials
from netspace.host.host import Host
from netspace.layout import Layout

pytestmark = [pytest.mark.root, pytest.mark.exhaustion]

LINKED = [name for name, way in service_exhaustion.WAYS.items() if way.linked]
OTHERS = [name for name, way in service_exhaustion.WAYS.items() if not way.linked]
ALL = os.environ.get("NETSPACE_ATTACKS") == "all"
PART = str(CHECKOUT / "tests/support/environments/exhausting.py")


@pytest.fixture(scope="module")
def applied(salt, tmp_path_factory):
    """A host with two environments and, as its broker is needed, a link between them."""
    salt("netspace.teardown")
    web = {
        "image": f"dir:{bare_root(tmp_path_factory.mktemp('bare'))}",
        "command": ["/bin/busybox", "sleep", "1000"],
        "limits": {"memory": "96M", "pids": 48, "cpus": 0.5},
        "stop_timeout": 1,
    }
    links = [{"from": "web", "to": "other", "pattern": "send"}]
    declared = {"environments": {"web": web, "other": web}, "links": links}
    all_true(salt.apply(declared))
    yield declared
    salt("netspace.teardown")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(service_exhaustion, "_TIMES", 1)
    monkeypatch.setattr(service_exhaustion, "_ANSWERS", 20)
    monkeypatch.setattr(service_exhaustion, "_PROBE", 1.0)  # at least one check is ended meanwhile


def left() -> list[str]:
    host = Host(Layout())
    names = [*host.environments.list(), *host._linked().links, *host._linked().parked, *trials.noted(host.layout)]
    images = [note.image for note in host.environments.store.notes()]
    names += [path.name for path in host.layout.run.glob("exec-*")]
    return [name for name in names if name not in ("web", "other", "web.other")] + images[1:] + traces()


@pytest.mark.parametrize(
    "name",
    [name for ways in (LINKED, OTHERS) for name in todays(ways, 1 if ALL else len(ways), every=EVERY)],
)
def test_service_goes_on_whatever_an_environment_does(applied, short, name, record_property):
    (row,) = service_exhaustion.exhaust(Host(Layout()), "web", [name])
    record_property(name, row.detail)
    assert (row.name, row.group) == (name, "services")
    assert row.outcome in ("held", "slow"), row.detail
    assert row.taken > 0, "it was tried"
    assert row.seconds.keys() == service_exhaustion.GOALS.keys()
    assert min(second for pair in row.seconds.values() for second in pair) > 0
    assert left() == []


def test_service_that_begins_again_is_told(applied, short, monkeypatch):
    """Whatever an environment did, a service that ended meanwhile is reported as a leak."""
    timed = service_exhaustion._Stage._times

    def killing(stage, logged):
        if logged.endswith("-worst"):
            pid = stage._host.supervisor.observe(["health"])["health"].pid
            os.kill(pid, signal.SIGKILL)
            until(lambda: stage._host.supervisor.observe(["health"])["health"].pid not in (0, pid))
        return timed(stage, logged)

    monkeypatch.setattr(service_exhaustion._Stage, "_times", killing)
    (row,) = service_exhaustion.exhaust(Host(Layout()), "web", ["exec: programs that never end"])
    assert row.outcome == "leak"
    assert row.detail.endswith("; the health was restarted")
    assert left() == []


def test_what_a_killed_trial_leaves_the_next_run_removes(salt, applied):
    command = [salt.command()[0].replace("scripts/salt-call", ".venv/bin/python"), PART]
    with subprocess.Popen([*command, "web", "services", LINKED[0]], start_new_session=True) as process:
        until(lambda: len(Host(Layout()).environments.names()) > 2 or process.poll() is not None)
        os.killpg(process.pid, signal.SIGKILL)
    (names,) = trials.noted(Layout()).values()
    restore.run(Layout())  # as after a reboot: they do their worst no more
    states = {name: row["state"] for name, row in Host(Layout()).environments.list().items()}
    assert {state for name, state in states.items() if name in names} == {"stopped"}
    assert states["web"] == states["other"] == "running"
    done = salt("netspace_environment.restart", "other")
    assert done
    assert trials.noted(Layout()), "an operation that applies nothing leaves it as it is"
    all_true(salt.apply(applied))
    assert left() == []


def test_row_that_is_not_there_is_an_error(salt, applied):
    done = salt.run("netspace_environment.exhaust", "web", "only=broker: mesages")
    assert "there is no row broker: mesages; did you mean broker: messages" in done.stderr
    assert done.returncode != 0
