"""The graph that all pictures show. Pure values.

A node is an *end*: an environment or a network. An arrow is a rule between two ends. A group is a host that contains
ends.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from netspace.fleet.seen import Mark

Sort = Literal["environment", "remote", "outside"]
Change = Literal["", "added", "changed", "removed"]
"""What a plan would do to a thing; empty: nothing."""
Delegated = Literal["", "possible", "made"]
"""Whether a link is a delegated right: a program may have it made, or has had it made; empty: the link is declared."""
Facts = Sequence[tuple[str, str]]
"""Names and values that the details of a thing list, in this order."""


class Node(NamedTuple):
    """An end of rules: an environment or a network that may reach others or be reached.

    :param sort: ``environment``: an environment of this host; ``remote``: one of another host; ``outside``: a network.
    :param group: the host in whose box the node is drawn; empty: see :func:`home`.
    :param label: the name within the host; empty: the same as ``name``.
    :param team: the tenant or other part of the fleet to which the node belongs; empty: see :func:`teams`.
    :param mark: the node's state; None if the picture shows no states.
    :param refused: the number of the node's refused packets, messages and calls.
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
    """A rule that lets one end send messages to another end, or open connections to it.

    :param seal: whether the messages are sealed.
    :param mark: the link's state; None if the picture shows no states.
    :param delegated: whether the rule is a right that a program delegates.
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
    delegated: Delegated = ""


class Group(NamedTuple):
    """A host that contains nodes.

    :param level: the host's trust level, ``L0`` to ``L5``; empty: it isn't known.
    :param mark: the host's state; None if the picture shows no states.
    """

    name: str
    level: str = ""
    mark: Mark | None = None
    change: Change = ""
    facts: Facts = ()


class Graph(NamedTuple):
    """Nodes, and the arrows (rules) between them. An arrow has the names of its two nodes.

    :param groups: facts about hosts. A host that isn't among them is drawn with its name only.
    :param notes: sentences about the sources of the picture's facts.
    """

    nodes: Sequence[Node]
    arrows: Sequence[Arrow]
    groups: Sequence[Group] = ()
    title: str = "Who may reach whom"
    notes: Sequence[str] = ()


_NUMBERS = re.compile(r"([0-9]+)")


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key for sorting texts by the numbers in them: ``h2`` comes before ``h10``."""
    parts = _NUMBERS.split(text)
    return [(int(part[:18]), part) if part.isascii() and part.isdigit() else (0, part) for part in parts]


def home(node: Node) -> str:
    """Return the title of the box that contains a node; empty if the node is drawn without a box."""
    if node.group or node.sort == "outside":
        return node.group
    return node.name.partition("@")[2] or "another host" if node.sort == "remote" else "this host"


def teams(graph: Graph) -> list[str]:
    """Return the team of each node: the declared team, or else the beginning of its label.

    The beginning is the part before the first ``-`` or ``_``. It counts only if several nodes share it; a node has no
    team otherwise.
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
