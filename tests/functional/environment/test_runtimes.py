"""One declaration under each runtime: the environment runs, is limited, answers, stops, and can change its runtime."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.environments.environment_host import STAY, Host, shell
from support.waiting import until

from netspace.environment import runtimes
from netspace.environment.container import oci_runtime
from netspace.errors import NetspaceError
from netspace.host.salt_targets import Targets

RUNTIMES = runtimes.running("images")


@pytest.fixture(scope="session", params=RUNTIMES)
def one(request: pytest.FixtureRequest) -> str:
    """A runtime that this host has."""
    name: str = request.param
    if error := runtimes.look(name, {}).error:
        pytest.skip(f"{name}: {error}")
    return name


@pytest.fixture(scope="session", params=[name for name in RUNTIMES if name != runtimes.DEFAULT])
def other(request: pytest.FixtureRequest) -> str:
    """A runtime of this host other than the default runtime, which all other tests use."""
    name: str = request.param
    if error := runtimes.look(name, {}).error:
        pytest.skip(f"{name}: {error}")
    return name


@pytest.fixture
def volume() -> Iterator[Path]:
    folder = Path("/var/tmp/netspace-test-runtimes")
    folder.mkdir(mode=0o700)
    yield folder / "data"
    shutil.rmtree(folder)


def test_one_declaration_runs_alike(host: Host, one: str, volume: Path) -> None:
    script = "echo started; trap 'echo told to stop; exit 0' TERM; while :; do sleep 0.1; done"
    keys = {
        "command": shell(script),
        "env": {"COLOUR": "blue"},
        "user": 1234,
        "limits": {"memory": "96M", "pids": 48, "files": 200, "tmp": "1M"},
        "volumes": [{"source": str(volume), "target": "/data"}],
        "stop_timeout": 30,
    }
    desired = host.run("web", runtime=one, files={"environment.json": b'{"name": "web"}\n'}, **keys)
    assert host.kind.list()["web"]["runtime"] == one
    assert host.plan({"web": desired}).steps == []
    until(lambda: "started" in host.operations.logs("web")["lines"], patience=60)

    # Who it is and what it has.
    assert host.sh("web", "id -u; id -g") == "1234\n1234"
    status = host.sh("web", "cat /proc/self/status")
    assert set(re.findall(r"Cap\w+:\s*(\w+)", status)) == {"0" * 16}
    assert host.sh("web", "cat /run/netspace/environment.json") == '{"name": "web"}'
    assert host.sh("web", "echo no > /run/netspace/x; echo no > /etc/x").count("an't create") == 2
    assert host.sh("web", "ulimit -n") == "200"
    assert host.sh("web", "head -c 2000000 /dev/zero >/tmp/x 2>/dev/null; cat /tmp/x | wc -c") == str(1024**2)

    # The volume's files belong to the ids that are inside, wherever they are mapped to.
    assert host.sh("web", "echo kept > /data/x; cat /data/x; ls -ln /data/x").split()[0:5:3] == ["kept", "1234"]
    assert ((volume / "x").stat().st_uid, (volume / "x").read_text()) == (1234, "kept\n")

    # exec: status, streams, standard input, deadline.
    done = host.operations.exec("web", shell("cat; echo bad >&2; exit 3"), stdin="asked")
    assert (done["retcode"], done["stdout"], done["stderr"]) == (3, "asked", "bad\n")
    assert host.operations.exec("web", ["/bin/sleep", "600"], timeout=2)["timed_out"]
    assert host.operations.exec("web", shell("echo alive"))["stdout"] == "alive\n"

    # The limits are kept by the host, whatever kernel answers inside.
    usage = host.operations.inspect("web")["usage"]
    if "memory" in host.kind.making.controllers:
        assert 0 < usage["memory"] <= 96 * 1024**2
        assert host.kind.observe().environments["web"].differing == ()

    assert host.operations.stop(["web"]) == {"web": ""}
    assert "told to stop" in host.operations.logs("web")["lines"]
    assert host.kind.list()["web"]["exit"] == "exit 0"
    assert oci_runtime.known(host.layout, "web") == []
    assert host.operations.start(["web"]) == {"web": ""}
    assert host.sh("web", "cat /data/x") == "kept"


def test_one_that_does_not_stop_is_killed_and_one_that_crashes_is_started_again(host: Host, other: str) -> None:
    host.run("deaf", runtime=other, command=shell("trap '' TERM; echo up; while :; do sleep 0.1; done"), stop_timeout=1)
    until(lambda: "up" in host.operations.logs("deaf")["lines"], patience=60)
    assert host.operations.stop(["deaf"]) == {"deaf": ""}
    assert oci_runtime.known(host.layout, "deaf") == []
    until(lambda: host.traces()["processes"] == [], patience=60)

    crashing = shell("[ -e /tmp/x ] || { echo up; touch /tmp/x; }; sleep 0.3; exit 3")
    host.apply({"crash": host.desired("crash", runtime=other, command=crashing)})
    until(lambda: host.operations.logs("crash")["lines"].count("up") > 1, patience=60)
    assert host.kind.list()["crash"]["exit"] in ("exit 3", "")


def test_it_is_a_target_whose_commands_run_inside(host: Host, one: str) -> None:
    host.run("web", runtime=one, target=True, files={"environment.json": b"{}\n"})
    targets = Targets(host.layout, "shop")
    assert targets.list() == {"shop-web": "web"}
    assert targets.ping("shop-web") is True
    assert targets.grains("shop-web")["environment"] == "web"
    done = targets.run(
        "shop-web",
        "id -u; echo $COLOUR; cat >kept; cat kept; exit 3",
        stdin="asked",
        folder="/tmp",
        variables={"COLOUR": "blue"},
    )
    assert (done.retcode, done.stdout) == (3, "1000\nblue\nasked"), done
    # By the kernel that runs the environment's own program; no file of another's is taken for its.
    own_kernel = runtimes.find(one).OWN_KERNEL
    version = targets.run("shop-web", ["/bin/cat", "/proc/version"]).stdout
    assert (version == Path("/proc/version").read_text()) is not own_kernel
    if own_kernel:
        with pytest.raises(NetspaceError, match=rf"web: its files are in its own kernel \({one}\); use cmd instead"):
            with targets.files("shop-web"):
                pass
    else:
        with targets.files("shop-web") as inside:
            assert inside.read("/tmp/kept") == b"asked"
    host.operations.stop(["web"])
    assert targets.ping("shop-web") is False


def test_another_runtime_is_a_restart_with_that_reason(host: Host, other: str) -> None:
    keys = {"command": shell("echo started; while :; do sleep 0.1; done"), "stop_timeout": 1}
    host.run("web", **keys)
    wanted = host.desired("web", runtime=other, **keys)
    (step,) = host.plan({"web": wanted}).steps
    assert (step.action, step.changes) == ("restart", {"runtime": {"old": "crun", "new": other}})
    assert host.apply({"web": wanted})["web"].error == ""
    assert oci_runtime.known(host.layout, "web") == [other]
    assert host.plan({"web": wanted}).steps == []


def test_one_killed_from_outside_leaves_nothing_and_comes_back(host: Host, other: str) -> None:
    host.run("web", runtime=other)
    first = host.pid("web")
    os.kill(first, signal.SIGKILL)
    until(lambda: host.kind.list()["web"]["pid"] not in (0, first), patience=60)
    assert host.sh("web", "echo alive") == "alive"


@pytest.fixture
def killed(host: Host, one: str) -> Iterator[None]:
    """A program in the runtime's place that kills the real runtime during each of the first four launches."""
    folder, real = Path("/run/killed"), runtimes.look(one, {}).program
    # By then it has made what it may leave; anywhere, and beside what may be left already.
    seen = "runsc-*" if one == "runsc" else "*"
    script = f"""#!/bin/sh
count() {{ ls -d {oci_runtime.state(host.layout, one)}/{seen} /run/runsc-* /tmp/runsc-* 2>/dev/null | wc -l; }}
case " $* " in *" run "*) ;; *) exec {real} "$@" ;; esac
[ -e {folder}/4 ] && exec {real} "$@"
n=1; while [ -e {folder}/$n ]; do n=$((n + 1)); done; touch {folder}/$n
before=$(count)
exec 3<&0  # in the background its input would be the host's /dev/null
{real} "$@" <&3 3<&- & launch=$!
while kill -0 $launch && [ "$(count)" = "$before" ]; do :; done
kill -9 $launch
exit 137
"""
    folder.mkdir()
    (folder / "runtime").write_text(script)
    (folder / "runtime").chmod(0o755)
    host.settings[one] = {"program": str(folder / "runtime")}
    before = set(sockets_elsewhere())
    yield
    assert (folder / "4").exists()
    assert set(sockets_elsewhere()) == before
    shutil.rmtree(folder)


def sockets_elsewhere() -> Iterator[Path]:
    """Yield runsc's sockets in /run and /tmp, which runsc uses if their usual place is occupied."""
    for folder in ("/run", "/tmp"):
        yield from Path(folder).glob("runsc-*.sock")


def test_a_launch_that_is_killed_keeps_no_later_one_from_starting(host: Host, one: str, killed: None) -> None:
    outcome = host.apply({"web": host.desired("web", runtime=one)})["web"]
    assert "can't be started" in outcome.error
    until(lambda: host.kind.list()["web"]["state"] == "running", patience=60)
    assert host.sh("web", "echo alive") == "alive"
    assert host.kind.list()["web"]["restarts"] == 4
    assert host.operations.stop(["web"]) == {"web": ""}
    assert oci_runtime.known(host.layout, "web") == []


def test_what_a_killed_launch_left_is_removed_before_a_start_by_hand(host: Host, one: str) -> None:
    desired = host.run("web", runtime=one)
    host.operations.stop(["web"])
    folder, own = oci_runtime.state(host.layout, one), oci_runtime.container(host.layout, "web", desired.runtime)
    for entry in runtimes.find(one).ENTRIES:
        path = folder / entry.format(own)
        path.mkdir() if entry == "{}" else path.write_text("")
    assert oci_runtime.known(host.layout, "web") == [one]
    assert host.operations.start(["web"]) == {"web": ""}
    assert host.sh("web", "echo alive") == "alive"


@pytest.mark.runtime("runsc")
def test_limits_that_were_too_narrow_to_start_with_are_not_kept(host: Host) -> None:
    if error := runtimes.look("runsc", {}).error:
        pytest.skip(f"runsc: {error}")
    if "pids" not in host.kind.making.controllers:
        pytest.skip("no cgroup controller for pids")
    narrow = host.desired("web", runtime="runsc", restart="never", limits={"pids": 16})
    assert "can't be started" in host.apply({"web": narrow})["web"].error
    host.run("web", runtime="runsc", restart="never", limits={"pids": 64})
    assert host.kind.observe().environments["web"].differing == ()
    assert host.sh("web", "echo alive") == "alive"


def test_a_missing_runtime_is_refused_in_the_plan(host: Host) -> None:
    host.settings["runsc"] = {"program": "/usr/local/bin/no-such-runsc"}
    plan = host.plan({"web": host.desired("web", runtime="runsc")})
    assert plan.steps == []
    (refusal,) = plan.refusals
    assert refusal.message.startswith("netspace:environments:web:runtime: runsc can't be used here: the program /usr")


def test_the_filter_holds_but_for_exec_under_runsc(host: Host, one: str) -> None:
    """No program can make a refused system call.

    There is one exception: under ``runsc``, a command that ``exec`` runs can make a refused call.
    """
    attempt = "unshare -U true 2>/dev/null && echo done"  # which no profile lets through
    host.run("web", runtime=one, command=shell(f"({attempt}); echo tried; {STAY}"))
    until(lambda: "tried" in host.operations.logs("web")["lines"], patience=60)
    assert "done" not in host.operations.logs("web")["lines"]
    assert host.sh("web", attempt).endswith("done") == (one == "runsc")
