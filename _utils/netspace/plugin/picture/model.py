"""The graph that all pictures show: ends, the rules between them, and the hosts that ends are drawn in. Pure values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from netspace.fleet.seen import Mark

Sort = Literal["environment", "remote", "outside"]
Change = Literal["", "added", "changed", "removed"]
"""What a plan would do to a thing; empty: nothing."""
Facts = Sequence[tuple[str, str]]
"""Names and values that the details of a thing list, in this order."""


class Node(NamedTuple):
    """An end: a party that may reach another or be reached.

    :param sort: an environment of this host, one of another host, or a network outside.
    :param group: the host that it is drawn in; empty: none.
    :param label: its name within the host; empty: the same as ``name``.
    :param team: the tenant or other part of a fleet that it belongs to; empty: see :func:`teams`.
    :param mark: its state; None: only its declaration is shown.
    :param refused: how often it was refused something.
    """

    name: str
    sort: Sort
    group: str = ""
    label: str = ""
    team: str = ""
    mark: Mark | None = None
    change: Change = ""
    refused: int = 0
    facts: Facts = ()


class Arrow(NamedTuple):
    """A rule by which one end may begin to reach another: a message, or a connection.

    :param seal: its messages are sealed.
    :param mark: its state; None: only its declaration is shown.
    """

    source: str
    target: str
    what: str
    rule: str
    by: Literal["messages", "packets"] = "messages"
    seal: bool = False
    mark: Mark | None = None
    change: Change = ""
    facts: Facts = ()


class Group(NamedTuple):
    """A host that nodes are drawn in.

    :param level: its trust level, ``L0`` to ``L5``; empty: it isn't known.
    :param mark: its state; None: only its declaration is shown.
    """

    name: str
    level: str = ""
    mark: Mark | None = None
    change: Change = ""
    facts: Facts = ()


class Graph(NamedTuple):
    """Ends, and the rules between them. Each arrow leads from one node to another, both by their names.

    :param groups: facts about hosts. A host of a node without an entry here is drawn by its name alone.
    :param notes: sentences that tell where the picture's facts come from.
    """

    nodes: Sequence[Node]
    arrows: Sequence[Arrow]
    groups: Sequence[Group] = ()
    title: str = "Who may reach whom"
    notes: Sequence[str] = ()


_NUMBERS = re.compile(r"([0-9]+)")


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts ``h2`` before ``h10``."""
    parts = _NUMBERS.split(text)
    return [(int(part[:18]), part) if part.isascii() and part.isdigit() else (0, part) for part in parts]


def home(node: Node) -> str:
    """Return the title of the box that a node is drawn in; empty: it is drawn alone."""
    if node.group or node.sort == "outside":
        return node.group
    return node.name.partition("@")[2] or "another host" if node.sort == "remote" else "this host"


def teams(graph: Graph) -> list[str]:
    """Return the team of each node: the declared one; else the beginning of its label, if another node has the same.

    The beginning is the part before the first ``-`` or ``_``.
    """
    begins = [re.split("[-_]", node.label or node.name, maxsplit=1)[0] for node in graph.nodes]
    inside = [node.sort != "outside" for node in graph.nodes]
    count = Counter(begin for begin, one in zip(begins, inside, strict=True) if one)
    parted = {
        begin
        for begin, node in zip(begins, graph.nodes, strict=True)
        if begin != (node.label or node.name).split("@")[0]
    }
    found = []
    for begin, node, one in zip(begins, graph.nodes, inside, strict=True):
        shared = one and count[begin] > 1 and begin in parted
        found.append(node.team or (begin if shared else ""))
    return found
