"""Picture of a declared fleet: the hosts, the hosts' environments, and who may reach whom. Pure."""

from __future__ import annotations

from netspace.fleet.reach import Reach
from netspace.plugin.graph import Arrow, Node, rendered


def picture(form: object, reach: Reach) -> str:
    """Return the picture in one of the forms of :mod:`netspace.plugin.graph`. Equal fleets have equal pictures.

    :raises NetspaceError: there is no such form.
    """
    begun = [edge for edge in reach.edges if not edge.answers and not edge.name]
    replicas = {f"{name}@{host}": host for name, hosts in reach.placed.items() for host in hosts}
    outside = {end for edge in begun for end in (edge.source, edge.target)} - replicas.keys()
    nodes = [Node(name, "environment", host) for name, host in sorted(replicas.items(), key=lambda one: one[::-1])]
    nodes += [Node(end, "outside") for end in sorted(outside)]
    return rendered(form, nodes, [Arrow(edge.source, edge.target, edge.what, edge.rule) for edge in begun])
