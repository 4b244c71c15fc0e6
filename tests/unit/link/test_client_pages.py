"""Each promise in the pages on the client library and on seals has a test, and each named test exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
TESTS = [*(CHECKOUT / "client/tests").glob("test_*.py"), *(CHECKOUT / "tests").rglob("test_*.py")]
DEFINED = set(re.findall(r"^def (test_\w+)\(", "\n".join(path.read_text() for path in TESTS), re.MULTILINE))


@pytest.mark.parametrize("page", ["client.md", "seals.md"])
def test_each_promise_names_a_test_that_is_there(page):
    text = (CHECKOUT / "docs" / page).read_text()
    table = text.split("## What is promised")[1]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 9
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named and set(named) <= DEFINED, row
