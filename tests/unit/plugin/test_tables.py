"""Tables fit 80 columns, show no control character, and accept any value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netspace.plugin import tables
from netspace.plugin.tables import Cell, Row

HEADS = ("NAME", "STATE", ">COUNT", "TEXT")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3600 * 3.5, "3 h"),
        (86400 * 2, "2 d"),
        (86400 * 365.25 * 2, "2 y"),
        (-1, "?"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_span_of_seconds_is_in_its_largest_unit(seconds: float, shown: str) -> None:
    assert tables.span(seconds) == shown


@pytest.mark.parametrize(
    ("since", "shown"),
    [(900.0, "1 min"), (1001, "0 s"), (5000, "?"), (0, ""), (None, ""), (True, ""), ("900", ""), (float("nan"), "")],
)
def test_age_of_a_moment_minds_clocks_and_types(since: object, shown: str) -> None:
    assert tables.age(since, 1000.0) == shown


def test_end_of_a_moment_is_ahead_or_past() -> None:
    assert tables.until(1000 + 7200, 1000.0) == "in 2 h"
    assert tables.until(400, 1000.0) == "10 min ago"
    assert tables.until(float("inf"), 1000.0) == tables.until("x", 1000.0) == ""


def test_control_characters_are_shown_escaped() -> None:
    assert tables.text("a\x1b[31mb\r\u202e\ud800") == "a\\x1b[31mb\\r\\u202e\\ud800"
    assert tables.prose("first\n  second\tthird") == "first second third"


def test_values_of_other_types_are_question_marks() -> None:
    assert [tables.text(one) for one in ({}, [], object(), float("nan"), 10**5000, b"x")] == ["?"] * 6
    assert [tables.text(one) for one in (None, True, 7, 0.5)] == ["", "yes", "7", "0.5"]


def test_table_has_lowest_ranks_first_and_no_empty_column() -> None:
    rows = [
        Row(2, [Cell("a"), Cell("well"), Cell("7"), Cell("")]),
        Row(0, [Cell("b"), Cell("failed"), Cell("12"), Cell("")], [Cell("it ended (exit 1)")]),
    ]
    assert tables.table(HEADS, rows) == [
        "  NAME  STATE   COUNT",
        "  b     failed     12",
        "    it ended (exit 1)",
        "  a     well        7",
    ]


def test_wide_cells_are_cut_and_narrow_ones_kept() -> None:
    lines = tables.table(HEADS, [Row(0, [Cell("web"), Cell("failed"), Cell("1"), Cell("x" * 200)])])
    assert [len(line) for line in lines][1] == 80 and lines[1].endswith("xxx...")
    assert "web   failed      1" in lines[1]


def test_wide_characters_count_twice() -> None:
    assert tables.columns("ab\u4e2d") == 4
    assert tables.cut("\u4e2d" * 40, 20) == "\u4e2d" * 8 + "..."


_cells = st.text(max_size=120).map(lambda text: Cell(tables.text(text)))


@given(st.lists(st.tuples(_cells, _cells, _cells, _cells, _cells), max_size=6))
def test_no_line_is_wider_than_the_screen(made: list[tuple[Cell, ...]]) -> None:
    rows = [Row(0, cells[:4], [cells[4]]) for cells in made]
    for line in tables.table(HEADS, rows):
        assert tables.columns(line) <= tables.WIDTH
        assert line.isprintable()


@given(st.text(max_size=300), st.integers(8, 40), st.integers(1, 4))
def test_wrapped_lines_fit_their_room(text: str, room: int, most: int) -> None:
    lines = tables.wrap(tables.text(text), room, most)
    assert len(lines) <= most
    assert all(tables.columns(line) <= room for line in lines)
