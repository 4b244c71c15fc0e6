"""Environments with a page cache of their own: ``image_cache: own``."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

import pytest

from netspace.environment.images import Store, copies
from netspace.environment.storage import mounts
from netspace.errors import NetspaceError

PAGE = 4096
FILE = "etc/large"
SIZE = 4 * 1024**2


@pytest.fixture
def large(image: Path, tmp_path: Path) -> Path:
    """Return a root with a large file that no program reads unless a test makes it."""
    root = tmp_path / "large"
    shutil.copytree(image, root, symlinks=True)
    (root / FILE).write_bytes(os.urandom(SIZE))
    return root


class Pages:
    """The cached pages of the large file in an environment's root; only the host's root can query them."""

    def __init__(self, host, name):
        self._path = f"/proc/{host.pid(name)}/root/{FILE}"

    def cached(self):
        """Return the number of pages that are in memory, by mincore(2)."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        fd = os.open(self._path, os.O_RDONLY)
        try:
            address = libc.mmap(None, ctypes.c_size_t(SIZE), 1, 1, fd, ctypes.c_long(0))
            assert address not in (None, ctypes.c_void_p(-1).value)
            told = ctypes.create_string_buffer(SIZE // PAGE)
            assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), told) == 0
            libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(SIZE))
        finally:
            os.close(fd)
        return sum(byte & 1 for byte in told.raw[: SIZE // PAGE])

    def forget(self):
        fd = os.open(self._path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read(host, name):
    assert host.sh(name, f"wc -c </{FILE}") == str(SIZE)


@pytest.mark.parametrize("cache", ["shared", "own"])
def test_what_one_reads_is_in_another_s_cache_only_if_shared(host, large, cache):
    for name in ("one", "two"):
        host.run(name, image=f"dir:{large}", image_cache=cache)
    mine, its = Pages(host, "one"), Pages(host, "two")
    mine.forget()
    its.forget()
    assert its.cached() == 0
    read(host, "one")
    assert mine.cached() == SIZE // PAGE
    assert its.cached() == (SIZE // PAGE if cache == "shared" else 0)


def test_a_copy_has_no_name_and_goes_with_its_environment(host, large):
    host.run("one", image=f"dir:{large}")
    before = sorted(path.name for path in host.layout.images.iterdir())
    host.run("two", image=f"dir:{large}", image_cache="own")
    assert sorted(path.name for path in host.layout.images.iterdir()) == before
    assert [point for point in mounts.table() if point.startswith(f"{host.layout.images}/")] == []
    want = host.desired("two", image=f"dir:{large}", image_cache="own")
    assert host.plan({"two": want}).steps == []
    # Back to what all share, and again: each is a restart that names the key.
    for cache in ("shared", "own"):
        (step,) = host.plan({"two": host.desired("two", image=f"dir:{large}", image_cache=cache)}).steps
        assert (step.action, list(step.changes)) == ("restart", ["image_cache"])
        host.run("two", image=f"dir:{large}", image_cache=cache)
    host.apply({}, ["one", "two"])
    assert host.traces()["mounts"] == []


def test_a_changed_image_is_not_copied(host, large):
    host.run("one", image=f"dir:{large}")
    (path,) = host.layout.images.glob("*.erofs")
    host.apply({}, ["one"])
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.unlink()  # fs-verity refuses writes
    path.write_bytes(content)
    with (
        pytest.raises(NetspaceError, match="was changed"),
        copies.mounted(host.kind.store, path.stem[len("sha256-") :]),
    ):
        pass
    assert [entry.name for entry in host.layout.images.iterdir() if entry.name.startswith(".")] == []


def test_what_can_t_be_copied_leaves_the_running_one_alone(host, large, monkeypatch):
    host.run("one", image=f"dir:{large}")
    pid = host.pid("one")
    want = host.desired("one", image=f"dir:{large}", image_cache="own")

    class Full:
        f_bavail, f_frsize = 1, PAGE

    with monkeypatch.context() as patch:
        patch.setattr(copies.os, "statvfs", lambda path: Full)
        assert "has no room for a copy of" in host.apply({"one": want})["one"].error

    def refuse(*arguments):
        raise OSError(errno.ENOTBLK, "block device required")

    with monkeypatch.context() as patch:
        patch.setattr(copies.mounts, "mount", refuse)
        assert "that needs Linux 6.12" in host.apply({"one": want})["one"].error
    assert host.pid("one") == pid
    assert host.apply({"one": want})["one"].error == ""


def test_a_killed_run_s_copy_is_removed_by_the_next(host, large):
    host.run("one", image=f"dir:{large}")
    store = Store(host.layout)
    with store.aside() as aside:
        left = aside.with_name(".building-killed")
        (left / "mounted").mkdir(parents=True)
        (path,) = host.layout.images.glob("*.erofs")
        mounts.mount(path, left / "mounted", "erofs", mounts.RDONLY)
    store.tidy()
    assert not left.exists()
    assert str(left / "mounted") not in mounts.table()
