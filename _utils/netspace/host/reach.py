"""Reachability on this host: which ends may reach which, by the records or by a declaration. Changes nothing.

An end is an environment, an address, a network or a host name.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import msgspec

from netspace.errors import NetspaceError, Problem
from netspace.host.parts import Parts
from netspace.spec import delegations, never, peer, reach
from netspace.spec.reach import Edge, World
from netspace.spec.types import Declaration, Environment, Interface, Link, Never
from netspace.text import hint

if TYPE_CHECKING:
    from netspace.plugin.picture.model import Arrow


def applied(host: Parts) -> World:
    """Return the interfaces and links that were applied last, with all links that programs may delegate."""
    from netspace.interface import record
    from netspace.interface.names import record as answers

    # The host reaches everything anyway, and passes nothing on from one environment to another.
    links = tuple(link for link in host.links.recorded() if not peer.is_link(link))
    links = (*links, *_delegable(host, links))
    names = {*host.environments.names(), *host.interfaces.names()}
    records = record.some(host.layout, names)
    return World(
        frozenset(names | {end for link in links for end in link.here}),
        {name: one.interface for name, one in records.items()},
        links,
        {ip_address(address): name for name, one in records.items() for address in one.addresses.values()},
        frozenset(ip_address(address) for one in records.values() for address in one.gateways.values()),
        {name: frozenset(one.addresses) for name, one in records.items()},
        answers.networks(host.layout, time.time()),
    )


def _holders(host: Parts) -> dict[str, Environment]:
    """Return the environments that may delegate rights, as they were applied."""
    asking = {link.source for link in host.links.recorded() if peer.is_link(link)}
    known, _ = host.environments.readable(asking)
    return {name: record.spec for name, record in known.items() if record.spec.delegates}


def _delegable(host: Parts, links: Collection[Link]) -> list[Link]:
    """Return the links that programs could make by delegating *links*, without those that exist already."""
    holders = _holders(host)
    there = {link.name for link in links}
    return [link for name, link in delegations.widest(holders, links).items() if name not in there]


def _world(host: Parts, declared: Declaration | None) -> World:
    """Return the interfaces and links of a declaration; without one, the interfaces and links of the last apply."""
    return applied(host) if declared is None else reach.declared(declared)


def violations(
    host: Parts, asserted: Collection[Never], interfaces: Mapping[str, Interface], links: Iterable[Link]
) -> list[Problem]:
    """Return the assertions that a partial declaration would violate by opening a new path.

    :param asserted: the assertions.
    :param interfaces: interfaces that would be applied, by their environments' names.
    :param links: links that would be applied.
    """
    if not asserted:
        return []
    there: World = msgspec.structs.replace(applied(host), named={})
    before = set(reach.edges(there))
    every = {link.name: link for link in (*there.links, *links)}
    every |= {link.name: link for link in _delegable(host, every.values())}
    wanted: World = msgspec.structs.replace(
        there,
        environments=there.environments | interfaces.keys() | {end for link in every.values() for end in link.here},
        interfaces={**there.interfaces, **interfaces},
        links=tuple(every.values()),
        families={name: known for name, known in there.families.items() if name not in interfaces},
        named={},  # an assertion is about every address that a name may have later
    )
    known = reach.edges(wanted)
    paths = ((spec, never.violation(wanted, known, spec)) for spec in asserted)
    return [Problem("netspace:never", never.message(spec, path)) for spec, path in paths if not before.issuperset(path)]


def can(host: Parts, source: object, target: object, declared: Declaration | None = None) -> dict[str, Any]:
    """Return whether one end may reach another, and by which rules, as plain values.

    :param declared: the declaration to answer for; None: the state that was applied.
    :raises NetspaceError: an end is unknown, or neither end is an environment of this host.
    """
    world = _world(host, declared)
    first, second = _end(world, source), _end(world, target)
    if not {first, second} & world.environments:
        raise NetspaceError(f"{first} and {second}: neither is an environment of this host; name one that is")
    found, told = reach.answer(world, first, second), _told(host, declared)
    return {
        "summary": reach.summary(first, second, found.edges, found.through),
        "from": first,
        "to": second,
        "can": found.begins,
        "answers": any(edge.answers for edge in found.edges),
        "rules": [told(edge) for edge in found.edges],
        "why_not": dict(found.why_not),
        "through": [told(edge) for edge in found.through],
    }


def _told(host: Parts, declared: Declaration | None) -> Callable[[Edge], dict[str, object]]:
    """Return a function that turns an edge (one step of a path) into plain values.

    For what was applied, they have ``since``, in seconds since 1970: when the link was made, or when the interface's
    record was last changed. A link that an earlier version made has none.
    """
    if declared is not None:
        return reach.plain
    from netspace.interface import record as interfaces
    from netspace.link import record as links

    made = links.since(host.layout)

    def told(edge: Edge) -> dict[str, object]:
        kind, name = edge.rule.split(":")[1:3]
        since = made.get(name) if kind == "links" else None
        if kind == "environments":
            with contextlib.suppress(OSError):
                since = os.stat(interfaces.path(host.layout, name)).st_mtime
        return reach.plain(edge) | ({} if since is None else {"since": since})

    return told


def paths_to(host: Parts, target: object, declared: Declaration | None = None) -> dict[str, Any]:
    """Return the paths that lead to an end, as plain values. The shortest path comes first.

    :param declared: the declaration to answer for; None: the state that was applied.
    :raises NetspaceError: the end is unknown.
    """
    world, told = _world(host, declared), _told(host, declared)
    end = _end(world, target)
    return {
        "paths_to": end,
        "paths": [
            {**reach.plain_path(path), "rules": [told(edge) for edge in path]} for path in reach.paths_to(world, end)
        ],
    }


def graph(host: Parts, form: object, declared: Declaration | None = None) -> str:
    """Return a picture of which ends may reach which, in one of the formats of :mod:`netspace.plugin.graph`.

    :param form: the name of the format.
    :param declared: the declaration to draw; None: the state that was applied.
    :raises NetspaceError: there is no such format.
    """
    from netspace.host import tenants
    from netspace.plugin.graph import rendered
    from netspace.plugin.picture.model import Graph, Node, Sort

    whose = tenants.of_environments(host) if declared is None else tenants.declared_of(declared)
    world = _world(host, declared)
    # The name stands for its addresses.
    begun = [edge for edge in reach.edges(world) if not edge.answers and not edge.name]

    def sort(end: str) -> Sort:
        if end in world.environments:
            return "environment"
        return "outside" if reach.named(end) or reach.network(end) is not None else "remote"

    ends = sorted(world.environments | {end for edge in begun for end in (edge.source, edge.target)})
    drawn = _drawn(host, declared)
    arrows = [drawn(edge) for edge in begun]
    nodes = [
        Node(end, sort(end), f"tenant {whose[end]}" if end in whose else "", team=whose.get(end, "")) for end in ends
    ]
    return rendered(form, Graph(nodes, arrows))


def _drawn(host: Parts, declared: Declaration | None) -> Callable[[Edge], Arrow]:
    """Return a function that turns an edge into an arrow, which names the program that delegates the right, if any.

    A right whose record can't be read is shown as a link that was made, without its end.
    """
    from netspace.host import delegation_records
    from netspace.plugin import dates
    from netspace.plugin.picture.model import Arrow

    rights = delegations.possible(_holders(host) if declared is None else declared.environments)
    there = {link.name for link in host.links.recorded()} & rights.keys() if declared is None and rights else set()
    until = {name: one.until for name in there if (one := delegation_records.read(host.layout, name)) is not None}

    def drawn(edge: Edge) -> Arrow:
        name = edge.rule.removeprefix("netspace:links:")
        right = rights.get(name) if edge.by == "messages" else None
        if right is None:
            return Arrow(edge.source, edge.target, edge.what, edge.rule, edge.by)
        rule = f"netspace:environments:{right.holder}:delegates:{right.target}"
        if name not in there:
            what = f"{edge.what}, if {right.holder} delegates it"
            return Arrow(edge.source, edge.target, what, rule, delegated="possible")
        facts = [("delegated by", right.holder)]
        facts += [("until", dates.text(until[name]))] if name in until else []
        return Arrow(edge.source, edge.target, f"{edge.what}, by {right.holder}", rule, facts=facts, delegated="made")

    return drawn


def _end(world: World, given: object) -> str:
    """Return the canonical form of an end that the caller names.

    :raises NetspaceError: there is no such end.
    """
    end = str(given)
    if reach.named(end.lower()):
        return end.lower()
    try:
        named = reach.asked(end)
    except ValueError as err:
        raise NetspaceError(f"{end!r:.100}: {err}; name an environment, an address or a network") from err
    if named is not None:
        return str(named.network_address) if named.num_addresses == 1 else str(named)
    known = {*world.environments, *(end for link in world.links for end in (link.source, link.target))}
    if end not in known:
        raise NetspaceError(f"there is no environment {end:.100}; {hint(end, known, most=20)}")
    return end
