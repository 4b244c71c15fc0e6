"""Pictures of who may reach whom, in three forms: DOT, Mermaid, or a page of HTML with SVG. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from netspace.errors import NetspaceError
from netspace.plugin.picture.model import Delegated, Graph, Node, Sort
from netspace.plugin.picture.page import page
from netspace.text import printable

_SHAPES: Mapping[Sort, str] = {"environment": "box", "remote": "box, style=dashed", "outside": "ellipse"}
_BRACKETS: Mapping[Sort, tuple[str, str]] = {
    "environment": ("[", "]"),
    "remote": ("[[", "]]"),
    "outside": ("([", "])"),
}
_STYLES: Mapping[Delegated, str] = {"": "", "made": ", style=bold", "possible": ", style=dotted"}
_STROKES: Mapping[Delegated, str] = {"": "-->", "made": "==>", "possible": "-.->"}


def dot(graph: Graph) -> str:
    """Return the graph in DOT, the language of Graphviz."""
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
        f"  {_quoted(arrow.source)} -> {_quoted(arrow.target)} [label={_quoted(arrow.what)}{_STYLES[arrow.delegated]}];"
        for arrow in graph.arrows
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
    lines += [
        f"  {ids[arrow.source]} {_STROKES[arrow.delegated]}|{_entities(arrow.what)}| {ids[arrow.target]}"
        for arrow in graph.arrows
    ]
    return "\n".join([*lines, ""])


def _entities(text: str) -> str:
    """Return *text* in quotes. Each character that Mermaid interprets is replaced by its entity, such as ``#34;``."""
    return '"' + "".join(f"#{ord(one)};" if one in '"#;<>&`\\' else one for one in printable(text)) + '"'


FORMS: Mapping[str, Callable[[Graph], str]] = {"dot": dot, "mermaid": mermaid, "html": page}
"""The renderers, by the names of their forms."""


def rendered(form: object, graph: Graph) -> str:
    """Return a picture of the graph in one of the forms.

    :param form: a key of :data:`FORMS`.
    :raises NetspaceError: there is no such form.
    """
    render = FORMS.get(str(form))
    if render is None:
        raise NetspaceError(f"form: there is no {str(form)!r:.100}; choose from {', '.join(FORMS)}")
    return render(graph)
