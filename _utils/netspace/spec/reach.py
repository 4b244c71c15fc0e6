"""Reachability on one host: which end may reach which other end, and by which rule. Pure.

An *end* is an environment of this host (``web``), an environment of another host (``orders@h2``), or a network outside
(``198.51.100.0/24``). A :class:`World` holds the declared or the applied links and interfaces. Its *edges* follow from
them: each edge leads from one end to another, and one rule allows it.

- A link lets its sender send to its receiver. With ``request``, the receiver may answer the sender.
- A rule of ``allow`` lets one side open connections to the other side. The packets of the other side are answers. An
  interface with its own routes or peers exchanges packets only with these.
- A published port lets every network outside open connections.
- No packet passes between two environments of one host, whatever the rules allow. So there is no such edge.

The host itself is not an end. A relay outside is not an end either. A path never leads through a network outside. Nor
does it lead through an environment of another host, because only that host's declaration defines the edges from that
environment.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import msgspec

from netspace.patterns import pattern
from netspace.spec.publish import published
from netspace.spec.types import (
    EVERYWHERE,
    HOST_NAME,
    Address,
    Allow,
    By,
    Declaration,
    Filtered,
    Interface,
    Link,
    Prefixed,
)

_NAMED = pattern(HOST_NAME)
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Edge(NamedTuple):
    """An edge from one end to another, which one rule allows.

    :param by: ``messages`` or ``packets``.
    :param answers: the edge carries only answers to requests or connections that the target began.
    :param rule: the path of the rule in the declaration.
    :param what: a description of the traffic.
    :param name: the DNS name in the rule, if an end is one of the name's addresses or networks; else empty.
    """

    by: By
    source: str
    target: str
    answers: bool
    rule: str
    what: str
    name: str = ""


class World(msgspec.Struct, frozen=True):
    """The links and interfaces of one host, either as declared or as applied.

    :param environments: the names of this host's environments.
    :param interfaces: the environments' interfaces, by the environment's name.
    :param owners: the environment's name for each address whose environment is known.
    :param gateways: the host's own addresses at its ends of interfaces.
    :param families: the address families (``ipv4``, ``ipv6``) of each environment, as far as they are known.
    :param named: the current addresses of each DNS name in a rule. A name without an entry may have any address in its
        rule's networks.
    """

    environments: frozenset[str] = frozenset()
    interfaces: Mapping[str, Interface] = {}
    links: tuple[Link, ...] = ()
    owners: Mapping[IpAddress, str] = {}
    gateways: frozenset[IpAddress] = frozenset()
    families: Mapping[str, frozenset[str]] = {}
    named: Mapping[str, tuple[IpNetwork, ...]] = {}


def declared(declaration: Declaration) -> World:
    """Return the world of a declaration. Its addresses are only those that the declaration contains."""
    interfaces = {name: spec for name, spec in declaration.interfaces.items() if spec is not None}
    owners = {}
    for name, spec in interfaces.items():
        for family in ("ipv4", "ipv6"):
            address = getattr(spec, family, None)
            if isinstance(address, (Address, Prefixed)):
                owners[ipaddress.ip_interface(address).ip] = name
    return World(frozenset(declaration.environments), interfaces, declaration.links, owners)


# -- ends ---------------------------------------------------------------------------
@functools.lru_cache(16384)
def network(end: str) -> IpNetwork | None:
    """Return the network that an end names; None if the end is an environment or a DNS name.

    :raises ValueError: when the text looks like a network but is malformed.
    """
    if named(end):
        return None
    return ipaddress.ip_network(end) if "." in end or ":" in end or "/" in end else None


@functools.lru_cache(16384)
def named(end: str) -> bool:
    """Return whether an end is a DNS name. A rule of ``allow`` may contain one."""
    return _NAMED.fullmatch(end) is not None


def asked(end: str) -> IpNetwork | None:
    """Return the network that one end of a question or an assertion names; None if the end is an environment.

    :raises ValueError: when the network is malformed, or machines outside can't have its addresses.
    """
    found = network(end)
    if found is not None and (found.is_loopback or found.is_link_local or found.is_multicast):
        raise ValueError(f"machines outside can't have the addresses {found}")
    return found


def common(one: IpNetwork, other: IpNetwork) -> IpNetwork | None:
    """Return the overlap of two networks, which is the smaller of the two; None if they don't overlap."""
    if one.version != other.version:
        return None
    first, second = sorted((one, other), key=lambda each: each.prefixlen)
    return second if first.supernet_of(second) else None  # type: ignore[arg-type]


def outside(world: World, within: IpNetwork, *, to_host: bool = True) -> bool:
    """Return whether the network *within* has an address that doesn't belong to an environment.

    :param to_host: count the host's own addresses (*gateways*) as outside, too.
    """
    if within.num_addresses > len(world.owners) + len(world.gateways):
        return True
    return any(one not in world.owners and (to_host or one not in world.gateways) for one in within)


def touches(world: World, edge: Edge, end: str, wanted: str) -> bool:
    """Return whether *end* of an edge is *wanted*, or is a network that shares an outside address with *wanted*."""
    if end == wanted and network(end) is None:
        return True
    ours, theirs = network(end), network(wanted)
    shared = None if ours is None or theirs is None else common(ours, theirs)
    if ours is None or shared is None:
        return False
    begun_inside = (edge.source in world.environments) != edge.answers
    return outside(world, shared, to_host=not begun_inside or (ours.num_addresses == 1 and not edge.name))


# -- edges ----------------------------------------------------------------------------
def edges(world: World) -> list[Edge]:
    """Return all edges of a world. Edges that carry only answers come last."""
    found = [*of_links(world.links), *(edge for name in sorted(world.interfaces) for edge in of_interface(world, name))]
    return sorted(found, key=lambda edge: edge.answers)


def of_links(links: Iterable[Link]) -> Iterator[Edge]:
    """Yield the edges (who may reach whom) that links give."""
    for link in links:
        rule = f"netspace:links:{link.name}"
        more = [
            word
            for word, given in (
                ("sealed", link.seal),
                ("buffered", link.via == "buffered"),
                ("in memory", not link.durable),
                (f"from a host of {link.attested} or higher", link.attested is not None),
            )
            if given
        ]
        sent = "requests" if link.pattern == "request" else "messages"
        yield Edge("messages", link.source, link.target, False, rule, ", ".join([sent, *more]))
        if link.pattern == "request":
            yield Edge("messages", link.target, link.source, True, rule, ", ".join(["answers to requests", *more]))


def of_interface(world: World, name: str) -> Iterator[Edge]:
    """Yield the edges of one environment's interface. Each leads to an end outside or comes from one."""
    spec = world.interfaces[name]
    if not isinstance(spec, Filtered):
        return
    path = f"netspace:environments:{name}:interface"
    for index, rule in enumerate(spec.allow):
        where, what = f"{path}:allow:{index}", traffic(rule)
        if rule.name is not None:
            yield Edge("packets", name, str(rule.name), False, where, what)
            yield Edge("packets", str(rule.name), name, True, where, f"answers, {what}")
            what = f"{what} to {rule.name}"
        for piece in pieces(world, name, rule):
            begins, other = (name, str(piece)) if rule.direction == "out" else (str(piece), name)
            yield Edge("packets", begins, other, False, where, what, rule.name or "")
            yield Edge("packets", other, begins, True, where, f"answers, {what}", rule.name or "")
    for index, one in enumerate(published(spec)):
        for family in one.families:
            if family in families(world, name):
                where, what = f"{path}:publish:{index}", f"host's {one.host} to port {one.inside}"
                anywhere = str(EVERYWHERE[family == "ipv6"])
                yield Edge("packets", anywhere, name, False, where, what)
                yield Edge("packets", name, anywhere, True, where, f"answers, {what}")


def families(world: World, name: str) -> frozenset[str]:
    """Return the address families in which an environment has an address or will get one."""
    return world.families.get(name, world.interfaces[name].families())


def pieces(world: World, name: str, rule: Allow) -> list[IpNetwork]:
    """Return the networks with which *rule* really lets an environment exchange packets.

    The addresses of other environments don't count. The host's own addresses don't count if the rule is for a DNS name
    or for more than one address.
    """
    found: list[IpNetwork] = []
    for network in rule.networks if rule.name is None else world.named.get(rule.name, rule.networks):
        if f"ipv{network.version}" not in families(world, name):
            continue
        met = (common(network, one.network) for one in world.interfaces[name].networks(rule.direction))
        to_host = rule.direction == "in" or (network.num_addresses == 1 and rule.name is None)
        found += [one for one in met if one is not None and outside(world, one, to_host=to_host)]
    return [*_collapsed(found, 4), *_collapsed(found, 6)]


def _collapsed(networks: Iterable[IpNetwork], version: int) -> Iterator[IpNetwork]:
    return ipaddress.collapse_addresses(one for one in networks if one.version == version)  # type: ignore[type-var]


def traffic(rule: Allow) -> str:
    """Return the protocol and the ports of a rule as text, such as ``tcp 443``."""
    return rule.protocol if rule.port is None else f"{rule.protocol} {rule.port}"


# -- answers ----------------------------------------------------------------------------
class Answer(NamedTuple):
    """The answer to the question whether one end may reach another.

    :param edges: the edges that lead directly to the target.
    :param through: the shortest path through other environments, whose programs would have to forward the data. Empty
        if an edge leads directly to the target, or if there is no path.
    :param why_not: the reason for each kind of traffic (messages, packets) that has no edge to the target.
    """

    edges: tuple[Edge, ...]
    through: tuple[Edge, ...]
    why_not: Mapping[By, str]

    @property
    def begins(self) -> bool:
        """True if the source may send a message or open a connection to the target that isn't an answer."""
        return any(not edge.answers for edge in self.edges)


def answer(world: World, source: str, target: str) -> Answer:
    """Return whether *source* may reach *target*, and by which rules."""
    known = edges(world)
    found = tuple(edge for edge in known if leads(world, edge, source, target))
    reasons = {
        by: why(world, source, target)
        for by, why in (("messages", _no_message), ("packets", _no_packet))
        if not any(edge.by == by for edge in found)
    }
    return Answer(found, () if found else path(world, known, source, target), reasons)  # type: ignore[arg-type]


def leads(world: World, edge: Edge, source: str, target: str) -> bool:
    """Return whether an edge leads from *source* to *target*. Networks match if they overlap."""
    return touches(world, edge, edge.source, source) and touches(world, edge, edge.target, target)


def path(world: World, known: Sequence[Edge], source: str, target: str) -> tuple[Edge, ...]:
    """Return a shortest path from *source* to *target* through environments of this host; empty if there is none."""
    return shortest(
        known,
        world.environments,
        {source},
        lambda edge: touches(world, edge, edge.source, source),
        lambda edge: touches(world, edge, edge.target, target),
    )


def paths_to(world: World, target: str) -> list[tuple[Edge, ...]]:
    """Return the paths that lead to *target*: every direct edge, and a shortest path from each other end."""
    known = edges(world)
    # If *target* is a DNS name, a path must not lead through edges to single addresses of names.
    followed = [edge for edge in known if not (edge.name and named(target))]
    last = [edge for edge in known if touches(world, edge, edge.target, target)]
    return leading(last, followed, world.environments, {target})


def shortest(
    known: Iterable[Edge],
    environments: Set[str],
    source: Set[str],
    begins: Callable[[Edge], bool],
    ends: Callable[[Edge], bool],
) -> tuple[Edge, ...]:
    """Return a shortest path through environments from one end to another; empty if there is none.

    :param source: all names of the end at which the path begins. The path doesn't return to them.
    :param begins: returns whether an edge leads from the first end.
    :param ends: returns whether an edge leads to the last end.
    """
    onwards: dict[str, list[Edge]] = {}
    front: list[tuple[Edge, ...]] = []
    for edge in known:
        onwards.setdefault(edge.source, []).append(edge)
        if begins(edge):
            front.append((edge,))
    seen = set(source)
    while front:
        further: list[tuple[Edge, ...]] = []
        for way in front:
            here = way[-1].target
            if ends(way[-1]):
                return way
            if here in environments and here not in seen:
                seen.add(here)
                further += [(*way, edge) for edge in onwards.get(here, ())]
        front = further
    return ()


def leading(
    last: Iterable[Edge], followed: Iterable[Edge], environments: Set[str], target: Set[str]
) -> list[tuple[Edge, ...]]:
    """Return shortest paths to *target*, one from each end.

    Each path ends with one of the *last* edges, and each such edge is a path by itself.

    :param followed: the edges that a path may have before its last edge.
    :param target: all names of the end to which the *last* edges lead.
    """
    backwards: dict[str, list[Edge]] = {}
    for edge in followed:
        backwards.setdefault(edge.target, []).append(edge)
    front: list[tuple[Edge, ...]] = [(edge,) for edge in last]
    found, seen, expanded = list(front), {*target, *(way[0].source for way in front)}, set(target)
    while front:
        further: list[tuple[Edge, ...]] = []
        for way in front:
            here = way[0].source
            if here not in environments or here in expanded:
                continue
            expanded.add(here)
            for edge in backwards.get(here, ()):
                if edge.source not in seen:
                    seen.add(edge.source)
                    further.append((edge, *way))
        found += further
        front = further
    return found


# -- reasons ------------------------------------------------------------------------------
def _no_message(world: World, source: str, target: str) -> str:
    if network(source) is not None or network(target) is not None:
        return "messages pass only between environments"
    return f"no link leads from {source} to {target}"


def _no_packet(world: World, source: str, target: str) -> str:
    ours = [end for end in (source, target) if end in world.environments]
    for name in ours:
        spec = world.interfaces.get(name)
        if spec is None or spec.NONE:
            return f"{name} has no interface"
    if len(ours) == 2:
        return _apart(world, source, target)
    other = target if ours == [source] else source
    beyond = network(other)
    if named(other):
        return f"no rule of {ours[0]}'s interface names {other}; ask also for its address"
    if beyond is None:
        return f"{other} is on another host; ask for its address"
    direction, name = ("out" if ours == [source] else "in"), ours[0]
    if not outside(world, beyond):
        owner = world.owners[beyond[0]]
        return f"{beyond[0]} is {owner}'s: {_apart(world, name, owner)}"
    spec = world.interfaces[name]
    assert isinstance(spec, Filtered)
    for index, rule in enumerate(spec.allow):
        covered = (common(one, beyond) for one in rule.networks)
        shared = next((one for one in covered if one is not None), None)
        if rule.direction != direction or shared is None:
            continue
        where = f"allow:{index} covers it, but"
        if rule.name is not None:
            if not any(common(one, shared) for one in world.named.get(rule.name, ())):
                continue
            return f"{where} a rule for a name never includes the host"
        if f"ipv{beyond.version}" not in families(world, name):
            return f"{where} {name} has no IPv{beyond.version} address"
        if not any(common(shared, one.network) for one in spec.networks(rule.direction)):
            return f"{where} no route or peer of {name}'s leads there"
        return f"{where} a rule for a network never includes the host"
    return f"no rule of {name}'s interface covers {other}"


def _apart(world: World, one: str, other: str) -> str:
    """Return the reason that no packet passes between two environments of this host."""
    if one == other:
        return "both ends are the same environment"
    shared = world.interfaces[one].network()
    both = f" (both are on {shared})" if shared and shared == world.interfaces[other].network() else ""
    return f"packets between environments of one host are always dropped{both}"


# -- plain values ---------------------------------------------------------------------------
def summary(source: str, target: str, found: Sequence[Edge], through: Sequence[Edge]) -> str:
    """Return a sentence that says whether one end may reach another.

    :param found: the edges that lead directly to the target.
    :param through: the path through other environments; empty if there is none.
    """
    if any(not edge.answers for edge in found):
        return f"{source} can reach {target}"
    if found:
        return f"{source} can only answer {target}"
    if through:
        return f"{source} can reach {target} only by way of {', '.join(edge.target for edge in through[:-1])}"
    return f"{source} cannot reach {target}"


def plain(edge: Edge) -> dict[str, object]:
    """Return an edge as a mapping of plain values."""
    return {
        "by": edge.by,
        "from": edge.source,
        "to": edge.target,
        "answers": edge.answers,
        "rule": edge.rule,
        "what": edge.what,
    }


def plain_path(path: Sequence[Edge]) -> dict[str, object]:
    """Return a path as a mapping of plain values."""
    return {
        "from": path[0].source,
        "answers": any(edge.answers for edge in path),
        "through": [edge.target for edge in path[:-1]],
        "rules": [plain(edge) for edge in path],
    }
