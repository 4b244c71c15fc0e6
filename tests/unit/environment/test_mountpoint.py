"""Queries for single mounts: the kernel's answers equal the entries in the list of all mounts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from netspace import mountpoint
from netspace.environment.storage import mounts


def test_single_mounts_are_as_the_list_has_them() -> None:
    listed, single, compared = mounts.table(), mounts.Single(), 0
    for target in listed:
        with contextlib.suppress(mountpoint.UnknownError):
            if mountpoint.find(target) is not None:  # not below a folder that is closed, or covered by another mount
                assert single[target] == listed[target]
                assert target in single
                compared += 1
    assert compared > 3 or not _described()


def _described() -> bool:
    try:
        return mountpoint.find("/proc") is not None
    except mountpoint.UnknownError:
        return False


def test_path_without_a_mount_is_none(tmp_path: Path) -> None:
    single = mounts.Single()
    (tmp_path / "link").symlink_to("/proc")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "link", tmp_path / "nothing/below", Path("/proc/self")):
        assert str(path) not in single
        assert single.get(str(path)) is None
        with pytest.raises(KeyError):
            single[str(path)]


def test_kernel_that_can_not_tell_is_answered_from_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(path: str) -> bool:
        raise mountpoint.UnknownError

    monkeypatch.setattr(mountpoint, "find", unknown)
    monkeypatch.setattr(mountpoint, "is_mounted", unknown)
    single, listed = mounts.Single(), mounts.table()
    assert single["/proc"] == listed["/proc"]
    assert "/proc" in single and "/nowhere" not in single
    with pytest.raises(KeyError):
        single["/nowhere"]


@pytest.mark.parametrize("folder", ["/sys/fs/cgroup", "/nowhere"])
def test_mounts_below_a_folder_are_the_same_both_ways(folder: str) -> None:
    # The list also has mounts that another mount covers.
    listed = {
        target: mount for target, mount in mounts.below(folder, mounts.table()).items() if os.path.ismount(target)
    }
    assert mounts.below(folder, mounts.Single()) == listed
