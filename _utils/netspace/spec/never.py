"""Assertions of a declaration (``never``): an end must not reach another end. Finds paths that violate them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from netspace.errors import Problem
from netspace.spec import reach
from netspace.spec.reach import Edge, World
from netspace.spec.types import END, Broker, Never


def check(spec: Never, path: str) -> list[Problem]:
    """Check the values of one assertion."""
    problems, outside = [], 0
    for key, end in (("from", spec.source), ("to", spec.target)):
        try:
            outside += reach.asked(end) is not None
        except ValueError as err:
            problems.append(Problem(f"{path}:{key}", f"{end!r:.100}: {err}; name an environment or a network"))
            continue
        if reach.network(end) is None and not END.fullmatch(end):
            problems.append(
                Problem(f"{path}:{key}", f"{end!r:.100}: expected an environment, <name>@<host> or a network")
            )
    if spec.source == spec.target:
        problems.append(Problem(path, f"both ends are {spec.source:.100}; name two different ends"))
    if outside == 2:
        problems.append(Problem(path, "neither end is an environment; name one"))
    if outside and spec.by == "messages":
        problems.append(Problem(f"{path}:by", "networks exchange no messages with environments; give by: packets"))
    return problems


def local(spec: Never, broker: Broker) -> Never | None:
    """Return an assertion with this host's environments named without ``@<host>``; None if no end is on this host."""
    suffix = f"@{broker.host}" if broker.host else "@"
    named: Never = msgspec.structs.replace(
        spec, source=spec.source.removesuffix(suffix), target=spec.target.removesuffix(suffix)
    )
    return named if any("@" not in end and reach.network(end) is None for end in (named.source, named.target)) else None


def unknown(spec: Never, names: Collection[str]) -> list[tuple[str, str]]:
    """Return the ends of an assertion that should be environments of this host but aren't declared: (key, name)."""
    ends = (("from", spec.source), ("to", spec.target))
    return [(key, end) for key, end in ends if "@" not in end and end not in names and reach.network(end) is None]


def violation(world: World, known: Iterable[Edge], spec: Never) -> tuple[Edge, ...]:
    """Return the shortest path that violates an assertion; empty if the assertion holds.

    :param known: the edges of *world*.
    """
    considered = [edge for edge in known if spec.by in (None, edge.by) and (spec.flow or not edge.answers)]
    if spec.flow:
        return reach.path(world, considered, spec.source, spec.target)
    return next(((edge,) for edge in considered if reach.leads(world, edge, spec.source, spec.target)), ())


def message(spec: Never, path: Sequence[Edge]) -> str:
    """Return the text that tells an operator about a violated assertion.

    :param path: the path that violates it.
    """
    steps = "; ".join(f"{edge.source} -> {edge.target}: {edge.what}, by {edge.rule}" for edge in path)
    what = "data flows" if spec.flow else "a path leads"
    return f"{what} from {spec.source} to {spec.target} ({steps}); remove one of these rules, or the assertion"


def problems(world: World, asserted: Mapping[str, Never]) -> list[Problem]:
    """Return a problem for each assertion that *world* violates.

    :param asserted: the assertions, by their paths in the declaration.
    """
    known = reach.edges(world)
    found = ((where, spec, violation(world, known, spec)) for where, spec in asserted.items())
    return [Problem(where, message(spec, path)) for where, spec, path in found if path]
