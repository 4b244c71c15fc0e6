"""Proof of a fleet's assertions: a search for a path by which forbidden messages or packets could arrive. Pure.

A path goes from environment to environment, because the program in each could pass on what it gets. A step is one of
these:

- a link;
- a rule of an interface that lets packets out to a network;
- such a rule, if it covers the address of another host and a port that an environment publishes there.

A host without a declared address may have any address. A step that carries only answers to requests counts only for
assertions with ``flow``.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from netspace.fleet.types import Assertion, AssertionEntry, Fleet, Problem, broker_address
from netspace.spec import hosts, reach
from netspace.spec.publish import Publication, published
from netspace.spec.reach import Edge, IpAddress, World
from netspace.spec.types import Allow, Filtered, Interface, host_of


def links(ends: Iterable[tuple[str, str, bool, str]]) -> Iterator[Edge]:
    """Yield the edges of links.

    :param ends: for each link: sender, receiver, whether it carries requests (which get answers), and its place in the
        declaration.
    """
    for source, target, asks, rule in ends:
        yield Edge("messages", source, target, False, rule, "requests" if asks else "messages")
        if asks:
            yield Edge("messages", target, source, True, rule, "answers to requests")


def packets(fleet: Fleet, interfaces: Mapping[str, Interface]) -> Iterator[Edge]:
    """Yield the edges of interfaces.

    :param interfaces: the interface of each instance, by ``<environment>@<host>``.
    """
    world = World(frozenset(interfaces), interfaces)
    doors: dict[IpAddress | None, list[tuple[str, Publication]]] = {}
    for name, spec in interfaces.items():
        address = _address(fleet, host_of(name) or "")
        if isinstance(spec, Filtered) and published(spec):
            doors.setdefault(address, []).extend((name, one) for one in published(spec))
    covered = functools.cache(
        lambda networks: [one for one in doors if one is None or any(one in network for network in networks)]
    )
    for name, spec in interfaces.items():
        if not isinstance(spec, Filtered):
            continue
        place = _place(fleet, name)
        for edge in reach.of_interface(world, name):
            yield edge._replace(rule=f"{place}:{edge.rule.rpartition(':interface:')[2]}")
        for index, rule in enumerate(spec.allow):
            behind = covered(rule.networks) if doors and rule.direction == "out" else ()
            for other, door in (pair for address in behind for pair in doors[address]):
                if other != name and _lets(rule, door):
                    where, what = f"{place}:allow:{index}", f"{reach.traffic(rule)} to a published port"
                    yield Edge("packets", name, other, False, where, what)
                    yield Edge("packets", other, name, True, where, f"answers, {what}")


def _place(fleet: Fleet, name: str) -> str:
    environment = name.partition("@")[0]
    return f"{fleet.environments[environment].file}: environments:{environment}:interface"


def _address(fleet: Fleet, host: str) -> IpAddress | None:
    declared = fleet.hosts[host].spec.address
    text = broker_address(declared) if declared is not None else None
    found = hosts.address(text) if text is not None else None
    return ipaddress.ip_address(found[0]) if found is not None else None


def _lets(rule: Allow, door: Publication) -> bool:
    """Return whether a rule's protocol and ports include a published port. The caller has compared the addresses."""
    if rule.protocol != door.host.protocol:
        return False
    if rule.port is None:
        return True
    first, _, last = str(rule.port).partition("-")
    return int(first) <= door.host.port <= int(last or first)


class Search:
    """Search for paths in one fleet.

    :param edges: all edges of the fleet.
    :param placed: the hosts of each environment.
    """

    def __init__(self, edges: Iterable[Edge], placed: Mapping[str, tuple[str, ...]]) -> None:
        self._edges = list(edges)
        self._placed = placed
        self._world = World(frozenset(f"{name}@{host}" for name, hosts in placed.items() for host in hosts))

    def violation(self, spec: Assertion) -> tuple[Edge, ...]:
        """Return a shortest path that violates an assertion; empty if the assertion holds."""
        known = [edge for edge in self._edges if spec.by in (None, edge.by) and (spec.flow or not edge.answers)]
        sources, targets = self._ends(spec.source), self._ends(spec.target)
        outside = reach.network(spec.source) is not None

        def begins(edge: Edge) -> bool:
            if outside:
                return reach.touches(self._world, edge, edge.source, spec.source)
            return edge.source in sources

        def ends(edge: Edge) -> bool:
            return edge.target in targets or (
                not targets and reach.touches(self._world, edge, edge.target, spec.target)
            )

        return reach.shortest(known, self._world.environments, sources, begins, ends)

    def _ends(self, end: str) -> frozenset[str]:
        """Return the replicas that *end* names, as ``<environment>@<host>``; none if it is a network."""
        return frozenset(f"{end}@{host}" for host in self._placed.get(end, ()))


def problems(search: Search, asserted: Iterable[AssertionEntry]) -> list[Problem]:
    """Return a problem for each assertion that doesn't hold, with a path as the counterexample."""
    found = []
    for file, where, spec in asserted:
        path = search.violation(spec)
        if path:
            steps = "; ".join(f"{edge.source} -> {edge.target}: {edge.what}, by {edge.rule}" for edge in path)
            flows = "data flows" if spec.flow else "a path leads"
            why = f"{flows} from {spec.source} to {spec.target} ({steps}); remove one of these rules, or the assertion"
            found.append(Problem(file, where, why))
    return found
