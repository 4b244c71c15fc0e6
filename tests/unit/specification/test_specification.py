"""SPECIFICATION.md itself: each line has a test, and each of these tests has a line."""

from __future__ import annotations

import re

import pytest
from support import specification

TESTS = specification.ROOT / "tests"
SOURCES = sorted(path for path in TESTS.glob("**/test_specif*.py"))
KEY = re.compile(r'"([a-z]+(?:[.-][a-z0-9]+)+)"')
CHANGES = re.compile(r"^(?:CHANGES|KINDS) = \(([^)]*)\)", re.MULTILINE)


def held() -> set[str]:
    """Return the keys of lines that tests name, or build from a change and a kind."""
    text = "\n".join(path.read_text() for path in SOURCES)
    changes, kinds = (re.findall(r'"([a-z]+)"', names) for names in CHANGES.findall(text))
    return set(KEY.findall(text)) | {f"{change}.{kind}" for change in changes for kind in kinds}


def test_each_line_of_the_page_has_a_test() -> None:
    assert specification.lines(specification.PAGE.read_text()).keys() - held() == set()


def test_each_row_of_a_table_is_a_line() -> None:
    rows = re.findall(r"^\| `.*$", specification.PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(specification.lines(specification.PAGE.read_text())) > 40


def test_a_count_above_its_line_fails() -> None:
    most = specification.bound("environment.processes")
    specification.hold("environment.processes", most)
    with pytest.raises(AssertionError, match=r"environment\.processes: 2 is more than the 1 that"):
        specification.hold("environment.processes", most + 1)


def test_a_key_with_two_lines_is_refused() -> None:
    assert specification.lines("| `a.b` | text | 1,000 |\n") == {"a.b": 1000}
    with pytest.raises(ValueError, match=r"a\.b has two lines"):
        specification.lines("| `a.b` | text | 1 |\n| `a.b` | text | 2 |\n")


def test_calls_of_the_library_are_counted_and_no_others() -> None:
    from netspace import text

    assert specification.calls(lambda: text.printable("a")) == 1
    assert specification.calls(lambda: sorted([2, 1], key=lambda one: str(one))) == 0
