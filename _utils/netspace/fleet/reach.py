"""Reachability in a declared fleet: which environments may reach which, over all hosts. Pure.

An end is an environment (``orders``: all its replicas), one replica (``orders@h2``), or an address or network outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from netspace.errors import NetspaceError
from netspace.spec import reach
from netspace.spec.reach import Edge, World
from netspace.text import hint


class Reach(NamedTuple):
    """The edges between the replicas of a fleet, and queries about them.

    :param edges: each edge says that one end may reach another.
    :param placed: the hosts of each environment.
    """

    edges: tuple[Edge, ...]
    placed: Mapping[str, tuple[str, ...]]

    @property
    def world(self) -> World:
        """The replicas of all environments, ``<environment>@<host>``."""
        return World(frozenset(_replica(name, host) for name, hosts in self.placed.items() for host in hosts))

    def can(self, source: object, target: object) -> dict[str, Any]:
        """Return whether one end may reach another, and by which rules, as plain values.

        The keys are those of ``netspace.can``.

        :raises NetspaceError: an end is unknown, or neither is an environment of the fleet.
        """
        world = self.world
        first, second = self._end(source), self._end(target)
        if not (first.replicas or second.replicas):
            raise NetspaceError(f"{first.name} and {second.name}: neither is an environment of the fleet; name one")
        found = [edge for edge in self.edges if first.begins(world, edge) and second.ends(world, edge)]
        begins = any(not edge.answers for edge in found)
        through: tuple[Edge, ...] = ()
        if not found:
            through = reach.shortest(
                self.edges,
                world.environments,
                first.replicas,
                lambda edge: first.begins(world, edge),
                lambda edge: second.ends(world, edge),
            )
        kinds = {edge.by for edge in found}
        why = {"messages": "no link leads there", "packets": "no rule of an interface lets them pass"}
        return {
            "summary": reach.summary(first.name, second.name, found, through),
            "from": first.name,
            "to": second.name,
            "can": begins,
            "answers": any(edge.answers for edge in found),
            "rules": [reach.plain(edge) for edge in found],
            "why_not": {by: reason for by, reason in why.items() if by not in kinds},
            "through": [reach.plain(edge) for edge in through],
        }

    def paths_to(self, target: object) -> dict[str, Any]:
        """Return for each other end a path that leads to *target*, as plain values. The shortest path is first.

        The keys are those of ``netspace.paths_to``.

        :raises NetspaceError: *target* is unknown.
        """
        world, end = self.world, self._end(target)
        last = [edge for edge in self.edges if end.ends(world, edge)]
        paths = reach.leading(last, self.edges, world.environments, end.replicas)
        return {"paths_to": end.name, "paths": [reach.plain_path(path) for path in paths]}

    def _end(self, given: object) -> _End:
        """Return the end that a query names.

        :raises NetspaceError: there is no such end.
        """
        name = str(given)
        environment, _, host = name.partition("@")
        if environment in self.placed and (not host or host in self.placed[environment]):
            hosts = (host,) if host else self.placed[environment]
            return _End(name, frozenset(_replica(environment, one) for one in hosts))
        try:
            network = reach.asked(name)
        except ValueError as err:
            raise NetspaceError(f"{name!r:.100}: {err}; name an environment, an address or a network") from err
        if network is None:
            known = {*self.placed, *self.world.environments}
            raise NetspaceError(f"the fleet has no environment {name:.100}; {hint(name, known, most=20)}")
        return _End(str(network.network_address) if network.num_addresses == 1 else str(network), frozenset())


class _End(NamedTuple):
    """One end that a query names.

    :param name: its name in canonical form.
    :param replicas: the environment's replicas, as ``<environment>@<host>``; empty: the end is an address or network
        outside.
    """

    name: str
    replicas: frozenset[str]

    def begins(self, world: World, edge: Edge) -> bool:
        """Return whether an edge leads from this end."""
        if self.replicas:
            return edge.source in self.replicas
        return reach.touches(world, edge, edge.source, self.name)

    def ends(self, world: World, edge: Edge) -> bool:
        """Return whether an edge leads to this end."""
        if self.replicas:
            return edge.target in self.replicas
        return reach.touches(world, edge, edge.target, self.name)


def _replica(environment: str, host: str) -> str:
    return f"{environment}@{host}"
