"""Times of a log's lines, in a file beside it: limited, kept over rotations, repaired after a cut, never forged."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.environment import output
from netspace.environment.output import Line
from netspace.supervision.daemon import log_times, logs
from netspace.supervision.daemon.log_times import Entry, Times


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def write(log: Path, times: Times, data: bytes, moment: float) -> None:
    """Write *data* to the log, and its time, as the relay does."""
    times.note(logs.size(log), moment)
    logs.append(log, data)


def begin(log: Path, times: Times, moment: float) -> None:
    logs.append(log, b"")
    times.note(logs.size(log), moment, start=True)


def entries(log: Path) -> list[Entry]:
    return log_times.read(log, logs.size(log))


def test_lines_have_times_and_starts_are_between_them(log: Path) -> None:
    times = Times(log)
    begin(log, times, 100.0)
    write(log, times, b"one\ntw", 101.0)
    write(log, times, b"o\nthree\n", 102.0)
    begin(log, times, 103.0)
    write(log, times, b"four\n", 103.01)
    assert output.in_files(log, 10, starts=True) == [
        Line("start", 100.0, start=True), Line("one", 101.0), Line("two", 102.0), Line("three", 102.0),
        Line("start", 103.0, start=True), Line("four", 103.0),
    ]  # fmt: skip
    assert [line.text for line in output.in_files(log, 2, starts=False)] == ["three", "four"]
    assert output.in_files(log, 0, starts=True) == []
    assert Line("a", 1700000000.25).stamped() == "2023-11-14T22:13:20.250+00:00 | a"
    assert Line("start", 0.0, start=True).stamped() == "1970-01-01T00:00:00.000+00:00 = start"


def test_line_has_the_time_of_its_end_whatever_was_begun(log: Path) -> None:
    """A line gets the time of its end, although the program wrote the line's first byte earlier.

    Otherwise a program could hide lines from a reader who asks for lines since some time.
    """
    times = Times(log)
    write(log, times, b"one\n2", 1.0)
    write(log, times, b"-two\n3", 500.0)
    write(log, times, b"-three\n4", 900.0)
    found = [(line.text, line.moment) for line in output.in_files(log, 9, starts=False)]
    assert found == [("one", 1.0), ("2-two", 500.0), ("3-three", 900.0), ("4", 900.0)]


def test_log_of_line_feeds_alone_takes_little_memory(log: Path) -> None:
    logs.append(log, b"\n" * (5 * 1024 * 1024) + b"last\n")
    tracemalloc.start()
    try:
        found = output.in_files(log, 10_000, starts=False)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(found), found[0].text, found[-1].text) == (10_000, "", "last")
    assert most < 32 * 1024**2


def test_partial_line_ends_where_the_program_starts(log: Path) -> None:
    times = Times(log)
    begin(log, times, 1.0)
    write(log, times, b"half", 2.0)
    begin(log, times, 3.0)
    write(log, times, b"whole\n", 4.0)
    assert [line.text for line in output.in_files(log, 9, starts=True)] == ["start", "half", "start", "whole"]


def test_stamps_that_a_program_writes_stay_its_text(log: Path) -> None:
    forged = b"2023-11-14T22:13:20.250+00:00 = start\n2023-11-14T22:13:20.250Z\n\x1b[2K\r1970-01-01 | x\x00\n"
    times = Times(log)
    begin(log, times, 5.0)
    for place in range(len(forged)):  # however it is cut
        write(log, times, forged[place : place + 1], 6.0 + place)
    told = output.shown(output.in_files(log, 9, starts=True), times=True)
    assert [line.split(" ", 2)[1] for line in told] == ["=", "|", "|", "|"]
    assert all(line.startswith("1970-01-01T00:0") for line in told)
    assert not any(ord(one) < 32 for line in told for one in line)


@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=12))
def test_program_never_adds_a_start(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[bytes, bool]]
) -> None:
    log = tmp_path_factory.mktemp("log") / "a.log"
    times = Times(log)
    for number, (data, start) in enumerate(written):
        if start:
            begin(log, times, float(number))
        write(log, times, data, number + 0.5)
    found = output.in_files(log, 10_000, starts=True)
    assert [line.moment for line in found if line.start] == [float(n) for n, (_, start) in enumerate(written) if start]
    for count in range(1, len(found)):
        assert output.in_files(log, count, starts=True) == found[-count:]
    told = "".join(line.text for line in found if not line.start)
    assert told == "".join(data.replace(b"\n", b"").decode(errors="replace") for data in _runs(written))


def _runs(written: list[tuple[bytes, bool]]) -> list[bytes]:
    """Join the written parts of each line, since a line is decoded as a whole.

    A line ends at a line feed, or where the program is started again.
    """
    runs = [b""]
    for data, start in written:
        if start:
            runs.append(b"")
        first, *others = data.split(b"\n")
        runs[-1] += first
        runs += others
    return runs


def test_entries_are_apart_and_few(log: Path) -> None:
    times = Times(log)
    for number in range(1000):
        write(log, times, b"x\n", 10 + number / 1000)
    assert len(entries(log)) == 10
    write(log, times, b"x\n", 5.0)  # the clock was set back
    assert entries(log)[-1].moment == 5.0


def test_old_entries_are_dropped_at_the_bound(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_times, "LIMIT", 160)
    times = Times(log)
    for number in range(100):
        write(log, times, b"%d\n" % number, float(number))
        assert log_times.beside(log).stat().st_size <= 160
    found = output.in_files(log, 200, starts=False)
    assert found[0] == Line("0", None)
    assert all(line.moment in (None, float(line.text)) for line in found)
    assert found[-1] == Line("99", 99.0)
    assert len([line for line in found if line.moment is not None]) >= 5


def test_times_follow_a_log_that_is_rotated(log: Path) -> None:
    times = Times(log)
    begin(log, times, 0.0)
    for number in range(1, 9):
        write(log, times, b"line %d\n" % number, float(number))
        logs.rotate(log, limit=20)
    found = output.in_files(log, 100, starts=False)
    assert [line.text[-3:] for line in found] == ["e 1", "e 2", "e 3", "e 4", "e 5", "e 6", "e 7", "e 8"]
    assert all(line.moment == float(line.text[-1]) for line in found)
    logs.remove(log)
    assert os.listdir(log.parent) == []


@pytest.mark.parametrize("cut", range(1, 16))
def test_half_an_entry_is_mended(log: Path, cut: int) -> None:
    times = Times(log)
    write(log, times, b"one\n", 1.0)
    write(log, times, b"two\n", 2.0)
    os.truncate(log_times.beside(log), 32 - cut)
    assert [entry.moment for entry in entries(log)] == [1.0]
    write(log, Times(log), b"three\n", 3.0)  # another supervisor
    assert [line.moment for line in output.in_files(log, 9, starts=False)] == [1.0, 1.0, 3.0]


def test_entries_of_a_log_that_was_emptied_are_dropped(log: Path) -> None:
    """A log was emptied, or a supervisor was killed during a rotation; the outdated entries are dropped."""
    times = Times(log)
    write(log, times, b"one\n", 1.0)
    write(log, times, b"two\n", 2.0)
    os.truncate(log, 0)
    write(log, Times(log), b"3\n", 3.0)
    write(log, times, b"4\n", 4.0)
    assert output.in_files(log, 9, starts=False) == [Line("3", 3.0), Line("4", 4.0)]


def test_damaged_entries_tell_nothing(log: Path) -> None:
    logs.append(log, b"one\ntwo\n")
    beside = log_times.beside(log)
    for damage in (b"\xff" * 32, log_times._ENTRY.pack(4, 2) + log_times._ENTRY.pack(0, 4)):
        beside.write_bytes(damage)
        assert output.in_files(log, 9, starts=True) == [Line("one", None), Line("two", None)]
    beside.unlink()
    beside.symlink_to("/etc/passwd")
    assert output.in_files(log, 9, starts=True) == [Line("one", None), Line("two", None)]
    with pytest.raises(OSError, match="symbolic"):
        Times(log).note(8, 1.0)


def test_log_of_its_program_has_no_times(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(log, Times(log), b"one\n", 1.0)
    real = os.stat

    def of_another(path: object, **options: object) -> os.stat_result:
        info = list(real(path, **options))  # type: ignore[call-overload]
        info[4] += 1
        return os.stat_result(info)

    monkeypatch.setattr(os, "stat", of_another)
    assert entries(log) == []
