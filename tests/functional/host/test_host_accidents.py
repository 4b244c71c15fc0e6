"""Accidents on a host (scarce resources, lost files, programs that hang) end with a clear error or a repair.

After each accident, the next apply brings the host to its declaration, without manual steps. The teardown removes
everything of netspace, and nothing of other programs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import sampling
from support.environments.environment_host import shell
from support.environments.supervised import daemon_pid, kill_daemon
from support.hosts import faultpoints, faults_host, snapshot
from support.hosts.faults_host import LAYOUT, Declared, World
from support.waiting import until

from netspace import files, library_copy
from netspace.environment import services
from netspace.environment.container import oci_runtime
from netspace.environment.health import alarms
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError, SpecError
from netspace.host.host import Host
from netspace.nftables.ruleset import Ruleset
from netspace.spec import parse
from netspace.supervision import definitions, process
from netspace.supervision.daemon import daemon, ending, start
from netspace.supervision.daemon import presence as place

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A host without anything of netspace; after the test, a teardown must leave nothing."""
    faults_host.warm_up()
    with World(tmp_path / "world", linked=False) as made:
        assert apply(faults_host.teardown) == []
        before = made.look()
        yield made
        assert apply(faults_host.teardown) == []
        assert made.settled(before) == {}


def apply(act: Callable[[], dict[str, list[str]]]) -> list[str]:
    """Apply in a child process; return the errors. Any other outcome fails the test."""
    done = faultpoints.run(act, traced=False)
    assert done.error == ""
    errors: list[str] = done.value["errors"]
    return errors


def converge(declared: Declared) -> list[str]:
    return apply(lambda: faults_host.converge(declared))


def mends(declared: Declared) -> None:
    """Check that the next apply repairs everything, and that a further apply has nothing to do."""
    assert converge(declared) == []
    planned = faultpoints.run(lambda: faults_host.converge(declared, test=True), traced=False)
    assert planned.value == {"steps": [], "errors": []}


@contextlib.contextmanager
def mounted(target: Path, size: str) -> Iterator[None]:
    """Mount a small file system at *target* for a while; an earlier mount at *target* (the sandbox's) stays."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "small", target], check=True)
    try:
        yield
    finally:
        for path in sorted(mounts.table(), reverse=True):
            if path.startswith(f"{target}/"):
                mounts.unmount(Path(path))
        subprocess.run(["umount", "--lazy", target], check=True)
        assert os.path.ismount(LAYOUT.state), "the sandbox's own"


# -- what is scarce ----------------------------------------------------------------
FULL = list(itertools.product((LAYOUT.state, LAYOUT.run, LAYOUT.logs), ("4k", "64k", "512k", "1100k", "1400k")))


@pytest.mark.parametrize(("folder", "size"), sampling.todays(FULL, 4), ids=str)
def test_a_full_disk_is_a_clear_error_and_repaired_once_there_is_room(world: World, folder: Path, size: str) -> None:
    declared = world.declared()
    with mounted(folder, size):
        try:
            filler = folder / "filler"
            with contextlib.suppress(OSError), filler.open("wb") as stream:
                while True:  # all but some pages, so that it is the small files that find no room
                    stream.write(bytes(4096))
            with filler.open("rb+") as stream:
                stream.truncate(max(0, filler.stat().st_size - int(size[:-1]) * 1024 // 2))
            errors = converge(declared)
            for error in errors:
                assert "No space left on device" in error or "can't" in error, error
            # A log of nothing needs no room: then what the program writes is lost, and it runs on.
            assert errors or size != "4k" or folder == LAYOUT.logs
            filler.unlink(missing_ok=True)
            subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
            mends(declared)
        finally:
            apply(faults_host.teardown)


@pytest.mark.parametrize("more", sampling.todays([0, 1, 2, 4, 6, 9, 13, 20], 2))
def test_too_few_descriptors_are_a_clear_error(world: World, more: int) -> None:
    declared = world.declared()

    def starved() -> dict[str, list[str]]:
        parse.declaration(declared)  # what it imports is imported
        limit = max(map(int, os.listdir("/proc/self/fd"))) + more
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return faults_host.converge(declared)

    errors = apply(starved)
    assert not errors or any("Too many open files" in error for error in errors), errors
    for error in errors:
        assert "Too many open files" in error or "not touched, because" in error, error
    mends(declared)
    # The supervisor that the starved one may have started has not inherited that.
    soft, hard = resource.prlimit(daemon_pid(LAYOUT), resource.RLIMIT_NOFILE)
    assert soft == hard >= resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.skipif(not faultpoints.SUPPORTED, reason="the tracer knows x86-64 only")
def test_what_can_t_be_forked_is_a_clear_error(world: World) -> None:
    declared = world.declared()
    reference = faultpoints.run(lambda: faults_host.converge(declared))
    assert reference.value["errors"] == []
    forks = [point for point in reference.points if point.what.split()[0] in ("fork", "vfork", "clone", "clone3")]
    assert len(forks) >= 4
    for point in forks:
        assert apply(faults_host.teardown) == []
        failed = faultpoints.run(lambda: faults_host.converge(declared), at=point, fail=11)
        assert failed.reached
        assert failed.error == ""
        for error in failed.value["errors"]:
            assert "temporarily unavailable" in error or "not touched, because" in error, error
        mends(declared)


# -- what is taken away --------------------------------------------------------------
def test_a_namespace_deleted_under_a_running_environment_is_made_anew(world: World) -> None:
    declared = world.declared()
    assert converge(declared) == []
    for name in ("a", "b"):
        subprocess.run(["ip", "netns", "del", LAYOUT.netns_name(name)], check=True)
    done = faultpoints.run(lambda: faults_host.converge(declared), traced=False)
    assert done.value["errors"] == []
    assert any(step.startswith("restart environment a") for step in done.value["steps"]), done.value
    mends(declared)
    for name, entry in Host(LAYOUT).environments.list().items():
        inside = os.stat(f"/proc/{entry['pid']}/ns/net")
        assert os.path.samestat(inside, os.stat(LAYOUT.netns(name)))


def test_what_was_mounted_is_unmounted_under_it(world: World) -> None:
    declared = world.declared()
    assert converge(declared) == []
    mounts.unmount(LAYOUT.bundle("a") / "rootfs")
    mends(declared)


def test_a_pid_that_is_somebody_else_s_by_now_is_never_signalled(world: World) -> None:
    declared = world.declared()
    assert converge(declared) == []
    own = {name: entry["pid"] for name, entry in Host(LAYOUT).environments.list().items()}
    kill_daemon(LAYOUT)
    for pid in own.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(process.alive(pid, there.ticks) for pid in own.values() if (there := process.stat(pid))))
    # Leaders of sessions of their own, as every daemon is, each with a child in it.
    others = [subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & exec sleep 1000"], start_new_session=True) for _ in own]
    try:
        for name, other in zip(own, others, strict=True):
            path = definitions.traces(LAYOUT) / f"{oci_runtime.service_name(name)}.json"
            record = files.read_json(path)
            assert record is not None
            files.write_json(path, {**record, "pid": other.pid})
            oci_runtime.pid_file(LAYOUT, name).write_text(str(other.pid))
        mends(declared)
        assert [other.poll() for other in others] == [None, None]
        there = [process.stat(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()]
        leaders = {other.pid for other in others}
        assert len([one for one in there if one is not None and one.session in leaders]) == 4, "with their children"
    finally:
        for other in others:
            os.killpg(other.pid, signal.SIGKILL)
            other.wait()


def test_the_supervisor_killed_while_an_apply_waits_for_it(world: World) -> None:
    declared = world.declared()
    assert converge(declared) == []
    changed = world.declared()
    for environment in changed["environments"].values():
        environment["env"] = {"TURN": "2"}
        # It takes its time to end, so that the supervisor is killed while it is waited for.
        environment["command"] = shell("trap 'sleep 0.3; exit 0' TERM; while :; do sleep 0.05; done")
    assert converge(changed) == []
    stop = threading.Event()
    killed: list[int] = []

    def stopping() -> bool:
        traces = (definitions.read_trace(LAYOUT, name) for name in definitions.traced(LAYOUT))
        return any(trace is not None and trace.state == "stopping" for trace in traces)

    def kill() -> None:
        until(lambda: stop.is_set() or stopping())
        for _ in range(3):
            if (pid := daemon_pid(LAYOUT)) and not stop.is_set():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        errors = converge(declared)
    finally:
        stop.set()
        killer.join()
    assert killed
    assert errors == []
    mends(declared)


def test_nobody_supervises_and_an_apply_sees_and_mends_that(world: World) -> None:
    declared = world.declared()
    assert converge(declared) == []
    host = Host(LAYOUT)
    assert host.overview()["supervised"]
    assert {row["supervised"] for row in host.environments.list().values()} == {True}
    pids = {name: row["pid"] for name, row in host.environments.list().items()}
    kill_daemon(LAYOUT)
    assert not host.overview()["supervised"]
    assert {row["supervised"] for row in host.environments.list().values()} == {False}
    (event,) = alarms.news(None, host.environments.list())
    assert event == {"tag": "unsupervised", "event": "unsupervised", "environments": ["a", "b"]}
    planned = faultpoints.run(lambda: faults_host.converge(declared, test=True), traced=False)
    wanted = "start service netspace-supervisor (state): nothing restarts ended programs"
    assert planned.value["steps"][0] == wanted
    assert not place.running(LAYOUT), "a test changes nothing"
    mends(declared)
    assert host.overview()["supervised"]
    assert {name: row["pid"] for name, row in host.environments.list().items()} == pids

    # What has ended since nobody was there is started again, once.
    kill_daemon(LAYOUT)
    os.kill(pids["a"], signal.SIGKILL)
    until(lambda: host.environments.list()["a"]["state"] == "failed")
    assert converge(declared) == []
    until(lambda: host.environments.list()["a"]["pid"] not in (0, pids["a"]))
    assert host.environments.list()["b"]["pid"] == pids["b"]
    mends(declared)


@pytest.mark.parametrize("what", ["supervisor", "watch", "program"])
def test_what_is_frozen_is_told_and_goes_on_with_the_next_apply(world: World, what: str) -> None:
    declared = world.declared()
    declared["environments"]["a"]["health"] = {"exec": ["/bin/true"], "interval": 1}
    assert converge(declared) == []
    host = Host(LAYOUT)
    host.operations.wait(["a"])
    before = host.environments.list()
    pids = {
        "supervisor": daemon_pid(LAYOUT),
        "watch": host.supervisor.observe([services.HEALTH])[services.HEALTH].pid,
        "program": before["a"]["pid"],
    }
    os.kill(pids[what], signal.SIGSTOP)
    until(lambda: process.frozen(pids[what]))
    row, events = host.environments.list()["a"], alarms.news(before, host.environments.list())
    planned = faultpoints.run(lambda: faults_host.converge(declared, test=True), traced=False).value["steps"]
    if what == "supervisor":
        assert not row["supervised"] and not host.overview()["supervised"]
        assert [event["event"] for event in events] == ["unsupervised"]
        assert planned[0].startswith("start service netspace-supervisor")
        # What ends meanwhile is not said to run on.
        os.kill(before["b"]["pid"], signal.SIGKILL)
        until(lambda: host.environments.list()["b"]["state"] == "failed")
    elif what == "watch":
        assert (row["state"], row["health"]) == ("running", "unknown") and "watches health" in row["problem"]
        assert any("the service that watches its health does not run" in step for step in planned), planned
    else:
        assert row["state"] == "frozen" and f"kill -CONT {pids[what]}" in row["problem"]
        assert [event["event"] for event in events] == ["frozen"]
        assert any(step.startswith("start environment a") and "it is frozen" in step for step in planned), planned
        with pytest.raises(NetspaceError, match="environment a is frozen"):
            host.operations.wait(["a"], timeout=0.2)
    assert process.frozen(pids[what]), "a test changes nothing"
    mends(declared)
    host.operations.wait(["a"])
    assert host.environments.list()["a"] | {"since": 0.0} == before["a"] | {"since": 0.0}


# -- programs that fail or hang --------------------------------------------------------
@contextlib.contextmanager
def instead_of(program: str, script: str, folder: Path) -> Iterator[None]:
    """Replace *program* by a script, which may run the original as ``$REAL``."""
    place = Path(shutil.which(program) or "")
    real, other = folder / f"real-{program}", folder / f"other-{program}"
    shutil.copy(place, real)
    other.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    other.chmod(0o755)
    mounts.mount(other, place, "none", mounts.BIND)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_refused_packet_filter_leaves_interfaces_shut_and_says_why(world: World) -> None:
    declared = world.declared()
    # A table belongs to the program that made it so, and goes with it.
    owner = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    try:
        owner.stdin.write(f"add table inet {LAYOUT.nft_table} {{ flags owner; }}\nlist tables\n")
        owner.stdin.flush()
        while f"table inet {LAYOUT.nft_table}" not in owner.stdout.readline():
            pass
        errors = converge(declared)
    finally:
        owner.communicate("quit\n")
    assert any("another program owns a table of that name" in error for error in errors), errors
    assert Host(LAYOUT).interfaces.list()["a"]["state"] == "missing", "no link without its filter"
    mends(declared)


@pytest.mark.parametrize("call", ["run", "delete"])
def test_a_runtime_that_hangs_is_given_up_with_a_clear_error(
    world: World, call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declared = world.declared()
    hangs = f'for word; do [ "$word" = {call} ] && exec sleep 1001; done; exec $REAL "$@"'
    # Only what hangs meets the impatience: whatever must succeed has the time that a busy machine needs.
    with monkeypatch.context() as impatient:
        if call == "run":
            impatient.setattr(start, "START_TIMEOUT", 1.0)
        else:
            impatient.setattr(ending, "HELPER_TIMEOUT", 0.5)
            impatient.setattr(oci_runtime, "PATIENCE", 0.5)
        with impatient_supervisor():
            with instead_of("crun", hangs, tmp_path):
                errors = converge(declared)
                if call == "run":
                    assert errors
                    for error in errors:
                        assert "the start took more than 1 s" in error or "ended right after" in error, error
                else:
                    assert errors == []
                    for folder in oci_runtime.state(LAYOUT, "crun").iterdir():
                        (folder / "unusual").touch()  # what is plain is forgotten without crun
                    errors = apply(faults_host.teardown)
                    assert errors
                    for error in errors:
                        assert "crun did not delete netspace-" in error, error
            until(lambda: not any("sleep 1001" in line for line in snapshot.processes().values()))
    # On a busy machine it was killed so often that it is told of until the supervisor has started it again.
    until(lambda: converge(declared) == [], "it does not run", patience=60)
    mends(declared)
    assert apply(faults_host.teardown) == []


@contextlib.contextmanager
def impatient_supervisor() -> Iterator[None]:
    """A supervisor that runs in a fork of this process, so with the test's shorter waiting times."""
    LAYOUT.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    LAYOUT.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    library_copy.install(LAYOUT)
    pid = os.fork()
    if not pid:
        try:
            log = os.open(LAYOUT.logs / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 2)
            os.setsid()
            daemon.main(LAYOUT, library_copy.installed(LAYOUT), foreground=True)
        finally:
            os._exit(0)
    try:
        until(lambda: place.running(LAYOUT))
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# -- two at once, and being told to stop ---------------------------------------------------
def test_two_applies_at_once_wait_for_each_other(world: World) -> None:
    declared, other = world.declared(), world.declared()
    other["environments"]["a"]["env"] = {"TURN": "2"}
    outcomes: list[list[str]] = []
    script = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); from support.hosts import faults_host; "
        "print(json.dumps(faults_host.converge(json.loads(sys.argv[2]))))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(sys.path), json.dumps(one)], stdout=subprocess.PIPE, text=True
        )
        for one in (declared, other, declared, other)
    ]
    for run in runs:
        output, _ = run.communicate(timeout=120)
        outcomes.append(json.loads(output)["errors"])
    assert outcomes == [[], [], [], []]
    mends(declared)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_apply_that_is_told_to_stop_stops_and_the_next_goes_on(world: World, number: signal.Signals) -> None:
    declared = world.declared()
    # It is told to stop while it waits for a program that it started.
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
            Ruleset.load = lambda *_, **__: subprocess.run(["sleep", "1002"]).returncode  # type: ignore[method-assign]
            os.write(write, b"x")
            faults_host.converge(declared)
        except KeyboardInterrupt:
            os._exit(3)
        finally:
            os._exit(1)
    assert os.read(read, 1) == b"x"
    until(lambda: any("sleep 1002" in line for line in snapshot.processes().values()))
    os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    assert os.waitstatus_to_exitcode(status) == (3 if number == signal.SIGINT else -number)

    def left() -> list[int]:
        return [pid for pid, line in snapshot.processes().items() if line.startswith("sleep 1002")]

    # SIGTERM ends the apply alone, and SIGINT may come before it knows what it started: that goes on to its own end.
    for one in left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    until(lambda: not left())
    mends(declared)


# -- many at once, and names at their limits --------------------------------------------------
def test_two_hundred_environments_at_once(world: World) -> None:
    declared = world.declared()
    spec = {"image": f"dir:{world.image}", "command": ["/bin/sleep", "1000"], "stop_timeout": 0.1, "read_only": True}
    names = [f"n{number}" for number in range(199)] + ["x" * 48]
    declared["environments"] = {name: {**spec, "interface": {"kind": "veth"}} for name in names}
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def watch() -> None:
        """Record the threads and descriptors of each Python process, repeatedly."""
        while not done.wait(0.02):
            for entry in os.listdir("/proc"):
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{entry}/cmdline").read_bytes() if entry.isdigit() else b""
                    if b"python" in command:
                        seen.append((len(os.listdir(f"/proc/{entry}/task")), len(os.listdir(f"/proc/{entry}/fd"))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert converge(declared) == []
        supervisor = daemon_pid(LAYOUT)
        states = {name: entry["state"] for name, entry in Host(LAYOUT).environments.list().items()}
        assert states == dict.fromkeys(names, "running")
        descriptors = len(os.listdir(f"/proc/{supervisor}/fd"))
        assert len(os.listdir(f"/proc/{supervisor}/task")) == 1
        planned = faultpoints.run(lambda: faults_host.converge(declared, test=True), traced=False)
        assert planned.value == {"steps": [], "errors": []}
        assert apply(faults_host.teardown) == []
    finally:
        done.set()
        watcher.join()
    assert descriptors < 3 * len(names) + 20, (
        "a process, a pipe and a notice of memory for each program, and few besides"
    )
    assert max(threads for threads, _ in seen) <= 16
    assert max(count for _, count in seen) < 3 * len(names) + 100


# fmt: off
HOSTILE = (
    "../x", "..", ".", "a/b", "/etc/passwd", "-rf", "--help", " a", "a ", "a b", "a\tb", "a\nb", "a\0b", "a.b", "a:b",
    "\u00e4", "\u202ea", "\u0430", "A", "CON ", "a;b", "$(id)", "`id`", "a'b", 'a"b', "a*", "a?", "%s", "{a}", "~", "",
    "@a", "x" * 49, "x" * 5000, True, False, None, 1, 1.0, ("a",), b"a", "-a", "a-", "_a", "a_",
)
# fmt: on
LIMIT = ["x" * 48, "0", "con", "on", "null", "nul", "a-b_c", "1-0", "none", "hosts", "broker", "lib", "environments"]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_hostile_name_is_refused_with_its_path_before_anything_changes(name: object) -> None:
    spec = {"image": "dir:/srv/x", "command": ["/bin/true"]}
    for section in (
        {"environments": {name: spec}},
        {"environments": {"a": spec}, "links": [{"from": "a", "to": name}]},
        {"environments": {"a": spec}, "links": [{"from": name, "to": "a"}]},
    ):
        with pytest.raises(SpecError) as refused:
            parse.declaration(section)  # type: ignore[arg-type]
        for problem in refused.value.problems:
            assert problem.path.startswith("netspace:"), problem
            assert len(str(problem)) < 1000, "a long name is not repeated at its length"
            assert problem.message


def test_the_longest_and_the_oddest_names_are_names_like_any_other(world: World) -> None:
    declared = world.declared()
    spec = {"image": f"dir:{world.image}", "command": shell("exec sleep 1000"), "stop_timeout": 0.1}
    declared["environments"] = {name: {**spec, "interface": {"kind": "veth"}} for name in LIMIT}
    mends(declared)
    assert {entry["state"] for entry in Host(LAYOUT).environments.list().values()} == {"running"}
