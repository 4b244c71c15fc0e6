"""Logs of bounded size and number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netspace.supervision.daemon import logs


def test_a_small_one_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert not logs.rotate(log, limit=10)
    log.write_bytes(b"0123456789")
    assert not logs.rotate(log, limit=10)
    assert os.listdir(tmp_path) == ["a.log"]


def test_old_ones_move_on_and_the_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    fd = logs.open_log(log)
    for round_ in range(5):
        os.write(fd, f"{round_}".encode() * 11)
        assert logs.rotate(log, limit=10, old=3)
    os.write(fd, b"now")
    os.close(fd)
    assert log.read_bytes() == b"now"
    assert sorted(os.listdir(tmp_path)) == ["a.log", "a.log.1", "a.log.2", "a.log.3"]
    assert [Path(f"{log}.{number}").read_bytes() for number in (1, 2, 3)] == [b"4" * 10, b"3" * 10, b"2" * 10]
    logs.remove(log)
    assert os.listdir(tmp_path) == []


def test_of_a_huge_one_the_end_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"a" * 1000 + b"the end")
    assert logs.rotate(log, limit=7)
    assert Path(f"{log}.1").read_bytes() == b"the end"


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        logs.open_log(tmp_path / "a.log")


def test_the_tail_is_harmless(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"before\nfirst\n\x1b[2Jsecond\xff\n")
    assert logs.tail(log, 7) == "first | ?[2Jsecond\ufffd"
    assert logs.tail(tmp_path / "none", 0) == ""
