"""``netspace_environment.exhaust`` reports correctly which user lacks which resource, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.environments.twins import bare_root, traces, users
from support.hosts import snapshot
from support.hosts.whole_host import all_true
from support.waiting import until

from netspace.environment.audit import pools, storms
from netspace.host import exhaustion
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.spec.types import Network

pytestmark = pytest.mark.root

ASYNCHRONOUS = "asynchronous file operations (64)"
# What no kernel bounds for an environment (docs/limits.md): found here, or the page is wrong.
UNBOUNDED = {"file locks"}
# What this kernel lets nobody have, or has no share of.
ABSENT = {"huge pages", "pseudo terminals", "connections that the host follows"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return bare_root(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def applied(salt, bare):
    salt("netspace.teardown")
    web = {
        "image": f"dir:{bare}",
        "command": ["/bin/busybox", "sleep", "1000"],
        "limits": {"memory": "96M", "pids": 48, "disk": "32M"},
        "interface": {"kind": "veth"},
        "seccomp": "standard",
        "stop_timeout": 1,
    }
    declared = {"environments": {"web": web, "other": {**web, "runtime": "runc", "seccomp": "strict"}}}
    all_true(salt.apply(declared))
    yield declared
    salt("netspace.teardown")


def takers():
    return [command for command in snapshot.processes().values() if "exhaust.py" in command]


def test_nobody_goes_short_but_of_what_the_page_names(salt, applied):
    before = users()
    done = salt("netspace_environment.exhaust", "web", "waiting=False", check=False)
    rows = {row["name"]: row for row in done}
    assert rows.keys() == pools.POOLS.keys()
    leaks = {name for name, row in rows.items() if row["outcome"] == "leak"}
    if int(Path("/proc/sys/fs/aio-max-nr").read_text()) <= 65536:
        # The kernel counts these for the whole host: that they are seen to be gone shows that a leak is seen.
        assert rows[ASYNCHRONOUS]["root"] == rows[ASYNCHRONOUS]["neighbour"] == {"before": 16, "during": 0, "after": 16}
        assert leaks == {ASYNCHRONOUS}
    else:
        assert leaks == set()
    assert {name for name, row in rows.items() if row["outcome"] == "open"} <= UNBOUNDED
    assert {name for name, row in rows.items() if row["outcome"] == "skipped"} <= ABSENT
    for name, ended in (
        ("processes", "EAGAIN"),
        ("memory (MiB)", "killed"),
        ("inotify instances", "EMFILE"),
        ("queued signals", "EAGAIN"),
        ("timers", "EAGAIN"),
        ("keys", "EPERM"),
        ("user namespaces", "EPERM"),
        ("huge pages", "EPERM"),
        ("pipes of 64 KiB", "EDQUOT"),
        ("descriptors in flight", "ETOOMANYREFS"),
        ("disk (MiB)", "ENOSPC"),
    ):
        assert rows[name]["ended"] == ended, rows[name]
    for name in ("descriptors", "epoll watches", "orphaned TCP connections", "buffers of UDP sockets"):
        assert rows[name]["charged"] > 0, rows[name]
    assert rows["processes"]["taken"] < 48
    assert rows["queued signals"]["taken"] <= 1024
    assert rows["connections that the host follows"]["host"]["during"] < 1000
    assert traces() == []
    assert users() == before
    assert takers() == []


def test_a_leak_is_told(applied, monkeypatch):
    """Under runc, inotify instances are reported as a leak, since the kernel counts them for root (docs/limits.md)."""
    monkeypatch.setattr(pools, "POOLS", {name: pools.POOLS[name] for name in ("inotify instances", "timers")})
    watching, timers = exhaustion.exhaust(Host(Layout()), "other", Network(), waiting=False)
    assert watching.outcome == "leak"
    for share in (watching.root, watching.neighbour):
        # All of the machine's tests draw from root's pool, so one of them may end an instance in that moment.
        assert (share.before, share.after) == (16, 16) and share.during < 4
    assert timers.outcome == "held"


def test_others_are_timed_meanwhile(applied, monkeypatch):
    monkeypatch.setattr(pools, "POOLS", {"timers": pools.POOLS["timers"]})
    monkeypatch.setattr(storms, "STORMS", {"processors": storms.STORMS["processors"]})
    weights, timed = set(), exhaustion._timed

    def weighed(*arguments):
        for name in ("cpu.shares", "cpu.weight"):
            found = Path("/sys/fs/cgroup").glob(f"**/netspace-audit/{name}")
            weights.update(path.read_text().strip() for path in found)
        return timed(*arguments)

    monkeypatch.setattr(exhaustion, "_timed", weighed)
    timers, processors = exhaustion.exhaust(Host(Layout()), "web", Network())
    assert (timers.group, timers.outcome) == ("pools", "held")
    assert processors.group == "waiting"
    assert processors.seconds.keys() == exhaustion.GOALS.keys()
    assert min(second for pair in processors.seconds.values() for second in pair) > 0
    assert weights in ({"256"}, {"25"}), "the twins weigh as much as environments do"
    assert traces() == []


def test_what_is_left_of_a_killed_one_the_next_apply_removes(salt, applied):
    before = users()
    command = salt.command("netspace_environment.exhaust", "web")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        until(lambda: len(users()) > len(before) + 10 or process.poll() is not None)
        os.killpg(process.pid, signal.SIGKILL)
    assert traces()
    all_true(salt.apply(applied))
    assert traces() == []
    assert users() == before
    until(lambda: takers() == [])
    done = salt.run("netspace_environment.exhaust", "wbe")
    assert "there is no environment wbe; did you mean web?" in done.stderr
    assert done.returncode != 0
