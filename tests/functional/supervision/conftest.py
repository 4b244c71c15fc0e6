"""The default instance with netspace's own supervisor, which tests leave unchanged, and crun bundles of busybox."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.environments.supervised import reap

from netspace.layout import Layout
from netspace.supervision import process
from netspace.supervision.cgroup import payload_cgroup
from netspace.supervision.daemon.client import DaemonSupervisor
from netspace.supervision.service import Service


@pytest.fixture
def layout() -> Layout:
    return Layout()


@pytest.fixture
def direct(layout: Layout) -> Iterator[DaemonSupervisor]:
    supervisor = DaemonSupervisor(layout)
    yield supervisor
    supervisor.purge()
    shutil.rmtree(layout.run, ignore_errors=True)
    reap()
    assert process.left_over([f"{layout.instance}/{name}" for name in ("a", "b", "c")], []).found == {}


@pytest.fixture
def bundle(layout: Layout, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """A function that makes a crun bundle with a busybox shell script, and returns its detached service."""
    names = []

    def make(name: str, script: str, **options: object) -> Service:
        folder = tmp_path / name
        root = folder / "rootfs"
        for entry in ("bin", "proc", "dev"):
            (root / entry).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/busybox")
        (root / "bin/sh").symlink_to("busybox")
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs", "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
                "cgroupsPath": payload_cgroup(layout, name),
                "resources": {"pids": {"limit": 16}},
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        names.append(name)
        pid_file = layout.run / "pids" / name
        run = ("/usr/bin/crun", "run", "--detach", "--bundle", str(folder), "--pid-file", str(pid_file), name)
        return Service(
            name,
            run,
            pid_file=pid_file,
            cleanup=(("/usr/bin/crun", "delete", "--force", name),),
            **options,  # type: ignore[arg-type]
        )

    yield make
    for name in names:
        subprocess.run(["crun", "delete", "--force", name], capture_output=True)
