"""The life of an environment: created, changed in one thing, started again after a reboot, repaired, removed."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from support.environments.environment_host import STAY, shell
from support.waiting import until

from netspace import files
from netspace.environment import record as records
from netspace.environment import starting
from netspace.environment.container import oci_runtime
from netspace.environment.storage import init, injected_files, mounts, rootfs
from netspace.errors import NetspaceError
from netspace.host import restore
from netspace.supervision.daemon import log_times
from netspace.supervision.definitions import desire, remove_trace

pytestmark = pytest.mark.root

NOTHING = {"mounts": [], "files": [], "cgroups": [], "processes": []}


def fingerprint(*folders: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, mtime and ctime of every file. The result stays equal if nothing was written."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            info = path.lstat()
            found[str(path)] = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
    return found


def look_long(monkeypatch, looks):
    """Lengthen the watch after a start by *looks* tenths of a second, so that a program's later end is noticed too."""
    monkeypatch.setattr(starting, "PATIENCE", starting.PATIENCE + looks / 10)


def test_a_second_apply_plans_nothing_and_writes_nothing(host):
    wanted = {name: host.desired(name) for name in ("web", "orders_2", "a-b")}
    assert {outcome.error for outcome in host.apply(wanted).values()} == {""}
    before = fingerprint(host.layout.state, host.layout.run)
    mounted = mounts.table()
    assert host.plan(wanted).steps == []
    assert fingerprint(host.layout.state, host.layout.run) == before
    assert mounts.table() == mounted


def test_a_change_restarts_only_that_one_and_names_the_key(host):
    host.apply({name: host.desired(name) for name in ("web", "other")})
    pids = {name: host.pid(name) for name in ("web", "other")}
    wanted = {"web": host.desired("web", limits={"files": 64}), "other": host.desired("other")}
    (step,) = host.plan(wanted).steps
    assert str(step).startswith("restart environment web (limits:files): a program's limit of open files")
    assert step.changes == {"limits:files": {"old": 1024, "new": 64}}
    host.apply(wanted)
    assert host.pid("web") != pids["web"]
    assert host.pid("other") == pids["other"]
    assert host.plan(wanted).steps == []


def test_what_concerns_one_looks_at_no_other(host, monkeypatch, tmp_path):
    volumes = [{"source": str(tmp_path / "data"), "target": "/data"}]
    wanted = {"web": host.desired("web"), "other": host.desired("other", volumes=volumes)}
    host.apply(wanted)
    looked = []
    real = injected_files.observe
    monkeypatch.setattr(injected_files, "observe", lambda layout, name: looked.append(name) or real(layout, name))
    about_one = host.kind.observe({"web", "new"})
    assert looked == ["web"]
    assert host.kind.plan({"web": wanted["web"]}, about_one).steps == []
    changed = {"web": host.desired("web", limits={"files": 64})}
    assert [step.name for step in host.kind.plan(changed, about_one).steps] == ["web"]
    # What the others have is theirs none the less.
    (refusal,) = host.kind.plan({"new": host.desired("new", volumes=volumes)}, about_one).refusals
    assert "environment other has" in refusal.message
    assert [step.name for step in host.kind.plan({}, host.kind.observe(()), ["web"]).steps] == ["web"]
    assert looked == ["web"]
    assert host.plan(wanted).steps == [] and set(looked) == {"web", "other"}


def test_former_hardening_stays_until_an_operator_restarts(host):
    """After an upgrade, an apply restarts no program; a restart by the operator brings the new hardening.

    The test writes another revision of the hardening into a record, as if an earlier version had made the environment.
    """
    wanted = {name: host.desired(name) for name in ("web", "other")}
    host.apply(wanted)
    pids = {name: host.pid(name) for name in wanted}

    def recorded() -> records.Record:
        return records.some(host.layout, ["web"])["web"]

    present = recorded().revision
    records.write(host.layout, "web", msgspec.structs.replace(recorded(), revision="former"))
    host.apply({**wanted, "web": host.desired("web", limits={"memory": "80M"})})
    assert recorded().revision == "former"
    assert {name: host.pid(name) for name in wanted} == pids
    (note,) = host.plan({**wanted, "web": host.desired("web", limits={"memory": "80M"})}).notes
    assert note.startswith("environments have the hardening of an earlier version of netspace") and ": web;" in note
    assert host.operations.restart(["web"]) == {"web": ""}
    assert recorded().revision == present and host.pid("web") != pids["web"]
    plan = host.plan({**wanted, "web": host.desired("web", limits={"memory": "80M"})})
    assert (plan.steps, plan.notes, host.pid("other")) == ([], [], pids["other"])


def test_what_needs_no_restart_gets_none(host):
    host.run("web")
    pid = host.pid("web")
    wanted = {"web": host.desired("web", restart="always", stop_timeout=3, attestation={"minimum": "L0"})}
    (step,) = host.plan(wanted).steps
    assert step.action == "update"
    host.apply(wanted)
    assert host.pid("web") == pid
    assert host.plan(wanted).steps == []


def test_the_layer_survives_a_restart_but_not_another_image(host, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(host.image, root, symlinks=True)
    (root / "var").mkdir()
    (root / "var").chmod(0o1777)
    (root / "var").chmod(0o777)
    image = f"dir:{root}"
    host.run("web", image=image)
    host.sh("web", "echo kept > /var/file")
    assert host.operations.restart(["web"]) == {"web": ""}
    assert host.sh("web", "cat /var/file") == "kept"

    (root / "etc/motd").write_text("changed\n")
    wanted = {"web": host.desired("web", image=image)}
    (step,) = host.plan(wanted).steps
    assert step.action == "restart"
    assert list(step.changes) == ["image"]
    old = host.kind.recorded()["web"].image.digest
    assert host.apply(wanted)["web"].error == ""
    assert host.sh("web", "cat /etc/motd") == "changed"
    assert "No such file" in host.sh("web", "cat /var/file")
    assert host.plan(wanted).steps == []
    assert host.kind.store.file(old).exists(), "an image that nobody uses is removed on demand only"
    host.kind.store.prune({host.kind.recorded()["web"].image.digest})
    assert not host.kind.store.file(old).exists()
    assert str(host.kind.store.mountpoint(old)) not in mounts.table()


def test_a_touched_source_is_no_change(host, tmp_path, tar):
    copy = tmp_path / "image.tar"
    shutil.copy(tar, copy)
    host.run("web", image=f"tar:{copy}")
    os.utime(copy, ns=(1, 1))
    wanted = {"web": host.desired("web", image=f"tar:{copy}")}
    assert host.plan(wanted).steps == []
    copy.unlink()
    plan = host.plan(wanted)
    assert plan.steps == []
    assert "keeps its present image" in plan.notes[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"command": ["/nope"]}, "`/nope` not found"),
        ({"command": ["/etc/motd"]}, "can't be started: "),
        ({"command": shell("exit 3"), "restart": "never"}, "ended right after its start (exit 3)"),
        ({"command": []}, "the image names no command"),
        ({"image": "tar:/nowhere.tar"}, "image source /nowhere.tar: No such file or directory"),
    ],
)
def test_a_program_that_can_not_run_is_a_clear_error(host, monkeypatch, keys, message):
    if message.startswith("ended"):
        look_long(monkeypatch, 20)
    outcomes = host.apply({"bad": host.desired("bad", **keys), "good": host.desired("good")})
    assert message in outcomes["bad"].error
    assert outcomes["good"].error == ""
    assert host.kind.list()["good"]["state"] == "running"


def test_program_that_waits_for_work_counts_as_started(host, monkeypatch):
    monkeypatch.setattr(starting, "PATIENCE", 600.0)  # so long a busy program would be watched
    began = time.monotonic()
    assert host.apply({"web": host.desired("web")})["web"].error == ""
    assert time.monotonic() - began < 600


def test_settle_watches_a_program_that_sleeps_before_it_ends(host):
    late = {"restart": "never", "command": shell("sleep 1; exit 3"), "settle": 300}
    assert "ended right after its start (exit 3)" in host.apply({"job": host.desired("job", **late)})["job"].error
    at_once = late | {"command": shell("sleep 600; exit 3"), "settle": 0}
    assert host.apply({"job": host.desired("job", **at_once)})["job"].error == ""


def test_settle_changes_without_a_restart(host):
    host.run("web")
    pid = host.pid("web")
    (step,) = host.plan({"web": host.desired("web", settle=5)}).steps
    assert (step.action, step.changes) == ("update", {"settle": {"old": 0.0, "new": 5.0}})
    assert host.apply({"web": host.desired("web", settle=5)})["web"].error == ""
    assert host.pid("web") == pid


def test_the_reason_why_one_can_not_be_started_is_kept_and_each_apply_tries_it_again(host):
    wanted = {"bad": host.desired("bad", command=["/nope"]), "good": host.desired("good")}
    assert "`/nope` not found" in host.apply(wanted)["bad"].error
    for _ in range(2):  # while it is tried again and again
        until(lambda: host.kind.list()["bad"]["state"] == "starting")
        (step,) = host.plan(wanted).steps
        assert (step.name, step.action) == ("bad", "start")
        assert "`/nope` not found" in step.reason
        assert "`/nope` not found" in host.kind.list()["bad"]["problem"]
        assert "`/nope` not found" in host.apply(wanted)["bad"].error
        restarts = host.kind.list()["bad"]["restarts"]
        until(lambda restarts=restarts: host.kind.list()["bad"]["restarts"] > restarts)
    assert host.kind.list()["good"]["problem"] == ""
    with pytest.raises(NetspaceError, match=r"environment bad is starting .*`/nope` not found"):
        host.operations.wait(["bad"], timeout=0)
    host.run("bad")
    assert host.kind.list()["bad"]["problem"] == ""


def test_a_job_that_has_failed_is_run_again_by_hand_or_by_a_change_but_by_no_apply(host, monkeypatch):
    look_long(monkeypatch, 50)
    runs = "echo run; exit 3"
    wanted = {"job": host.desired("job", command=shell(runs), restart="never")}
    assert "ended right after its start (exit 3)" in host.apply(wanted)["job"].error

    def count():
        return host.operations.logs("job")["lines"].count("run")

    until(lambda: count() == 1)
    for _ in range(2):
        assert host.apply(wanted) == {}
        (refusal,) = host.plan(wanted).refusals
        assert "it ended (exit 3)" in refusal.message
    assert count() == 1
    assert "exit 3" in host.operations.start(["job"])["job"]
    until(lambda: count() == 2)
    host.apply({"job": host.desired("job", command=shell(runs), restart="never", user=7)})
    until(lambda: count() == 3)


def test_a_missing_namespace_is_a_clear_error_and_a_replaced_one_a_restart(host):
    desired = host.desired("web")
    (outcome,) = host.kind.apply(host.plan({"web": desired}).steps)
    assert "apply interfaces first" in outcome.error
    assert host.apply({"web": desired})["web"].error == ""
    mounts.unmount(host.layout.netns("web"))
    host.namespace("web")
    (step,) = host.plan({"web": desired}).steps
    assert str(step) == "restart environment web: its network namespace was replaced"
    host.apply({"web": desired})
    assert host.plan({"web": desired}).steps == []


def test_a_job_that_has_ended_well_is_not_run_again(host):
    host.run("job", command=shell("exit 0"), restart="never")
    until(lambda: host.kind.list()["job"]["state"] == "stopped")
    assert host.plan({"job": host.desired("job", command=shell("exit 0"), restart="never")}).steps == []


def test_present_leaves_running_or_stopped(host):
    host.run("web", state="present")
    assert host.kind.list()["web"]["state"] == "stopped"
    assert host.operations.start(["web"]) == {"web": ""}
    (step,) = host.plan({"web": host.desired("web", state="present", user=7)}).steps
    assert step.action == "restart"
    host.run("web", state="present", user=7)
    assert host.sh("web", "id") == "uid=7 gid=7"
    host.run("web", state="stopped", user=7)
    assert host.kind.list()["web"]["state"] == "stopped"


def test_operations(host):
    host.run("web", command=shell(f"echo started; {STAY}"))
    until(lambda: host.operations.logs("web", 5) == {"lines": ["started"]})
    assert host.operations.logs("web", since=600) == {"lines": ["started"]}
    assert host.operations.stop(["web"]) == {"web": ""}
    assert host.operations.list()["web"]["state"] == "stopped"
    assert host.operations.list()["web"]["wanted"] == "stopped"
    with pytest.raises(NetspaceError, match="does not run"):
        host.sh("web", "id")
    assert host.operations.start(["web"]) == {"web": ""}
    until(lambda: host.operations.logs("web", 5) == {"lines": ["started"] * 2})
    told = [line.split(" ", 1) for line in host.operations.logs("web", times=True)["lines"]]
    assert [rest for _, rest in told] == ["= start", "| started"] * 2
    moments = [datetime.datetime.fromisoformat(stamp) for stamp, _ in told]
    assert moments == sorted(moments) and {one.utcoffset() for one in moments} == {datetime.timedelta()}
    second = host.operations.logs("web", since=told[2][0], times=True)["lines"]
    assert [line.split(" ", 1)[1] for line in second] == ["= start", "| started"]
    log = oci_runtime.output(host.layout, "web")
    log_times.remove(log)  # as an earlier version left it
    with pytest.raises(NetspaceError, match=r"^since: /var/log/netspace/environment-web\.log has no times for these"):
        host.operations.logs("web", since=600)
    assert host.operations.logs("web", 1, times=True) == {"lines": ["- | started"]}
    with pytest.raises(NetspaceError, match="did you mean web"):
        host.operations.stop(["wbe"])

    done = host.operations.exec("web", ["cat"], stdin="x" * 200_000)
    assert (done["retcode"], len(done["stdout"]), done["truncated"]) == (0, 200_000, False)
    done = host.operations.exec("web", ["head", "-c", "3000000", "/dev/zero"])
    assert (len(done["stdout"]), done["truncated"]) == (1024 * 1024, True)
    assert host.operations.exec("web", shell("exit 7"))["retcode"] == 7
    done = host.operations.exec("web", ["sleep", "60"], timeout=0.3)
    assert (done["retcode"], done["timed_out"]) == (124, True)
    with pytest.raises(NetspaceError, match="`nope` not found"):
        host.operations.exec("web", ["nope"])

    seen = host.operations.inspect("web")
    assert seen["state"] == "running"
    assert seen["usage"]["pids"] >= 1
    assert seen["usage"]["memory"] > 0
    assert seen["files"] == ["environment.json"]
    host.run("web", env={"TOKEN": "hush"}, command=shell(f"echo started; {STAY}"))
    assert "hush" not in repr(host.operations.inspect("web"))


def test_nothing_that_a_program_says_commands_a_terminal(host):
    told = "printf 'a\\033[2Jb\\302\\233c\\342\\200\\256d\\re\\n'"
    host.run("web", command=shell(f"{told}; {STAY}"))
    shown = "a\ufffd[2Jb\ufffdc\ufffdd\ufffde"
    until(lambda: host.operations.logs("web", 5) == {"lines": [shown]})
    assert host.operations.exec("web", shell(f"{told}; {told} >&2"))["stdout"] == f"{shown}\n"
    assert host.operations.exec("web", shell(f"{told} >&2"))["stderr"] == f"{shown}\n"


def test_exec_kills_nobody_who_got_the_number_of_what_has_ended(host, debian):
    """``exec`` times out after its program's PID went to another process, which is not killed."""
    host.run("web", image=f"dir:{debian}")
    script = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(30)\n"
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as victim:
        try:
            with ThreadPoolExecutor(1) as apart:
                run = apart.submit(host.operations.exec, "web", ["/usr/bin/python3", "-c", script], timeout=4)
                until(lambda: [path for path in host.layout.run.glob("exec-*/pid") if path.read_text()])
                for path in host.layout.run.glob("exec-*/pid"):
                    path.write_text(str(victim.pid))  # as if the kernel had given it to this process
                assert run.result()["timed_out"]
            assert victim.poll() is None
        finally:
            victim.kill()


def test_exec_ends_what_is_never_silent(host):
    host.run("web")
    began = time.monotonic()
    assert host.operations.exec("web", shell("while :; do echo x; done"), timeout=1)["timed_out"]
    assert time.monotonic() - began < 50


def test_variables_are_never_shown(host):
    (step,) = host.plan({"web": host.desired("web", env={"TOKEN": "hush"})}).steps
    assert "hush" not in repr(step.changes)
    host.run("web", env={"TOKEN": "hush"})
    (step,) = host.plan({"web": host.desired("web", env={"TOKEN": "secret"})}).steps
    assert step.changes == {"env:TOKEN": {"old": "(old value)", "new": "(new value)"}}


def reboot(host) -> None:
    """Simulate a reboot: end processes, and remove mounts and /run."""
    host.supervisor.stop([f"environment-{name}" for name in host.kind.names()])
    for target in mounts.table():
        if Path(target).is_relative_to(host.layout.run):
            mounts.unmount(Path(target))
    for folder in ("environments", "images", "crun"):
        shutil.rmtree(host.layout.run / folder)


def test_everything_is_restored_from_the_records(host):
    wanted = {name: host.desired(name, read_only=name == "two", files={"password": b"p"}) for name in ("one", "two")}
    host.apply(wanted)
    host.sh("one", "true")
    reboot(host)
    assert host.kind.restore() == {}
    assert host.kind.restore() == {}
    assert host.supervisor.start(["environment-one", "environment-two"]) == {}
    assert host.plan(wanted).steps == []
    assert host.sh("one", "cat /run/netspace/password") == "p"


def test_one_damaged_record_keeps_no_other_from_running(host, capfd):
    names = ("web", "orders", "lost")
    host.apply({name: host.desired(name) for name in names})
    reboot(host)
    services = [f"environment-{name}" for name in names]
    desire(host.layout, add=services)
    for service in services:
        remove_trace(host.layout, service)
    bad = records.path(host.layout, "zz")
    bad.write_text("{")
    gone = records.path(host.layout, "lost")
    record = json.loads(gone.read_text())
    gone.write_text(json.dumps({**record, "runtime": {"name": "another", "settings": {}}}))
    assert restore.run(host.layout) == 1
    told = capfd.readouterr().err
    assert f"environments: zz: {bad}: " in told
    assert f"environments: lost: {gone}: the runtime 'another' with which it was made is gone" in told
    until(lambda: {host.kind.list()[name]["state"] for name in ("web", "orders")} == {"running"})
    rows = host.kind.list()
    assert list(rows) == ["lost", "orders", "web", "zz"]
    assert str(bad) in rows["zz"]["problem"]
    assert "remove the file" in rows["zz"]["problem"]
    assert "install it again, or declare another" in rows["lost"]["problem"]
    assert rows["web"].keys() == rows["zz"].keys()
    assert rows["lost"]["pid"] == 0, "what nobody knows is not started"

    # The others are at hand; what would have to know of all is refused.
    assert host.sh("web", "echo here") == "here"
    assert host.operations.stop(["web"]) == {"web": ""}
    assert host.operations.start(["web"]) == {"web": ""}
    assert host.operations.inspect("web")["state"] == "running"
    assert host.operations.wait(["orders"])["orders"]["problem"] == ""
    for name in ("zz", "lost"):
        with pytest.raises(NetspaceError, match="remove the file and apply again"):
            host.operations.inspect(name)
    with pytest.raises(NetspaceError, match=str(gone)):
        host.plan({"new": host.desired("new")})
    # The remedy: what it had it has again.
    bad.unlink()
    gone.unlink()
    host.run("lost")
    assert json.loads(gone.read_text())["base"] == record["base"]


def test_a_tampered_image_is_not_mounted_after_a_boot(host):
    host.run("web")
    digest = host.kind.recorded()["web"].image.digest
    reboot(host)
    with host.kind.store.file(digest).open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"tampered")
    assert "was changed" in host.kind.restore()["web"]
    assert "was changed" in host.apply({"web": host.desired("web")})["web"].error
    host.kind.store.file(digest).unlink()
    host.run("web")


def test_removal_leaves_nothing(host):
    assert host.traces() == NOTHING
    host.run("web")
    host.run("other", read_only=True)
    host.sh("web", "echo x > /tmp/x")
    assert all(host.traces().values())
    (outcome,) = host.kind.apply(host.kind.plan({}, host.kind.observe(), ["web"]).steps)
    assert outcome.error == ""
    assert host.kind.list()["other"]["state"] == "running"
    assert host.apply({}, ["other"])["other"].error == ""
    left = host.traces()
    assert {key: left[key] for key in ("mounts", "cgroups", "processes")} == {
        key: NOTHING[key] for key in ("mounts", "cgroups", "processes")
    }
    assert [path for path in left["files"] if "environment" in Path(path).name and Path(path).is_file()] == []
    assert list((host.layout.run / "environments").iterdir()) == []
    assert list((host.layout.state / "layers").iterdir()) == []
    assert len(host.kind.store.digests()) == 1, "images stay until they are pruned"
    host.kind.store.prune(())
    assert list(host.layout.images.iterdir()) == []


def test_beside_a_hybrid_cgroup_layout_crun_runs_and_the_mount_stays(host):
    unified = Path("/sys/fs/cgroup/unified")
    unified.mkdir()
    mounts.mount("cgroup2", unified, "cgroup2")
    try:
        host.run("web", limits={"memory": "16M"})
        assert host.sh("web", "id") == "uid=1000 gid=1000"
        assert host.operations.inspect("web")["usage"]["memory"] > 0
        assert host.apply({}, ["web"])["web"].error == ""
        assert mounts.table()[str(unified)].kind == "cgroup2"
    finally:
        mounts.unmount(unified)
        unified.rmdir()


class Killed(BaseException):
    """Exception that stands for the kill of a run. The library doesn't catch it."""


FAULTS = [
    (records, "write_all"),
    (rootfs, "assemble"),
    (init, "layer"),
    (mounts, "idmapped"),
    (mounts, "overlay"),
    (injected_files, "keep"),
    (injected_files, "show"),
    (files, "write"),
    (files, "write_all"),
    (files, "write_json"),
    (rootfs, "dismantle"),
    (rootfs, "erase"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("module", "function"), FAULTS, ids=[f"{m.__name__.rpartition('.')[2]}.{f}" for m, f in FAULTS]
)
def test_a_kill_at_any_step_is_repaired_by_the_next_apply(host, monkeypatch, module, function, after):
    real = getattr(module, function)

    def killed(*args, **keys):
        if after:
            real(*args, **keys)
        raise Killed

    def attempt(wanted, remove=()):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, killed)
            with contextlib.suppress(Killed):
                host.apply(wanted, remove)

    created = {"web": host.desired("web")}
    changed = {"web": host.desired("web", user=7, init=True, files={"environment.json": b"new"})}
    for wanted in (created, changed):
        attempt(wanted)
        assert {outcome.error for outcome in host.apply(wanted).values()} <= {""}
        assert host.plan(wanted).steps == []
        assert host.sh("web", "id") == "uid={0} gid={0}".format(wanted["web"].spec.user or 1000)
    attempt({}, ["web"])
    assert {outcome.error for outcome in host.apply({}, ["web"]).values()} <= {""}
    assert host.traces()["mounts"] == []
    assert host.kind.names() == set()
