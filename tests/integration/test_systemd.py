"""Units under a real systemd as PID 1: started, restarted, stopped, booted again, removed without a trace.

The library runs inside the machine, with the interpreter of the library's copy, as Salt would run it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.systemd_host import SystemdHost
from support.waiting import until

pytestmark = [pytest.mark.systemd, pytest.mark.root]

LIBRARY = Path(__file__).resolve().parents[2] / "_utils"
CALL = """
import json, sys
from netspace.layout import Layout
from netspace.supervision import definitions as records
from netspace.supervision import select
from netspace.supervision.cgroup import payload_cgroup
supervisor = select(Layout())
what, argument = sys.argv[1], json.loads(sys.stdin.read())
if what == "define":
    value = supervisor.define([records.decode(record) for record in argument])
elif what == "observe":
    value = {name: status._asdict() for name, status in supervisor.observe().items()}
elif what == "noticed":
    asked, show = [], supervisor._show
    supervisor._show = lambda names: asked.extend(names) or show(names)
    value = [{name: status._asdict() for name, status in supervisor.observe(noticed=True).items()}, asked]
elif what == "payload":
    value = payload_cgroup(Layout(), argument)
elif what == "both":
    from netspace.supervision.systemd import dbus as bus
    units = [supervisor._unit(name) for name in supervisor.observe()] + ["netspace-absent.service"]
    value = [bus.show(units), supervisor._systemctl_show(units)]
else:
    value = getattr(supervisor, what)(*([argument] if argument else []))
print(json.dumps(value))
"""
STAY = "trap 'exit 0' TERM; while :; do busybox sleep 0.1; done"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    with SystemdHost(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture
def call(host: SystemdHost) -> Iterator[Callable[..., Any]]:
    """Call the supervisor inside the machine."""

    def run(what: str, argument: Any = None) -> Any:
        done = host.run(
            sys.executable, "-c", CALL, what, variables={"PYTHONPATH": str(LIBRARY)}, text_in=json.dumps(argument)
        )
        return json.loads(done.stdout)

    before = listing(host)
    yield run
    run("purge")
    assert listing(host) == before, "something is left of a removed service"


def listing(host: SystemdHost) -> tuple[set[str], str, list[str]]:
    units = host.path("/etc/systemd")
    files = {str(path.relative_to(units)) for path in units.rglob("*") if path.name != "multi-user.target.wants"}
    loaded = host.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "netspace*").stdout
    cgroups = [path.name for path in host.path("/sys/fs/cgroup").glob("netspace*")]
    return files, loaded, cgroups


def log(host: SystemdHost, name: str) -> str:
    """Return the part of a service's output that journald has written so far."""
    return host.run("journalctl", "--no-pager", "-u", f"netspace-{name}").stdout


def plain(name: str, script: str = STAY, **options: Any) -> dict[str, Any]:
    return {"name": name, "command": ["/bin/sh", "-c", script], "variables": {"PATH": "/bin"}, **options}


@pytest.fixture
def detached(tmp_path: Path, call: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Make a crun bundle; return its service, without limits, because this machine has no cgroup controller."""

    def make(name: str, script: str = STAY, **options: Any) -> dict[str, Any]:
        root = tmp_path / name / "rootfs"
        for entry in ("bin", "proc", "dev"):
            (root / entry).mkdir(parents=True)
        (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (root / "bin/busybox").chmod(0o755)
        (root / "bin/sh").symlink_to("busybox")
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs", "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")],
                "cgroupsPath": call("payload", name),
            },
        }
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        pid_file = f"/run/{name}.pid"
        run = ["/usr/bin/crun", "run", "--detach", "--bundle", str(tmp_path / name), "--pid-file", pid_file, name]
        return {
            "name": name,
            "command": run,
            "pid_file": pid_file,
            "cleanup": [["/usr/bin/crun", "delete", "--force", name]],
            **options,
        }

    return make


def test_nothing_is_written_or_reloaded_the_second_time(call: Callable[..., Any], host: SystemdHost) -> None:
    assert call("define", [plain("a")])
    stamps = {path: path.lstat().st_mtime_ns for path in host.path("/etc/systemd/system").rglob("netspace*")}
    assert stamps
    assert call("define", [plain("a")]) is False
    assert stamps == {path: path.lstat().st_mtime_ns for path in host.path("/etc/systemd/system").rglob("netspace*")}
    assert call("observe")["a"]["state"] == "stopped"


def test_a_foreground_service(call: Callable[..., Any], host: SystemdHost) -> None:
    call("define", [plain("a", f"echo hello $$PPID; {STAY}"), plain("b", after=["a"])])
    assert call("start", ["b"]) == {}
    seen = call("observe")
    assert {status["state"] for status in seen.values()} == {"running"}, "what it comes after is started too"
    assert call("start", ["a", "b"]) == {}
    assert {name: status["pid"] for name, status in call("observe").items()} == {
        name: status["pid"] for name, status in seen.items()
    }
    until(lambda: "hello" in log(host, "a"))
    # What is stopped by a signal does not run, and goes on when it is started.
    host.run("kill", "-STOP", str(seen["a"]["pid"]))
    until(lambda: call("observe")["a"]["state"] == "frozen")
    assert call("start", ["a"]) == {}
    assert (call("observe")["a"]["state"], call("observe")["a"]["pid"]) == ("running", seen["a"]["pid"])
    host.run("kill", "-9", str(seen["a"]["pid"]))
    until(lambda: (now := call("observe")["a"])["state"] == "running" and now["restarts"] == 1)
    assert call("stop", ["a", "b"]) == {}
    assert {status["state"] for status in call("observe").values()} == {"stopped"}


def test_failures_are_told(call: Callable[..., Any]) -> None:
    call("define", [plain("a", restart="never"), {**plain("b", restart="never"), "command": ["/no/such/program"]}])
    errors = call("start", ["a", "b", "c"])
    assert set(errors) == {"b", "c"}
    assert "journalctl -u netspace-b.service" in errors["b"]
    assert "not defined" in errors["c"]
    assert call("observe")["b"]["state"] == "failed"
    assert call("observe")["b"]["exit"] == "exit 203"
    assert call("reload", ["b"])["b"]


def test_what_systemd_itself_says_is_what_systemctl_shows(call: Callable[..., Any]) -> None:
    services = [plain("a"), plain("b"), plain("c-d_e", "kill -9 $$", restart="never"), plain("f")]
    call("define", services)
    call("start", ["a", "c-d_e", "f"])
    call("stop", ["f"])
    until(lambda: call("observe")["c-d_e"]["state"] == "failed")
    direct, shown = call("both")
    assert direct == shown
    assert direct["netspace-c-d_e.service"]["Result"] == "signal"


def test_its_version_is_asked_of_systemd_itself(host: SystemdHost) -> None:
    code = "from netspace.supervision.systemd import dbus as bus; print(bus.version())"
    told = host.run(sys.executable, "-c", code, variables={"PYTHONPATH": str(LIBRARY)}).stdout
    assert told.split() == host.run("systemctl", "--version").stdout.split()[1:2]


def test_reload(call: Callable[..., Any], tmp_path: Path) -> None:
    script = f"trap 'echo >{tmp_path}/again' HUP; echo >{tmp_path}/up; while :; do sleep 0.05; done"
    service = plain("a", script, reload=["/bin/kill", "-HUP", "{pid}"], delegate=True)
    call("define", [service])
    call("start", ["a"])
    until((tmp_path / "up").exists)
    assert call("reload", ["a"]) == {}
    until((tmp_path / "again").exists)


def test_a_detached_crun_has_no_process_of_ours_beside_it(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    call("define", [detached("a", f"echo inside; {STAY}")])
    assert call("start", ["a"]) == {}
    status = call("observe")["a"]
    assert status["state"] == "running"
    unit = host.path("/sys/fs/cgroup/netspace.slice/netspace-a.service")
    assert host.run("cat", "/sys/fs/cgroup/netspace.slice/netspace-a.service/payload/cgroup.procs").stdout.split()[
        0
    ] == (str(status["pid"]))
    assert not (unit / "supervisor").exists() or not (unit / "supervisor/cgroup.procs").read_text()
    until(lambda: "inside" in log(host, "a"))


def test_the_hosts_null_device_is_not_handed_to_a_runtime(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    look = "for fd in 0 1 2; do busybox readlink /proc/self/fd/$fd; done; busybox cat; echo end"
    call("define", [detached("streams", f"{look}; {STAY}")])
    assert call("start", ["streams"]) == {}

    def told() -> str:
        return host.run("journalctl", "--no-pager", "-o", "cat", "-t", "netspace-streams").stdout

    until(lambda: "end" in told().splitlines())
    assert "pipe:" in told()
    assert "null" not in told()


def test_a_detached_crun_is_always_systemds_own_child(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    call("define", [detached("a")])
    call("start", ["a"])
    for _ in range(12):
        host.run("systemctl", "restart", "netspace-a")
    assert "not our child" not in log(host, "a")
    shown = host.run("systemctl", "show", "-p", "Result", "--value", "netspace-a").stdout.strip()
    assert shown == "success"


def test_a_detached_crun_after_crash_kill_and_stop(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    deaf = detached("deaf", "trap '' TERM; while :; do busybox sleep 0.1; done", stop_timeout=0.3)
    # To systemd one that has ended before it looked at it has not started.
    crash = detached("crash", "trap 'exit 0' TERM; busybox sleep 3 & wait $!; exit 7")
    once = detached("once", "busybox sleep 3", restart="on-failure")
    call("define", [detached("a"), deaf, crash, once])
    assert call("start", ["a", "deaf", "crash", "once"]) == {}
    host.run("kill", "-9", str(call("observe")["a"]["pid"]))
    until(lambda: (now := call("observe")["a"])["state"] == "running" and now["restarts"] == 1)
    until(lambda: call("observe")["crash"]["restarts"] >= 2)
    until(lambda: call("observe")["once"]["state"] == "stopped")
    assert call("observe")["once"]["restarts"] == 0
    assert call("stop", ["a", "deaf", "crash"]) == {}
    seen = call("observe")
    assert {status["state"] for status in seen.values()} == {"stopped"}
    assert seen["deaf"]["exit"] == "signal 9"
    assert seen["a"]["exit"] in ("exit 0", ""), "it ended gracefully (systemd soon forgets that)"
    assert host.run("crun", "list", "-q").stdout == ""


def test_a_second_boot_starts_all_without_salt_and_after_the_restoration(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    call("define", [plain("a"), detached("b"), plain("c"), plain("d")])
    assert call("start", ["a", "b", "c"]) == {}
    assert call("stop", ["c"]) == {}
    boot = host.run("cat", "/proc/1/stat").stdout.split()[21]
    host.reboot()
    assert host.run("cat", "/proc/1/stat").stdout.split()[21] != boot
    until(lambda: call("observe")["b"]["state"] == "running")
    states = {name: status["state"] for name, status in call("observe").items()}
    assert states == {"a": "running", "b": "running", "c": "stopped", "d": "stopped"}
    shown = host.run(
        "systemctl", "show", "-p", "ActiveState,ExecMainCode,ExecMainExitTimestampMonotonic", "netspace-restore"
    ).stdout
    restored = dict(line.split("=") for line in shown.split())
    assert restored["ExecMainCode"] == "1", "the restoration ran to its end"
    log = host.run("journalctl", "--no-pager", "-b", "-u", "netspace-restore").stdout
    assert restored["ActiveState"] == "active", log
    started = host.run("systemctl", "show", "-p", "ExecMainStartTimestampMonotonic", "--value", "netspace-a").stdout
    assert int(started) >= int(restored["ExecMainExitTimestampMonotonic"])


def test_somebody_elses_unit_is_left_alone(call: Callable[..., Any], host: SystemdHost) -> None:
    stranger = host.path("/etc/systemd/system/netspace-stranger.service")
    stranger.write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    try:
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", "netspace-stranger")
        assert "stranger" not in call("observe")
        assert "not defined" in call("stop", ["stranger"])["stranger"]
        assert call("remove", ["stranger"]) == {}
        done = host.run(
            sys.executable,
            "-c",
            CALL,
            "define",
            variables={"PYTHONPATH": str(LIBRARY)},
            check=False,
            text_in=json.dumps([plain("stranger")]),
        )
        assert "not netspace's" in done.stderr
        host.run("systemctl", "is-active", "netspace-stranger")
    finally:
        host.run("systemctl", "stop", "netspace-stranger")
        stranger.unlink()
        host.run("systemctl", "daemon-reload")


def test_the_machine_leaves_nothing_on_the_real_one(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text(), os.listdir("/run")
    with SystemdHost(tmp_path) as machine:
        pid = machine.pid
        machine.run("touch", "/etc/made-inside", "/root/made-inside")
    assert not Path("/etc/made-inside").exists() and not Path("/root/made-inside").exists()
    assert (Path("/proc/self/mountinfo").read_text(), os.listdir("/run")) == before
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_what_waits_for_a_file_is_started_when_that_is_there_also_after_a_boot(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    gate, opened = "/run/netspace-gate", "/var/lib/netspace/opened"
    opens = f"[ -e {opened} ] && touch {gate}; {STAY}"
    call("define", [plain("a", opens), detached("b", until=[gate], after=["a"]), plain("c", until=[gate])])
    assert call("start", ["a", "b", "c"]) == {}, "nobody waits for them"
    seen = call("observe")
    assert {name: seen[name]["state"] for name in seen} == {"a": "running", "b": "starting", "c": "starting"}
    assert call("stop", ["c"]) == {}
    assert call("observe")["c"]["state"] == "stopped"
    host.run("touch", gate, opened)
    until(lambda: call("observe")["b"]["state"] == "running", patience=60)
    host.reboot()
    until(lambda: call("observe")["b"]["state"] == "running", patience=60)
    made = host.path(gate).stat().st_mtime
    assert call("observe")["b"]["since"] >= made - 1
    host.run("rm", gate, opened)


def test_how_one_ended_is_known_after_its_restart_and_its_deadline_is_kept(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    deaf = "trap '' TERM; echo up; while :; do busybox sleep 0.1; done"
    call("define", [detached("a", f"busybox sleep 1; {STAY}"), detached("deaf", deaf, stop_timeout=1)])
    assert call("start", ["a", "deaf"]) == {}
    host.run("kill", "-9", str(call("observe")["a"]["pid"]))
    until(lambda: (now := call("observe")["a"])["state"] == "running" and now["restarts"] == 1, patience=60)
    assert call("observe")["a"]["exit"] == "signal 9"
    assert call("start", ["a"]) == {}
    assert call("stop", ["deaf"]) == {}
    assert call("observe")["deaf"]["exit"] == "signal 9"
    until(lambda: "code=killed, status=9/KILL" in log(host, "deaf"))


def test_one_question_tells_of_all_that_never_ended(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost, tmp_path: Path
) -> None:
    """One question to systemd gives the statuses of all units that never ended.

    Only about other units is systemd asked singly.
    """
    held = detached("held", until=[str(tmp_path / "comes-later")])
    names = ["again", "frozen", "steady", "stopped"]
    call("define", [*(detached(name) for name in names), held, plain("attached"), plain("never")])
    assert call("start", [*names, "held", "attached"]) == {}
    assert call("stop", ["stopped"]) == {}
    pids = {name: status["pid"] for name, status in call("observe").items()}
    host.run("kill", "-9", str(pids["again"]))
    host.run("kill", "-STOP", str(pids["frozen"]))
    until(lambda: (now := call("observe"))["again"]["restarts"] == 1 and now["again"]["state"] == "running")
    assert call("start", ["again", "steady"]) == {}
    (told, asked), whole = call("noticed"), call("observe")
    assert asked == ["again", "attached", "held", "never", "stopped"]
    for name in whole:
        assert abs(told[name].pop("since") - whole[name].pop("since")) < 30, name  # a launcher may take long
    assert told == whole
    assert (told["again"]["restarts"], told["frozen"]["state"]) == (1, "frozen")
    host.run("kill", "-CONT", str(pids["frozen"]))


def test_slow_cleanup_after_a_short_stop_is_no_failure(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    short = {"stop_timeout": 0.3, "restart": "never"}
    deaf = detached("deaf", "trap '' TERM; while :; do busybox sleep 0.1; done", **short)
    tame = detached("tame", **short)
    for one in (deaf, tame):
        one["cleanup"] = [["/bin/sh", "-c", 'sleep 2; exec "$@"', "sh", *command] for command in one["cleanup"]]
    call("define", [deaf, tame])
    assert call("start", ["deaf", "tame"]) == {}
    host.run("systemctl", "stop", "netspace-deaf", "netspace-tame")
    show = ("systemctl", "show", "--value", "--property=Result")
    results = {name: host.run(*show, f"netspace-{name}").stdout.strip() for name in ("deaf", "tame")}
    assert results == {"deaf": "signal", "tame": "success"}
    assert call("observe")["deaf"]["exit"] == "signal 9"
    assert host.run("crun", "list", "-q").stdout == ""
    assert call("start", ["deaf", "tame"]) == {}
    # The timers that kill programs in the end kill nobody who was started since.
    until(lambda: timers(host) == "", "the timers end")
    assert {name: seen["state"] for name, seen in call("observe").items()} == {"deaf": "running", "tame": "running"}


def timers(host: SystemdHost) -> str:
    """Return the timers that have stopped programs killed."""
    return host.run("systemctl", "list-timers", "--all", "--no-legend", "netspace-*:deadline:*").stdout.strip()


def test_a_stop_by_netspace_leaves_no_timer(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    call("define", [detached("tame", stop_timeout=9), detached("kept", stop_timeout=9)])
    assert call("start", ["tame", "kept"]) == {}
    host.run("systemctl", "stop", "netspace-kept")
    assert call("stop", ["tame"]) == {}
    assert "kept" in timers(host) and "tame" not in timers(host)
    assert call("remove", ["kept"]) == {}
    assert timers(host) == ""


def test_the_end_of_an_init_by_a_stop_has_not_failed(
    call: Callable[..., Any], detached: Callable[..., dict[str, Any]], host: SystemdHost
) -> None:
    terminated = "trap 'exit 143' TERM; while :; do busybox sleep 0.1; done"  # as an init ends by its program's SIGTERM
    call("define", [detached("with", terminated, init=True), detached("without", terminated)])
    assert call("start", ["with", "without"]) == {}
    assert call("stop", ["with", "without"]) == {}
    show = ("systemctl", "show", "--value", "--property=ActiveState")
    states = {name: host.run(*show, f"netspace-{name}").stdout.strip() for name in ("with", "without")}
    assert states == {"with": "inactive", "without": "failed"}
    assert call("observe")["with"]["exit"] in ("exit 143", "")
