"""Table of hosts' trusted computing bases below their kernels, as ``netspace_attestation.tcb`` returns them. Pure."""

from __future__ import annotations

from netspace.plugin import tables
from netspace.plugin.tables import Cell, Paint, Row, Tone, mapping, prose, sequence, text

_FAILS, _HOLDS, _PLAIN = range(3)
_TONES: tuple[Tone, ...] = ("bad", "good", "")
# Measured facts come first among rows of one rank, since tables keep the order of equal ranks.
_SHORT = {"told by the host": "told"}
_HEADS = ("PART", "VALUE", "SOURCE", "TERM")


def lines(data: object, now: float, paint: Paint) -> list[str]:
    """Return the lines of a return: a table for each host.

    :raises LookupError, TypeError, ValueError: a value in the return has an unexpected form.
    """
    shown: list[str] = []
    for name, host in sorted(mapping(mapping(data)["tcb_of"]).items(), key=lambda one: text(one[0])):
        found = mapping(host)
        age = tables.age(found["measured"], now)
        head = f"{text(name)}: measured {age} ago" if age else text(name)
        shown += tables.sentence(Cell(head, "head"), paint)
        if found["note"]:
            shown += tables.sentence(Cell(prose(found["note"]), "warn"), paint)
        shown += tables.table(_HEADS, [_row(one) for one in sequence(found["rows"])], paint)
    return shown or ["  none"]


def _row(told: object) -> Row:
    row = mapping(told)
    holds = row["holds"]
    rank = _PLAIN if not isinstance(holds, bool) else _HOLDS if holds else _FAILS
    source = text(row["source"]).removeprefix("measured in ")
    cells = [
        Cell(text(row["part"])),
        Cell(text(row["value"])),
        Cell(_SHORT.get(source, source)),
        Cell(text(row["term"]), _TONES[rank]),
    ]
    failed = Cell(f"the term {prose(row['term'])} does not hold: {prose(row['value'])}", "bad")
    return Row(rank, cells, [failed] if rank == _FAILS else [])
