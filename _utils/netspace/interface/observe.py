"""Observation of netspace's interfaces. Reads, never writes.

For an environment without an interface, the only check is whether its namespace is mounted; one file lists all mounts.
For an environment with an interface, the devices, addresses and netspace's routes are read, on the host and inside the
namespace. Some kinds read more.
"""

from __future__ import annotations

import functools
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from netspace.index import Index
from netspace.interface import claims, forwarding, host_filter, kernel_support, kinds
from netspace.interface import endpoints as ends
from netspace.interface import netns as namespaces
from netspace.interface import record as records
from netspace.interface.claims import Claims
from netspace.interface.endpoints import Endpoint, EndpointContext, Endpoints
from netspace.interface.firewall import host_rules as firewall
from netspace.interface.firewall import host_table
from netspace.interface.firewall import netns_table as guards
from netspace.interface.names import record as known_answers
from netspace.interface.names import sets
from netspace.interface.names.answers import Known, Own
from netspace.interface.names.record import Key
from netspace.interface.record import Record, Volatile
from netspace.known import also, without
from netspace.layout import Layout
from netspace.netlink import reading
from netspace.netlink.connection import Socket
from netspace.netlink.reading import Link, Route
from netspace.spec.publish import HostPort, published
from netspace.spec.types import Filtered, Interface
from netspace.threads import in_thread

# The most interfaces whose devices are looked up one by one: more are found faster by one list of all.
_FEW = 16


class ObservedInterface(msgspec.Struct, frozen=True):
    """The observed ends of one interface, and the indexes of their network devices (0: no device)."""

    ends: Endpoints = msgspec.field(default_factory=Endpoints)
    inside: int = 0
    outside: int = 0


class Observed(msgspec.Struct, frozen=True, dict=True):
    """The observed state: everything that planning needs in addition to the desired interfaces.

    :param records: the records of the environments whose ends were observed, and that steps may change.
    :param namespaces: the inode of each namespace, by its file name.
    :param volatile: the recorded changes since the boot.
    :param live: the observed ends of interfaces, for each environment whose record has an interface.
    :param firewall: the state of the host's table: ``absent``, ``intact`` (as netspace loaded it) or ``changed``.
    :param forwarding: the value of the host's forwarding sysctl, by family; families that the kernel lacks are left
        out.
    :param links: the network devices of the host that interfaces need, by name.
    :param missing: for each kind that the kernel lacks, the missing module and the remedy.
    :param guards: the state of the table in each namespace that has one, by environment: ``intact`` or ``changed``.
    :param taken: for each port that is newly published but in use, the program that uses it.
    :param others: the claims of all other interfaces.
    :param weight: the sum of ``claims.weigh`` of all interfaces; None: it isn't known yet.
    :param names: the state of each name in rules.
    :param own: the host's own addresses and networks, if the state of any name is known.
    :param now: the time of the observation, in seconds since the epoch.
    """

    records: Mapping[str, Record] = msgspec.field(default_factory=dict)
    namespaces: Mapping[str, int] = msgspec.field(default_factory=dict)
    volatile: Volatile = msgspec.field(default_factory=Volatile)
    live: Mapping[str, ObservedInterface] = msgspec.field(default_factory=dict)
    firewall: str = "absent"
    forwarding: Mapping[str, str] = msgspec.field(default_factory=dict)
    links: Mapping[str, Link] = msgspec.field(default_factory=dict)
    missing: Mapping[str, str] = msgspec.field(default_factory=dict)
    guards: Mapping[str, str] = msgspec.field(default_factory=dict)
    taken: Mapping[HostPort, str] = msgspec.field(default_factory=dict)
    others: Mapping[str, Claims] = msgspec.field(default_factory=dict)
    weight: int | None = None
    names: Mapping[Key, Known] = msgspec.field(default_factory=dict)
    own: Own = msgspec.field(default_factory=Own)
    now: float = 0.0

    @functools.cached_property
    def claims(self) -> Mapping[str, Claims]:
        """The claims of every interface on this host, by environment."""
        return also(self.others, {name: claims.of(record) for name, record in self.records.items()})


def place(layout: Layout, name: str, record: Record) -> EndpointContext:
    """Return the :class:`EndpointContext` of an environment's interface, from its record."""
    return EndpointContext(
        host_name=ends.host_name(layout.instance, name),
        mac=ends.mac(layout.instance, name),
        alias=ends.alias(layout.instance, name),
        addresses=record.addresses,
        gateways=record.gateways,
        forwarding="ipv4" in forwarded(record),
        ipv6=has_ipv6(),
        secret=str(records.secret(layout, name)),
        public_key=record.public_key,
        owner=record.owner,
    )


def forwarded(record: Record) -> frozenset[str]:
    """Return the families in which the host forwards packets for an interface."""
    spec = record.interface
    allow = spec.allow if isinstance(spec, Filtered) else ()
    return firewall.forwarded([one for rule in allow for one in rule.each], record.gateways, published(spec))


def expected(layout: Layout, name: str, record: Record, at: EndpointContext | None = None) -> Endpoints:
    """Return the ends that an interface should have by its record.

    :param at: the interface's :func:`place`, if the caller has it.
    """
    where = place(layout, name, record) if at is None else at
    wanted: Endpoints = kinds.of(record.interface).ends(record.interface, where)
    rate = getattr(record.interface, "rate", None)
    if rate is not None and wanted.inside is not None:
        # The kernel counts in bytes.
        wanted = replace(wanted, inside=replace(wanted.inside, rate=rate // 8 * 8))
    return wanted


def observe(
    layout: Layout,
    index: Index[Claims],
    only: Collection[str] | None = None,
    declared: Iterable[Interface] = (),
    doomed: Collection[str] = (),
    volatile: Volatile | None = None,
) -> Observed:
    """Return the observed state.

    :param index: the index of all interfaces' claims.
    :param only: the environments whose ends are observed; None: all. Of other environments, only the claims are read.
    :param declared: desired interfaces; the network devices, modules and ports that they need are observed, too.
    :param doomed: environments to remove; for these, only the devices to delete are observed.
    :param volatile: the recorded changes in the kernel, if the caller has read them already: the record grows with the
        number of environments.
    :raises StateError: a record can't be read.
    """
    everybody = index.read(sealed=only is not None)
    known = records.some(layout, everybody if only is None else {name for name in only if name in everybody})
    folder = layout.netns("").parent
    kept = namespaces.found(folder) if only is None else namespaces.among(folder, map(layout.netns_name, only))
    volatile = volatile or Volatile.read(layout)
    wanted = {name: expected(layout, name, record) for name, record in known.items()}
    linked = {name: one for name, one in wanted.items() if one != Endpoints()}
    declared = list(declared)
    specs = [*(known[name].interface for name in wanted), *declared]
    needed = {parent for spec in specs for parent in kinds.parents(spec)}

    def elements() -> str | None:
        """Return the digest of the elements of the loaded table; None if the records no longer fit it."""
        known_ = sum(claims.weigh(name, its) for name, its in everybody.items())
        same = claims.mark(known_) == volatile.firewall.get("mark")
        return host_filter.table(layout, everybody).elements if same else None

    links, live, guarded = _links(layout, linked, known, kept, needed, volatile, doomed)
    names = known_answers.read(layout)
    return Observed(
        records=known,
        namespaces=kept,
        volatile=volatile,
        live=live,
        firewall=host_table.state(layout.nft_table, volatile.firewall, elements),
        forwarding=forwarding.switches(),
        links={link.name: link for link in links if link.name in needed},
        missing=kernel_support.missing(specs, links),
        guards=guarded,
        taken=_taken(declared, everybody),
        others=without(everybody, known),
        # Not if somebody has overwritten a record in place: the sum is that of the noted claims.
        weight=index.weight() if only is not None and all(_as_noted(known, everybody)) else None,
        names=names,
        own=sets.own_addresses() if names else Own(),
        now=time.time(),
    )


def _as_noted(known: Mapping[str, Record], noted: Mapping[str, Claims]) -> Iterator[bool]:
    return (claims.of(record) == noted.get(name) for name, record in known.items())


def _taken(declared: Iterable[Interface], known: Mapping[str, Claims]) -> dict[HostPort, str]:
    """Return the ports to publish that a program of the host already uses, each with the program.

    Ports that netspace publishes already are left out.
    """
    asked = {one.host for spec in declared for one in published(spec)}
    wanted = asked - {one.host for its in known.values() for one in its.publish} if asked else asked
    if not wanted:
        return {}
    ports = {port.port for port in wanted}
    from netspace import sockets  # few interfaces publish a port

    found = [one for table in sockets.TABLES for one in sockets.listeners(table, ports)]
    taken = {}
    for port in wanted:
        # Like bind(2): the wildcard address conflicts with every address, and every address with it.
        if own := [one for one in found if HostPort(one.protocol, one.port, one.address).overlaps(port)]:
            taken[port] = str(sockets.holder(own))
    return taken


def _links(
    layout: Layout,
    wanted: Mapping[str, Endpoints],
    known: Mapping[str, Record],
    kept: Mapping[str, int],
    needed: Collection[str],
    volatile: Volatile,
    doomed: Collection[str],
) -> tuple[list[Link], dict[str, ObservedInterface], dict[str, str]]:
    """Return the host's network devices, the observed ends of interfaces, and the states of the tables in namespaces.

    If nothing needs the devices, nothing is read, and all three are empty.
    """
    if not wanted and not needed:
        return [], {}, {}
    with Socket() as host:
        few = None if needed or len(wanted) > _FEW else _named(layout, host, wanted, known)
        links = host.links() if few is None else few
        addresses, routes = _by_index(host, () if few is None else [link.index for link in few]) if wanted else ({}, {})
    details = {name: getattr(kinds.of(known[name].interface), "details", None) for name in wanted}
    hosts = {link.index: link.name for link in links}
    by_alias = {link.alias: link for link in links if link.alias}
    by_name = {link.name: link for link in links}
    outers = {name: _outer(layout, name, by_alias, by_name) for name in wanted}
    insides: dict[str, tuple[Link, Endpoint]] = {}
    guarded: dict[str, str] = {}
    there = {
        name: layout.netns(name)
        for name in wanted
        # The kernel deletes the inner end together with the host's end.
        if layout.netns_name(name) in kept and not (name in doomed and outers[name] is not None)
    }

    def look() -> None:
        for name, path in there.items():
            namespaces.enter(path)
            if name in volatile.guards:
                guarded[name] = guards.state(layout, volatile.guards[name])
            with Socket() as inner:
                link = _own(inner.links(), wanted[name])
                if link is not None:
                    own, ways = _by_index(inner)
                    # Only devices with a limit have this qdisc; the others need no dump.
                    rates = inner.rates() if link.queue == "tbf" else {}
                    limit = rates.get(link.index, 0)
                    like, look_at = wanted[name].inside, details[name]
                    more = look_at(link, like, hosts) if look_at is not None and like is not None else {}
                    end = ends.seen(link, own[link.index], ways[link.index], like, limit, more)
                    insides[name] = (link, end)

    if there:
        in_thread(look)
    live = {}
    for name, one in wanted.items():
        outside, outer = None, outers[name]
        if outer is not None:
            look_at = details[name]
            more = look_at(outer, one.outside, hosts) if look_at is not None and one.outside is not None else {}
            outside = ends.seen(outer, addresses[outer.index], routes[outer.index], one.outside, 0, more)
        inner_link, inside = insides.get(name, (None, None))
        live[name] = ObservedInterface(
            Endpoints(inside, outside),
            inner_link.index if inner_link is not None else 0,
            outer.index if outer is not None else 0,
        )
    return links, live, guarded


def _named(
    layout: Layout, host: Socket, wanted: Mapping[str, Endpoints], known: Mapping[str, Record]
) -> list[Link] | None:
    """Return the network devices of these interfaces' host ends, each looked up by its name.

    The result is None if a device is not found by its name (it was renamed or is gone), or if the kind of an interface
    has no host end.
    """
    found = []
    for name in wanted:
        if kinds.of(known[name].interface).FILTER != "host":
            return None
        link = host.link(ends.host_name(layout.instance, name))
        if link is None or link.alias != ends.alias(layout.instance, name):
            return None
        found.append(link)
    return found


def _outer(layout: Layout, name: str, by_alias: Mapping[str, Link], by_name: Mapping[str, Link]) -> Link | None:
    """Return the network device of an interface's host end, even if it was renamed or has no alias yet."""
    found = by_alias.get(ends.alias(layout.instance, name))
    if found is None:
        found = by_name.get(ends.host_name(layout.instance, name))
        if found is not None and found.mac != ends.mac(layout.instance, name):
            return None  # a device that isn't netspace's
    return found


def _own(links: Sequence[Link], wanted: Endpoints) -> Link | None:
    """Return the network device of the inner end, even if it was renamed or still has its temporary name."""
    for link in links:
        if link.name == ends.INSIDE_NAME:
            return link
    kind = wanted.inside.kind if wanted.inside is not None else ""
    return next((link for link in links if link.name == wanted.made_as or link.kind == kind != ""), None)


def _by_index(where: Socket, indexes: Sequence[int] = ()) -> tuple[dict[int, list[str]], dict[int, list[Route]]]:
    """Return two mappings from a network device's index: one to the device's addresses, and one to its routes.

    :param indexes: the devices to look up; empty: all.
    """
    addresses: dict[int, list[str]] = defaultdict(list)
    routes: dict[int, list[Route]] = defaultdict(list)
    families = [family for name, family in reading.FAMILIES.items() if name == "ipv4" or has_ipv6()]
    for one in indexes or (0,):
        for address in where.addresses(one):
            addresses[address.index].append(address.text)
        for index, route in where.routes(families, one):
            routes[index].append(route)
    return addresses, routes


@functools.cache
def has_ipv6() -> bool:
    """Return whether the kernel has IPv6 at all."""
    return os.path.isdir("/proc/sys/net/ipv6")
