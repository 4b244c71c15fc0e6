"""Tables for a terminal: the returns of ``netspace_fleet.status``, ``list`` and ``explain``. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from netspace.plugin import explanation, tables
from netspace.plugin.tables import Cell, Paint, Row, Tone, mapping, prose, sequence, text

_TONES: Mapping[str, Tone] = {"bad": "bad", "unknown": "bad", "odd": "warn", "well": "good", "off": "dim"}
_RANKS: Mapping[str, int] = {"unseen": 0, "attention": 1, "well": 2}
_NOTES = 4
"""The most notes of one host that are shown."""


def status(found: Mapping[str, object], now: float, paint: Paint) -> list[str]:
    """Return the lines that show a return of ``netspace_fleet.status``.

    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    rows = []
    for host, told in sorted(mapping(found["hosts"]).items()):
        row = mapping(told)
        state, trust, counts = text(row["state"]), mapping(row["trust"]), mapping(row["environments"])
        tone: Tone = {"unseen": "bad", "well": "good"}.get(state, "warn")  # type: ignore[assignment]  # all are tones
        notes = [mapping(one) for one in sequence(row["attention"])]
        if any(one["mark"] == "bad" for one in notes):
            tone = "bad"
        shown = [
            Cell(": ".join(filter(None, [text(one["what"]), prose(one["text"])])), _TONES[text(one["mark"])])
            for one in notes[:_NOTES]
        ]
        if hidden := len(notes) - len(shown) + int(tables.number(row["more"]) or 0):
            shown.append(Cell(f"and {hidden} more: --out=json", "dim"))
        level = " ".join(filter(None, [text(trust["level"]) or "?", text(trust["state"])]))
        cells = [
            Cell(text(host)),
            Cell(state, tone),
            Cell(level, _TONES[text(trust["mark"])]),
            Cell(text(trust["by"])),
            Cell(tables.age(trust["evidence"], now)),
            Cell(f"{text(counts['well'])} of {text(counts['expected'])}"),
        ]
        rank = _RANKS[state] * 2 + (tone != "bad")
        rows.append(Row(rank, cells, shown))
    lines = tables.sentence(Cell(prose(found["summary"]), "head"), paint)
    lines += _notes(found, paint)
    for name, why in sorted(mapping(found["nowhere"]).items()):
        lines += tables.sentence(Cell(f"{text(name)} runs nowhere: {prose(why)}", "bad"), paint)
    heads = ("HOST", "STATE", "TRUST", "TOLD BY", ">EVIDENCE", ">WELL")
    return [*lines, *tables.table(heads, rows, paint)]


def listed(found: Mapping[str, object], now: float, paint: Paint) -> list[str]:
    """Return the lines that show a return of ``netspace_fleet.list``.

    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    rows = []
    for number, row in enumerate(map(mapping, sequence(found["environments"]))):
        tone = _TONES[text(row["mark"])]
        restarts = tables.number(row["restarts"])
        cells = [
            Cell(text(row["environment"])),
            Cell(text(row["host"])),
            Cell(text(row["state"]), tone),
            Cell(text(row["health"]), tone),
            Cell(f"{restarts:.0f}" if restarts else ""),
            Cell(tables.age(row["since"], now)),
        ]
        notes = [Cell(prose(row["text"]), tone)] if row["text"] and row["mark"] != "well" else []
        rows.append(Row(number, cells, notes))
    heads = ("ENVIRONMENT", "HOST", "STATE", "HEALTH", ">RESTARTS", ">AGE")
    lines = _notes(found, paint)
    if not rows:
        return [*lines, *tables.sentence(Cell("the fleet has no environment"), paint)]
    return [*lines, *tables.table(heads, rows, paint)]


def explained(found: Mapping[str, object], now: float, paint: Paint) -> list[str]:
    """Return the lines that show a return of ``netspace_fleet.explain``.

    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    place = mapping(found["placement"])
    lines = tables.sentence(Cell(prose(found["summary"]), "head"), paint)
    for line in _placement(place):
        lines += tables.sentence(line, paint)
    for host, told in sorted(mapping(found["hosts"]).items()):
        row = mapping(told)
        lines += [paint(f"{text(host)}:", "head")]
        if "error" in row:
            lines += tables.sentence(Cell(prose(row["error"]), "bad"), paint)
        else:
            lines += explanation.lines(row, now, paint)
    return lines


def _placement(place: Mapping[str, object]) -> Iterator[Cell]:
    on = ", ".join(text(one) for one in sequence(place["on"]))
    hosts = ", ".join(text(one) for one in sequence(place["hosts"])) or "no host"
    yield Cell(f"placed on {hosts} (on: {on}; replicas: {text(place['replicas'])}): {prose(place['reason'])}")
    for host, why in mapping(place["refused"]).items():
        yield Cell(f"not on {text(host)}: {prose(why)}", "dim")
    for key, tone in (("moves", "warn"), ("missing", "warn"), ("problems", "bad")):
        for one in sequence(place[key]):
            yield Cell(f"{key}: {prose(one)}", tone)  # type: ignore[arg-type]  # both are tones


def _notes(found: Mapping[str, object], paint: Paint) -> list[str]:
    return [line for one in sequence(found["notes"]) for line in tables.sentence(Cell(prose(one), "bad"), paint)]
