"""A container that has ended is deleted as crun does it, or left to crun unchanged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from netspace.supervision import process
from netspace.supervision.daemon import container_state

CGROUP = "/netspace/environment-web"


class Runtime:
    """crun's folder for a container that has ended, and the container's empty control groups."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "crun"
        self.path = self.root / "netspace-web"
        self.path.mkdir(parents=True)
        self.cgroups = folder / "cgroup"
        self.groups = [self.cgroups / kind / CGROUP[1:] for kind in ("memory", "pids")]
        for group in self.groups:
            group.mkdir(parents=True)
        (self.path / "config.json").write_text('{"linux": {}}')
        (self.path / "seccomp.bpf").write_bytes(b"\0")
        self.say()

    def say(self, **changes: object) -> None:
        own = {"pid": 2**22 + 1, "process-start-time": 5, "cgroup-path": CGROUP, "systemd-cgroup": False}
        (self.path / "status").write_text(json.dumps({**own, **changes}))

    @property
    def argv(self) -> tuple[str, ...]:
        return ("/usr/bin/crun", "--root", str(self.root), "delete", "--force", "netspace-web")

    def kept(self) -> bool:
        return (self.path / "status").exists() and (self.path / "config.json").exists()


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    made = Runtime(tmp_path)
    monkeypatch.setattr(container_state, "_CGROUPS", str(made.cgroups))
    return made


def test_all_of_it_goes(runtime):
    assert container_state.forget(runtime.argv, CGROUP)
    assert not runtime.path.exists()
    assert not any(group.exists() for group in runtime.groups)
    assert runtime.groups[0].parent.is_dir()
    assert container_state.unknown(runtime.argv)


def test_where_cgroups_are_version_2_there_is_one(runtime):
    (runtime.cgroups / "cgroup.controllers").write_text("memory")
    (runtime.cgroups / CGROUP[1:]).mkdir(parents=True)
    assert container_state.forget(runtime.argv, CGROUP)
    assert not (runtime.cgroups / CGROUP[1:]).exists()


def test_also_behind_the_prefix_of_hybrid_cgroups(runtime):
    prefix = ("/usr/bin/unshare", "--mount", "--", "/bin/sh", "-c", 'exec "$@"', "sh")
    assert container_state.forget((*prefix, *runtime.argv), CGROUP)


@pytest.mark.parametrize(
    "changes",
    [{"cgroup-path": "/netspace/another"}, {"systemd-cgroup": True}, {"pid": "1"}, {"process-start-time": None}],
)
def test_a_status_that_is_not_ours_is_left_to_crun(runtime, changes):
    runtime.say(**changes)
    assert not container_state.forget(runtime.argv, CGROUP)
    assert runtime.kept()
    assert all(group.exists() for group in runtime.groups)


def test_what_still_runs_is_left_to_crun(runtime):
    there = process.stat(os.getpid())
    assert there is not None
    runtime.say(pid=os.getpid(), **{"process-start-time": there.ticks})
    assert not container_state.forget(runtime.argv, CGROUP)
    assert runtime.kept()


def test_a_group_in_use_keeps_the_container_known(runtime):
    (runtime.groups[1] / "below").mkdir()
    assert not container_state.forget(runtime.argv, CGROUP)
    assert runtime.kept()


def test_without_a_group_nothing_is_proven(runtime):
    for group in runtime.groups:
        group.rmdir()
    assert not container_state.forget(runtime.argv, CGROUP)
    assert runtime.kept()


@pytest.mark.parametrize("content", ['{"hooks": {}}', '{"linux": {"intelRdt": {}}}'])
def test_what_crun_would_have_to_run_is_left_to_crun(runtime, content):
    (runtime.path / "config.json").write_text(content)
    assert not container_state.forget(runtime.argv, CGROUP)
    assert runtime.kept()


def test_a_file_that_nobody_knows_is_left_to_crun(runtime):
    (runtime.path / "notify").mkdir()
    assert not container_state.forget(runtime.argv, CGROUP)
    assert runtime.kept()


@pytest.mark.parametrize("content", ["", "{", "[]", "9" * 5000])
def test_a_damaged_status_is_left_to_crun(runtime, content):
    (runtime.path / "status").write_text(content)
    assert not container_state.forget(runtime.argv, CGROUP)
    assert runtime.kept()


def test_other_commands_are_none_of_its_business(runtime):
    for argv in (
        (*runtime.argv[:-2], "--regex", "netspace-web"),
        (*runtime.argv[:-1], "../netspace-web"),
        (*runtime.argv[:-1], ".."),
        ("/bin/rm", *runtime.argv[1:]),
        ("/bin/true",),
    ):
        assert container_state.folder(argv) is None
        assert not container_state.forget(argv, CGROUP)
        assert not container_state.unknown(argv)
