"""Pictures of reachability: every form shows the same graph, whatever the texts in it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import NetspaceError
from netspace.host import reach
from netspace.host.host import Host
from netspace.layout import Layout
from netspace.plugin import graph
from netspace.plugin.picture.model import Arrow, Graph, Node
from netspace.spec import parse
from netspace.text import printable

SHOP = Graph(
    [
        Node("0.0.0.0/0", "outside"),
        Node("orders", "environment"),
        Node("till@h2", "remote"),
        Node("web", "environment"),
    ],
    [
        Arrow("0.0.0.0/0", "web", "host's 443/tcp to port 8443", "netspace:environments:web:interface:publish:0"),
        Arrow("web", "orders", "requests", "netspace:links:web.orders"),
        Arrow("orders", "web", "messages", "netspace:links:orders.web"),
        Arrow("orders", "till@h2", "messages, buffered", "netspace:links:orders.till@h2"),
    ],
)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    # Two names that are shown alike would be one node.
    names = draw(st.lists(texts, min_size=1, max_size=6, unique_by=printable))
    nodes = [Node(name, draw(st.sampled_from(["environment", "remote", "outside"]))) for name in names]
    ends = st.sampled_from(names)
    rights = st.sampled_from(["", "possible", "made"])
    return Graph(nodes, draw(st.lists(st.builds(Arrow, ends, ends, texts, texts, delegated=rights), max_size=8)))


few = settings(max_examples=40, deadline=None)
TEXT = r'"((?:[^"\\]|\\.)*)"'


def of_dot(text: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the nodes and arrows in a DOT text."""

    def plain(found: str) -> str:
        return re.sub(r"\\(.)", r"\1", found)

    nodes = [plain(name) for name in re.findall(rf"^  {TEXT} \[shape=", text, re.MULTILINE)]
    arrows = re.findall(rf"^  {TEXT} -> {TEXT} \[label={TEXT}(?:, style=(\w+))?\];$", text, re.MULTILINE)
    rights = {"": "", "bold": "made", "dotted": "possible"}
    return nodes, [(*map(plain, one), rights[style]) for *one, style in arrows]


def of_mermaid(text: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the nodes and arrows in a Mermaid text."""

    def plain(found: str) -> str:
        return re.sub(r"#(\d+);", lambda one: chr(int(one[1])), found)

    nodes = {key: plain(name) for key, name in re.findall(r'^  (n\d+)[\[(]+"([^"]*)"[\])]+$', text, re.MULTILINE)}
    arrows = re.findall(r'^  (n\d+) (-->|==>|-\.->)\|"([^"]*)"\| (n\d+)$', text, re.MULTILINE)
    rights = {"-->": "", "==>": "made", "-.->": "possible"}
    found = [(nodes[one], nodes[other], plain(what), rights[stroke]) for one, stroke, what, other in arrows]
    return list(nodes.values()), found


READERS = {"dot": of_dot, "mermaid": of_mermaid}


@pytest.mark.parametrize("form", READERS)
@few
@given(drawn=graphs())
def test_each_form_holds_the_graph(form: str, drawn: Graph) -> None:
    nodes, arrows = READERS[form](graph.FORMS[form](drawn))
    assert nodes == [printable(node.name) for node in drawn.nodes]
    assert arrows == [(*map(printable, arrow[:3]), arrow.delegated) for arrow in drawn.arrows]


def test_graph_names_who_may_delegate_a_right() -> None:
    one = {"image": "dir:/srv/one"}
    declared = parse.declaration(
        {
            "environments": {
                "web": {**one, "host": ["delegate"], "delegates": {"orders": {"to": ["till"]}}},
                "till": one,
                "orders": one,
            },
            "links": [{"from": "web", "to": "orders"}, {"from": "web", "to": "till"}],
        }
    )
    _, arrows = of_mermaid(reach.graph(Host(Layout()), "mermaid", declared))
    assert sorted(arrows) == [
        ("till", "orders", "messages, if web delegates it", "possible"),
        ("web", "orders", "messages", ""),
        ("web", "till", "messages", ""),
    ]
    page = reach.graph(Host(Layout()), "html", declared)
    assert "a right that a program may delegate" in page
    assert 'class="l messages possible"' in page and 'class="l messages"' in page


def test_graph_and_questions_are_of_a_declaration() -> None:
    one = {"image": "dir:/srv/one"}
    declared = parse.declaration(
        {
            "environments": {"web": {**one, "interface": {"kind": "veth", "publish": ["443:8443"]}}, "orders": one},
            "links": [{"from": "web", "to": "orders", "pattern": "request"}],
        }
    )
    nodes, arrows = of_mermaid(reach.graph(Host(Layout()), "mermaid", declared))
    assert nodes == ["0.0.0.0/0", "::/0", "orders", "web"]
    assert ("web", "orders", "requests", "") in arrows and ("orders", "web") not in {arrow[:2] for arrow in arrows}
    with pytest.raises(NetspaceError, match="choose from dot, mermaid, html"):
        reach.graph(Host(Layout()), "svg", declared)
    for end, problem in {
        "127.0.0.1": "machines outside can't have",
        "1.2.3": "name an environment",
        "wep": "mean web",
    }.items():
        with pytest.raises(NetspaceError, match=problem):
            reach.can(Host(Layout()), end, "orders", declared)
    with pytest.raises(NetspaceError, match="neither is an environment of this host"):
        reach.can(Host(Layout()), "198.51.100.7", "203.0.113.0/24", declared)
