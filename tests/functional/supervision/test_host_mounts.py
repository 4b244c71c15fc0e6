"""Tests of the mount namespace in which runtimes start on hosts with many services, and of starts without it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.environments.supervised import shell
from support.waiting import until

from netspace.layout import Layout
from netspace.supervision.daemon import host_mounts
from netspace.supervision.daemon.client import DaemonSupervisor
from netspace.supervision.daemon.host_mounts import HostMounts
from netspace.supervision.service import Service

pytestmark = pytest.mark.root

Bundle = Callable[..., Service]
STAY = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def mount() -> Iterator[Callable[[Path], Path]]:
    """Mount a tmpfs at a folder; it is unmounted after the test."""
    made: list[Path] = []

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "test", str(folder)], check=True)
        made.append(folder)
        return folder

    yield make
    for folder in reversed(made):
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def watched(service: Service, folder: Path) -> tuple[Service, Path]:
    """Return the service with a crun that first writes its mounts to a file, and that file."""
    told, crun = folder / "mounts", folder / "crun"
    crun.write_text(f'#!/bin/sh\ncat /proc/self/mountinfo >{told}\nexec /usr/bin/crun "$@"\n')
    crun.chmod(0o755)
    return service._replace(command=(str(crun), *service.command[1:])), told


def targets(told: Path) -> set[str]:
    return {line.split()[4] for line in told.read_text().splitlines()}


def child(work: Callable[[], bool]) -> bool:
    """Return the result of *work* in a forked process, which may change its namespace."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1), "the child failed"
    return code == 0


def among(count: int) -> list[Service]:
    return [shell(f"many{number}", "exec sleep 1000") for number in range(count)]


@pytest.fixture
def many(direct: DaemonSupervisor) -> Iterator[DaemonSupervisor]:
    """The supervisor, with so many services that runtimes start in the namespace."""
    others = among(host_mounts.MANY)
    direct.define(others)
    assert direct.start([one.name for one in others]) == {}
    yield direct


def test_start_among_many_has_own_mounts_alone(
    many: DaemonSupervisor, layout: Layout, bundle: Bundle, mount: Callable[[Path], Path], tmp_path: Path
) -> None:
    others = mount(layout.run / "environments/other/rootfs")
    first, told = watched(bundle("a", STAY), tmp_path)
    many.define([first])
    assert many.start(["a"]) == {}
    assert str(others) not in targets(told)
    assert {"/", "/proc", "/sys"} <= targets(told)
    # The operator's disk comes later, and the second container's root is a mount of netspace's.
    disk, root = mount(tmp_path / "disk"), mount(layout.run / "environments/b/rootfs")
    (disk / "data").mkdir()
    (disk / "data/word").write_text("there")
    service, told = watched(bundle("b", f"cat /data/word >/said/word; {STAY}"), tmp_path)
    subprocess.run(["cp", "-a", f"{tmp_path}/b/rootfs/.", str(root)], check=True)
    for name in ("data", "said"):
        (root / name).mkdir()
    said = mount(tmp_path / "said")
    config = json.loads((tmp_path / "b/config.json").read_text())
    config["root"]["path"] = str(root)
    for source, name in ((disk / "data", "data"), (said, "said")):
        config["mounts"].append(
            {"destination": f"/{name}", "type": "bind", "source": str(source), "options": ["bind", "private", "rw"]}
        )
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    many.define([service])
    assert many.start(["b"]) == {}
    until((said / "word").exists)
    until(lambda: (said / "word").read_text() == "there")
    assert {str(root), str(disk), str(said)} <= targets(told)
    assert str(others) not in targets(told)


def test_start_among_few_has_the_hosts_mounts(
    direct: DaemonSupervisor, layout: Layout, bundle: Bundle, mount: Callable[[Path], Path], tmp_path: Path
) -> None:
    others = mount(layout.run / "environments/other/rootfs")
    service, told = watched(bundle("a", STAY), tmp_path)
    direct.define([service])
    assert direct.start(["a"]) == {}
    assert str(others) in targets(told)


def test_namespace_holds_no_disk_of_the_operator(layout: Layout, mount: Callable[[Path], Path], tmp_path: Path) -> None:
    layout.run.mkdir(parents=True, exist_ok=True)
    disk = mount(tmp_path / "disk")
    made = HostMounts(layout).get(host_mounts.MANY)
    assert made is not None
    assert str(disk) not in made.points
    assert "/" in made.points


def test_namespace_is_made_anew_when_a_system_folder_changed(
    monkeypatch: pytest.MonkeyPatch, mount: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(host_mounts, "PAUSE", 0.0)
    mounts = HostMounts(Layout())
    first = mounts.get(host_mounts.MANY)
    assert first is not None
    assert mounts.get(host_mounts.MANY) is first
    mount(Path("/dev/shm"))
    second = mounts.get(host_mounts.MANY)
    assert second is not None
    assert second is not first
    mounts.close()


def test_refused_namespace_leaves_the_hosts(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, bundle: Bundle, mount: Callable[[Path], Path], tmp_path: Path
) -> None:
    """If any step of entering fails, the process stays in the host's namespace, and the runtime starts there."""
    others = mount(layout.run / "environments/other/rootfs")
    command = bundle("a", STAY).command
    made = HostMounts(layout).get(host_mounts.MANY)
    assert made is not None

    def stays() -> bool:
        os.chdir("/")
        entered = host_mounts.enter(made, command)
        return not entered and os.path.ismount(others) and os.getcwd() == "/"

    assert child(lambda: host_mounts.enter(made, command) and not os.path.ismount(others))

    def refused(*_: object) -> int:
        raise PermissionError

    mount(tmp_path / "a/rootfs/dev")  # so there is a mount to attach
    config = json.loads((tmp_path / "a/config.json").read_text())
    config["mounts"].append({"destination": "/d", "type": "bind", "source": str(tmp_path / "a/rootfs/dev")})
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    assert child(lambda: host_mounts.enter(made, command))
    for step in ("_open_tree", "_move_mount"):
        with monkeypatch.context() as patch:
            patch.setattr(host_mounts, step, refused)
            assert child(stays), step
    with monkeypatch.context() as patch:  # something that the container needs is another file there
        patch.setattr(host_mounts, "_anchors", lambda *_: [])
        assert child(stays)
    (tmp_path / "a/config.json").write_text("{")
    assert child(stays)


def test_options_of_a_mount_count(layout: Layout, mount: Callable[[Path], Path]) -> None:
    folder = mount(Path("/dev/shm/netspace-test"))
    try:
        mounts = HostMounts(layout)
        made = mounts.get(host_mounts.MANY)
        assert made is not None and str(folder) in made.points and mounts.get(host_mounts.MANY) is made
        subprocess.run(["mount", "-o", "remount,bind,noexec", str(folder)], check=True)
        assert mounts.get(host_mounts.MANY) is not made
        mounts.close()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_disk_is_free_at_once_and_copied_alone(
    layout: Layout, bundle: Bundle, mount: Callable[[Path], Path], tmp_path: Path
) -> None:
    # A bind mount of the tests' disk stands for a disk of netspace's own; an environment's root is mounted in it.
    disk = tmp_path / "disk"
    disk.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["mount", "--bind", str(source), str(disk)], check=True)
    try:
        others, root = mount(disk / "other"), mount(disk / "own")
        made = HostMounts(layout).get(host_mounts.MANY)
        assert made is not None and not any(point.startswith(str(disk)) for point in made.points)
        command = bundle("a", STAY).command
        config = json.loads((tmp_path / "a/config.json").read_text())
        config["mounts"].append({"destination": "/d", "type": "bind", "source": str(root)})
        (tmp_path / "a/config.json").write_text(json.dumps(config))

        def entered() -> bool:
            return host_mounts.enter(made, command) and os.path.ismount(root) and not os.path.ismount(others)

        assert child(entered)
    finally:
        subprocess.run(["umount", "-R", str(disk)], check=True)


@pytest.mark.parametrize("runtime", ["crun", "runsc"])
def test_folder_with_the_name_of_a_runtime_is_none(runtime: str) -> None:
    command = [f"/usr/bin/{runtime}", "--root", "/run/crun", "run", "--bundle", "/run/environments/runc"]
    assert host_mounts.takes(command) == ("/run/environments/runc" if runtime == "crun" else None)
