"""Services as unit files."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.layout import Layout
from netspace.supervision.service import Service, Status
from netspace.supervision.systemd import unit_file
from netspace.supervision.systemd.supervisor import Systemd, _status, end

LAYOUT = Layout()
DETACHED = Service(
    "environment-web",
    ("/usr/bin/crun", "run", "--detach", "--pid-file", "/run/netspace/web.pid", "web"),
    description="the shop's 100% web",
    pid_file=Path("/run/netspace/web.pid"),
    cleanup=(("/usr/bin/crun", "delete", "--force", "web"),),
    after=("broker",),
    limits={"memory": 64 * 2**20, "cpus": 0.5, "pids": 32},
    restart="on-failure",
)
PLAIN = Service(
    "broker",
    ("/usr/lib/rabbit $x %n", 'a"b\\c', "new\nline"),
    variables={"HOME": "/var/lib/x y", "PERCENT": "100%$"},
    user="rabbitmq",
    reload=("/bin/kill", "-HUP", "{pid}"),
    stop_timeout=2.5,
)


def keys(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line:
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def test_a_detached_service() -> None:
    text = unit_file.render(LAYOUT, DETACHED)
    found = keys(text)
    assert text.startswith(unit_file.HEADER)
    assert found["Type"] == ["forking"]
    assert found["PIDFile"] == ["/run/netspace/web.pid"]
    assert found["Delegate"] == ["yes"] and found["DelegateSubgroup"] == ["supervisor"]
    assert found["MemoryMax"] == ["67108864"] and found["MemorySwapMax"] == ["0"]
    assert found["CPUQuota"] == ["50%"] and found["TasksMax"] == ["32"]
    # How it ended is noted first: systemd runs none of these any more once one has taken longer than a stop may.
    noted, deleted = found["ExecStopPost"]
    assert "SERVICE_RESULT" in noted
    assert deleted == '-"/usr/bin/crun" "delete" "--force" "web"'
    assert found["Restart"] == ["on-failure"]
    assert "netspace-restore.service" in found["After"][0].split()
    assert found["Wants"] == ["netspace-broker.service"]
    assert found["Description"] == ["the shop's 100%% web"]
    assert "ProtectSystem" not in found


def test_the_end_of_an_init_by_a_stop_is_no_failure_to_systemd() -> None:
    assert "SuccessExitStatus" not in keys(unit_file.render(LAYOUT, DETACHED))
    found = keys(unit_file.render(LAYOUT, DETACHED._replace(init=True)))
    assert found["SuccessExitStatus"] == ["143"]


def test_a_plain_service_is_confined() -> None:
    found = keys(unit_file.render(LAYOUT, PLAIN))
    assert found["Type"] == ["exec"]
    assert found["ExecStart"] == [r'"/usr/lib/rabbit $$x %%n" "a\"b\\c" "new\nline"']
    assert found["Environment"] == ['"HOME=/var/lib/x y"', '"PERCENT=100%%$"']
    assert found["ExecReload"] == ['"/bin/kill" "-HUP" "$MAINPID"']
    assert found["User"] == ["rabbitmq"] and found["CapabilityBoundingSet"] == [""]
    assert found["TimeoutStopSec"] == ["2500ms"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert "Delegate" not in found


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_quoting_stays_on_one_line_and_expands_nothing(text: str) -> None:
    quoted = unit_file.quote(text, variables=True)
    assert quoted.isprintable()
    inner = quoted[1:-1].replace("\\\\", "").replace('\\"', "").replace("%%", "").replace("$$", "")
    assert not set(inner) & set('"%$')


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("service", [DETACHED, PLAIN], ids=lambda service: service.name)
def test_systemd_understands_every_line(service: Service, tmp_path: Path) -> None:
    known = Service(
        service.name,
        ("/bin/true", *service.command[1:]),
        **{key: value for key, value in service._asdict().items() if key not in ("name", "command", "user")},
    )
    for name, text in {
        unit_file.name(LAYOUT, service.name): unit_file.render(LAYOUT, known),
        unit_file.name(LAYOUT, "restore"): unit_file.render_restore(LAYOUT, ("/bin/true", "restore")),
    }.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))], capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert ours == []


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.0, "1ms"), (1e-05, "1ms"), (0.25, "250ms"), (2.5, "2500ms"), (10.0, "10000ms"), (1e6, "1000000000ms")],
)
def test_time_to_stop_is_always_bounded(seconds: float, written: str) -> None:
    text = unit_file.render(LAYOUT, PLAIN._replace(stop_timeout=seconds))
    assert keys(text)["TimeoutStopSec"] == [written]


@pytest.mark.parametrize(
    ("seconds", "bound", "timer"),
    [(0.1, "10000ms", "100ms"), (9.5, "10000ms", "9500ms"), (10.0, "10000ms", ""), (60.0, "60000ms", "")],
)
def test_cleanup_of_a_detached_service_has_ten_seconds_at_least(seconds: float, bound: str, timer: str) -> None:
    found = keys(unit_file.render(LAYOUT, DETACHED._replace(stop_timeout=seconds)))
    assert found["TimeoutStopSec"] == [bound]
    stops = [shlex.split(text[1:]) for text in found.get("ExecStop", [])]
    assert [words[-2:] for words in stops] == ([["${MAINPID}", "netspace-environment-web.service"]] if timer else [])
    # No shell is started within the unit, where a program could have all processes that the unit may have.
    assert [words[0] for words in stops] == (["/usr/bin/systemd-run"] if timer else [])
    assert all(f"--on-active={timer}" in words for words in stops)
    assert all("--unit=netspace-environment-web:deadline:${MAINPID}" in words for words in stops)


def test_the_restore_unit_comes_after_what_flushes_the_packet_filter() -> None:
    found = keys(unit_file.render_restore(LAYOUT, ("/usr/bin/python3", "-I", "/x", "restore")))
    assert "nftables.service" in found["After"][0].split()
    assert found["Type"] == ["oneshot"]


@pytest.mark.parametrize(
    ("shown", "wanted", "status"),
    [
        (
            {"ActiveState": "active", "MainPID": "7", "NRestarts": "2", "Result": "success"},
            True,
            Status("running", 7, 0.0, 2),
        ),
        (
            {"ActiveState": "activating", "ExecMainCode": "1", "ExecMainStatus": "3"},
            True,
            Status("starting", exit="exit 3"),
        ),
        ({"ActiveState": "inactive", "Result": "success"}, False, Status("stopped")),
        (
            {"ActiveState": "failed", "Result": "signal", "ExecMainCode": "2", "ExecMainStatus": "9"},
            True,
            Status("failed", exit="signal 9"),
        ),
        (
            {"ActiveState": "failed", "Result": "timeout", "ExecMainCode": "2", "ExecMainStatus": "9"},
            False,
            Status("stopped", exit="signal 9"),
        ),
        (
            {"ActiveState": "failed", "Result": "oom-kill", "ExecMainCode": "2", "ExecMainStatus": "9"},
            True,
            Status("failed", exit="oom"),
        ),
        ({"ActiveState": "failed", "Result": "protocol", "ExecMainCode": "0"}, True, Status("failed", exit="unknown")),
        ({}, False, Status("stopped")),
    ],
)
def test_what_systemctl_shows(shown: dict[str, str], wanted: bool, status: Status) -> None:
    assert _status(shown, wanted) == status


def test_the_delay_between_restarts_grows_where_systemd_can_do_that() -> None:
    found = keys(unit_file.render(LAYOUT, DETACHED, 254))
    assert (found["RestartSec"], found["RestartSteps"], found["RestartMaxDelaySec"]) == (["100ms"], ["8"], ["30s"])
    found = keys(unit_file.render(LAYOUT, DETACHED, 252))
    assert found["RestartSec"] == ["5s"]
    assert "RestartSteps" not in found and "RestartMaxDelaySec" not in found


@pytest.mark.parametrize(
    ("note", "how"),
    [
        ("success exited 0", "exit 0"),
        ("exit-code exited 3", "exit 3"),
        ("signal killed KILL", "signal 9"),
        ("core-dump dumped SEGV", "signal 11"),
        ("signal killed RTMIN+3", "unknown"),
        ("oom-kill killed KILL", "oom"),
        ("timeout  ", ""),
        ("", ""),
    ],
)
def test_how_it_last_ended_by_what_was_noted(note: str, how: str) -> None:
    assert end(note) == how


def test_ends_for_want_of_memory_are_counted_by_whoever_notes_them(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    for result in ("success", "oom-kill", "exit-code", "oom-kill"):
        said = {"SERVICE_RESULT": result, "EXIT_CODE": "killed", "EXIT_STATUS": "KILL", "PATH": "/bin:/usr/bin"}
        subprocess.run(
            ["/bin/sh", "-c", unit_file.NOTE, str(unit_file.ended(layout, "environment-web"))], env=said, check=True
        )
    assert end(unit_file.ended(layout, "environment-web").read_text()) == "oom"
    supervisor = Systemd(layout)
    assert supervisor._kills("environment-web") == 2
    supervisor._forget("environment-web")
    assert supervisor._kills("environment-web") == 0
    assert not unit_file.ended(layout, "environment-web").exists()


def test_what_systemd_still_knows_is_newer_than_what_was_noted() -> None:
    shown = {"ActiveState": "activating", "ExecMainCode": "2", "ExecMainStatus": "9", "Result": "signal"}
    assert _status(shown, True, "exit 3").exit == "signal 9"
    running = {"ActiveState": "active", "ExecMainCode": "0", "Result": "success"}
    assert _status(running, True, "oom").exit == "oom"


@pytest.mark.parametrize("service", [DETACHED, PLAIN])
def test_one_that_waits_does_so_in_a_shell_and_for_as_long_as_it_takes(service: Service, tmp_path: Path) -> None:
    gates = (tmp_path / "a b.up", tmp_path / "c$d.up")
    waiting = service._replace(until=gates)
    text = unit_file.render(LAYOUT, waiting)
    assert "TimeoutStartSec=infinity" in text and "TimeoutStartSec" not in unit_file.render(LAYOUT, service)
    found = keys(text)["ExecStart" if service.pid_file is not None else "ExecStartPre"][0]
    assert unit_file.quote(str(gates[1]), variables=True) in found
    # What the shell makes of it.
    gates[0].touch()
    argv = ("/bin/sh", "-c", unit_file.GATE + 'echo "$@"', "sh", *map(str, gates), "--", "through", "--", "it")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as shell:
        with pytest.raises(subprocess.TimeoutExpired):
            shell.wait(0.3)
        gates[1].touch()
        assert shell.communicate()[0] == "through -- it\n"


def test_unit_of_a_program_in_tmp_sees_that_folder() -> None:
    """A service whose interpreter is below /tmp sees the host's /tmp; all others have a private /tmp."""
    usual = unit_file.render(Layout(), Service(name="renewer", command=("/usr/bin/python3", "-I", "x")))
    ours = unit_file.render(
        Layout(), Service(name="renewer", command=("/bin/sh", "-c", "x", "/tmp/checkout/.venv/bin/python"))
    )
    assert "PrivateTmp=yes\n" in usual
    assert "PrivateTmp" not in ours and "ProtectSystem=full\n" in ours
