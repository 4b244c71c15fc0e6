"""Tables for a terminal: at most 80 columns wide, with the rows that need attention first. Pure.

Cells hold untrusted text: names and log lines come from programs and from other hosts. So :func:`text` escapes control
characters, bounds each value, and accepts only plain values; it never calls a method of any other object.
"""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from netspace.text import printable

WIDTH = 80
INDENT = 2
NARROWEST = 6
"""The least width of a column in a table that is too wide."""
LONGEST = 400
"""The most characters of a value that are read."""
_ELLIPSIS = "..."
_LARGEST = 10**15
_EARLY = 300.0
"""Seconds by which another host's clock may be ahead of this one's."""
_YEAR = 365.25 * 86400

Tone = Literal["", "bad", "warn", "good", "dim", "head"]
Paint = Callable[[str, Tone], str]


class Cell(NamedTuple):
    """A text, and its tone: the meaning that its colour shows."""

    text: str
    tone: Tone = ""


class Row(NamedTuple):
    """A row of a table, about one thing.

    :param rank: the row's place: rows with lower ranks come first.
    :param notes: sentences below the row.
    :param most: the greatest number of lines of a note.
    """

    rank: int
    cells: Sequence[Cell]
    notes: Sequence[Cell] = ()
    most: int = 3


def plain(text: str, tone: Tone) -> str:
    """Return *text* without a colour, for output that isn't a terminal."""
    return text


def mapping(value: object) -> Mapping[str, object]:
    """Return *value*, which must be a mapping.

    :raises TypeError: it isn't a mapping.
    """
    if not isinstance(value, Mapping):
        raise TypeError("expected a mapping")
    return value


def sequence(value: object) -> list[object]:
    """Return *value*, which must be a list or a tuple, as a list.

    :raises TypeError: it is neither.
    """
    if not isinstance(value, list | tuple):
        raise TypeError("expected a list")
    return list(value)


def text(value: object) -> str:
    """Return a value as one line of printable characters; ``?`` if it isn't a text, number, boolean or None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return printable(value[:LONGEST])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < _LARGEST else "?"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return "?"


def prose(value: object) -> str:
    """Return a value as :func:`text` does, with each run of blanks and line breaks as one blank."""
    return text(" ".join(value[: 4 * LONGEST].split()) if isinstance(value, str) else value)


def number(value: object) -> float | None:
    """Return *value* as a float; None if it isn't a number, or is too large to show."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None  # false for NaN, too


def span(seconds: float) -> str:
    """Return a duration in seconds as text in its largest unit: ``45 s``, ``5 min``, ``3 h``, ``12 d``, ``2 y``."""
    if not 0 <= seconds < 1000 * _YEAR:
        return "?"
    for unit, length, most in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48), ("d", 86400, 730)):
        if seconds < most * length:
            return f"{int(seconds / length)} {unit}"
    return f"{int(seconds / _YEAR)} y"


def age(since: object, now: float) -> str:
    """Return the time from *since* to *now* as text; empty if *since* is unset, ``?`` if it is far in the future.

    Both are in seconds since the epoch.
    """
    begin = number(since)
    if begin is None or begin <= 0:
        return ""
    return span(max(now - begin, 0.0)) if now - begin > -_EARLY else "?"


def until(end: object, now: float) -> str:
    """Return the time from *now* to *end* as text: ``in 3 h``, or ``3 h ago``; empty if *end* is unset.

    Both are in seconds since the epoch.
    """
    moment = number(end)
    if moment is None or moment <= 0:
        return ""
    return f"in {span(moment - now)}" if moment > now else f"{span(now - moment)} ago"


def size(value: object) -> str:
    """Return a number of bytes in its largest binary unit: ``64 MiB``."""
    count = number(value)
    if count is None or count < 0:
        return ""
    unit = 0
    while count >= 1024 and unit < 5:
        count, unit = count / 1024, unit + 1
    return f"{count:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[unit]}"


def columns(line: str) -> int:
    """Return the greatest number of terminal columns that *line* may take. Wide (East Asian) characters take two."""
    wide = 0 if line.isascii() else sum(unicodedata.east_asian_width(one) in "WF" for one in line)
    return len(line) + wide


def cut(line: str, room: int) -> str:
    """Return *line*; if it takes more than *room* columns, return its beginning and three dots."""
    if columns(line) <= room:
        return line
    kept = line[: max(room - len(_ELLIPSIS), 0)]
    while columns(kept) > room - len(_ELLIPSIS) and kept:
        kept = kept[:-1]
    return (kept + _ELLIPSIS)[: max(room, 0)]


def wrap(line: str, room: int, most: int) -> list[str]:
    """Return *line* in at most *most* lines of *room* columns each. If text is left, the last line ends in dots."""
    lines: list[str] = []
    rest = line
    while rest and len(lines) < most - 1 and columns(rest) > room:
        part = rest[:room]
        while columns(part) > room:
            part = part[:-1]
        blank = part.rfind(" ") if rest[len(part) : len(part) + 1] != " " else len(part)
        end = blank if blank > room // 2 else len(part)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*lines, cut(rest, room)] if rest else lines


def sentence(told: Cell, paint: Paint, indent: int = INDENT, most: int = 3) -> list[str]:
    """Return a text as indented lines that fit the terminal.

    :param indent: the number of blanks before each line.
    :param most: the greatest number of lines.
    """
    return [" " * indent + paint(line, told.tone) for line in wrap(told.text, WIDTH - indent, most)]


def narrow(shown: str, width: int = WIDTH) -> str:
    """Return lines, with each line that is wider than *width* broken between words.

    Each part of a broken line keeps the line's indentation. A word is never broken, so that it can still be copied.
    """
    lines: list[str] = []
    for line in shown.splitlines():
        indent = " " * (len(line) - len(line.lstrip(" ")))
        if columns(line) <= width or len(indent) > width // 2:
            lines.append(line)
        else:
            lines += textwrap.wrap(
                line.strip(),
                width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Sequence[Row], paint: Paint = plain, indent: int = INDENT) -> list[str]:
    """Return the lines of a table, with the rows in the order of their ranks. Columns without a value are left out.

    :param heads: titles of the columns; a ``>`` before a title aligns its column right.
    """
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: row.rank)
    used = [index for index in range(len(heads)) if any(row.cells[index].text for row in ordered)]
    titles = [heads[index].removeprefix(">") for index in used]
    right = [heads[index].startswith(">") for index in used]
    wanted = [max(columns(row.cells[index].text) for row in ordered) for index in used]
    widths = _widths([max(len(title), most) for title, most in zip(titles, wanted, strict=True)], WIDTH - indent)
    lines = [_line([Cell(title, "head") for title in titles], widths, right, paint, indent)]
    for row in ordered:
        lines.append(_line([row.cells[index] for index in used], widths, right, paint, indent))
        for note in row.notes:
            lines += sentence(note, paint, indent + 2, row.most)
    return lines


def _widths(wanted: Sequence[int], room: int) -> list[int]:
    """Return the widths of the columns. The widest columns are narrowed until all columns fit into *room*."""
    widths = list(wanted)
    while sum(widths) + 2 * (len(widths) - 1) > room:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return widths


def _line(cells: Sequence[Cell], widths: Sequence[int], right: Sequence[bool], paint: Paint, indent: int) -> str:
    shown = []
    for cell, width, flush in zip(cells, widths, right, strict=True):
        short = cut(cell.text, width)
        blank = " " * (width - columns(short))
        coloured = paint(short, cell.tone)
        shown.append(blank + coloured if flush else coloured + blank)
    return (" " * indent + "  ".join(shown)).rstrip()
