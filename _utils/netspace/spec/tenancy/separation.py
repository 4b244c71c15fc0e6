"""Proof that tenants don't reach each other, or a path by which one does. Pure.

The paths are those of :mod:`netspace.spec.reach`: links and rules of interfaces, through any number of environments of
the host, whose programs could pass data on. The key ``reaches`` of a tenant permits paths to the tenants in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from netspace.errors import Problem
from netspace.spec import reach
from netspace.spec.reach import Edge, World
from netspace.spec.types import Declaration


def problems(declared: Declaration, path: str) -> list[Problem]:
    """Return a problem with a path for each tenant that reaches another one without permission.

    :param path: the path of the declaration.
    """
    if len(declared.tenants) < 2:
        return []
    found = refuted(reach.declared(declared), declared)
    return [Problem(f"{path}:tenants:{one}", message(one, other, way)) for (one, other), way in found.items()]


def refuted(world: World, declared: Declaration) -> dict[tuple[str, str], tuple[Edge, ...]]:
    """Return each pair of tenants (A, B) in which A reaches B without permission, with a shortest path from A to B.

    If B may reach A, then A may answer B. So a path from A to B then counts only if none of its steps is an answer.
    """
    whose = {name: spec.tenant for name, spec in declared.environments.items() if spec.tenant is not None}
    known = reach.edges(world)
    onwards: dict[str, list[Edge]] = {}
    for edge in known:
        onwards.setdefault(edge.source, []).append(edge)
    found = {}
    for one, tenant in declared.tenants.items():
        own = [name for name, its in whose.items() if its == one]
        to = {other for other in declared.tenants if other != one and other not in tenant.reaches}
        answered = {other for other in to if one in declared.tenants[other].reaches}
        for others, answers in ((to - answered, True), (answered, False)):
            ways = _ways(onwards, own, world, whose, answers) if others else {}
            found.update({(one, other): ways[other] for other in sorted(others & ways.keys())})
    return found


def _ways(
    onwards: dict[str, list[Edge]], begin: Sequence[str], world: World, whose: dict[str, str], answers: bool
) -> dict[str, tuple[Edge, ...]]:
    """Return a shortest path to each tenant that the environments *begin* reach.

    :param answers: whether a step may be an answer.
    """
    ways: dict[str, tuple[Edge, ...]] = {}
    before: dict[str, Edge | None] = dict.fromkeys(begin)
    front = list(begin)
    while front:
        further = []
        for here in front:
            for edge in onwards.get(here, ()):
                there = edge.target
                if there in before or there not in world.environments or (edge.answers and not answers):
                    continue
                before[there] = edge
                further.append(there)
                if (its := whose.get(there)) is not None and its not in ways:
                    ways[its] = _back(before, there)
        front = further
    return ways


def _back(before: dict[str, Edge | None], end: str) -> tuple[Edge, ...]:
    way: list[Edge] = []
    while (edge := before[end]) is not None:
        way.append(edge)
        end = edge.source
    return tuple(reversed(way))


def message(one: str, other: str, way: Sequence[Edge]) -> str:
    """Return the text about a tenant that reaches another one.

    :param way: the path by which it does.
    """
    steps = "; ".join(f"{edge.source} -> {edge.target}: {edge.what}, by {edge.rule}" for edge in way)
    return f"reaches the tenant {other} ({steps}); remove one of these rules, or write reaches: [{other}] for {one}"
