"""Folders that an environment filled are removed with any content; nothing outside them is touched."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.environment.storage import tree_removal

NAMES = st.sampled_from(["a", "b", ".netspace-1", "é", "..x"])
KINDS = st.sampled_from(["file", "link", "folder"])
TREES = st.recursive(KINDS, lambda inner: st.dictionaries(NAMES, inner), max_leaves=20)


def fill(folder: Path, tree: dict[str, object], outside: Path) -> None:
    for name, what in tree.items():
        path = folder / name
        if what == "file":
            path.write_text("x")
        elif what == "link":
            path.symlink_to(outside)
        else:
            path.mkdir()
            fill(path, what if isinstance(what, dict) else {}, outside)


@settings(deadline=None, max_examples=50)
@given(tree=st.dictionaries(NAMES, TREES))
def test_whatever_is_in_it_goes_and_what_links_point_to_stays(tmp_path_factory, tree):
    base = tmp_path_factory.mktemp("trees")
    outside = base / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (base / "tree").mkdir()
    fill(base / "tree", tree, outside)
    tree_removal.remove(base / "tree")
    assert os.listdir(base) == ["outside"]
    assert (outside / "kept").read_text() == "kept"


@settings(deadline=None, max_examples=50)
@given(tree=st.dictionaries(NAMES, TREES))
def test_everything_is_walked_once_and_no_link_followed(tmp_path_factory, tree):
    base = tmp_path_factory.mktemp("trees")
    (base / "outside").mkdir()
    (base / "outside/kept").write_text("kept")
    (base / "tree").mkdir()
    fill(base / "tree", tree, base / "outside")
    found = []
    tree_removal.walk(
        base / "tree", lambda name, folder: found.append(os.stat(name, dir_fd=folder, follow_symlinks=False))
    )
    wanted = [path.lstat() for path in (base / "tree").rglob("*")]
    assert sorted(info.st_ino for info in found) == sorted(info.st_ino for info in wanted)


def test_deeper_than_paths_stacks_and_open_files_reach(tmp_path):
    (tmp_path / "tree").mkdir()
    folder = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d" * 20, dir_fd=folder)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    found = []
    tree_removal.walk(tmp_path / "tree", lambda name, _: found.append(name))
    assert found == ["d" * 20] * 5000
    tree_removal.remove(tmp_path / "tree")
    assert os.listdir(tmp_path) == []


def test_memory_does_not_grow_with_the_number_of_names(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(8000):
        (folder / f"{number:0200}").touch()
        if number < 2000:
            (folder / f"f{number:0199}").mkdir()
    tracemalloc.start()
    tree_removal.remove(folder)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert os.listdir(tmp_path) == []
    assert most < 1024**2  # all of the names take 2.5 MB


def test_none_is_no_error_and_a_link_is_refused(tmp_path):
    tree_removal.remove(tmp_path / "absent")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="link"):
        tree_removal.remove(tmp_path / "link")
    assert (tmp_path / "target").is_dir()
