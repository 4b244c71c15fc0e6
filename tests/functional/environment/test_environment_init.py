"""``init: true``: signals reach the program, orphans are reaped, nothing is shared, and SIGTERM ends the program."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.environments.environment_host import STAY, Host, shell
from support.waiting import until

from netspace.environment import runtimes
from netspace.environment.storage import init, mounts

pytestmark = pytest.mark.root

# Longer than a test may take: whatever has ended was not killed for want of time.
LONG = 600
DEAF = ["/bin/sleep", "1000"]


def sigterm(host: Host, name: str) -> str:
    return str(host.operations.inspect(name)["sigterm"])


@pytest.mark.parametrize("one", runtimes.running("images"))
@pytest.mark.parametrize("read_only", [False, True])
def test_a_program_without_a_handler_ends_by_a_stop(host: Host, one: str, read_only: bool) -> None:
    if error := runtimes.look(one, {}).error:
        pytest.skip(f"{one}: {error}")
    keys = {"runtime": one, "command": DEAF, "init": True, "read_only": read_only, "stop_timeout": LONG}
    desired = host.run("web", **keys)
    assert host.plan({"web": desired}).steps == []
    assert sigterm(host, "web") == ("" if one == "runsc" else "ends it")
    # Only the program itself is run by the init.
    assert host.sh("web", "cat /proc/1/cmdline").split("\ufffd")[:3] == [init.INSIDE, "--", "/bin/sleep"]
    assert host.sh("web", "cat /proc/self/stat").split()[3] == "0"
    assert host.operations.stop(["web"]) == {"web": ""}
    assert host.kind.list()["web"]["exit"] == "exit 143"
    assert host.operations.start(["web"]) == {"web": ""}


def test_signals_and_its_own_end_are_the_program_s(host: Host) -> None:
    script = "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    host.run("web", command=shell(script), init=True, stop_timeout=LONG)
    until(lambda: "up" in host.operations.logs("web")["lines"])
    assert sigterm(host, "web") == "handled"
    host.operations.stop(["web"])
    assert "told" in host.operations.logs("web")["lines"]
    assert host.kind.list()["web"]["exit"] == "exit 5"


def test_without_an_init_it_is_killed_and_told_so_beforehand(host: Host) -> None:
    host.run("web", command=DEAF, stop_timeout=0.2)
    assert sigterm(host, "web") == (
        "ignored: the program is process 1 and has no handler, so each stop lasts all of stop_timeout (0.2 s) and "
        "ends it by SIGKILL; set init: true, or have the program handle SIGTERM"
    )
    host.operations.stop(["web"])
    assert host.kind.list()["web"]["exit"] == "signal 9"
    assert sigterm(host, "web") == ""


def test_under_gvisor_it_ends_by_a_stop_without_an_init_too(host: Host) -> None:
    if error := runtimes.look("runsc", {}).error:
        pytest.skip(error)
    host.run("web", runtime="runsc", command=DEAF, stop_timeout=LONG)
    assert sigterm(host, "web") == ""
    host.operations.stop(["web"])
    assert host.kind.list()["web"]["exit"] == "exit 143"


def test_a_program_that_is_not_there_is_told_by_its_log(host: Host) -> None:
    missing = host.desired("web", command=["/bin/no-such-program"], init=True, restart="never")
    assert "its logs may say why" in host.apply({"web": missing})["web"].error
    until(lambda: "failed to exec pid1: No such file" in "".join(host.operations.logs("web")["lines"]))
    assert host.kind.list()["web"]["exit"] == "exit 1"


@pytest.mark.parametrize("wanted", [False, True])
def test_a_program_that_wants_no_signal_is_told_to_be_so(host: Host, wanted: bool) -> None:
    host.run("web", command=shell("trap '' TERM; echo up; while :; do sleep 0.05; done"), init=wanted, stop_timeout=0.1)
    until(lambda: "up" in host.operations.logs("web")["lines"])
    assert sigterm(host, "web").startswith("ignored: the program chose that (SIG_IGN)")


def zombies(host: Host, name: str) -> int:
    told = host.sh(name, "for p in /proc/[0-9]*; do cat $p/stat 2>/dev/null; done")
    return sum(line.rpartition(") ")[2].startswith("Z") for line in told.splitlines())


@pytest.mark.parametrize(("wanted", "left"), [(False, 2), (True, 0)])
def test_orphans_are_reaped(host: Host, wanted: bool, left: int) -> None:
    orphan = "(sleep 0.1; echo gone) &"
    host.run("web", command=shell(f"({orphan}); ({orphan}); exec sleep 1000"), init=wanted, stop_timeout=0.1)
    until(lambda: host.operations.logs("web")["lines"] == ["gone"] * 2)
    until(lambda: zombies(host, "web") == left)


def test_it_is_read_only_and_two_environments_share_no_lock_of_it(host: Host) -> None:
    host.apply({name: host.desired(name, init=True) for name in ("one", "two")})
    with contextlib.ExitStack() as stack:

        def lock(name: str) -> None:
            stream = stack.enter_context(open(f"/proc/{host.pid(name)}/root{init.INSIDE}"))
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

        lock("one")
        with pytest.raises(BlockingIOError):
            lock("one")
        lock("two")
    attempts = (f"echo x >>{init.INSIDE}", f"rm -f {init.INSIDE}", f"mv {init.INSIDE} /tmp/x", "touch /x")
    for attempt in attempts:
        assert "Permission denied" in host.sh("one", f"({attempt}) 2>&1"), attempt
    assert host.sh("one", f"ls -ln {init.INSIDE}").split()[0:4:2] == ["-r-xr-xr-x", "65534"]


def test_an_image_can_put_nothing_in_its_place(host: Host, image: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", image, root], check=True)
    (root / init.NAME).mkdir()
    (root / init.NAME / "x").touch()
    host.run("web", image=f"dir:{root}", command=DEAF, init=True, stop_timeout=LONG)
    assert sigterm(host, "web") == "ends it"
    assert host.operations.stop(["web"]) == {"web": ""}


def test_a_change_of_it_is_a_planned_restart_that_keeps_the_layer(host: Host, writable: str) -> None:
    host.run("web", image=writable, init=False)
    host.sh("web", "echo kept >/var/x")
    for wanted in (True, False):
        desired = host.desired("web", image=writable, init=wanted)
        (step,) = host.plan({"web": desired}).steps
        assert str(step) == "restart environment web (init): process 1 is chosen when the environment starts"
        assert host.apply({"web": desired})["web"].error == ""
        assert host.plan({"web": desired}).steps == []
        assert host.sh("web", "cat /var/x; ls -a /").splitlines()[0] == "kept"
        assert (init.NAME in host.sh("web", "ls -a /").splitlines()) is wanted


def test_where_the_host_has_none_that_one_is_refused_and_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run("web", init=True)
    pid = host.pid("web")
    with monkeypatch.context() as patch:
        patch.setattr(init, "PROGRAM", "no-such-program")
        wanted = {"web": host.desired("web", init=True, env={"A": "b"}), "other": host.desired("other")}
        found = host.plan(wanted)
        assert [step.name for step in found.steps] == ["other"]
        (refusal,) = found.refusals
        assert refusal.message.startswith("netspace:environments:web:init: the program no-such-program is missing")
        host.apply(wanted)
    assert host.pid("web") == pid


def test_a_reboot_and_a_run_that_was_killed_bring_it_back(host: Host) -> None:
    wanted = {"web": host.desired("web", command=DEAF, init=True, stop_timeout=LONG)}
    assert host.apply(wanted)["web"].error == ""
    assert host.operations.stop(["web"]) == {"web": ""}
    for target in mounts.table():
        if Path(target).is_relative_to(host.layout.run):
            mounts.unmount(Path(target))
    for folder in ("environments", "images", "crun", "init"):
        shutil.rmtree(host.layout.run / folder)
    # Of a run that was killed while it made the layer.
    left = init.layer(host.layout)
    left.rename(left.with_suffix(".new"))
    assert host.kind.restore() == {}
    assert [entry.name for entry in os.scandir(host.layout.inits)] == [left.name]
    assert host.operations.start(["web"]) == {"web": ""}
    assert host.plan(wanted).steps == []


def test_what_ends_for_want_of_memory_is_told_with_an_init_too(host: Host) -> None:
    if "memory" not in host.kind.making.controllers:
        pytest.skip("this host has no controller that bounds memory")
    greedy = shell("sleep 0.2; x=1; while :; do x=$x$x; done")
    host.run("web", command=greedy, init=True, restart="never", limits={"memory": "16M"})
    until(lambda: host.kind.list()["web"]["state"] == "failed")
    assert host.kind.list()["web"]["exit"] == "oom"
    assert host.kind.list()["web"]["oom_kills"] == 1


def test_nothing_of_it_is_left(host: Host) -> None:
    host.run("web", init=True, command=shell(STAY))
    assert host.layout.inits.is_dir()
    host.clear()
    assert not host.layout.inits.exists()
