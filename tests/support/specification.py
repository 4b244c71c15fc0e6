"""SPECIFICATION.md as data: the limit in each of its lines.

Tests read the limits from here, so text and test can't differ.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "SPECIFICATION.md"
LIBRARY = str(ROOT / "_utils/netspace") + "/"

# A line of a table: a key, the text, the bound.
_LINE = re.compile(r"^\| `([a-z]+(?:[.-][a-z0-9]+)+)` \| ([^|]+) \| ([0-9,]+) \|$", re.MULTILINE)


def lines(text: str) -> dict[str, int]:
    """Return the limits in the page's text, by key.

    :raises ValueError: a key has two lines.
    """
    found: dict[str, int] = {}
    for key, _, bound in _LINE.findall(text):
        if key in found:
            raise ValueError(f"{key} has two lines; give one of them another key")
        found[key] = int(bound.replace(",", ""))
    return found


def bound(key: str) -> int:
    """Return the limit of one line."""
    return lines(PAGE.read_text())[key]


def hold(key: str, measured: int) -> None:
    """Fail if *measured* is more than the limit of this line."""
    most = bound(key)
    print(f"specification: {key}: {measured} of {most}")
    assert measured <= most, f"{key}: {measured} is more than the {most} that SPECIFICATION.md promises"


def largest(key: str, refusal: Callable[[int], str]) -> None:
    """Fail if the size in this line is not exactly the largest accepted size.

    :param refusal: a function that tries an input of a size; it returns the refusal's text, or an empty text.
    """
    most = bound(key)
    taken, refused = refusal(most), refusal(most + 1)
    assert taken == "", f"{key}: {most} is refused: {taken}"
    assert refused, f"{key}: {most + 1} is taken, and SPECIFICATION.md says that {most} is the most"


def calls(work: Callable[[], object]) -> int:
    """Count the calls of the library's own named functions by *work* in this thread.

    Calls of other libraries, lambdas and comprehensions don't count, because their number differs between versions of
    Python.
    """
    number = 0

    def count(frame: object, event: str, _: object) -> None:
        nonlocal number
        code = frame.f_code  # type: ignore[attr-defined]
        if event == "call" and code.co_filename.startswith(LIBRARY) and not code.co_name.startswith("<"):
            number += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return number
