"""Traps for root, left by an environment or a user of the host: endless trees, links, other mounts."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from netspace.environment import record as records
from netspace.environment.container import seccomp_file
from netspace.environment.storage import tree_removal

pytestmark = pytest.mark.root

DEEP = "cd /var; i=0; while [ $i -lt 3000 ]; do mkdir d; cd d; i=$((i+1)); done"
SIZED = {"target": "/data", "size": "16M"}


@pytest.mark.parametrize("limits", [{}, {"disk": "32M"}])
def test_folders_within_folders_don_t_keep_an_environment_from_being_removed(host, writable, limits):
    host.run("web", image=writable, limits=limits)
    host.sh("web", f"{DEEP}; echo kept > file")
    for limit in ({}, {"disk": "16M"}) if not limits else ():
        host.apply({"web": host.desired("web", image=writable, limits=limit)})
    host.apply({"web": host.desired("web", limits=limits)})  # another image: the layer goes
    assert host.sh("web", "ls -d /var") != "/var"
    assert [entry for entry in os.listdir(host.layout.environment("web")) if entry != "handout"] != []
    assert host.apply({}, ["web"])["web"].error == ""
    assert not host.layout.environment("web").exists()


def test_a_layer_whose_record_was_lost_gets_its_new_ids_however_deep_it_is(host, writable):
    host.run("web", image=writable)
    host.sh("web", DEEP)
    record = host.kind.recorded()["web"]
    host.operations.stop(["web"])
    records.path(host.layout, "web").unlink()
    records.write(host.layout, "other", record)  # somebody has its ids by now
    host.apply({"web": host.desired("web", image=writable)})
    assert host.kind.recorded()["web"].base != record.base
    folder, inside = os.open(host.layout.environment("web") / f"{record.image.digest[:16]}/upper/var", os.O_RDONLY), 0
    while "d" in os.listdir(folder):
        below, inside = os.open("d", os.O_RDONLY, dir_fd=folder), inside + 1
        os.close(folder)
        folder = below
    owner = os.fstat(folder).st_uid
    os.close(folder)
    assert inside > 1000
    assert owner == host.kind.recorded()["web"].base + 1000
    assert host.sh("web", "cat /etc/motd") == "hello"


def test_a_file_system_that_somebody_still_has_open_is_not_mounted_a_second_time(host):
    """An apply fails while a process has a volume's file open, since a second mount would destroy the file system."""
    host.run("web", volumes=[SIZED])
    host.sh("web", "echo kept > /data/file")
    again = {"web": host.desired("web", volumes=[SIZED], limits={"files": 512})}
    with (host.layout.disks("web") / "volume-data/data/file").open("rb"):  # as a backup has
        error = host.apply(again)["web"].error
        devices = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
        assert sum("volumes/web/data.ext4" in text for text in devices) == 1
        assert "volumes/web/data.ext4 is still in use by /dev/loop" in error
    assert host.apply(again)["web"].error == ""
    assert host.sh("web", "cat /data/file") == "kept"
    assert host.plan(again).steps == []


def test_a_file_system_goes_from_other_mount_namespaces_too(host):
    host.run("web", volumes=[SIZED])
    holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "1000"])
    try:
        while os.path.samefile(f"/proc/{holder.pid}/ns/mnt", "/proc/self/ns/mnt"):
            pass
        assert "disks/web" in Path(f"/proc/{holder.pid}/mounts").read_text()
        host.run("web", volumes=[SIZED], limits={"files": 512})
        assert "disks/web" not in Path(f"/proc/{holder.pid}/mounts").read_text()
    finally:
        holder.kill()
        holder.wait()


def test_what_a_killed_run_left_of_the_old_layer_is_not_taken_for_the_layer(host, writable, monkeypatch):
    host.run("web", image=writable)
    host.sh("web", "mkdir -p /var/a; echo old > /var/a/file")
    real = tree_removal.remove

    def killed(path):
        if (path / "upper/var/a/file").exists():
            (path / "upper/var/a/file").unlink()
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(tree_removal, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        host.apply({"web": host.desired("web", image=writable, limits={"disk": "16M"})})
    monkeypatch.undo()
    # Nobody asked for the limit any more when the next run came.
    assert host.apply({"web": host.desired("web", image=writable)})["web"].error == ""
    assert host.sh("web", "cat /var/a/file") == "old"


@pytest.mark.parametrize("read_only", [True, False])
def test_a_volume_s_path_can_t_be_swapped_by_another_user_of_the_host(host, read_only):
    with tempfile.TemporaryDirectory(dir="/var/tmp") as theirs:
        source = Path(theirs, "mine/data")
        source.mkdir(parents=True)
        source.parent.chmod(0o700)
        os.chown(theirs, 1234, 1234)
        volumes = [{"source": str(source), "target": "/data", "read_only": read_only}]
        wanted = {"web": host.desired("web", volumes=volumes)}
        assert f"because they can write to {theirs};" in host.apply(wanted)["web"].error
        os.chown(theirs, 0, 0)
        os.chmod(theirs, 0o777)
        assert f"because they can write to {theirs};" in host.apply(wanted)["web"].error
        os.chmod(theirs, 0o755)
        assert host.apply(wanted)["web"].error == ""
        host.apply({}, ["web"])
        loose = {"source": "/var/tmp/netspace-volume", "target": "/data", "read_only": read_only}
        wanted = {"web": host.desired("web", volumes=[loose])}
        assert "because they can write to /var/tmp;" in host.apply(wanted)["web"].error
        assert not Path(loose["source"]).exists()


def test_more_files_than_a_smaller_layer_can_have_are_refused_by_the_plan(host, writable):
    host.run("web", image=writable, limits={"disk": "64M"})
    host.sh("web", "cd /var; i=0; while [ $i -lt 1500 ]; do : > $i; i=$((i+1)); done")
    plan = host.plan({"web": host.desired("web", image=writable, limits={"disk": "16M"})})
    assert plan.steps == []
    assert "files" in plan.refusals[0].message


def test_a_system_call_profile_can_t_be_swapped_by_another_user_of_the_host(tmp_path):
    """A profile in another user's folder is refused, since the owner could replace it by a link to another file."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as theirs:
        profile = Path(theirs, "profile.json")
        profile.write_text('{"defaultAction": "SCMP_ACT_ERRNO"}')
        (tmp_path / "link").symlink_to(profile)
        os.chmod(theirs, 0o755)
        for path in (profile, tmp_path / "link"):
            found = seccomp_file.look(f"file:{path}")
            assert found is not None
            assert found.error == ""
            os.chown(theirs, 1234, 0)
            found = seccomp_file.look(f"file:{path}")
            assert found is not None
            assert f"users other than root can replace it; chown root {theirs} && chmod go-w {theirs}" in found.error
            os.chown(theirs, 0, 0)
