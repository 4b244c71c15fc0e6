"""netspace's own supervisor with real processes and real crun: starts, restarts, adoption, stops and removal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.environments.supervised import daemon_pid, kill_daemon, reap, shell, standing_pid
from support.waiting import until

from netspace import library_copy
from netspace.layout import Layout
from netspace.plugin import urgent
from netspace.supervision import definitions, process, select
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.daemon import container_state, logs, presence, relay, spawn
from netspace.supervision.daemon.client import DaemonSupervisor
from netspace.supervision.daemon.daemon import PRECIOUS
from netspace.supervision.service import Service

pytestmark = pytest.mark.root

Bundle = Callable[..., Service]
CAP_SYS_RESOURCE = 24
STAY = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


def processes() -> set[int]:
    reap()
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}


def zombies_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if (there := process.stat(int(child))) and there.state == "Z"]


def test_without_systemd_select_gives_our_own(layout: Layout) -> None:
    assert isinstance(select(layout), DaemonSupervisor)


def test_define_starts_nothing_and_writes_once(direct: DaemonSupervisor, layout: Layout) -> None:
    service = shell("a", STAY)
    assert direct.define([service])
    assert not direct.define([service])
    assert direct.observe()["a"].state == "stopped"
    assert not presence.running(layout)
    assert (definitions.folder(layout) / "a.json").stat().st_mode & 0o777 == 0o600
    assert definitions.read(layout, "a") == service


def test_start_stop_start(direct: DaemonSupervisor, layout: Layout, tmp_path: Path) -> None:
    up = tmp_path / "up"
    direct.define([shell("a", STAY.replace("while", f"echo >{up}; while", 1)), shell("b", STAY)])
    assert direct.start(["a", "b"]) == {}
    until(up.exists)  # before that, SIGTERM is its end
    seen = direct.observe()
    assert seen["a"].state == seen["b"].state == "running"
    assert process.alive(seen["a"].pid, process.stat(seen["a"].pid).ticks)
    assert direct.start(["a", "b"]) == {}
    assert direct.observe()["a"] == seen["a"], "starting what runs changes nothing"
    assert direct.stop(["a"]) == {}
    assert direct.observe()["a"].state == "stopped"
    assert direct.observe()["a"].exit == "exit 0"
    assert not process.stat(seen["a"].pid)
    assert direct.observe()["b"] == seen["b"]
    assert direct.start(["a"]) == {}
    assert direct.observe()["a"].state == "running"
    until(lambda: zombies_of(daemon_pid(layout)) == [])


def test_what_is_about_to_end_is_started_again(direct: DaemonSupervisor, tmp_path: Path) -> None:
    """A service is started right after its program was killed: it runs again, though its end wasn't noticed yet."""
    full = tmp_path / "full"
    hold = f"x = bytearray(1 << 28); open({str(full)!r}, 'w'); import time; time.sleep(1000)"
    direct.define([Service("a", (sys.executable, "-c", hold), restart="never")])
    assert direct.start(["a"]) == {}
    until(full.exists)
    former = direct.observe()["a"].pid
    os.kill(former, signal.SIGKILL)  # to give its memory back takes a while
    assert direct.start(["a"]) == {}
    seen = direct.observe()["a"]
    assert (seen.state, seen.restarts, seen.exit) == ("running", 0, "")
    assert seen.pid != former


def test_removal_of_several_includes_one_that_waits(direct: DaemonSupervisor, layout: Layout) -> None:
    """Three services are removed at once, one of which waits for its restart; all of them are gone afterwards."""
    direct.define([Service("a", ("/no/such/program",)), shell("b", STAY), shell("c", STAY)])
    assert set(direct.start(["a", "b", "c"])) == {"a"}
    assert direct.observe()["a"].state == "starting"
    assert direct.remove(["a", "b", "c"]) == {}
    assert definitions.defined(layout) == []
    assert definitions.traced(layout) == []


def test_unknown_services_are_errors(direct: DaemonSupervisor, layout: Layout) -> None:
    for call in (direct.start, direct.stop, direct.reload):
        assert "not defined" in call(["nothing"])["nothing"]
    assert direct.remove(["nothing"]) == {}
    assert not presence.running(layout)


def test_a_program_that_can_not_run_is_an_error_with_its_reason(direct: DaemonSupervisor) -> None:
    direct.define(
        [
            Service("a", ("/no/such/program",), restart="never"),
            shell("b", STAY, user="nobody-of-that-name", restart="never"),
            shell("c", STAY, working_dir="/no/such/folder", restart="never"),
        ]
    )
    errors = direct.start(["a", "b", "c"])
    assert "/no/such/program: No such file" in errors["a"]
    assert "nobody-of-that-name" in errors["b"]
    assert "/no/such/folder" in errors["c"]
    assert {status.state for status in direct.observe().values()} == {"failed"}


def test_it_is_restarted_after_a_crash_and_after_longer_and_longer_waits(
    direct: DaemonSupervisor, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    direct.define([shell("a", f"echo >>{starts}; exit 3")])
    assert direct.start(["a"]) == {}
    until(lambda: direct.observe()["a"].restarts >= 3)
    status = direct.observe()["a"]
    assert status.exit == "exit 3"
    assert len(starts.read_text()) >= 3
    assert direct.stop(["a"]) == {}
    assert direct.observe()["a"].state == "stopped"
    reached = starts.read_text()
    assert direct.start(["a"]) == {}
    until(lambda: len(starts.read_text()) > len(reached))
    assert direct.observe()["a"].restarts <= status.restarts


@pytest.mark.parametrize(
    ("policy", "script", "state", "end"),
    [
        ("on-failure", "exit 0", "stopped", "exit 0"),
        ("never", "exit 4", "failed", "exit 4"),
        ("never", "kill -9 $$", "failed", "signal 9"),
    ],
)
def test_policies(direct: DaemonSupervisor, policy: str, script: str, state: str, end: str) -> None:
    direct.define([shell("a", script, restart=policy)])
    direct.start(["a"])
    until(lambda: direct.observe()["a"].state == state)
    assert direct.observe()["a"].exit == end
    assert direct.observe()["a"].restarts == 0


def test_what_ignores_sigterm_is_killed_with_all_it_started(direct: DaemonSupervisor, tmp_path: Path) -> None:
    before = processes()
    script = f"trap '' TERM; setsid sleep 1000 & sleep 1001 & echo >{tmp_path}/up; while :; do sleep 0.05; done"
    direct.define([shell("a", script, stop_timeout=0.2)])
    direct.start(["a"])
    until((tmp_path / "up").exists)
    assert direct.stop(["a"]) == {}
    assert direct.observe()["a"].exit == "signal 9"
    until(lambda: processes() - before <= {daemon_pid(direct.layout), standing_pid(direct.layout)})


def test_what_a_crashed_program_left_is_gone_before_the_next(direct: DaemonSupervisor, tmp_path: Path) -> None:
    script = f"setsid sleep 1000 & echo $! >>{tmp_path}/left; exit 1"
    direct.define([shell("a", script)])
    direct.start(["a"])
    until(lambda: direct.observe()["a"].restarts >= 2)
    left = [int(word) for word in (tmp_path / "left").read_text().split()]
    assert process.stat(left[0]) is None


def test_it_starts_programs_however_many_descriptors_it_has(layout: Layout, tmp_path: Path) -> None:
    layout.logs.mkdir(parents=True, exist_ok=True)
    service = shell("a", f"ulimit -Sn > {tmp_path}/limit")._replace(log=tmp_path / "log")
    held = [os.open("/", os.O_PATH | os.O_CLOEXEC) for _ in range(spawn.DESCRIPTORS + 10)]
    try:
        pid, report = spawn.fork(layout, "a", service, service.command, None)
        with os.fdopen(report) as said:
            assert said.read() == ""
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert (tmp_path / "limit").read_text() == f"{spawn.DESCRIPTORS}\n"


def test_variables_folder_user_and_output(
    direct: DaemonSupervisor, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAK", "yes")
    script = "id -un; pwd; umask; grep NoNewPrivs /proc/self/status; ls -l /proc/self/fd; exec env"
    direct.define([shell("a", script, variables={"PATH": "/bin"}, user="nobody", working_dir="/tmp", restart="never")])
    direct.start(["a"])
    until(lambda: direct.observe()["a"].state == "stopped")
    log = layout.logs / "a.log"
    text = log.read_text()
    assert text.startswith("nobody\n/tmp\n0077\nNoNewPrivs:\t1\n")
    assert "LEAK" not in text
    assert "lock" not in text and "socket" not in text
    assert log.stat().st_mode & 0o777 == 0o600


def test_after_another(direct: DaemonSupervisor, layout: Layout, tmp_path: Path) -> None:
    trail = tmp_path / "trail"
    direct.define(
        [
            shell("a", f"echo a >>{trail}; {STAY}", after=("b", "undefined")),
            shell("b", f"echo b >>{trail}; {STAY}", after=("c",)),
            shell("c", f"echo c >>{trail}; {STAY}"),
        ]
    )
    assert direct.start(["a"]) == {}
    until(lambda: trail.exists() and len(trail.read_text()) == 6)
    assert {status.state for status in direct.observe().values()} == {"running"}
    started = [
        line.split()[1] for line in (layout.logs / "supervisor.log").read_text().splitlines() if "started" in line
    ]
    assert started[-3:] == ["c:", "b:", "a:"]


def test_a_circle_starts_all_the_same(direct: DaemonSupervisor) -> None:
    direct.define([shell("a", STAY, after=("b",)), shell("b", STAY, after=("a",))])
    assert direct.start(["a", "b"]) == {}
    assert {status.state for status in direct.observe().values()} == {"running"}


def test_reload(direct: DaemonSupervisor, tmp_path: Path) -> None:
    up, hup = tmp_path / "up", ("/bin/kill", "-HUP", "{pid}")
    direct.define(
        [
            shell("a", f"trap 'echo >{up}2' HUP; echo >{up}; while :; do sleep 0.05; done", reload=hup, stop_timeout=1),
            shell("b", STAY),
            shell("c", STAY, reload=("/bin/sh", "-c", "echo no such setting; exit 1")),
        ]
    )
    direct.start(["a", "b", "c"])
    until(up.exists)
    errors = direct.reload(["a", "b", "c"])
    until((tmp_path / "up2").exists)
    assert set(errors) == {"b", "c"}
    assert "no such setting" in errors["c"]


def test_detached_crun(direct: DaemonSupervisor, layout: Layout, bundle: Bundle) -> None:
    direct.define([bundle("a", f"echo hello; {STAY.replace('sleep', 'busybox sleep')}"), bundle("b", "exit 7")])
    assert direct.start(["a"]) == {}
    status = direct.observe()["a"]
    assert status.state == "running"
    # A helper of crun's may live a moment longer than crun.
    until(lambda: process.stat(status.pid).ppid == daemon_pid(layout), "no process of ours stands between")
    until(lambda: "hello" in (layout.logs / "a.log").read_text())
    os.kill(status.pid, 9)
    until(lambda: direct.observe()["a"].restarts == 1 and direct.observe()["a"].state == "running")
    assert direct.observe()["a"].exit == "signal 9"
    direct.start(["b"])
    until(lambda: direct.observe()["b"].restarts >= 2)
    assert direct.observe()["b"].exit == "exit 7", "also of one that ends at once the exit is known"
    assert direct.stop(["a", "b"]) == {}
    listed = subprocess.run(["crun", "list", "--format", "json"], capture_output=True, text=True, check=True)
    assert json.loads(listed.stdout or "null") in (None, [])
    until(lambda: zombies_of(daemon_pid(layout)) == [])


def test_crun_is_started_for_an_end_only_where_it_is_unusual(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle, tmp_path: Path
) -> None:
    called, program = tmp_path / "called", tmp_path / "crun"
    program.write_text(f'#!/bin/sh\ntouch {called}\nexec /usr/bin/crun "$@"\n')
    program.chmod(0o755)
    cleanup = ((str(program), "--root", "/run/crun", "delete", "--force", "a"),)
    service = bundle("a", STAY.replace("sleep", "busybox sleep"))._replace(cleanup=cleanup)
    direct.define([service])
    state = Path("/run/crun/a")
    for unusual in (False, True):
        assert direct.start(["a"]) == {}
        assert state.is_dir()
        if unusual:
            (state / "another").touch()
        assert direct.stop(["a"]) == {}
        assert direct.observe()["a"].state == "stopped"
        assert not state.exists()
        assert list(Path("/sys/fs/cgroup").glob(f"**{payload_cgroup(layout, 'a')}")) == []
        assert called.exists() is unusual


def test_killed_between_any_two_steps_of_forgetting_crun_deletes_the_rest(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct.define([bundle("a", "true", restart="never")._replace(cleanup=())])
    argv = ("/usr/bin/crun", "--root", "/run/crun", "delete", "--force", "a")
    cgroup = payload_cgroup(layout, "a")

    class Killed(BaseException):
        pass

    def bounded(call: Callable[[str], None], left: list[None]) -> Callable[[str], None]:
        def act(path: str) -> None:
            if not left:
                raise Killed
            call(path)
            left.pop()

        return act

    steps = 0
    forgotten = False
    while not forgotten:
        assert direct.start(["a"]) == {}
        until(lambda: direct.observe()["a"].state == "stopped")
        left = [None] * steps
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(os, "rmdir", bounded(os.rmdir, left))
            patched.setattr(os, "unlink", bounded(os.unlink, left))
            forgotten = container_state.forget(argv, cgroup)
        subprocess.run(argv, check=True)
        assert not Path("/run/crun/a").exists()
        assert list(Path("/sys/fs/cgroup").glob(f"**{cgroup}")) == []
        steps += 1
    assert steps > 3, "at least a control group, a file and the folder"


def test_many_detached_at_once(direct: DaemonSupervisor, layout: Layout, bundle: Bundle) -> None:
    names = [f"x{number}" for number in range(24)]
    script = STAY.replace("sleep", "busybox sleep").replace("while", "echo trapped; while", 1)
    direct.define([bundle(name, script) for name in names])

    def trapped() -> list[int]:
        return [(layout.logs / f"{name}.log").read_text().count("trapped") for name in names]

    for turn in (1, 2):
        assert direct.start(names) == {}
        seen = direct.observe()
        assert {(status.state, status.restarts, status.exit) for status in seen.values()} == {("running", 0, "")}
        assert len({status.pid for status in seen.values()}) == len(names)
        until(lambda turn=turn: set(trapped()) == {turn})  # before that, process 1 doesn't hear SIGTERM
        assert direct.stop(names) == {}
        assert {status.exit for status in direct.observe().values()} == {"exit 0"}


def test_the_hosts_null_device_is_not_handed_to_a_runtime(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle
) -> None:
    look = "for fd in 0 1 2; do busybox readlink /proc/self/fd/$fd; done; busybox cat; echo end"
    direct.define([bundle("a", look, restart="never")])
    assert direct.start(["a"]) == {}
    until(lambda: direct.observe()["a"].state == "stopped")
    streams = (layout.logs / "a.log").read_text().splitlines()
    assert streams[0].startswith("pipe:")
    assert "null" not in "".join(streams)
    assert streams[-1] == "end", "and reading it ends at once"


def test_a_detached_start_that_fails_tells_why(direct: DaemonSupervisor, bundle: Bundle, tmp_path: Path) -> None:
    service = bundle("a", STAY, restart="never")
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"/bin/sh", "-c"', '"/bin/nothing", "-c"'))
    direct.define([service])
    assert "/bin/nothing" in direct.start(["a"])["a"]
    assert direct.observe()["a"].state == "failed"


def test_services_outlive_the_daemon_and_are_adopted(direct: DaemonSupervisor, layout: Layout, bundle: Bundle) -> None:
    direct.define([shell("a", STAY), bundle("b", STAY.replace("sleep", "busybox sleep")), shell("c", STAY)])
    assert direct.start(["a", "b", "c"]) == {}
    seen = direct.observe()
    kill_daemon(layout)
    assert direct.observe() == seen, "they still run, and that can be seen without a daemon"
    os.kill(seen["c"].pid, 9)
    until(lambda: direct.observe()["c"].state == "failed")
    direct.resume()
    until(lambda: (direct.observe()["c"].state, direct.observe()["c"].exit) == ("running", "unknown"))
    after = direct.observe()
    assert (after["a"].pid, after["b"].pid) == (seen["a"].pid, seen["b"].pid), "adopted, no second copy"
    for name in ("a", "b"):
        os.kill(seen[name].pid, 9)
    until(lambda: all(status.restarts == 1 and status.state == "running" for status in direct.observe().values()))
    assert direct.stop(["a", "b", "c"]) == {}


def test_programs_are_not_as_urgent_as_who_starts_them(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY)])
    with urgent.urgent():
        assert os.getpriority(os.PRIO_PROCESS, 0) == urgent.NICE
        direct.start(["a"])
    for pid in (daemon_pid(layout), direct.observe()["a"].pid):
        assert os.getpriority(os.PRIO_PROCESS, pid) == 0


def test_a_killed_daemon_is_replaced_at_once_by_who_stands_by(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY)])
    direct.start(["a"])
    seen = direct.observe()
    for _ in range(2):  # the next one, too, has somebody stand by
        pid = daemon_pid(layout)
        until(lambda: standing_pid(layout))
        heir = standing_pid(layout)
        os.kill(pid, signal.SIGKILL)
        until(lambda heir=heir: daemon_pid(layout) == presence.holder(layout) == heir)
    assert direct.observe() == seen, "adopted, and nothing else"
    os.kill(seen["a"].pid, 9)
    until(lambda: direct.observe()["a"].restarts == 1 and direct.observe()["a"].state == "running")
    # Who stands by is replaced as well, and ends with the daemon.
    until(lambda: standing_pid(layout))
    heir = standing_pid(layout)
    os.kill(heir, signal.SIGKILL)
    until(lambda: standing_pid(layout) not in (0, heir))
    heir = standing_pid(layout)
    os.kill(daemon_pid(layout), signal.SIGTERM)
    until(lambda: not presence.running(layout))
    assert not process.alive(heir, process.stat(heir).ticks if process.stat(heir) else 0)


def test_where_nobody_supervises_that_is_known_and_mended_without_starting_anything_else(
    direct: DaemonSupervisor, layout: Layout
) -> None:
    assert direct.attended(), "there is nothing to watch over"
    direct.define([shell("a", STAY), shell("b", STAY), shell("done", "exit 0", restart="never")])
    direct.start(["a", "done"])
    until(lambda: direct.observe()["done"].state == "stopped")
    assert direct.attended()
    kill_daemon(layout)
    assert not direct.attended()
    seen = direct.observe()
    direct.attend()
    assert direct.attended()
    assert direct.observe() == seen
    kill_daemon(layout)
    os.kill(seen["a"].pid, 9)
    until(lambda: direct.observe()["a"].state == "failed")
    assert not direct.attended(), "it would be started again"
    direct.attend()
    until(lambda: direct.observe()["a"].pid not in (0, seen["a"].pid))
    direct.stop(["a"])
    kill_daemon(layout)
    assert direct.attended(), "whatever there was has ended"


def test_the_daemon_is_not_the_first_to_be_killed_for_want_of_memory_and_programs_don_t_inherit_that(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle
) -> None:
    direct.define([shell("a", STAY), bundle("b", STAY.replace("sleep", "busybox sleep"))])
    direct.start(["a"])
    kill_daemon(layout)
    # Started by one that is a first choice itself. Not everybody may go below what it was given.
    command = f"echo 500 >/proc/self/oom_score_adj && exec {shlex.join(library_copy.command(layout, 'supervise'))}"
    subprocess.run(["/bin/sh", "-c", command], check=True)
    until(lambda: standing_pid(layout))

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    capable = int(re.search(r"CapEff:\s*(\S+)", Path("/proc/self/status").read_text())[1], 16) >> CAP_SYS_RESOURCE & 1
    wanted = PRECIOUS if capable else 0
    assert (score(daemon_pid(layout)), score(standing_pid(layout))) == (wanted, wanted)
    # Whatever the supervisor's is, what it starts has the usual one.
    Path(f"/proc/{daemon_pid(layout)}/oom_score_adj").write_text("700")
    direct.start(["b"])
    os.kill(direct.observe()["a"].pid, 9)
    until(lambda: direct.observe()["a"].restarts == 1 and direct.observe()["a"].state == "running")
    assert [score(status.pid) for status in direct.observe().values()] == [0, 0]


def test_daemon_is_found_without_reading_all_locks(direct: DaemonSupervisor, layout: Layout) -> None:
    # With 60,000 locks held by an environment, the kernel took two seconds to list them.
    direct.define([shell("a", STAY)])
    direct.start(["a"])
    pid = daemon_pid(layout)
    subprocess.run(["mount", "--bind", "/dev/null", "/proc/locks"], check=True)
    try:
        assert presence.holder(layout) == pid
        os.kill(pid, signal.SIGSTOP)
        until(lambda: not direct.attended())
        assert direct.stop(["a"]) == {}
    finally:
        subprocess.run(["umount", "/proc/locks"], check=True)


def test_an_init_of_the_operators_needs_nobody_to_stand_by(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY)])
    command = library_copy.command(layout, "supervise", "--foreground")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as own:
        until(lambda: presence.running(layout))
        assert direct.start(["a"]) == {}
        assert daemon_pid(layout) == presence.holder(layout) == own.pid
        assert standing_pid(layout) == 0
        assert direct.stop(["a"]) == {}
        own.terminate()
    assert own.returncode == 0


def test_a_pid_that_became_another_process_is_not_ours(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY, restart="never")])
    direct.start(["a"])
    kill_daemon(layout)
    trace = definitions.read_trace(layout, "a")
    assert trace is not None
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        there = process.stat(stranger.pid)
        definitions.write_trace(
            layout,
            "a",
            definitions.Trace("running", stranger.pid, trace.ticks - 1, 0.0, 0, "", trace.service),
        )
        assert direct.observe()["a"].state == "failed"
        assert direct.stop(["a"]) == {}
        assert process.alive(stranger.pid, there.ticks)
        stranger.kill()
    # Its mark still found the program.
    until(lambda: (there := process.stat(trace.pid)) is None or there.state == "Z")


def test_sigkill_of_the_daemon_while_it_starts_loses_and_doubles_nothing(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle
) -> None:
    names = [f"x{number}" for number in range(12)]
    direct.define(
        [shell(name, STAY) for name in names[:6]]
        + [bundle(name, STAY.replace("sleep", "busybox sleep")) for name in names[6:]]
    )
    for round_ in range(4):
        definitions.desire(layout, add=names)
        direct._launch()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(presence.socket_path(layout)))
        connection.sendall(json.dumps({"do": "start", "names": names}).encode())
        connection.shutdown(socket.SHUT_WR)
        until(lambda least=round_ * 3: len(definitions.traced(layout)) > least)
        kill_daemon(layout)
        connection.close()
        assert direct.start(names) == {}
        seen = direct.observe()
        assert {status.state for status in seen.values()} == {"running"}
        mains = {status.pid for status in seen.values()}
        assert len(mains) == len(names)
        marked = process.left_over([f"netspace/{name}" for name in names[:6]], []).found
        tops = {pid for pid in marked if (there := process.stat(pid)) and there.ppid not in marked}
        assert tops == {seen[name].pid for name in names[:6]}
        listed = json.loads(subprocess.run(["crun", "list", "-f", "json"], capture_output=True, check=True).stdout)
        assert {entry["pid"] for entry in listed} == {seen[name].pid for name in names[6:]}
        assert direct.stop(names) == {}
        for name in names:
            definitions.remove_trace(layout, name)


def test_after_a_reboot_resume_starts_what_shall_run(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY, after=("b",)), shell("b", STAY), shell("c", STAY)])
    direct.start(["a", "c"])
    direct.stop(["c"])
    kill_daemon(layout)
    for name in ("a", "b"):  # what a reboot does: no process, no /run
        os.kill(direct.observe()[name].pid, 9)
    reap()
    for entry in layout.run.rglob("*"):
        if not entry.is_dir():
            entry.unlink()
    assert {status.state for status in direct.observe().values()} == {"stopped"}
    direct.resume()
    until(lambda: direct.observe()["a"].state == "running")
    assert direct.observe()["b"].state == "running"
    assert direct.observe()["c"].state == "stopped"
    daemon_before = daemon_pid(layout)
    direct.resume()
    assert daemon_pid(layout) == daemon_before


def test_restore_by_the_copy_alone(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY), shell("b", STAY)])
    definitions.desire(layout, add=["a"])
    command = library_copy.command(layout, "restore")
    done = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: direct.observe()["a"].state == "running")
    assert direct.observe()["b"].state == "stopped"
    again = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/")
    assert (again.returncode, again.stderr) == (0, "")


def test_removal_leaves_nothing_and_ends_the_daemon(direct: DaemonSupervisor, layout: Layout, bundle: Bundle) -> None:
    before = processes()
    direct.define([shell("a", STAY), bundle("b", STAY.replace("sleep", "busybox sleep"))])
    direct.start(["a", "b"])
    assert direct.remove(["a", "b"]) == {}
    assert direct.observe() == {}
    assert direct.remove(["a", "b"]) == {}
    until(lambda: not presence.running(layout), "the daemon ends by itself")
    assert [path for path in layout.run.rglob("*") if path.name not in ("supervisor.lock", "pids")] == []
    assert [path.name for path in definitions.folder(layout).iterdir()] == [".lock"]
    assert [path.name for path in layout.logs.iterdir()] == ["supervisor.log"]
    assert list(Path("/sys/fs/cgroup").glob("*/netspace")) == []
    until(lambda: processes() - before == set())


def test_logs_are_rotated_under_the_running_program(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", f"head -c {logs.SIZE * 4} /dev/zero; echo; echo end of the first; {STAY}")])
    direct.start(["a"])
    log = layout.logs / "a.log"
    until(lambda: Path(f"{log}.1").exists())
    until(lambda: logs.size(log) < logs.SIZE)
    assert logs.size(Path(f"{log}.1")) <= 2 * logs.SIZE
    direct.stop(["a"])


def test_a_detached_program_s_log_is_root_s_and_its_output_a_pipe(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle
) -> None:
    """A detached program's output is a pipe, and its log belongs to root, so that it can't fill the host's disk."""
    direct.define([bundle("a", f"echo hello; {STAY.replace('sleep', 'busybox sleep')}")])
    direct.start(["a"])
    log, pid = layout.logs / "a.log", direct.observe()["a"].pid
    until(lambda: "hello" in log.read_text())
    for number in (1, 2):
        assert stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/{number}").st_mode)
    assert relay.folder(layout).stat().st_mode & 0o777 == 0o700
    (made,) = relay.folder(layout).iterdir()
    assert made.stat().st_mode & 0o777 == 0o622, "the program, who isn't root, may open /dev/stdout"
    assert (log.stat().st_uid, log.stat().st_mode & 0o777) == (0, 0o600)
    assert direct.stop(["a"]) == {}
    assert list(relay.folder(layout).iterdir()) == []


def test_output_goes_on_where_the_daemon_is_killed(direct: DaemonSupervisor, layout: Layout, bundle: Bundle) -> None:
    count = "i=0; while :; do i=$((i+1)); echo line $i; busybox usleep 2000; done"
    direct.define([bundle("a", count)])
    direct.start(["a"])
    log, pid = layout.logs / "a.log", direct.observe()["a"].pid

    def lines() -> list[str]:
        return log.read_text().split("\n")[:-1]

    for _ in range(3):
        seen = len(lines())
        os.kill(daemon_pid(layout), 9)
        until(lambda: presence.running(layout))
        until(lambda seen=seen: len(lines()) > seen + 100)  # type: ignore[misc]
    assert direct.observe()["a"].pid == pid
    assert direct.stop(["a"]) == {}
    numbers = [int(line.removeprefix("line ")) for line in lines()]
    assert numbers == sorted(set(numbers))
    # What it had just read, and not yet written, is lost with it.
    assert numbers[-1] - len(numbers) < 10


def test_who_writes_without_end_fills_no_disk_and_holds_up_nobody(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle
) -> None:
    direct.define([bundle("a", "busybox yes a long line of nothing that anybody wants to read"), shell("b", STAY)])
    direct.start(["a", "b"])
    log = layout.logs / "a.log"
    until(lambda: Path(f"{log}.{logs.OLD}").exists())
    for _ in range(5):
        kept = sum(path.stat().st_blocks * 512 for path in layout.logs.glob("a.log*"))
        assert kept <= (logs.OLD + 2) * (logs.SIZE + relay.CHUNK)
        began = time.monotonic()
        assert direct.stop(["b"]) == direct.start(["b"]) == {}
        assert time.monotonic() - began < 10
    assert direct.stop(["a"]) == {}


def test_who_writes_little_without_end_takes_no_processor_of_the_supervisor_s(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle
) -> None:
    direct.define([bundle("a", "while :; do echo x; done")])
    direct.start(["a"])

    def used() -> float:
        words = Path(f"/proc/{daemon_pid(layout)}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")

    began, before = time.monotonic(), used()
    time.sleep(3)  # the time in which it could
    assert used() - before < 0.3 * (time.monotonic() - began)
    assert direct.stop(["a"]) == {}


def test_only_root_is_listened_to_and_only_requests(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY)])
    direct.start(["a"])
    path = presence.socket_path(layout)
    assert path.stat().st_mode & 0o777 == 0o600
    for raw in (b"", b"{", b'{"do": "start", "names": ["../x"]}', b'{"do": "exec", "names": []}', b"[" * 100_000):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(10) == b""
    path.chmod(0o666)
    layout.run.chmod(0o755)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        'try: s.sendall(b\'{"do": "stop", "names": ["a"]}\'); s.shutdown(1); print(s.recv(100))\n'
        "except (BrokenPipeError, ConnectionResetError): print(b'')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b''\n", ""), "it is hung up on"
    assert direct.observe()["a"].state == "running"


def test_a_new_library_is_loaded_without_touching_what_runs(direct: DaemonSupervisor, layout: Layout) -> None:
    direct.define([shell("a", STAY)])
    direct.start(["a"])
    pid, main = daemon_pid(layout), direct.observe()["a"].pid
    version = library_copy.installed(layout)
    new = layout.library / "newer"
    subprocess.run(["cp", "-r", layout.library / version, new], check=True)
    (layout.library / "current").unlink()
    (layout.library / "current").symlink_to("newer")
    assert direct.reload(["a"]) != {}  # any request will do
    assert direct.observe()["a"].pid == main
    assert daemon_pid(layout) == pid, "the same process"
    os.kill(main, 9)
    until(lambda: direct.observe()["a"].restarts == 1)
    assert direct.observe()["a"].exit == "signal 9", "and its children are still its own"
