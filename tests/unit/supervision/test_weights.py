"""Weights of control groups: the written values, and no second write of the same value."""

from __future__ import annotations

import pytest

from netspace.layout import Layout
from netspace.supervision import weights
from netspace.supervision.systemd import unit_file
from netspace.supervision.systemd.supervisor import Systemd

VERSION_1 = {
    "cpu,cpuacct": {"cpu.shares": "1024\n"},
    "blkio": {"blkio.bfq.weight": "100\n", "blkio.throttle.read_bps_device": ""},
    "memory": {"memory.limit_in_bytes": "9"},
}


def version_1(root, made=True):
    for hierarchy, files in VERSION_1.items():
        for name, value in files.items():
            for folder in (root / hierarchy, *([root / hierarchy / "netspace"] if made else [])):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(value)


def version_2(root):
    (root / "netspace").mkdir()
    (root / "cgroup.subtree_control").write_text("cpu memory pids")
    (root / "netspace/cpu.weight").write_text("100\n")
    (root / "netspace/io.weight").write_text("default 100\n8:0 50\n")


def test_environments_weigh_less_under_version_1(tmp_path):
    version_1(tmp_path)
    own = tmp_path / "cpu,cpuacct/netspace/cpu.shares"
    assert set(weights.lower(Layout(), tmp_path)) == {str(own), str(tmp_path / "blkio/netspace/blkio.bfq.weight")}
    assert own.read_text() == "256"
    assert (tmp_path / "cpu,cpuacct/cpu.shares").read_text() == "1024\n"
    assert not (tmp_path / "memory/netspace/cpu.shares").exists()
    assert weights.lower(Layout(), tmp_path) == []


def test_environments_weigh_less_under_version_2(tmp_path):
    version_2(tmp_path)
    folder = tmp_path / "netspace"
    assert set(weights.lower(Layout(), tmp_path)) == {str(folder / "cpu.weight"), str(folder / "io.weight")}
    assert (folder / "cpu.weight").read_text() == "25"
    assert (folder / "io.weight").read_text() == "default 25"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+io"  # as the kernel reads it: one more
    assert weights.lower(Layout(), tmp_path) == []


def test_a_missing_group_is_made_and_no_file_is(tmp_path):
    version_1(tmp_path, made=False)
    assert weights.lower(Layout(), tmp_path) == []
    assert list((tmp_path / "cpu,cpuacct/netspace").iterdir()) == []
    assert not (tmp_path / "memory/netspace").exists()


def test_another_group_gets_the_weight_of_environments(tmp_path):
    version_1(tmp_path)
    own = tmp_path / "cpu,cpuacct/netspace-audit/cpu.shares"
    own.parent.mkdir()
    own.write_text("1024\n")
    assert weights.lower_group("netspace-audit", tmp_path) == [str(own)]
    assert own.read_text() == "256"
    assert (tmp_path / "cpu,cpuacct/netspace/cpu.shares").read_text() == "1024\n"


def test_a_host_without_weights_is_left_as_it_is(tmp_path):
    (tmp_path / "memory").mkdir()
    assert weights.lower(Layout(), tmp_path) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["memory"]


@pytest.mark.parametrize("theirs", [False, True])
def test_an_operator_s_own_slice_is_not_written(tmp_path, theirs):
    layout = Layout(root=tmp_path)
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    (folder / "netspace.slice").write_text("[Slice]\n" if theirs else f"{unit_file.HEADER}\n[Slice]\nCPUWeight=1\n")
    found = {path.relative_to(folder): text.decode() for path, text in Systemd(layout)._weights().items()}
    head, drop_in = unit_file.HEADER, "netspace-environment-.service.d/weight.conf"
    wanted = {drop_in: f"{head}\n[Service]\nCPUWeight=25\nIOWeight=25\n"}
    if not theirs:
        wanted["netspace.slice"] = f"{head}\n[Slice]\nCPUWeight=50\nIOWeight=50\n"
    assert {str(path): text for path, text in found.items()} == wanted
