"""Tables of trials: things that were tried or examined, each with an outcome. Pure.

A trial is, for example, a checked setting of a host, an attack that an audit tries, or a pool that a test exhausts. A
return comes from another host, and is untrusted; see :mod:`netspace.plugin.views`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netspace.plugin import tables
from netspace.plugin.tables import Cell, Paint, Row, Tone, mapping, prose, sequence, text

_RANKS = {"succeeded": 0, "leak": 0, "weak": 0, "open": 1, "slow": 1, "unknown": 1, "skipped": 2}
"""Outcomes by how soon somebody has to look at them; all others are good."""
_GOOD = 3
_TONES: tuple[Tone, ...] = ("bad", "warn", "dim", "good")
_MOST = 12
"""Lines of a note: enough for the longest remedy."""


def known(rows: object) -> bool:
    """Return whether *rows* is a list of trials: each has ``name``, ``outcome``, and ``detail`` or ``found``."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(
            isinstance(row, Mapping) and "name" in row and "outcome" in row and ("detail" in row or "found" in row)
            for row in rows
        )
    )


def lines(data: object, paint: Paint) -> list[str]:
    """Return the lines of a table of trials.

    :param data: a list of trials, or a mapping with ``comment`` and ``rows``. These rows are the trials that aren't
        good.
    """
    if not isinstance(data, Mapping):
        return _table(sequence(data), paint)
    found = sequence(data["rows"])
    worst = min((_rank(mapping(row)) for row in found), default=_GOOD)
    said = tables.sentence(Cell(prose(data["comment"]), _TONES[worst]), paint)
    return [*said, *_table(found, paint)]


def _rank(row: Mapping[str, object]) -> int:
    return _RANKS.get(text(row["outcome"]), _GOOD)


def _table(found: Sequence[object], paint: Paint) -> list[str]:
    rows = []
    for row in map(mapping, found):
        rank = _rank(row)
        cells = [
            Cell(text(row["name"])),
            Cell(text(row.get("group", row.get("matters", "")))),
            Cell(text(row["outcome"]), _TONES[rank]),
        ]
        rows.append(Row(rank, cells, [] if rank == _GOOD else _notes(row), _MOST))
    about = "GROUP" if any("group" in mapping(row) for row in found) else "MATTERS FOR"
    return tables.table(("NAME", about, "OUTCOME"), rows, paint)


def _notes(row: Mapping[str, object]) -> list[Cell]:
    if "detail" in row:
        return [Cell(prose(row["detail"]), "dim")]
    told = [Cell(f"found {prose(row['found'])}, expected {prose(row['expected'])}"), Cell(prose(row["why"]), "dim")]
    return [*told, *([Cell(f"do: {prose(row['remedy'])}")] if row["remedy"] else [])]
