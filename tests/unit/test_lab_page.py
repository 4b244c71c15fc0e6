"""The tour of ``docs/lab.md``, which is to take less than ten minutes of reading and typing."""

from __future__ import annotations

import re

from support import checkout, pages
from support.hosts import as_written

PAGE = checkout.ROOT / "docs/lab.md"
TOUR = "Ten minutes to attested hosts and a sealed link"
WORDS = 200 / 60
"""Words that one reads in a second."""
KEYS = 3
"""Keys that one presses in a second: 36 words a minute."""


def test_the_tour_is_read_and_typed_in_ten_minutes() -> None:
    """Read the beginning of the page and the tour, and type its lines. The waiting depends on the machine."""
    begin, _, _ = PAGE.read_text().partition("\n## ")
    tour = as_written.section(PAGE, TOUR)
    typed = [line for step in pages.steps(tour) if step.kind == "sh" for line in pages.commands(step.text)]
    words = re.findall(r"[\w@.'-]+", f"{begin} {re.sub(r'^```sh.*?^```$', '', tour, flags=re.MULTILINE | re.DOTALL)}")
    assert len(typed) == 13 and len(words) > 300, "else something isn't counted"
    reading, typing = len(words) / WORDS, sum(len(line) + 1 for line in typed) / KEYS
    assert reading + typing < 600, f"{len(words)} words in {reading:.0f} s, and typing in {typing:.0f} s"
