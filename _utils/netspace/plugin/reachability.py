"""Tables for a terminal: the returns of ``netspace.can`` and ``netspace.paths_to``. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from netspace.plugin import tables
from netspace.plugin.tables import Cell, Paint, Row, Tone, mapping, prose, sequence, text

_MOST = 8
"""Steps of one path that are shown."""


def answer(found: Mapping[str, object], now: float, paint: Paint) -> list[str]:
    """Return the lines that show a return of ``netspace.can``.

    :param now: seconds since the epoch.
    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    through = [mapping(one) for one in sequence(found["through"])]
    tone: Tone = "good" if found["can"] is True else "warn" if found["answers"] is True or through else "bad"
    rows = []
    for edge in map(mapping, sequence(found["rules"])):
        only = edge["answers"] is True
        said = Cell("answers", "warn") if only else Cell("yes", "good")
        cells = [Cell(text(edge["by"])), said, Cell(text(edge["what"]))]
        age = tables.age(edge.get("since"), now)
        rule = f"{text(edge['rule'])}, for {age}" if age else text(edge["rule"])
        rows.append(Row(only, cells, [Cell(rule, "dim")]))
    for by, why in mapping(found["why_not"]).items():
        rows.append(Row(2, [Cell(text(by)), Cell("no", "bad"), Cell("")], [Cell(prose(why))]))
    lines = tables.sentence(Cell(prose(found["summary"]), tone), paint)
    lines += tables.table(("BY", "ALLOWED", "WHAT"), rows, paint)
    lines += tables.sentence(Cell("by way of others:", "head"), paint) if through else []
    for edge in through[:_MOST]:
        step = f"{text(edge['from'])} -> {text(edge['to'])}: {text(edge['what'])}, by {text(edge['rule'])}"
        lines += tables.sentence(Cell(step, "dim"), paint, tables.INDENT + 2)
    return lines


def paths(found: Mapping[str, object], paint: Paint) -> list[str]:
    """Return the lines that show a return of ``netspace.paths_to``.

    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    rows = []
    for path in map(mapping, sequence(found["paths"])):
        through = [text(one) for one in sequence(path["through"])]
        first = mapping(sequence(path["rules"])[0])
        rank = 2 if through else int(path["answers"] is True)
        tone: Tone = "dim" if rank else ""
        rule = text(first["rule"]).rpartition(":interface:")[2].removeprefix("netspace:")
        cells = [text(path["from"]), text(first["by"]), text(first["what"]), ", ".join(through), rule]
        rows.append(Row(rank, [Cell(one, tone) for one in cells]))
    if not rows:
        return tables.sentence(Cell(f"nobody can reach {text(found['paths_to'])}"), paint)
    counted = "1 path leads" if len(rows) == 1 else f"{len(rows)} paths lead"
    lines = tables.sentence(Cell(f"{counted} to {text(found['paths_to'])}", "head"), paint)
    return lines + tables.table(("FROM", "BY", "WHAT", "THROUGH", "RULE"), rows, paint)
