"""Small files are replaced whole, and only when they change."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace import files
from netspace.errors import StateError

JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_the_same_content_is_not_written_again(tmp_path):
    path = tmp_path / "deep" / "file"
    assert files.write(path, b"one")
    before = path.stat()
    assert not files.write(path, b"one")
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino
    assert files.write(path, b"one", mode=0o640)
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(path.parent)) == ["file"]


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"one")
    path = tmp_path / "file"
    path.symlink_to(target)
    assert files.write(path, b"one")
    assert not path.is_symlink() and target.read_bytes() == b"one"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"1"])
def test_a_record_that_is_not_ours_is_an_error_with_a_remedy(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"x\.json: .*remove the file"):
        files.read_records(tmp_path)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_differences_are_none_for_equals_and_only_for_equals(old, new):
    assert bool(files.differences(old, new)) == (old != new)
    assert not files.differences(old, old)
