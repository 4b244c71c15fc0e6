"""Differences of a host from its declaration, or from the last apply, as data and as a table. Pure.

As in a state's changes, ``old`` is the value on the host, and ``new`` the value after an apply.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from netspace.plan import Plan, Step
from netspace.plugin import tables
from netspace.plugin.tables import Cell, Paint, Row, prose, text

Against = Literal["declaration", "last apply"]

INTERRUPTS = ("remove", "rebuild", "restart", "stop", "rename")
"""Actions that end a program or its connections."""
WHOLE = ("create", "remove")
"""Actions on a whole thing, whose keys a table doesn't list."""
_WORDS: Mapping[str, tuple[str, str, str]] = {
    "declaration": ("declared", "the host is as declared", "differ from the declaration"),
    "last apply": ("applied", "the host is as it was applied last", "differ from the last apply"),
}
_MOST = 8
"""Parts of a nested value that are shown."""


def told(plan: Plan, against: Against, now: float) -> dict[str, Any]:
    """Return the differences as plain values, for the output of a Salt function.

    :param plan: the steps that would remove the differences.
    :param against: the name of the state with which the host was compared.
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
    """Return a row for each key of a step. A step without keys has one row with the reason."""
    about = {"kind": step.kind, "name": step.name, "action": step.action}
    for key, change in (step.changes or {"": {}}).items():
        yield {**about, "key": key, "old": change.get("old"), "new": change.get("new"), "reason": step.reason}


def lines(found: Mapping[str, object], paint: Paint) -> list[str]:
    """Return the lines of the screen. Changes that interrupt a program come first.

    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    side, same, differ = _WORDS[text(found["compared_with"])]
    things: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for one in map(tables.mapping, tables.sequence(found["differences"])):
        things.setdefault((text(one["kind"]), text(one["name"])), []).append(one)
    refused = [tables.mapping(one) for one in tables.sequence(found["refused"])]
    count = len(things) + len({(text(one["kind"]), text(one["name"])) for one in refused} - things.keys())
    heading = f"{count} things {differ}" if count > 1 else f"1 thing {differ.replace('differ', 'differs')}"
    if things:
        heading += f" (now -> {side}); state.apply netspace changes {'them' if count > 1 else 'it'}"
    shown = tables.sentence(Cell(heading if count else same, "head" if count else "good"), paint)
    rows = [_row(kind, name, parts) for (kind, name), parts in things.items()]
    shown += tables.table(("KIND", "NAME", "ACTION"), rows, paint)
    for one in refused:
        thing = " ".join(filter(None, (text(one["kind"]), text(one["name"]))))
        shown += tables.sentence(Cell(f"{thing}: {prose(one['message'])}", "bad"), paint)
    for note in tables.sequence(found["notes"]):
        shown += tables.sentence(Cell(prose(note), "dim"), paint)
    return shown


def _row(kind: str, name: str, parts: Sequence[Mapping[str, object]]) -> Row:
    """Return the row of one changed thing, with notes below it: the reason and each changed key."""
    action, reason = text(parts[0]["action"]), prose(parts[0]["reason"])
    interrupts = action in INTERRUPTS
    notes = [Cell(reason, "dim")] if reason else []
    if action not in WHOLE:
        notes += [
            Cell(f"{text(one['key'])}: {as_line(one['old'])} -> {as_line(one['new'])}") for one in parts if one["key"]
        ]
    return Row(0 if interrupts else 1, [Cell(kind), Cell(name), Cell(action, "bad" if interrupts else "warn")], notes)


def as_line(value: object, depth: int = 2) -> str:
    """Return a value as one line. Of a nested value, only the first parts are shown.

    :param depth: how many levels of nesting are shown.
    """
    if value is None or (isinstance(value, list | tuple | Mapping) and not value):
        return "nothing"
    if depth and isinstance(value, Mapping):
        return ", ".join(f"{text(key)}={as_line(value[key], depth - 1)}" for key in list(value)[:_MOST])
    if depth and isinstance(value, list | tuple):
        return ", ".join(as_line(one, depth - 1) for one in value[:_MOST])
    return text(value)
