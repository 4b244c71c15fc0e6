"""Limits on the size of writable layers and volumes: exceeded, changed, damaged, interrupted, removed."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from support.environments.environment_host import Host
from support.sampling import todays

from netspace import files
from netspace.environment import record as records
from netspace.environment import user_ids
from netspace.environment.storage import disks, loop, mounts, rootfs

pytestmark = pytest.mark.root

MIB = 1024**2
VOLUME = {"target": "/data", "size": "24M"}


def fill(host: Host, name: str, path: str, megabytes: int) -> str:
    """Write a file of this size; return the output of ``dd``, and ``whole`` if the file has the full size."""
    write = f"busybox dd if=/dev/zero of={path} bs=1048576 count={megabytes} 2>&1 | head -n 1"
    size = f"$(ls -l {path} | busybox awk '{{print $5}}')"
    return host.sh(name, f"{write}; [ {size} = {megabytes * MIB} ] && echo whole")


def loops() -> set[str]:
    """Return this host's loop devices. Other hosts have loop devices for files at the same paths, on another disk."""
    state = os.stat("/var/lib/netspace").st_dev
    wanted = f"{os.major(state)}:{os.minor(state)}"
    columns = ["losetup", "--noheadings", "--raw", "--output", "NAME,BACK-MAJ:MIN"]
    listed = subprocess.run(columns, capture_output=True, text=True, check=True).stdout
    return {name for name, device in map(str.split, listed.splitlines()) if device == wanted}


def step(host: Host, wanted):
    (one,) = host.plan(wanted).steps
    return one


def test_a_layer_is_full_at_its_limit_and_the_neighbour_s_is_not(host, writable):
    for name in ("web", "other"):
        host.run(name, image=writable, limits={"disk": "16M"})
    out = fill(host, "web", "/var/big", 20)
    assert "No space left on device" in out
    assert os.stat(host.layout.disks("web") / "layer/upper/var/big").st_size < 16 * MIB
    assert fill(host, "other", "/var/big", 5).endswith("whole")
    assert host.operations.inspect("web")["usage"]["disk"] > 5 * MIB
    assert host.sh("web", "rm /var/big; echo again > /var/x; cat /var/x") == "again"


def test_the_number_of_files_is_bounded_too(host, writable):
    host.run("web", image=writable, limits={"disk": "16M"})
    out = host.sh("web", "i=0; while touch /var/$i; do i=$((i+1)); done; echo made $i")
    assert "No space left on device" in out
    made = re.search(r"made (\d+)", out)
    assert made is not None
    assert 900 < int(made[1]) <= 1024


def test_a_volume_is_full_at_its_size_and_outlives_the_environment(host):
    wanted = {"web": host.desired("web", volumes=[VOLUME])}
    host.run("web", volumes=[VOLUME])
    assert "No space left on device" in fill(host, "web", "/data/big", 30)
    assert host.sh("web", "rm /data/big; echo kept > /data/file; ls -ln /data").split()[4:6] == ["1000", "1000"]
    assert host.operations.inspect("web")["usage"]["volumes"]["/data"] < MIB
    assert host.plan(wanted).steps == []
    # Nobody else on the host gets to it.
    assert (host.layout.disks("web") / "volume-data").stat().st_mode & 0o777 == 0o700
    host.apply({}, ["web"])
    assert loops() == set()
    host.apply(wanted)
    assert host.sh("web", "cat /data/file") == "kept"
    host.kind.apply(host.plan({}, ["web"]).steps, purge=True)
    assert not host.layout.volumes("web").exists()


def test_sizes_grow_in_place(host, writable):
    def declared(disk, size):
        volume = {**VOLUME, "size": size}
        return {"web": host.desired("web", image=writable, limits={"disk": disk}, volumes=[volume])}

    assert host.apply(declared("16M", "16M"))["web"].error == ""
    pid = host.pid("web")
    host.sh("web", "echo kept > /var/file; echo kept > /data/file")
    wanted = declared("300M", "64M")
    one = step(host, wanted)
    # Where it may not (no CAP_SYS_RESOURCE), all is written anew.
    assert (one.action, sorted(one.changes)) == ("update" if disks.grows() else "restart", ["limits:disk", "volumes"])
    assert host.apply(wanted)["web"].error == ""
    assert (host.pid("web") == pid) == disks.grows()
    assert fill(host, "web", "/var/big", 100).endswith("whole")
    assert fill(host, "web", "/data/big", 40).endswith("whole")
    assert host.sh("web", "cat /var/file /data/file") == "kept\nkept"
    assert host.plan(wanted).steps == []


def test_a_size_shrinks_by_a_restart_and_never_below_what_is_there(host, writable):
    def declared(disk):
        return {"web": host.desired("web", image=writable, limits={"disk": disk})}

    host.apply(declared("64M"))
    fill(host, "web", "/var/big", 30)
    plan = host.plan(declared("32M"))
    assert plan.steps == []
    assert "limits:disk: it holds 30" in plan.refusals[0].message
    host.sh("web", "rm /var/big; echo kept > /var/file")
    one = step(host, declared("32M"))
    assert (one.action, one.reason.split(" ")[0:2]) == ("restart", ["a", "separate"])
    assert host.apply(declared("32M"))["web"].error == ""
    assert host.sh("web", "cat /var/file") == "kept"
    assert "No space left" in fill(host, "web", "/var/big", 40)
    assert host.plan(declared("32M")).steps == []


def test_a_layer_keeps_its_content_when_it_gets_a_limit_and_when_it_loses_it(host, writable):
    folder = host.layout.environment("web")

    def kinds():
        return sorted(Path(entry).suffix for entry in os.listdir(folder) if entry != "handout")

    for limits, suffix in (({}, ""), ({"disk": "32M"}, ".ext4"), ({}, ""), ({"disk": "16M"}, ".ext4")):
        wanted = {"web": host.desired("web", image=writable, limits=limits)}
        assert host.apply(wanted)["web"].error == ""
        # A removed file of the image, a link and a mode are part of it as well.
        host.sh("web", "[ -e /var/0 ] || { echo 0 > /var/0; ln /var/0 /var/1; ln -s 0 /var/2; chmod 640 /var/0; }")
        assert host.sh("web", "cat /var/1 /var/2; ls -l /var/0").split()[:3] == ["0", "0", "-rw-r-----"]
        assert kinds() == [suffix]
        assert host.plan(wanted).steps == []


def test_a_limit_below_what_an_unbounded_layer_holds_stops_nothing(host, writable):
    host.run("web", image=writable)
    pid, wanted = host.pid("web"), {"web": host.desired("web", image=writable, limits={"disk": "16M"})}
    for content, told in (
        ("busybox dd if=/dev/zero of=/var/big bs=1048576 count=30", "limits:disk: it holds 30"),
        ("rm /var/big; i=0; while [ $i -lt 1100 ]; do touch /var/$i; i=$((i+1)); done", "files, 16 MiB have"),
    ):
        host.sh("web", content)
        assert told in host.apply(wanted)["web"].error
        assert host.pid("web") == pid
        assert host.kind.recorded()["web"].spec.limits.disk is None
    host.sh("web", "rm /var/*; echo kept > /var/file")
    assert host.apply(wanted)["web"].error == ""
    assert host.sh("web", "cat /var/file") == "kept"
    assert host.plan(wanted).steps == []


def test_what_was_changed_by_hand_is_seen_and_repaired(host, writable):
    host.run("web", image=writable, limits={"disk": "32M"})
    wanted = {"web": host.desired("web", image=writable, limits={"disk": "32M"})}
    record = host.kind.recorded()["web"]
    host.sh("web", "echo kept > /var/file")
    # Made larger.
    place = disks.layer(host.layout, "web", record.image.digest, 32 * MIB)
    os.truncate(place.file, 64 * MIB)
    assert step(host, wanted).action == "restart"
    host.apply(wanted)
    assert "No space left" in fill(host, "web", "/var/big", 40)
    # Unmounted.
    mounts.unmount(host.layout.disks("web") / "layer")
    assert step(host, wanted).action == "restart"
    host.apply(wanted)
    assert host.sh("web", "rm /var/big; cat /var/file") == "kept"
    assert host.plan(wanted).steps == []


# Every way in which the disks' code changes anything.
SEAMS = (
    *(
        (os, name)
        for name in ("ftruncate", "truncate", "pwrite", "fsync", "rename", "replace", "mkdir", "rmdir", "chown")
    ),
    *((os, "unlink"), (mounts, "mount"), (mounts, "unmount"), (files, "sync_all"), (fcntl, "ioctl")),
    *((records, "write"), (subprocess, "run")),
)


def apply_until(host: Host, wanted, count: int) -> bool:
    """Apply in a process that is killed before its *count*-th call of ``SEAMS``; return whether it was killed."""
    pid = os.fork()
    if pid == 0:
        left = itertools.count(-count)

        def cut(real):
            def call(*arguments, **options):
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        try:
            for module, name in SEAMS:
                setattr(module, name, cut(getattr(module, name)))
            host.apply(wanted)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


TRANSITIONS = [
    ({}, {"disk": "16M"}),
    ({"disk": "16M"}, {"disk": "64M"}),
    ({"disk": "64M"}, {"disk": "32M"}),
    ({"disk": "16M"}, {}),
]


@pytest.mark.parametrize(("before", "after"), todays(TRANSITIONS, 2))
def test_a_run_that_is_killed_anywhere_is_repaired_by_the_next(host, writable, before, after):
    wanted = {"web": host.desired("web", image=writable, limits=after, volumes=[VOLUME])}
    count, killed = 0, True
    while killed:
        host.run("web", image=writable, limits=before)
        host.sh("web", "echo kept > /var/file; mkdir -p /var/d; echo kept > /var/d/file")
        killed = apply_until(host, wanted, count)
        assert {outcome.error for outcome in host.apply(wanted).values()} <= {""}
        assert host.plan(wanted).steps == [], count
        assert host.sh("web", "cat /var/file /var/d/file; echo v > /data/v; cat /data/v") == "kept\nkept\nv", count
        assert not [path for path in host.layout.state.rglob("*.new") if path.parent.name == "web"], count
        count += 8
    assert count > 20


def test_a_reboot_mounts_them_again(host, writable):
    host.run("web", image=writable, limits={"disk": "16M"}, volumes=[VOLUME])
    wanted = {"web": host.desired("web", image=writable, limits={"disk": "16M"}, volumes=[VOLUME])}
    host.sh("web", "echo kept > /var/file; echo kept > /data/file")
    host.operations.stop(["web"])
    rootfs.dismantle(host.layout, "web")
    assert loops() == set()
    assert host.kind.restore() == {}
    assert host.operations.start(["web"]) == {"web": ""}
    assert host.sh("web", "cat /var/file /data/file") == "kept\nkept"
    assert host.plan(wanted).steps == []


def test_nothing_is_left_of_a_removed_one(host, writable):
    host.run("web", image=writable, limits={"disk": "16M"}, volumes=[VOLUME])
    assert len(loops()) == 2
    host.kind.apply(host.plan({}, ["web"]).steps, purge=True)
    assert loops() == set()
    assert not any("/disks/" in target for target in mounts.table())
    assert not host.layout.disks("web").exists()
    assert not host.layout.environment("web").exists()


def test_nothing_inside_tells_where_they_are_kept(host, writable):
    host.run("web", image=writable, limits={"disk": "16M"}, volumes=[VOLUME])
    seen = host.sh("web", "cat /proc/self/mountinfo")
    for path in ("/var/lib", "layers", "volumes", "/disks/", writable.partition(":")[2]):
        assert path not in seen
    (volume,) = [line.split() for line in seen.splitlines() if line.split()[4] == "/data"]
    assert volume[3] == "/data"
    assert "nosuid,nodev" in volume[5]


def test_a_host_without_loop_devices_says_so_and_changes_nothing(host, writable, monkeypatch):
    monkeypatch.setattr(loop, "CONTROL", Path("/nowhere"))
    plan = host.plan(
        {
            "web": host.desired("web", limits={"disk": "16M"}),
            "data": host.desired("data", volumes=[VOLUME]),
            "plain": host.desired("plain"),
        }
    )
    assert [one.name for one in plan.steps] == ["plain"]
    assert {one.name for one in plan.refusals} == {"web", "data"}
    assert all("can't be kept on this host: there is no /nowhere" in one.message for one in plan.refusals)


def test_a_lost_record_does_not_lose_the_layer(host, writable, monkeypatch):
    for limits in ({}, {"disk": "16M"}):
        host.run("web", image=writable, limits=limits)
        host.sh("web", "mkdir -p /var/d; echo kept > /var/d/file")
        base = host.kind.recorded()["web"].base
        records.path(host.layout, "web").unlink()
        assert "web has a layer, but no record" in host.plan({"other": host.desired("other")}).notes[0]
        # By now its ids are another's.
        monkeypatch.setattr(
            user_ids, "free", lambda _, used, base=base: base if base not in used else base + user_ids.COUNT
        )
        host.run("taker")
        assert host.kind.recorded()["taker"].base == base
        wanted = {"web": host.desired("web", image=writable, limits=limits)}
        one = step(host, wanted)
        assert (one.action, one.reason) == ("create", "its record was lost; its layer is kept")
        assert host.apply(wanted)["web"].error == ""
        assert host.sh("web", "cat /var/d/file; echo more >> /var/d/file && echo ok") == "kept\nok"
        assert host.plan(wanted).steps == []
        host.apply({}, ["web", "taker"])
        monkeypatch.undo()


def test_a_layer_on_another_image_without_a_record_is_put_aside(host, writable, tmp_path):
    for limits in ({}, {"disk": "16M"}):
        host.run("web", image=writable, limits=limits)
        host.sh("web", "echo kept > /var/file")
        old = host.kind.recorded()["web"].image.digest[:16]
        records.path(host.layout, "web").unlink()
        (tmp_path / "root/etc/motd").write_text(f"another {limits}")
        for _ in range(2):  # the second time nothing happens to it either
            host.run("web", image=writable, limits=limits)
            host.operations.stop(["web"])
            rootfs.dismantle(host.layout, "web")
        (lost,) = host.layout.environment("web").glob("lost-*")
        assert lost.name.startswith(f"lost-{old}")
        if limits:
            with disks.attached(lost, tmp_path / "point" / "lost"):
                assert (tmp_path / "point/lost/upper/var/file").read_text() == "kept\n"
        else:
            assert (lost / "upper/var/file").read_text() == "kept\n"
        host.apply({}, ["web"])
        assert not host.layout.environment("web").exists()


def test_a_damaged_file_system_is_a_clear_error_of_that_environment_alone(host, writable):
    host.run("web", image=writable, limits={"disk": "16M"})
    record = host.kind.recorded()["web"]
    host.operations.stop(["web"])
    rootfs.dismantle(host.layout, "web")
    with disks.layer(host.layout, "web", record.image.digest, 16 * MIB).file.open("r+b") as stream:
        stream.seek(1024)
        stream.write(bytes(1024))
    wanted = {name: host.desired(name, image=writable, limits={"disk": "16M"}) for name in ("web", "other")}
    outcomes = host.apply(wanted)
    assert "is it damaged? e2fsck -f /var/lib/netspace/layers/web/" in outcomes["web"].error
    assert outcomes["other"].error == ""
