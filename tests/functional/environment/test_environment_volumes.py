"""Volumes: each belongs to one environment, whatever path names it, and is removed only on request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.environments.environment_host import Host as Environments

from netspace.environment.storage import mounts
from netspace.host import restore
from netspace.host.host import Host

pytestmark = pytest.mark.root

SIZED = {"target": "/data", "size": "16M"}


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """A folder that only root can enter, which contains the folder ``data`` and a second path to ``data``."""
    tmp_path.chmod(0o700)
    (tmp_path / "data/in").mkdir(parents=True)
    os.chown(tmp_path / "data", 1000, 1000)
    (tmp_path / "alias").mkdir()
    mounts.mount(tmp_path / "data", tmp_path / "alias", "none", mounts.BIND)
    yield tmp_path
    mounts.unmount(tmp_path / "alias")


@pytest.mark.parametrize("name", ["data", "data/in", "alias", "alias/in"])
@pytest.mark.parametrize("together", [False, True])
def test_a_folder_is_not_given_twice_whatever_it_is_called(host, folders, name, together):
    owner = host.desired("owner", volumes=[{"source": f"{folders}/data", "target": "/data"}])
    thief = host.desired("thief", volumes=[{"source": f"{folders}/{name}", "target": "/data"}])
    if together:
        plan = host.plan({"owner": owner, "thief": thief})
        assert [step.name for step in plan.steps] == ["owner"]
    else:
        host.apply({"owner": owner})
        plan = host.plan({"thief": thief})
        assert plan.steps == []
    assert [refusal.name for refusal in plan.refusals] == ["thief"]
    assert f"environment owner has {folders}/data" in plan.refusals[0].message


def test_netspace_s_own_folders_are_not_given_under_another_name(host, folders):
    host.layout.state.mkdir(exist_ok=True)
    mounts.mount(host.layout.state, folders / "data/in", "none", mounts.BIND)
    try:
        wanted = {"web": host.desired("web", volumes=[{"source": f"{folders}/data/in", "target": "/data"}])}
        assert "belongs to netspace" in host.apply(wanted)["web"].error
    finally:
        mounts.unmount(folders / "data/in")


def test_a_source_that_is_a_file_system_s_root_shows_no_path(host, folders):
    source = folders / "data/in"
    mounts.mount("tmpfs", source, "tmpfs", 0, "mode=700,size=1m")
    try:
        host.run("web", volumes=[{"source": str(source), "target": "/data", "read_only": True}])
        seen = host.sh("web", "cat /proc/self/mountinfo")
        assert [line.split()[3] for line in seen.splitlines() if line.split()[4] == "/data"] == ["/"]
        assert str(folders) not in seen
        host.apply({}, ["web"])
    finally:
        mounts.unmount(source)


def removed(host: Environments, purge: bool) -> None:
    result = Host(host.layout).remove_environments(["web"], purge=purge)
    assert [outcome.error for outcome in result.outcomes] == [""]


def test_a_volume_goes_only_with_a_purge_and_a_folder_never(host, folders):
    volumes = [SIZED, {"source": f"{folders}/data", "target": "/folder"}]
    host.run("web", volumes=volumes)
    host.sh("web", "echo kept > /data/x; echo kept > /folder/x")
    removed(host, purge=False)
    host.run("web", volumes=volumes)
    assert host.sh("web", "cat /data/x /folder/x") == "kept\nkept"
    removed(host, purge=True)
    host.run("web", volumes=volumes)
    assert "No such file" in host.sh("web", "cat /data/x")
    assert host.sh("web", "cat /folder/x") == "kept"


def test_volumes_of_an_environment_that_is_gone_are_purged_too(host):
    host.run("web", volumes=[SIZED, {**SIZED, "target": "/srv/a b"}])
    removed(host, purge=False)
    joined = Host(host.layout)
    assert joined.remove_environments(["web"]).plan.steps == []
    plan = joined.remove_environments(["web"], purge=True, test=True).plan
    change = {"volumes": {"old": ["/data", "/srv/a b"], "new": None}}
    assert [(step.action, step.changes) for step in plan.steps] == [("purge", change)]
    assert host.layout.volumes("web").exists()
    removed(host, purge=True)
    assert not host.layout.volumes("web").exists()
    assert joined.remove_environments(["web"], purge=True).plan.steps == []


def test_a_teardown_keeps_volumes_and_says_so(host):
    host.run("web", volumes=[SIZED])
    host.sh("web", "echo kept > /data/x")
    result = Host(host.layout).teardown()
    assert result.ok
    assert f"kept in {host.layout.state}/volumes" in result.plan.notes[-1]
    left = sorted(str(path.relative_to(host.layout.state)) for path in host.layout.state.rglob("*.*"))
    assert left == ["volumes/web/data.ext4"]
    assert not host.layout.run.exists() or not any(host.layout.run.rglob("*.ext4"))
    host.run("web", volumes=[SIZED])
    assert host.sh("web", "cat /data/x") == "kept"


def test_a_host_that_boots_has_them_before_anything_starts(host):
    wanted = {"web": host.desired("web", volumes=[SIZED], limits={"disk": "16M"})}
    host.run("web", volumes=[SIZED], limits={"disk": "16M"})
    host.sh("web", "echo kept > /data/x")
    host.operations.stop(["web"])
    for target in sorted(mounts.table(), reverse=True):
        if "/run/netspace/disks/" in target or "/run/netspace/environments/" in target:
            mounts.unmount(Path(target))
    restore.run(host.layout)
    host.namespace("web")
    assert host.operations.start(["web"]) == {"web": ""}
    assert host.sh("web", "cat /data/x") == "kept"
    assert host.plan(wanted).steps == []
