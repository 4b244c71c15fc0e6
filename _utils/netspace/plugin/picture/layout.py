"""Positions of hosts, environments and lines in a picture, in pixels. Pure; equal graphs have equal layouts.

Hosts are drawn in columns. Hosts to which no arrow leads are in the left column. The column of any other host is the
least number of arrows on a way to it from such a host. In a fleet of more than :data:`NAMED` hosts, hosts are ordered
by name instead, so that an operator finds them.

If a host has few environments, they stand in columns that follow their arrows, or in one column. If a host has many,
they stand in a grid, ordered by team and name. The layout is computed in one pass, without random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from netspace.plugin.picture.model import Graph, home, natural, teams

WIDE, HIGH = 158, 28
"""Size of a node."""
GAP, EDGE, HEAD, TEAM = 8, 12, 40, 20
"""Distance of nodes; margin within a box; height of a box's title, and of a team's."""
ACROSS = 74
"""Distance of columns within a box that has arrows inside."""
LAYERED = 12
"""The most nodes of a host that are placed along their arrows."""
SPACE = 26
"""Distance of boxes in a column."""
LABELLED = 40
"""The most lines that are labelled in the drawing."""
MARGIN = 30
NAMED = 24
"""The most boxes that are placed along their arrows; more boxes are ordered by name."""
_ASPECT = 1.45
"""Ratio of width to height of the part of a screen that shows the picture."""


class Box(NamedTuple):
    """A host with its nodes, or a single end outside. An end outside has an empty title.

    :param x: the left edge, in pixels.
    :param y: the upper edge, in pixels.
    :param nodes: the positions of its nodes in the graph.
    """

    title: str
    x: int
    y: int
    width: int
    height: int
    nodes: tuple[int, ...]


class Heading(NamedTuple):
    """The name of a team above its nodes."""

    text: str
    x: int
    y: int


class Layout(NamedTuple):
    """The positions of all things in a picture.

    :param places: the upper left corner of each node, in the graph's order.
    """

    width: int
    height: int
    boxes: tuple[Box, ...]
    places: tuple[tuple[int, int], ...]
    headings: tuple[Heading, ...]


class _Block(NamedTuple):
    """The inside of a box. Its positions are relative to the box's upper left corner."""

    width: int
    height: int
    places: Mapping[int, tuple[int, int]]
    headings: tuple[Heading, ...] = ()


def ranks(members: Iterable[int], arrows: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the column of each member: the least number of arrows from the left column to the member.

    Members to which no arrow leads are in the left column. In a cycle that no arrow from outside leads into, the first
    member gets the left column.
    """
    every = list(members)
    onwards: dict[int, list[int]] = {one: [] for one in every}
    led = set[int]()
    for source, target in arrows:
        if source != target:
            onwards[source].append(target)
            led.add(target)
    columns: dict[int, int] = {}
    for root in sorted(every, key=led.__contains__):
        if root in columns:
            continue
        front, column = [root], 0
        while front:
            front = [one for one in dict.fromkeys(front) if columns.get(one, column + 1) > column]
            columns |= dict.fromkeys(front, column)
            front, column = [other for one in front for other in onwards[one]], column + 1
    return columns


def layout(graph: Graph) -> Layout:
    """Place a host's nodes in one column or in several columns, whichever is shown larger on a screen."""
    return min(_layout(graph, columns=True), _layout(graph, columns=False), key=_size)


def _size(drawn: Layout) -> float:
    return max(drawn.width / _ASPECT, drawn.height)


def _layout(graph: Graph, *, columns: bool) -> Layout:
    index = {node.name: number for number, node in enumerate(graph.nodes)}
    ends = list(dict.fromkeys((index[arrow.source], index[arrow.target]) for arrow in graph.arrows))
    titles: list[str] = []
    members: list[list[int]] = []
    where: dict[str, int] = {}
    owner: list[int] = []
    for number, node in enumerate(graph.nodes):
        title = home(node)
        place = where.get(title) if title else None
        if place is None:
            place = len(members)
            titles.append(title)
            members.append([])
            where |= {title: place} if title else {}
        members[place].append(number)
        owner.append(place)
    for group in graph.groups:  # a host without environments
        if group.name not in where:
            where[group.name] = len(members)
            titles.append(group.name)
            members.append([])
    local: list[list[tuple[int, int]]] = [[] for _ in members]
    for source, target in ends:
        if owner[source] == owner[target]:
            local[owner[source]].append((source, target))
    named = teams(graph)
    labels = [node.label or node.name for node in graph.nodes]
    blocks = [
        _inside(title, inside, arrows, named, labels, columns)
        for title, inside, arrows in zip(titles, members, local, strict=True)
    ]
    between = [(owner[source], owner[target]) for source, target in ends if owner[source] != owner[target]]
    corners = _corners(titles, members, blocks, list(dict.fromkeys(between)), labels, len(ends) <= LABELLED)
    places: list[tuple[int, int]] = [(0, 0)] * len(graph.nodes)
    boxes, headings = list[Box](), list[Heading]()
    for title, inside, block, (x, y) in zip(titles, members, blocks, corners, strict=True):
        boxes.append(Box(title, x, y, block.width, block.height, tuple(inside)))
        for number, (left, top) in block.places.items():
            places[number] = (x + left, y + top)
        headings += [Heading(one.text, x + one.x, y + one.y) for one in block.headings]
    width = max((box.x + box.width for box in boxes), default=0) + MARGIN
    height = max((box.y + box.height for box in boxes), default=0) + MARGIN
    return Layout(width, height, tuple(boxes), tuple(places), tuple(headings))


def _inside(
    title: str,
    members: Sequence[int],
    arrows: Sequence[tuple[int, int]],
    named: Sequence[str],
    labels: Sequence[str],
    apart: bool,
) -> _Block:
    """Return the inside of one box.

    :param apart: use columns that follow the arrows; False: use one column.
    """
    if not title:
        return _Block(WIDE, HIGH, {members[0]: (0, 0)})
    if not members:
        return _Block(WIDE + 2 * EDGE, HEAD + EDGE, {})
    ordered = sorted(members, key=lambda one: (not named[one], named[one], natural(labels[one]), one))
    if arrows and len(members) <= LAYERED:
        columns = ranks(ordered, arrows)
        if not apart:
            ordered.sort(key=columns.__getitem__)
            columns = dict.fromkeys(ordered, 0)
        depth = max(columns.values()) + 1
        rows = [0] * depth
        places = {}
        for one in ordered:
            column = columns[one]
            places[one] = (EDGE + column * (WIDE + ACROSS), HEAD + rows[column] * (HIGH + GAP))
            rows[column] += 1
        width = 2 * EDGE + depth * WIDE + (depth - 1) * ACROSS + (ACROSS // 2 if depth == 1 else 0)
        return _Block(width, HEAD + max(rows) * (HIGH + GAP) - GAP + EDGE, places)
    across = max(1, round(math.sqrt(len(members) * (HIGH + GAP) * 1.5 / (WIDE + GAP))))
    parted = len({named[one] for one in members}) > 1 and len(members) > LAYERED
    places, headings, top, column = {}, list[Heading](), HEAD, 0
    for number, one in enumerate(ordered):
        new = parted and (number == 0 or named[one] != named[ordered[number - 1]])
        if column == across or (new and column):
            column, top = 0, top + HIGH + GAP
        if new:
            headings.append(Heading(named[one] or "others", EDGE, top + TEAM - 7))
            top += TEAM
        places[one] = (EDGE + column * (WIDE + GAP), top)
        column += 1
    width = 2 * EDGE + across * (WIDE + GAP) - GAP
    return _Block(width, top + HIGH + EDGE, places, tuple(headings))


def _corners(
    titles: Sequence[str],
    members: Sequence[Sequence[int]],
    blocks: Sequence[_Block],
    between: Sequence[tuple[int, int]],
    labels: Sequence[str],
    labelled: bool,
) -> list[tuple[int, int]]:
    """Return the upper left corner of each box, in the order of *titles*."""
    names = [title or labels[inside[0]] for title, inside in zip(titles, members, strict=True)]
    every = sorted(range(len(blocks)), key=lambda one: (natural(names[one]), one))
    large = len(every) > NAMED
    every = sorted(every, key=lambda one: bool(titles[one])) if large else every  # ends outside first
    columns = dict.fromkeys(every, 0) if large else ranks(every, sorted(between))
    area = sum((block.width + ACROSS) * (block.height + SPACE) for block in blocks)
    most = max([math.sqrt(area / _ASPECT), *(block.height + SPACE for block in blocks)])
    near: dict[int, list[int]] = {one: [] for one in every}
    for source, target in between:
        near[source].append(target)
        near[target].append(source)
    stacks = list[list[int]]()
    middle: dict[int, float] = {}
    for rank in range(max(columns.values(), default=-1) + 1):
        inside = [one for one in every if columns[one] == rank]
        parts = math.ceil(sum(blocks[one].height + SPACE for one in inside) / most)
        if parts == 1 and not large:
            inside = _ordered(inside, near, middle)
        made = _split(inside, blocks, parts)
        stacks += made
        for stack in made:
            top = -sum(blocks[one].height + SPACE for one in stack) / 2
            for one in stack:
                middle[one] = top + blocks[one].height / 2
                top += blocks[one].height + SPACE
    highs = [sum(blocks[one].height + SPACE for one in stack) - SPACE for stack in stacks]
    highest, x = max(highs, default=0), MARGIN
    corners = [(0, 0)] * len(blocks)
    for stack, high in zip(stacks, highs, strict=True):
        width = max(blocks[one].width for one in stack)
        y = MARGIN + (highest - high) // 2
        for one in stack:
            corners[one] = (x + (width - blocks[one].width) // 2, y)
            y += blocks[one].height + SPACE
        x += width + (108 if labelled else ACROSS)
    return corners


def _ordered(inside: Sequence[int], near: Mapping[int, Sequence[int]], middle: Mapping[int, float]) -> list[int]:
    """Return the boxes of one column, ordered so that each is near the linked boxes of earlier columns."""

    def wanted(one: int) -> float:
        known = [middle[other] for other in near[one] if other in middle]
        return sum(known) / len(known) if known else math.inf

    return sorted(inside, key=wanted)


def _split(inside: Sequence[int], blocks: Sequence[_Block], parts: int) -> list[list[int]]:
    """Return the boxes as at most *parts* columns of about the same height."""
    whole = sum(blocks[one].height + SPACE for one in inside)
    stacks: list[list[int]] = [[] for _ in range(parts)]
    top = 0
    for one in inside:
        high = blocks[one].height + SPACE
        stacks[min(int((top + high / 2) * parts / whole), parts - 1)].append(one)
        top += high
    return [stack for stack in stacks if stack]


class Line(NamedTuple):
    """A line from one node to another.

    :param path: the line as an SVG path.
    :param points: the four points of the line's Bezier curve.
    """

    path: str
    points: tuple[tuple[int, int], ...]

    def at(self, part: float) -> tuple[int, int]:
        """Return the point at *part* of the line's length: 0 is the beginning, 1 the end."""
        weights = ((1 - part) ** 3, 3 * part * (1 - part) ** 2, 3 * part**2 * (1 - part), part**3)
        x, y = (sum(w * point[axis] for w, point in zip(weights, self.points, strict=True)) for axis in (0, 1))
        return round(x), round(y)


def line(start: tuple[int, int], end: tuple[int, int]) -> Line:
    """Return the line between two nodes. Lines of opposite directions are drawn side by side.

    :param start: the upper left corner of the node at which the line begins.
    :param end: the upper left corner of the node at which the line ends.
    """
    (x1, y1), (x2, y2) = start, end
    if x2 >= x1 + WIDE:  # from the right side to the left
        a, b, bend = (x1 + WIDE, y1 + 9), (x2, y2 + 9), 1
    elif x1 >= x2 + WIDE:
        a, b, bend = (x1, y1 + 19), (x2 + WIDE, y2 + 19), -1
    else:  # in one column: out and in at the right
        down = y2 >= y1
        a, b, bend = (x1 + WIDE, y1 + (19 if down else 9)), (x2 + WIDE, y2 + (9 if down else 19)), 0
    reach = max(abs(b[0] - a[0]) // 2, 30)
    if bend:
        c, d = (a[0] + bend * reach, a[1]), (b[0] - bend * reach, b[1])
    else:
        c, d = (a[0] + 44, a[1]), (b[0] + 44, b[1])
    return Line(f"M{a[0]} {a[1]}C{c[0]} {c[1]} {d[0]} {d[1]} {b[0]} {b[1]}", (a, c, d, b))
