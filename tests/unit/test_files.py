"""Small files are replaced as a whole, and only when their content changes."""

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


def test_a_link_in_the_way_of_the_new_file_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"one")
    (tmp_path / ".file.new").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        files.write(tmp_path / "file", b"two")
    assert target.read_bytes() == b"one" and not (tmp_path / "file").exists()


def test_one_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "no space")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write(path, b"new")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("count", [1, 3, 4, 200, 1100])
def test_many_are_on_disk_before_any_takes_its_name(tmp_path, monkeypatch, count):
    done = []

    def note(what, real):
        def noted(*arguments):
            done.append(what)
            return real(*arguments)

        return noted

    monkeypatch.setattr(files, "_sync", note("sync", files._sync))
    monkeypatch.setattr(os, "replace", note("replace", os.replace))
    wanted = {tmp_path / "deep" / str(number): b"%d" % number for number in range(count)}
    assert files.write_all(wanted, mode=0o640) == (set(wanted), {})
    batches = "".join(what[0] for what in done).split("s")[1:]
    assert sum(map(len, batches)) == count and max(map(len, batches)) <= 1024
    assert {path: path.read_bytes() for path in (tmp_path / "deep").iterdir()} == wanted
    assert {path.stat().st_mode & 0o777 for path in wanted} == {0o640}
    done.clear()
    assert files.write_all(wanted, mode=0o640) == (set(), {}) and "replace" not in done


def test_of_many_one_that_fails_is_its_own_error(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_bytes(b"")
    good = {tmp_path / str(number): b"x" for number in range(9)}
    bad = {tmp_path / "taken": b"x", tmp_path / "file" / "below": b"x"}
    written, failed = files.write_all({**bad, **good})
    assert (written, set(failed)) == (set(good), set(bad))
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"012345678", "file", "taken"]


def test_where_the_disk_fails_the_old_files_stay(tmp_path, monkeypatch):
    def full(fds):
        raise OSError(28, "no space")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(files, "_sync", full)
    written, failed = files.write_all({path: b"new"})
    assert (written, set(failed)) == (set(), {path})
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


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


def test_who_reads_another_s_file_follows_no_link_and_waits_for_nobody(tmp_path):
    (tmp_path / "file").write_bytes(b"one")
    with files.opened(tmp_path / "file") as stream:
        assert stream.read() == b"one"
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it
    for name in ("link", "pipe", "absent", "."):
        with pytest.raises(OSError):
            files.opened(tmp_path / name)


def test_a_held_lock_is_refused_in_the_callers_words(tmp_path):
    """The caller that waits for a lock sets the longest wait, and the error that ends the wait."""
    path, asked = tmp_path / "deep" / "lock", []

    def busy():
        asked.append(None)
        return StateError("held by another") if len(asked) == 3 else None

    first = files.held(path)
    with pytest.raises(StateError, match="held by another"):
        files.held(path, busy)
    assert len(asked) == 3
    os.close(first)
    os.close(files.held(path, busy))
    assert len(asked) == 3, "a free lock is taken at once"


def test_boot_id_is_that_of_the_given_root(tmp_path):
    place = tmp_path / "proc/sys/kernel/random/boot_id"
    with pytest.raises(FileNotFoundError):
        files.boot_id(tmp_path)
    place.parent.mkdir(parents=True)
    place.write_text("6c3f\n")
    assert files.boot_id(tmp_path) == "6c3f" != files.boot_id()
