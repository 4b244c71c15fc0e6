"""Tables of a fleet's plans: changes that an apply would make, changes that it made, and how two plans differ. Pure.

A table is short enough to read in a minute: it has at most :data:`MAX_ROWS` changes, and changes that interrupt a
program come first. If more than :data:`MAX_NAMES` changes differ only in their values, one row stands for them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netspace.plugin import differences, tables
from netspace.plugin.tables import Cell, Paint, Row, mapping, prose, sequence, text

MAX_ROWS = 10
MAX_NAMES = 3
_KEYS = 2
_SENTENCES = 5


def plan(found: Mapping[str, object], paint: Paint) -> list[str]:
    """Return the lines that show a plan, or a drift.

    :param found: the return of the runner, as a mapping.
    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    counts = mapping(found["counts"])
    of_plan = "plan" in found
    name = text(found["plan" if of_plan else "drift"])
    verb = "would change" if of_plan else "differ from what was applied"
    head = f"{text(counts['change'])} of {text(counts['hosts'])} hosts {verb}, {text(counts['same'])} do not"
    if silent := tables.number(counts["without_plan"]):
        head += f", {silent:.0f} have no plan"
    lines = tables.sentence(Cell(head, "head"), paint)
    if redeclared := tables.number(counts["redeclared"]):
        nothing = f"{redeclared:.0f} hosts get another declaration that changes nothing there"
        lines += tables.sentence(Cell(nothing, "dim"), paint)
    lines += _changes([mapping(one) for one in sequence(found["changes"])], paint)
    moves = [mapping(one) for one in sequence(found["moves"])]
    for one in moves[:_SENTENCES]:
        lines += tables.sentence(Cell(f"{text(one['environment'])} moves: {prose(one['reason'])}"), paint)
    lines += _more(len(moves), "moves", paint)
    withheld = [mapping(one) for one in sequence(found["withheld"])]
    for one in withheld[:_SENTENCES]:
        thing = " ".join(filter(None, (text(one["kind"]), text(one["name"]))))
        told = f"{_hosts(sequence(one['hosts']))}: {thing} is left out: {prose(one['message'])}"
        lines += tables.sentence(Cell(told, "bad"), paint)
    lines += _more(len(withheld), "things are left out", paint)
    lines += _reasons(sequence(found["without_plan"]), "no plan: ", "bad", paint)
    if of_plan and tables.number(counts["change"] or counts["redeclared"]):
        lines += tables.sentence(Cell(f"salt-run netspace_fleet.apply {name}", "head"), paint)
    elif of_plan:
        lines += tables.sentence(Cell(f"plan {name}: nothing to apply", "good"), paint)
    return lines


def applied(found: Mapping[str, object], paint: Paint) -> list[str]:
    """Return the lines that show the result of an apply.

    :param found: the return of the runner, as a mapping.
    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    counts = mapping(found["counts"])
    failed = tables.number(counts["failed"])
    head = f"plan {text(found['applied'])}: done on {text(counts['done'])} of {text(counts['hosts'])} hosts"
    lines = tables.sentence(Cell(head, "bad" if failed else "good"), paint)
    lines += _reasons(sequence(found["failed"]), "failed: ", "bad", paint)
    told = [one for one in map(mapping, sequence(found["done"])) if one["reason"]]
    return lines + _reasons(told, "", "dim", paint)


def compared(found: Mapping[str, object], paint: Paint) -> list[str]:
    """Return the lines that show how two plans differ.

    :param found: the return of the runner, as a mapping.
    :raises ArithmeticError, AttributeError, LookupError, TypeError, ValueError: a value has an unexpected form.
    """
    first, second = (text(one) for one in sequence(found["plans"]))
    lines: list[str] = []
    for key, words in (("dropped", f"{first} alone would:"), ("added", f"{second} alone would:")):
        if changes := [mapping(one) for one in sequence(found[key])]:
            lines += tables.sentence(Cell(words, "head"), paint) + _changes(changes, paint)
    for key, words in (
        ("without_plan", f"plan in {first} alone"),
        ("with_plan", f"plan in {second} alone"),
        ("redeclared", "the declarations differ, but the changes are the same"),
    ):
        if hosts := sequence(found[key]):
            lines += tables.sentence(Cell(f"{words}: {_hosts(hosts)}"), paint)
    return lines or tables.sentence(Cell("the two plans do the same", "good"), paint)


def _changes(changes: Sequence[Mapping[str, object]], paint: Paint) -> list[str]:
    """Return the table of a plan's changes."""
    alike: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for one in changes:
        alike.setdefault((text(one["kind"]), text(one["action"]), *map(text, mapping(one["changes"]))), []).append(one)
    rows = []
    for same in alike.values():
        # A few are worth a row each; of many, one row tells the number.
        rows += [_row([one]) for one in same] if len(same) <= MAX_NAMES else [_row(same)]
    rows.sort(key=lambda row: row.rank)
    lines = tables.table((">HOSTS", "KIND", "ACTION", "NAMES"), rows[:MAX_ROWS], paint)
    return lines + _more(len(rows), "kinds of change", paint, MAX_ROWS)


def _row(same: Sequence[Mapping[str, object]]) -> Row:
    """Return the one row for several changes: their kind, action and keys are the same, and their values may differ."""
    places = [mapping(place) for one in same for place in sequence(one["places"])]
    hosts = sorted({text(host) for place in places for host in sequence(place["hosts"])})
    names = sorted({text(name) for place in places for name in sequence(place["names"])})
    first, action = same[0], text(same[0]["action"])
    interrupts = action in differences.INTERRUPTS
    shown = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    notes = []
    if len(same) > 1:
        notes.append(Cell(f"{len(same)} different changes; one of them:", "dim"))
    if 1 < len(hosts) <= MAX_NAMES:
        notes.append(Cell(f"on {', '.join(hosts)}", "dim"))
    if reason := prose(first["reason"]):
        notes.append(Cell(reason, "dim"))
    keys = list(mapping(first["changes"]).items()) if action not in differences.WHOLE else []
    for key, change in keys[:_KEYS]:
        sides = mapping(change) if isinstance(change, Mapping) else {}
        sides_told = f"{differences.as_line(sides.get('old'))} -> {differences.as_line(sides.get('new'))}"
        notes.append(Cell(f"{text(key)}: {sides_told}"))
    if len(keys) > _KEYS:
        notes.append(Cell(f"and {', '.join(text(key) for key, _ in keys[_KEYS:])}", "dim"))
    cells = [Cell(str(len(hosts)) if len(hosts) > 1 else hosts[0]), Cell(text(first["kind"]))]
    cells += [Cell(action, "bad" if interrupts else "warn"), Cell(shown)]
    return Row(0 if interrupts else 1, cells, notes)


def _reasons(found: Sequence[object], words: str, tone: tables.Tone, paint: Paint) -> list[str]:
    lines: list[str] = []
    for one in map(mapping, found[:_SENTENCES]):
        told = f"{_hosts(sequence(one['hosts']))}: {words}{prose(one['reason'])}"
        lines += tables.sentence(Cell(told, tone), paint)
    return lines + _more(len(found), "reasons", paint)


def _hosts(hosts: Sequence[object]) -> str:
    shown = ", ".join(text(one) for one in hosts[:MAX_NAMES])
    return shown + (f" and {len(hosts) - MAX_NAMES} more" if len(hosts) > MAX_NAMES else "")


def _more(count: int, words: str, paint: Paint, most: int = _SENTENCES) -> list[str]:
    if count <= most:
        return []
    return tables.sentence(Cell(f"{count - most} more {words}: --out=json has all", "warn"), paint)
