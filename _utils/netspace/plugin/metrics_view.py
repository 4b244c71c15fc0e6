"""Table of a host's metrics for a terminal, from their OpenMetrics text. Pure.

Times become ages, and bytes and seconds get their units, so that nobody has to calculate. Programs read the text.
"""

from __future__ import annotations

import re

from netspace.plugin import tables
from netspace.plugin.tables import Cell, Paint, Row, text

_FIRST = "# HELP netspace_"
_LAST = "# EOF\n"
_SAMPLE = re.compile(r'netspace_([a-z_]{1,80})(?:\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+)\})? ([0-9.e+-]{1,40})')
_LABEL = re.compile(r'[a-z]+="((?:[^"\\]|\\.)*)"')


def known(data: object) -> bool:
    """Return whether a function's return is the metrics of a host."""
    return isinstance(data, str) and data.startswith(_FIRST) and data.endswith(_LAST)


def lines(data: str, now: float, paint: Paint) -> list[str]:
    """Return the lines of the table, with a row for each sample.

    :param now: seconds since the epoch.
    :raises ValueError: a line is neither a comment nor a sample of netspace's.
    """
    rows = []
    for line in data.splitlines():
        if line.startswith("#"):
            continue
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            raise ValueError("not a sample of netspace's")
        name, labels, value = sample.groups()
        of = " ".join(re.sub(r"\\(.)", r"\1", one) for one in _LABEL.findall(labels or ""))
        rows.append(Row(0, [Cell(text(name)), Cell(text(of)), Cell(_shown(name, value, now))]))
    return tables.table(("METRIC", "OF", ">VALUE"), rows, paint)


def _shown(name: str, value: str, now: float) -> str:
    """Return a value with its unit. The metric's name ends in the unit, as OpenMetrics demands."""
    name = name.removesuffix("_total")
    number = float(value)
    if name.endswith("_timestamp_seconds"):
        return tables.until(number, now)
    if name.endswith("_seconds"):
        return f"{number:.3g} s" if number < 1000 else tables.span(number)
    if name.endswith("_bytes"):
        return tables.size(number)
    return value
