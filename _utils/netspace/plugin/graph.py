"""Pictures of who may reach whom: one graph, rendered as DOT, as Mermaid, or as a page of HTML with SVG. Pure.

The page is complete: it has no script, and a browser fetches nothing for it.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from netspace.errors import NetspaceError
from netspace.text import printable

Sort = Literal["environment", "remote", "outside"]


class Node(NamedTuple):
    """An end: a party that may reach another or be reached.

    :param sort: an environment of this host, one of another host, or a network outside.
    :param group: the host that it is drawn in; empty: none.
    """

    name: str
    sort: Sort
    group: str = ""


class Arrow(NamedTuple):
    """A rule by which one end may begin to reach another: a message, or a connection."""

    source: str
    target: str
    what: str
    rule: str


class Graph(NamedTuple):
    """Ends, and the rules between them. Each arrow leads from one node to another, both by their names."""

    nodes: Sequence[Node]
    arrows: Sequence[Arrow]


# -- DOT and Mermaid ---------------------------------------------------------------------
_SHAPES: Mapping[Sort, str] = {"environment": "box", "remote": "box, style=dashed", "outside": "ellipse"}
_BRACKETS: Mapping[Sort, tuple[str, str]] = {
    "environment": ("[", "]"),
    "remote": ("[[", "]]"),
    "outside": ("([", "])"),
}


def dot(graph: Graph) -> str:
    """Return the graph in Graphviz' language."""
    lines = ["digraph netspace {", "  rankdir=LR;"]
    for number, (group, nodes) in enumerate(_groups(graph).items()):
        inside = [f"  {_quoted(node.name)} [shape={_SHAPES[node.sort]}];" for node in nodes]
        if group:
            inside = [
                f"  subgraph cluster_{number} {{",
                f"    label={_quoted(group)};",
                *(f"  {one}" for one in inside),
            ]
            inside.append("  }")
        lines += inside
    lines += [
        f"  {_quoted(arrow.source)} -> {_quoted(arrow.target)} [label={_quoted(arrow.what)}];" for arrow in graph.arrows
    ]
    return "\n".join([*lines, "}", ""])


def _groups(graph: Graph) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        found.setdefault(node.group, []).append(node)
    return found


def _quoted(text: str) -> str:
    # DOT reads backslashes in labels as escapes of its own (\n, \N).
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def mermaid(graph: Graph) -> str:
    """Return the graph as a Mermaid flowchart."""
    ids = {node.name: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for number, (group, nodes) in enumerate(_groups(graph).items()):
        inside = []
        for node in nodes:
            before, after = _BRACKETS[node.sort]
            inside.append(f"  {ids[node.name]}{before}{_entities(node.name)}{after}")
        if group:
            inside = [f"  subgraph g{number}[{_entities(group)}]", *(f"  {one}" for one in inside), "  end"]
        lines += inside
    lines += [f"  {ids[arrow.source]} -->|{_entities(arrow.what)}| {ids[arrow.target]}" for arrow in graph.arrows]
    return "\n".join([*lines, ""])


def _entities(text: str) -> str:
    """Return a text in quotes, with Mermaid's numbered entities in place of characters that Mermaid interprets."""
    return '"' + "".join(f"#{ord(one)};" if one in '"#;<>&`\\' else one for one in printable(text)) + '"'


# -- HTML -----------------------------------------------------------------------------------
_WIDE, _HIGH, _ACROSS, _DOWN, _EDGE = 170, 34, 330, 64, 24
_LONGEST = 28
"""The most characters of a text in the drawing; the table has all of it."""
_STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em; color: #1c2733; background: #fff; }
svg text { font: 13px sans-serif; fill: #1c2733; }
svg .what { font-size: 11px; fill: #51606e; }
rect { fill: #eaf1f8; stroke: #33628f; }
rect.remote { stroke-dasharray: 5 3; }
rect.outside { fill: #fdf3e3; stroke: #a26a12; }
path { fill: none; stroke: #6b7a88; }
marker path { fill: #6b7a88; stroke: none; }
table { border-collapse: collapse; margin-top: 2em; }
th, td { text-align: left; padding: .25em 1em .25em 0; border-bottom: 1px solid #d5dce3; }
"""
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
"""
_MARKER = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z"/></marker></defs>'
)


def page(graph: Graph) -> str:
    """Return a page with a drawing, and a table of all rules."""
    rows = "\n".join(f"<tr>{''.join(f'<td>{_escaped(one)}</td>' for one in arrow)}</tr>" for arrow in graph.arrows)
    heads = "".join(f"<th>{one}</th>" for one in ("From", "To", "What", "Rule"))
    table = f"<table>\n<tr>{heads}</tr>\n{rows}\n</table>" if rows else "<p>Nobody may reach anybody.</p>"
    return f"{_HEAD.format(title='Who may reach whom', style=_STYLE)}{_drawing(graph)}\n{table}\n</body>\n</html>\n"


def _drawing(graph: Graph) -> str:
    places = layout(graph)
    wide = max((x for x, _ in places.values()), default=0) + _WIDE + _EDGE + _DOWN
    high = max((y for _, y in places.values()), default=0) + _HIGH + _EDGE + _DOWN
    parts = [f'<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img">', _MARKER]
    between: dict[tuple[str, str], list[Arrow]] = {}
    for arrow in graph.arrows:
        between.setdefault((arrow.source, arrow.target), []).append(arrow)
    parts += [_line(places[start], places[end], arrows) for (start, end), arrows in between.items()]
    for node in graph.nodes:
        x, y = places[node.name]
        parts.append(
            f'<g><title>{_escaped(node.name)}</title><rect class="{node.sort}" x="{x}" y="{y}" width="{_WIDE}"'
            f' height="{_HIGH}" rx="{4 if node.sort != "outside" else _HIGH // 2}"/>'
            f'<text x="{x + _WIDE // 2}" y="{y + 22}" text-anchor="middle">{_short(node.name)}</text></g>'
        )
    return "\n".join([*parts, "</svg>"])


def layout(graph: Graph) -> dict[str, tuple[int, int]]:
    """Return the place of each node. Its column is the least number of arrows from a node that no arrow leads to."""
    led = {arrow.target for arrow in graph.arrows if arrow.target != arrow.source}
    onwards: dict[str, list[str]] = {}
    for arrow in graph.arrows:
        onwards.setdefault(arrow.source, []).append(arrow.target)
    columns: dict[str, int] = {}
    # Nodes of a circle that no arrow leads into come last. The first of them goes to the left column.
    for root in sorted((node.name for node in graph.nodes), key=lambda name: name in led):
        if root in columns:
            continue
        front, column = [root], 0
        while front:
            front = [name for name in dict.fromkeys(front) if columns.get(name, column + 1) > column]
            columns |= dict.fromkeys(front, column)
            front, column = [name for one in front for name in onwards.get(one, ())], column + 1
    places, rows = {}, dict.fromkeys(columns.values(), 0)
    for node in graph.nodes:
        column = columns[node.name]
        places[node.name] = (_EDGE + column * _ACROSS, _EDGE + rows[column] * _DOWN)
        rows[column] += 1
    return places


def _line(start: tuple[int, int], end: tuple[int, int], arrows: Sequence[Arrow]) -> str:
    """Return one line for all arrows between two nodes: from one node's right side to the other's left, or around."""
    half = _HIGH // 2
    x1, y1, x2, y2 = start[0] + _WIDE, start[1] + half, end[0], end[1] + half
    bend = max(abs(x2 - x1) // 2, 40)
    if x2 > x1:
        curve, label = f"C{x1 + bend},{y1} {x2 - bend},{y2}", ((x1 + x2) // 2, (y1 + y2) // 2 - 4)
    elif start[0] == end[0]:  # within a column: out and in at the right
        x2 += _WIDE
        curve, label = f"C{x1 + 60},{y1} {x2 + 60},{y2}", (x1 + 46, (y1 + y2) // 2)
    else:  # backwards: below both
        low = max(y1, y2) + _DOWN - 8
        curve, label = f"C{x1 + 140},{low} {x2 - 140},{low}", ((x1 + x2) // 2, low - 19)
    told = "; ".join(f"{arrow.source} -> {arrow.target}: {arrow.what}, by {arrow.rule}" for arrow in arrows)
    what = _short(", ".join(dict.fromkeys(arrow.what for arrow in arrows)))
    return (
        f'<g><title>{_escaped(told)}</title><path d="M{x1},{y1} {curve} {x2},{y2}" marker-end="url(#head)"/>'
        f'<text class="what" x="{label[0]}" y="{label[1]}" text-anchor="middle">{what}</text></g>'
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _short(text: str) -> str:
    return _escaped(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}...")


FORMS: Mapping[str, Callable[[Graph], str]] = {"dot": dot, "mermaid": mermaid, "html": page}
"""The renderers, by the names of their forms."""


def rendered(form: object, nodes: Sequence[Node], arrows: Sequence[Arrow]) -> str:
    """Return a picture in one of the forms.

    :raises NetspaceError: there is no such form.
    """
    render = FORMS.get(str(form))
    if render is None:
        raise NetspaceError(f"form: there is no {str(form)!r:.100}; choose from {', '.join(FORMS)}")
    return render(Graph(nodes, arrows))
