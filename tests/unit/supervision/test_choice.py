"""The choice of a supervisor on this host, and the limits that it can keep."""

from __future__ import annotations

from pathlib import Path

import pytest

from netspace import supervision
from netspace.layout import Layout
from netspace.supervision import cgroup
from netspace.supervision.daemon.client import DaemonSupervisor
from netspace.supervision.systemd.supervisor import Systemd


def test_the_controllers_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert cgroup.controllers(tmp_path) == {"cpu", "memory", "pids"}
    (tmp_path / "cgroup.controllers").write_text("\n")
    assert cgroup.controllers(tmp_path) == frozenset()


def test_the_controllers_of_version_1(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "unified"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "not-mounted").mkdir()
    assert cgroup.controllers(tmp_path) == {"cpu", "cpuacct", "memory"}


def test_systemd_where_it_is_pid_1_else_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout("lab")
    for module in (supervision, cgroup):
        monkeypatch.setattr(module, "booted", lambda: True)
    assert isinstance(supervision.select(layout), Systemd)
    assert cgroup.payload_cgroup(layout, "web") == "/lab.slice/lab-web.service/payload"
    for module in (supervision, cgroup):
        monkeypatch.setattr(module, "booted", lambda: False)
    assert isinstance(supervision.select(layout), DaemonSupervisor)
    assert cgroup.payload_cgroup(layout, "web") == "/lab/web"
