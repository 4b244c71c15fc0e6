"""Differences of a host, as data and as a table: what an apply would change, or what differs from the last one. Pure.

``old`` is always the value on the host, and ``new`` the value that an apply gives it, as in a state's changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from netspace.plan import Plan, Step
from netspace.plugin import tables
from netspace.plugin.tables import Cell, Paint, Row, prose, text

Against = Literal["declaration", "last apply"]

_INTERRUPTS = ("remove", "rebuild", "restart", "stop")
"""Actions that end a program or its connections."""
_WHOLE = ("create", "remove")
"""Actions on a whole thing: a table has one row for it, not one for each key."""
_WORDS: Mapping[str, tuple[str, str, str]] = {
    "declaration": ("DECLARED", "the host is as declared", "differ from the declaration"),
    "last apply": ("APPLIED", "the host is as it was applied last", "differ from the last apply"),
}
_MOST = 8
"""Parts of a nested value that are shown."""


def told(plan: Plan, against: Against, now: float) -> dict[str, Any]:
    """Return the differences for operators and programs.

    :param plan: the steps that would end the differences.
    :param now: seconds since the epoch.
    """
    rows = list({(row["kind"], row["name"], row["key"]): row for step in plan.steps for row in _rows(step)}.values())
    refused = [{"kind": one.kind, "name": one.name, "message": one.message} for one in plan.refusals]
    return {
        "compared_with": against,
        "compared": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "differs": bool(rows or refused),
        "differences": rows,
        "refused": refused,
        "notes": list(dict.fromkeys(plan.notes)),
    }


def _rows(step: Step) -> Iterable[dict[str, Any]]:
    """Return a row for each key of a step; one with an empty key if only the reason shows the difference."""
    about = {"kind": step.kind, "name": step.name, "action": step.action}
    for key, change in (step.changes or {"": {}}).items():
        yield {**about, "key": key, "old": change.get("old"), "new": change.get("new"), "reason": step.reason}


def lines(found: Mapping[str, object], paint: Paint) -> list[str]:
    """Return the screen, with the changes first that interrupt a program.

    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    column, same, differ = _WORDS[text(found["compared_with"])]
    things: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for one in map(tables.mapping, tables.sequence(found["differences"])):
        things.setdefault((text(one["kind"]), text(one["name"])), []).append(one)
    refused = [tables.mapping(one) for one in tables.sequence(found["refused"])]
    count = len(things) + len({(text(one["kind"]), text(one["name"])) for one in refused} - things.keys())
    heading = f"{count} thing{'s' if count > 1 else ''} {differ if count > 1 else differ.replace('differ', 'differs')}"
    if things:
        heading += "; state.apply netspace changes " + ("them" if count > 1 else "it")
    shown = tables.sentence(Cell(heading if count else same, "head" if count else "good"), paint)
    rows = [row for (kind, name), parts in things.items() for row in _table_rows(kind, name, parts)]
    shown += tables.table(("KIND", "NAME", "ACTION", "KEY", "NOW", column), rows, paint)
    for one in refused:
        thing = " ".join(filter(None, (text(one["kind"]), text(one["name"]))))
        shown += tables.sentence(Cell(f"{thing}: {prose(one['message'])}", "bad"), paint)
    for note in tables.sequence(found["notes"]):
        shown += tables.sentence(Cell(prose(note), "dim"), paint)
    return shown


def _table_rows(kind: str, name: str, parts: list[Mapping[str, object]]) -> list[Row]:
    """Return the rows of one thing. Only the first has its name, and the last has the reason below it."""
    action, reason = text(parts[0]["action"]), prose(parts[0]["reason"])
    interrupts = action in _INTERRUPTS
    rank = 0 if interrupts else 1
    head = [Cell(kind), Cell(name), Cell(action, "bad" if interrupts else "warn")]
    notes = [Cell(reason, "dim")] if reason else []
    if action in _WHOLE:
        return [Row(rank, [*head, Cell(""), Cell(""), Cell("")], notes)]
    rows = []
    for number, one in enumerate(parts):
        values = [Cell(_value(one[side]) or "-") if one["key"] else Cell("") for side in ("old", "new")]
        first = head if number == 0 else [Cell("")] * len(head)
        rows.append(Row(rank, [*first, Cell(text(one["key"])), *values], notes if number == len(parts) - 1 else ()))
    return rows


def _value(value: object, depth: int = 2) -> str:
    """Return a value as one line; of a nested one, the first parts."""
    if depth and isinstance(value, Mapping):
        return ", ".join(f"{text(key)}={_value(value[key], depth - 1)}" for key in list(value)[:_MOST])
    if depth and isinstance(value, list | tuple):
        return ", ".join(_value(one, depth - 1) for one in value[:_MOST])
    return text(value)
