"""Volumes are copied and restored completely, and only while no program writes to them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netspace.environment import copies
from netspace.environment.storage import disks
from netspace.errors import NetspaceError

pytestmark = pytest.mark.root

SIZED = {"target": "/var/data", "size": "16M"}


class Killed(BaseException):
    """Exception that stands for SIGKILL: no error handler catches it, and nothing is cleaned up."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    tmp_path.chmod(0o700)
    yield tmp_path / "backup"


@pytest.fixture
def stopped(host):
    """An environment that has written to its volume, and doesn't run."""
    host.run("web", volumes=[SIZED], stop_timeout=1)
    host.sh("web", "echo one >/var/data/note; chmod 0640 /var/data/note")
    host.operations.stop(["web"])
    return host


def test_volume_comes_back_with_modes_and_owners(stopped, folder):
    made = copies.save(stopped.layout, stopped.supervisor, "web", str(folder))
    copy = folder / "web/var%2Fdata.ext4"
    assert made == {"/var/data": {"size": 16 * 1024**2, "used": copy.stat().st_blocks * 512, "file": str(copy)}}
    assert copy.stat().st_mode & 0o777 == 0o600 and made["/var/data"]["used"] < 8 * 1024**2, "it has its holes"
    stopped.operations.start(["web"])
    stopped.sh("web", "echo two >/var/data/note; echo x >/var/data/more")
    stopped.operations.stop(["web"])
    copies.load(stopped.layout, stopped.supervisor, "web", str(folder))
    stopped.operations.start(["web"])
    assert stopped.sh("web", "cat /var/data/note; ls /var/data; ls -ln /var/data/note").split()[:3] == [
        "one",
        "note",
        "-rw-r-----",
    ]
    assert stopped.plan({"web": stopped.desired("web", volumes=[SIZED], stop_timeout=1)}).steps == []


def test_volume_waits_for_an_environment_that_is_not_there_yet(stopped, folder):
    copies.save(stopped.layout, stopped.supervisor, "web", str(folder))
    folder.joinpath("web").rename(folder / "shop")
    copies.load(stopped.layout, stopped.supervisor, "shop", str(folder))
    assert set(copies.kept(stopped.layout)["shop"]) == {"/var/data"}
    stopped.run("shop", volumes=[SIZED], stop_timeout=1)
    assert stopped.sh("shop", "cat /var/data/note") == "one"


def test_nothing_is_copied_while_its_program_runs(stopped, folder):
    copies.save(stopped.layout, stopped.supervisor, "web", str(folder))
    stopped.operations.start(["web"])
    for act in (copies.save, copies.load):
        with pytest.raises(NetspaceError, match="its program runs and may write; call"):
            act(stopped.layout, stopped.supervisor, "web", str(folder))


def test_damaged_copy_replaces_nothing(stopped, folder):
    copies.save(stopped.layout, stopped.supervisor, "web", str(folder))
    copy = folder / "web/var%2Fdata.ext4"
    whole = copy.read_bytes()
    for bad, why in (
        (whole[: len(whole) // 2], "is incomplete"),
        (b"\0" * len(whole), "holds no ext4"),
        (b"", "holds no ext4"),
        (whole[:4096] + os.urandom(8 * 4096) + whole[9 * 4096 :], "e2fsck"),
    ):
        copy.write_bytes(bad)
        with pytest.raises(NetspaceError, match=why):
            copies.load(stopped.layout, stopped.supervisor, "web", str(folder))
        assert sorted(path.name for path in stopped.layout.volumes("web").iterdir()) == [copy.name]
    stopped.operations.start(["web"])
    assert stopped.sh("web", "cat /var/data/note") == "one"


def test_what_others_could_have_made_is_refused(stopped, folder, disk):
    copies.save(stopped.layout, stopped.supervisor, "web", str(folder))
    copy = folder / "web/var%2Fdata.ext4"

    def refused(why: str, where: Path = folder, name: str = "web") -> None:
        with pytest.raises(NetspaceError, match=why):
            copies.load(stopped.layout, stopped.supervisor, name, str(where))

    copy.chmod(0o620)
    refused("a file that belongs to root and that nobody else can write")
    copy.chmod(0o600)
    os.chown(copy, 1000, 1000)
    refused("a file that belongs to root and")
    copy.rename(folder / "elsewhere")
    copy.symlink_to(folder / "elsewhere")
    refused("a file that belongs to root and")
    refused("no copy of a volume", name="web2")
    refused("not a name of an environment", name="../web")
    refused("an absolute path", Path("backup"))
    (disk / "link").symlink_to(folder)  # whoever owns a folder on its way could lead it elsewhere meanwhile
    refused("an absolute path", disk / "link")
    disk.chmod(0o777)
    try:
        for act in (copies.save, copies.load):
            with pytest.raises(NetspaceError, match="other users of this host can write"):
                act(stopped.layout, stopped.supervisor, "web", str(disk / "backup"))
    finally:
        disk.chmod(0o700)
    with pytest.raises(NetspaceError, match="it has no volume with a size"):
        copies.save(stopped.layout, stopped.supervisor, "other", str(folder))


@pytest.mark.parametrize("moment", ["detach", "replace", "restore"])
def test_killed_restoration_leaves_one_or_the_other_and_is_repeated(stopped, folder, monkeypatch, moment):
    copies.save(stopped.layout, stopped.supervisor, "web", str(folder))

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        if moment == "detach":
            patched.setattr(disks, "detach", killed)
        elif moment == "replace":
            patched.setattr(Path, "replace", killed)
        else:
            patched.setattr(copies, "Environments", killed)
        copies.load(stopped.layout, stopped.supervisor, "web", str(folder))
    stopped.run("web", volumes=[SIZED], stop_timeout=1)
    assert stopped.sh("web", "cat /var/data/note") == "one"
    stopped.operations.stop(["web"])
    copies.load(stopped.layout, stopped.supervisor, "web", str(folder))
    assert [path.name for path in stopped.layout.volumes("web").iterdir()] == ["var%2Fdata.ext4"]
    assert subprocess.run(["e2fsck", "-f", "-n", folder / "web/var%2Fdata.ext4"], capture_output=True).returncode == 0
