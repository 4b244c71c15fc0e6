"""What there is of our interfaces: reads, never writes.

Of an environment without an interface no more is asked than whether its namespace is
mounted: one file for all of them. Of the others: one dump of the host's links, addresses
and (our) routes, and one inside each namespace.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from netspace.errors import MissingError
from netspace.interface import ends, forwarding, kinds, namespaces, netlink, nft, records
from netspace.interface.ends import End, Ends, Place
from netspace.interface.firewall import forwarded
from netspace.interface.netlink import Link, Route
from netspace.interface.records import Record, Volatile
from netspace.layout import Layout


@dataclass(frozen=True)
class Live:
    """One interface's ends as they are, and their links' indexes (0: none)."""

    ends: Ends = field(default_factory=Ends)
    inside: int = 0
    outside: int = 0


@dataclass(frozen=True)
class Observed:
    """All that planning needs to know.

    :param namespaces: per namespace's file name its inode.
    :param live: per environment whose record says that it has an interface.
    :param firewall: ``absent``, ``intact`` (as we loaded it) or ``changed``.
    :param forwarding: per family the host's switch; a family that is missing here the kernel lacks.
    """

    records: Mapping[str, Record] = field(default_factory=dict)
    namespaces: Mapping[str, int] = field(default_factory=dict)
    volatile: Volatile = field(default_factory=Volatile)
    live: Mapping[str, Live] = field(default_factory=dict)
    firewall: str = "absent"
    forwarding: Mapping[str, str] = field(default_factory=dict)


def place(layout: Layout, name: str, record: Record) -> Place:
    """Where the interface of *name* stands, by its record."""
    allow = getattr(record.interface, "allow", ())
    return Place(
        host_name=ends.host_name(layout.instance, name),
        mac=ends.mac(layout.instance, name),
        alias=ends.alias(layout.instance, name),
        addresses=record.addresses,
        gateways=record.gateways,
        forwarding="ipv4" in forwarded(allow, record.gateways),
    )


def expected(layout: Layout, name: str, record: Record) -> Ends:
    """The ends that *record* asks for."""
    wanted: Ends = kinds.of(record.interface).ends(record.interface, place(layout, name, record))
    rate = getattr(record.interface, "rate", None)
    if rate is not None and wanted.inside is not None:
        # The kernel counts in bytes.
        wanted = replace(wanted, inside=replace(wanted.inside, rate=rate // 8 * 8))
    return wanted


def observe(layout: Layout, only: Collection[str] | None = None) -> Observed:
    """Look at everything, or at the interfaces of *only*.

    :raises StateError: a record can't be read.
    """
    known = records.read(layout)
    kept = namespaces.found(layout.netns("").parent)
    volatile = Volatile.read(layout)
    wanted = {name: expected(layout, name, record) for name, record in known.items() if only is None or name in only}
    linked = {name: one for name, one in wanted.items() if one != Ends()}
    return Observed(
        records=known,
        namespaces=kept,
        volatile=volatile,
        live=_live(layout, linked, kept) if linked else {},
        firewall=_firewall(layout, volatile),
        forwarding=forwarding.switches(),
    )


def _firewall(layout: Layout, volatile: Volatile) -> str:
    if not volatile.firewall:
        return "absent"
    generation = netlink.ruleset_generation()
    if generation is not None and generation == volatile.firewall.get("generation"):
        return "intact"
    try:
        listed = nft.listed(layout.nft_table)
    except MissingError:
        return "changed"  # it can't be told; applying says what is missing
    if listed is None:
        return "absent"
    return "intact" if listed == volatile.firewall.get("listed") else "changed"


def _live(layout: Layout, wanted: Mapping[str, Ends], kept: Mapping[str, int]) -> dict[str, Live]:
    with netlink.Socket() as host:
        links = host.links()
        addresses, routes = _by_index(host)
    by_alias = {link.alias: link for link in links if link.alias}
    by_name = {link.name: link for link in links}
    insides: dict[str, tuple[Link, End]] = {}
    there = {name: layout.netns(name) for name in wanted if layout.netns_name(name) in kept}

    def look() -> None:
        for name, path in there.items():
            namespaces.enter(path)
            with netlink.Socket() as inner:
                link = next((link for link in inner.links() if link.name == ends.INSIDE_NAME), None)
                if link is not None:
                    own, ways = _by_index(inner)
                    # Asked for where the queue isn't the one that every link has.
                    rates = inner.rates() if link.queue == "tbf" else {}
                    limit = rates.get(link.index, 0)
                    end = ends.seen(link, own[link.index], ways[link.index], wanted[name].inside, limit)
                    insides[name] = (link, end)

    if there:
        namespaces.in_thread(look)
    live = {}
    for name, one in wanted.items():
        outside, outer = None, by_alias.get(ends.alias(layout.instance, name))
        if outer is None:
            outer = by_name.get(ends.host_name(layout.instance, name))
            if outer is not None and outer.mac != ends.mac(layout.instance, name):
                outer = None  # somebody else's
        if outer is not None:
            outside = ends.seen(outer, addresses[outer.index], routes[outer.index], one.outside)
        inner_link, inside = insides.get(name, (None, None))
        live[name] = Live(
            Ends(inside, outside),
            inner_link.index if inner_link is not None else 0,
            outer.index if outer is not None else 0,
        )
    return live


def _by_index(where: netlink.Socket) -> tuple[dict[int, list[str]], dict[int, list[Route]]]:
    addresses: dict[int, list[str]] = defaultdict(list)
    routes: dict[int, list[Route]] = defaultdict(list)
    for address in where.addresses():
        addresses[address.index].append(address.text)
    families = [family for name, family in netlink.FAMILIES.items() if name == "ipv4" or has_ipv6()]
    for index, route in where.routes(families):
        routes[index].append(route)
    return addresses, routes


def has_ipv6() -> bool:
    """Whether the kernel has IPv6 at all."""
    return os.path.isdir("/proc/sys/net/ipv6")
