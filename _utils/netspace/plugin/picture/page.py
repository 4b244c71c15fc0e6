"""Page of a picture: one file of HTML with a drawing in SVG. Pure; equal graphs have equal pages.

All texts come from declarations and hosts, and are untrusted. jinja2 escapes each text. The script reads the texts as
JSON, in which each ``<``, ``>`` and ``&`` is escaped. So no text can end the element that contains it.

The page's own policy (CSP) allows one style and one script, by their digests, and nothing from outside. A browser that
supports Trusted Types also refuses markup that a script makes from a text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from netspace.errors import MissingError
from netspace.fleet.seen import ORDER, Mark
from netspace.plugin.picture import layout as places
from netspace.plugin.picture import script, style, template
from netspace.plugin.picture.layout import LABELLED, Box
from netspace.plugin.picture.model import Arrow, Change, Graph, Group, Node, natural, teams
from netspace.text import printable

if TYPE_CHECKING:
    import jinja2

MANY = 150
"""If a picture has more lines, at first only the lines of the selected thing are drawn."""
_ROOM = 7.8
"""Width of a character of a label."""
_CHANGES: Mapping[Change, str] = {
    "added": "the plan adds it",
    "changed": "the plan changes it",
    "removed": "the plan removes it",
}
_HINT = "Choose a host, an environment or a link."


def page(graph: Graph) -> str:
    """Return the page.

    :raises MissingError: jinja2 is missing.
    """
    fill = _template()
    from markupsafe import Markup

    drawn = places.layout(graph)
    groups = {group.name: group for group in graph.groups}
    boxes = [groups.get(box.title, Group(box.title)) for box in drawn.boxes]
    named = teams(graph)
    between = _between(graph)
    many = len(between) > MANY
    things: list[Node | Arrow | Group] = [*graph.nodes, *graph.arrows, *boxes]
    marks = {one.mark for one in things if one.mark is not None}
    planned = any(one.change for one in things)
    labels = [] if len(between) > LABELLED else _labels(between, drawn)
    levels = sorted({group.level or "?" for group, box in zip(boxes, drawn.boxes, strict=True) if box.title})
    values = {
        "title": printable(graph.title),
        "notes": [printable(note) for note in graph.notes],
        "told": f"{len(graph.nodes)} ends on {sum(bool(box.title) for box in drawn.boxes)} hosts, {len(between)} lines",
        "policy": _policy(),
        "style": Markup(style.SHEET),  # noqa: S704  # our own, without a value
        "script": Markup(script.TEXT),  # noqa: S704  # likewise
        "data": Markup(_json(_data(graph, drawn, boxes, named, between, many))),  # noqa: S704  # escaped for its element
        "many": many,
        "planned": planned,
        "marks": [(mark, style.WORDS[mark]) for mark in ORDER if mark in marks],
        "shapes": style.SHAPES,
        "legend": _legend(graph, planned),
        "levels": levels if levels != ["?"] else [],
        "teams": sorted({printable(team) for team in named if team}, key=natural),
        "width": drawn.width,
        "height": drawn.height,
        "wide": places.WIDE,
        "high": places.HIGH,
        "boxes": [_box(box, group) for box, group in zip(drawn.boxes, boxes, strict=True)],
        "headings": [{"x": one.x, "y": one.y, "text": _fitted(one.text, 24)} for one in drawn.headings],
        "lines": [_line(arrows, drawn.places[start], drawn.places[end]) for (start, end), arrows in between.items()],
        "labels": labels,
        "nodes": _nodes(graph, drawn.places),
    }
    return fill.render(values)


@functools.cache
def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as err:  # Salt depends on it; without Salt, it may be absent
        raise MissingError(
            "the Python package jinja2", "apt-get install python3-jinja2, or pip install jinja2"
        ) from err
    made = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return made.from_string(template.TEXT)


@functools.cache
def _policy() -> str:
    """Return the page's Content Security Policy (CSP level 3): only this style and this script."""
    digests = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("style", style.SHEET), ("script", script.TEXT))
    }
    parts = [f"{name}-src 'sha256-{digest}'" for name, digest in digests.items()]
    return "; ".join(
        ["default-src 'none'", *parts, "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'",
         "trusted-types 'none'"]
    )  # fmt: skip


def _json(data: object) -> str:
    """Return *data* as JSON that can't end the script element around it (HTML standard, section 4.12.1.3)."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _between(graph: Graph) -> dict[tuple[int, int], list[Arrow]]:
    """Return the arrows between each pair of nodes, by the nodes' positions: (source, target). A pair has one line."""
    index = {node.name: number for number, node in enumerate(graph.nodes)}
    found: dict[tuple[int, int], list[Arrow]] = {}
    for arrow in graph.arrows:
        found.setdefault((index[arrow.source], index[arrow.target]), []).append(arrow)
    return found


def _data(
    graph: Graph,
    drawn: places.Layout,
    boxes: Sequence[Group],
    named: Sequence[str],
    between: Mapping[tuple[int, int], Sequence[Arrow]],
    many: bool,
) -> dict[str, Any]:
    """Return the data that the page's script needs. :mod:`netspace.plugin.picture.script` describes its lists."""
    owner = {number: position for position, box in enumerate(drawn.boxes) for number in box.nodes}
    order = sorted(range(len(boxes)), key=lambda one: (not boxes[one].name, natural(boxes[one].name), one))
    return {
        "size": [drawn.width, drawn.height],
        "many": many,
        "hint": _HINT,
        "words": dict(style.WORDS),
        "changes": dict(_CHANGES),
        "order": order,
        "n": [
            [
                printable(node.name),
                printable(node.label or node.name),
                owner[number],
                printable(named[number]),
                node.mark or "",
                node.change,
                _facts((("group", named[number]), *node.facts)),
            ]
            for number, node in enumerate(graph.nodes)
        ],
        "g": [
            [printable(group.name), group.level, group.mark or "", group.change, _facts(group.facts)] for group in boxes
        ],
        "l": [
            [
                start,
                end,
                _change(arrows),
                _worst(arrows) or "",
                [[printable(one.what), _facts((*one.facts, ("rule", one.rule)))] for one in arrows],
            ]
            for (start, end), arrows in between.items()
        ],
    }


def _facts(facts: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [[printable(key), printable(value, "\n")] for key, value in facts if value]


def _worst(arrows: Sequence[Arrow]) -> Mark | None:
    return min((one.mark for one in arrows if one.mark is not None), key=ORDER.index, default=None)


def _change(arrows: Sequence[Arrow]) -> Change:
    """Return the change of a line: if all rules of the line have the same change, that change; else ``changed``."""
    changes = {one.change for one in arrows}
    return changes.pop() if len(changes) == 1 else "changed"


def _kind(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _line(arrows: Sequence[Arrow], start: tuple[int, int], end: tuple[int, int]) -> dict[str, str]:
    by = "messages" if any(one.by == "messages" for one in arrows) else "packets"
    seal = "seal" if all(one.seal for one in arrows if one.by == "messages") and by == "messages" else ""
    worst = _worst(arrows)
    shown = worst if worst in ("bad", "odd", "unknown") else None
    right = "possible" if all(one.delegated == "possible" for one in arrows) else ""
    return {"kind": _kind(by, seal, right, shown, _change(arrows)), "path": places.line(start, end).path}


def _labels(between: Mapping[tuple[int, int], Sequence[Arrow]], drawn: places.Layout) -> list[dict[str, Any]]:
    """Return the texts beside the lines. A text is left out if each of its possible places is already covered."""
    taken = [(x, y, x + places.WIDE, y + places.HIGH) for x, y in drawn.places]
    taken += [(box.x, box.y, box.x + min(box.width, 150), box.y + places.HEAD) for box in drawn.boxes if box.title]
    found = []
    for number, ((start, end), arrows) in enumerate(between.items()):
        if drawn.places[start][0] == drawn.places[end][0]:
            continue  # too short a way
        text = _fitted(", ".join(dict.fromkeys(arrow.what for arrow in arrows)), 28)
        half = len(text) * 3
        for part in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8):
            x, y = places.line(drawn.places[start], drawn.places[end]).at(part)
            area = (x - half, y - 14, x + half, y)
            if not any(
                area[0] < right and left < area[2] and area[1] < low and top < area[3]
                for left, top, right, low in taken
            ):
                taken.append(area)
                found.append({"line": number, "x": x, "y": y - 4, "text": text})
                break
    return found


def _nodes(graph: Graph, at: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    found = []
    for node, (x, y) in zip(graph.nodes, at, strict=True):
        refused = f"\N{CIRCLED DIVISION SLASH} {_count(node.refused)}" if node.refused else ""
        room = int((places.WIDE - (34 if node.mark else 16) - 8 * len(refused)) / _ROOM)
        sign = {"added": "+ ", "removed": "\N{MINUS SIGN} ", "changed": "~ "}.get(node.change, "")
        whole = f"{sign}{node.label or node.name}"
        label = _fitted(whole, room)
        found.append(
            {
                "kind": _kind(node.sort if node.sort != "environment" else "", node.mark, node.change),
                "x": x,
                "y": y,
                "mark": node.mark,
                "label": label,
                "refused": refused,
                "cut": label != printable(whole),
                "title": printable(node.name),
            }
        )
    return found


def _count(number: int) -> str:
    return str(number) if number < 1000 else f"{number // 1000}k" if number < 1_000_000 else "1M+"


def _box(box: Box, group: Group) -> dict[str, Any]:
    room = int((box.width - 44) / 7.8)
    sign = {"added": "+ ", "removed": "\N{MINUS SIGN} ", "changed": "~ "}.get(group.change, "")
    count = f"{len(box.nodes)} environment{'' if len(box.nodes) == 1 else 's'}"
    kind = _kind(group.mark, group.change)
    if not box.title:  # an end outside has no box
        return {"x": box.x, "y": box.y, "width": 0, "height": 0, "title": "", "under": "", "mark": None, "kind": kind}
    return {
        "x": box.x,
        "y": box.y,
        "width": box.width,
        "height": box.height,
        "title": (title := _fitted(f"{sign}{box.title}", room)),
        "far": max(min(64, int(1.6 * box.width / len(title))), 14),
        "under": " \N{MIDDLE DOT} ".join(filter(None, [group.level and f"trust {group.level}", count])),
        "mark": group.mark,
        "kind": kind,
    }


def _legend(graph: Graph, planned: bool) -> list[tuple[str, str]]:
    found = [("messages", "messages"), ("packets", "packets")]
    if any(arrow.seal for arrow in graph.arrows):
        found.insert(1, ("messages seal", "sealed messages"))
    if any(arrow.delegated == "possible" for arrow in graph.arrows):
        found.append(("messages possible", "a right that a program may delegate"))
    if any(arrow.mark in ("bad", "odd") for arrow in graph.arrows):
        found.append(("messages bad", "a link that doesn't work"))
    if planned:
        found += [("messages added", "the plan adds (+)"), ("messages removed", "the plan removes (\N{MINUS SIGN})")]
    return found


def _fitted(text: str, most: int) -> str:
    """Return a text as the page draws it: printable, and cut off after *most* characters."""
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: max(most - 1, 1)]}\N{HORIZONTAL ELLIPSIS}"
