"""The page of a picture: it has the graph whatever the texts in it, fetches nothing, and is accessible."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.errors import MissingError
from netspace.fleet.seen import ORDER
from netspace.plugin.picture import layout, script, style
from netspace.plugin.picture import page as rendering
from netspace.plugin.picture.layout import HIGH, WIDE
from netspace.plugin.picture.model import Arrow, Graph, Group, Node, natural, teams
from netspace.plugin.picture.page import page
from netspace.text import printable

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "]]><svg onload=alert(1)>",
    "<!--",
    '"><a href="javascript:alert(1)">',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028\u2029\x00\ud800\u202e",
    "&lt;b&gt;&#x3c;",
)
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(min_size=1, max_size=30), st.builds("".join, st.lists(st.sampled_from(HOSTILE)))
).filter(bool)
marks = st.sampled_from([None, *ORDER])
changes = st.sampled_from(["", "added", "changed", "removed"])
facts = st.lists(st.tuples(texts, texts), max_size=3)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    # Two names that are shown alike would be one node.
    names = draw(st.lists(texts, min_size=1, max_size=14, unique_by=printable))
    hosts = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    node = st.builds(
        Node,
        sort=st.sampled_from(["environment", "remote", "outside"]),
        group=st.sampled_from(["", *hosts]),
        label=texts | st.just(""),
        team=texts | st.just(""),
        mark=marks,
        change=changes,
        refused=st.integers(0, 10**7),
        facts=facts,
        name=st.just(""),
    )
    nodes = [draw(node)._replace(name=name) for name in names]
    ends = st.sampled_from(names)
    by = st.sampled_from(["messages", "packets"])
    arrow = st.builds(
        Arrow, ends, ends, texts, texts, by=by, seal=st.booleans(), mark=marks, change=changes, facts=facts
    )
    level = st.sampled_from(["", "L0", "L3", "L5"])
    groups = [Group(host, draw(level), draw(marks), draw(changes), draw(facts)) for host in hosts]
    notes = draw(st.lists(texts, max_size=2))
    return Graph(nodes, draw(st.lists(arrow, max_size=12)), groups, draw(texts), notes)


class Reader(HTMLParser):
    """Elements of a page, and the texts of its scripts, as an HTML parser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def of(self, tag: str, kind: str) -> list[dict[str, Any]]:
        """Return the attributes of the elements of one class."""
        return [given for name, given in self.elements if name == tag and kind in (given.get("class") or "").split()]


few = settings(max_examples=60, deadline=None)
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "label", "input", "select", "option", "output"),
    *("nav", "noscript", "ul", "li", "details", "summary", "svg", "defs", "marker", "path", "g", "rect", "text", "use"),
    *("main", "div", "button", "aside", "p", "script"),
}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "id",
        "type",
        "placeholder",
        "autocomplete",
        "value",
        "class",
    ),
    *("aria-keyshortcuts", "aria-live", "aria-label", "selected", "open", "viewbox", "d", "marker-end", "tabindex"),
    *(
        "role",
        "refx",
        "refy",
        "markerwidth",
        "markerheight",
        "markerunits",
        "orient",
        "x",
        "y",
        "width",
        "height",
        "rx",
    ),
    *("href", "transform", "font-size"),
}


@few
@given(graphs())
def test_page_holds_the_graph_and_no_markup_of_texts(drawn: Graph) -> None:
    read = Reader(page(drawn))
    assert {name for name, _ in read.elements} <= TAGS, "a text has become an element"
    assert {key for _, given in read.elements for key in given} <= ATTRIBUTES, "a text has become an attribute"
    assert not set("<>&") & set(read.scripts[0]), "a text could end the element, or begin a comment in it"
    assert len(read.scripts) == 2 and read.scripts[1] == script.TEXT
    data = json.loads(read.scripts[0])
    assert [row[0] for row in data["n"]] == [printable(node.name) for node in drawn.nodes]
    for row, node in zip(data["n"], drawn.nodes, strict=True):
        told = [[printable(key), printable(value, "\n")] for key, value in node.facts]
        assert row[6][len(row[6]) - len(told) :] == told and row[4:6] == [node.mark or "", node.change]
    lines = {(data["n"][a][0], data["n"][b][0]): rules for a, b, _, _, rules in data["l"]}
    pairs = {(printable(one.source), printable(one.target)) for one in drawn.arrows}
    assert set(lines) == pairs and len(read.of("path", "l")) >= len(data["l"])
    assert sum(map(len, lines.values())) == len(drawn.arrows)
    assert len(read.of("g", "n")) == len(drawn.nodes)
    known = {one.name for one in drawn.groups}
    assert {printable(name) for name in known} <= {row[0] for row in data["g"]}
    assert page(drawn) == page(drawn)


@few
@given(graphs())
def test_nothing_in_the_drawing_covers_another_thing(drawn: Graph) -> None:
    made = layout.layout(drawn)
    nodes = [(x, y, x + WIDE, y + HIGH) for x, y in made.places]
    boxes = [(box.x, box.y, box.x + box.width, box.y + box.height) for box in made.boxes]
    for group in (nodes, boxes):
        for (a, b, c, d), (e, f, g, h) in itertools.combinations(group, 2):
            assert c <= e or g <= a or d <= f or h <= b
        assert all(a >= 0 and b >= 0 and c <= made.width and d <= made.height for a, b, c, d in group)
    for box, (a, b, c, d) in zip(made.boxes, boxes, strict=True):
        for x, y, right, low in (nodes[one] for one in box.nodes):
            assert a <= x and b <= y and right <= c and low <= d, "a node lies in its host's box"
    assert sorted(one for box in made.boxes for one in box.nodes) == list(range(len(drawn.nodes)))


def fleet(hosts: int, each: int, links: int) -> Graph:
    names = [f"team{number % 7}-app{number}@h{number % hosts}" for number in range(hosts * each)]
    nodes = [
        Node(
            name, "environment", name.partition("@")[2], name.partition("@")[0], "", "well", "", 0, [("image", "tar:x")]
        )
        for name in names
    ]
    arrows = [
        Arrow(names[number % len(names)], names[(number * 7 + 3) % len(names)], "requests, sealed", f"links:{number}")
        for number in range(links)
    ]
    return Graph(nodes, arrows, [Group(f"h{number}", "L3", "well") for number in range(hosts)])


def test_a_large_page_is_small_and_about_as_wide_as_a_screen() -> None:
    drawn = fleet(100, 10, 3000)
    assert len(page(drawn).encode()) <= 2_000_000
    made = layout.layout(drawn)
    assert 1 < made.width / made.height < 2.2
    one = layout.layout(fleet(1, 1000, 3000))
    assert 1 < one.width / one.height < 2.2 and len(one.headings) == 7


def test_a_host_that_is_added_moves_no_host_before_it() -> None:
    before = layout.layout(fleet(30, 4, 90))
    more = fleet(30, 4, 90)
    after = layout.layout(more._replace(groups=[*more.groups, Group("h99")]))
    assert [(box.title, box.x, box.y) for box in after.boxes[:4]] == [
        (box.title, box.x, box.y) for box in before.boxes[:4]
    ]


SHOP = Graph(
    [
        Node("0.0.0.0/0", "outside"),
        Node("orders", "environment"),
        Node("till@h2", "remote"),
        Node("web", "environment", refused=12),
    ],
    [
        Arrow("0.0.0.0/0", "web", "host's 443/tcp to port 8443", "netspace:environments:web:publish:0", "packets"),
        Arrow("web", "orders", "requests", "netspace:links:web.orders", seal=True),
        Arrow("orders", "web", "messages", "netspace:links:orders.web", mark="bad"),
        Arrow("orders", "till@h2", "messages, buffered", "netspace:links:orders.till@h2", change="removed"),
    ],
)


def test_columns_follow_the_arrows() -> None:
    made = layout.layout(SHOP)
    by_title = {box.title: box.x for box in made.boxes}
    assert by_title[""] < by_title["this host"] < by_title["h2"]


def test_page_fetches_nothing() -> None:
    text = page(SHOP)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#)|@import|https?:(?!//www\.w3\.org/2000/svg)""", text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag, inside in (("style", style.SHEET), ("script", script.TEXT)):
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy and f"<{tag}>{inside}</{tag}>" in text
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch\(|XMLHttp", script.TEXT
    )
    assert " style=" not in text.replace(script.TEXT, "") and "</script" not in script.TEXT


def test_each_state_and_change_has_a_sign_beside_its_colour() -> None:
    read = Reader(page(SHOP))
    kinds = [given["class"].split() for given in read.of("path", "l") if given.get("id")]
    assert kinds == [
        ["l", "packets"],
        ["l", "messages", "seal"],
        ["l", "messages", "bad"],
        ["l", "messages", "removed"],
    ]
    assert len(set(style.SHAPES.values())) == len(style.SHAPES) == len(style.WORDS) == len(ORDER)
    marked = Graph([Node(mark, "environment", "h1", mark=mark) for mark in ORDER], [])
    uses = [given["href"] for name, given in Reader(page(marked)).elements if name == "use"]
    assert set(uses) == {f"#s-{mark}" for mark in ORDER}
    signs = Graph([Node(change, "environment", "h1", change=change) for change in ("added", "changed", "removed")], [])
    assert [text for text in Reader(page(signs)).texts if text[:2] in ("+ ", "~ ", "\u2212 ")] == [
        "+ added", "~ changed", "\u2212 removed",
    ]  # fmt: skip


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (WCAG 2.2, "contrast ratio")."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dark = sorted((light(one), light(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_texts_and_lines_have_contrast_with_the_ground(colours: dict[str, str]) -> None:
    grounds = [colours[name] for name in ("ground", "panel", "box")]
    for name, colour in colours.items():
        if name in ("ground", "panel", "box"):
            continue
        least = 3.0 if name in ("edge", "focus", "messages", "packets") else 4.5  # WCAG 1.4.11, 1.4.3
        assert all(contrast(colour, ground) >= least for ground in grounds), name


def test_teams_are_declared_or_begin_the_name() -> None:
    names = ["shop-web", "shop-db", "bank_web", "alone", "log-a", "x1", "x2"]
    nodes = [Node(f"{name}@h1", "environment", "h1", name) for name in names]
    nodes.append(Node("shop-x", "environment", "h1", team="mine"))
    nodes += [Node("0.0.0.0/0", "outside"), Node("shop-out", "outside")]
    assert teams(Graph(nodes, [])) == ["shop", "shop", "", "", "", "", "", "mine", "", ""]


def test_a_host_without_jinja2_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    rendering._template.cache_clear()
    with pytest.raises(MissingError, match="jinja2 is missing on this host; apt-get install"):
        page(SHOP)


def test_names_with_numbers_are_sorted_as_people_do() -> None:
    assert sorted(["h10", "h2", "h1", "a", "h2b", "\u00b2"], key=natural) == ["a", "h1", "h2", "h2b", "h10", "\u00b2"]
