"""The nftables table in an environment's namespace, for kinds of interface that need one.

The kind defines its content (``guard``), or ``netspace.interface.firewall.netns_rules`` does for kinds that are
filtered there. This module loads the table and detects changes by others. One message asks the
kernel for its ruleset's generation; only if that differs, the table is listed and compared.
Never touches another table.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from netspace.interface import kinds
from netspace.interface import nftables as nf
from netspace.interface.endpoints import Ends, Place
from netspace.interface.firewall import netns_rules
from netspace.interface.netlink.connection import Message
from netspace.interface.netlink.reading import NetlinkError
from netspace.interface.record import Record
from netspace.layout import Layout
from netspace.spec.types import Filtered

Numbers = Sequence[tuple[int, int]]


def is_inside(record: Record) -> bool:
    return bool(kinds.of(record.interface).FILTER == "inside")


def numbers(known: Collection[Record]) -> Numbers:
    """Return the addresses of all interfaces that the host's table doesn't filter, as sorted (version, number)."""
    return sorted((address.version, int(address)) for address in map(ipaddress.ip_address, elsewhere(known)))


def elsewhere(known: Collection[Record]) -> list[str]:
    """Return the addresses of all interfaces that the host's table doesn't filter."""
    return [one for record in known if is_inside(record) for one in record.addresses.values()]


def wanted(layout: Layout, record: Record, ends: Ends, place: Place, everybody: Numbers) -> tuple[Message, ...]:
    """Return the messages that create the desired table; none if no table is wanted. Pure.

    :param everybody: the addresses of all interfaces that the host's table doesn't filter.
    """
    kind, spec = kinds.of(record.interface), record.interface
    if ends.inside is None:
        return ()
    if hasattr(kind, "guard"):
        return tuple(kind.guard(layout.nft_table, ends, place))
    if kind.FILTER != "inside" or not isinstance(spec, Filtered):
        return ()
    own = set(record.addresses.values())
    others = {
        family: [address for address in addresses if address not in own]
        for family, addresses in netns_rules.covered(spec.allow, everybody).items()
    }
    plain = (address.split("/")[0] for address in ends.inside.addresses)
    guarded = netns_rules.Guarded(
        link=ends.inside.name,
        mac=ends.inside.mac,
        arp=ends.inside.arp,
        addresses=record.addresses,
        allow=spec.allow,
        connections=spec.connections,
        local=next((address for address in plain if address.startswith("fe80:")), ""),
        others=others,
    )
    return tuple(netns_rules.render(layout.nft_table, guarded))


def state(layout: Layout, loaded: Mapping[str, Any]) -> str:
    """Return ``intact`` or ``changed`` for the table in the calling thread's namespace.

    :param loaded: the facts that :func:`put` returned.
    """
    with nf.Ruleset() as ruleset:
        return _state(ruleset, layout, loaded)


def _state(ruleset: nf.Ruleset, layout: Layout, loaded: Mapping[str, Any]) -> str:
    generation = ruleset.generation()
    if generation is not None and generation == loaded.get("generation"):
        return "intact"
    return "intact" if list(ruleset.listed(layout.nft_table) or ()) == loaded.get("listed") else "changed"


def put(
    layout: Layout,
    messages: Sequence[Message],
    *,
    fresh: bool,
    before: Sequence[Message] = (),
    loaded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load the table in the calling thread's namespace, in one transaction; return the facts to record.

    :param fresh: the namespace is new and has no table yet.
    :param before: the messages that created the table which *loaded* describes. If only elements of sets differ,
        only these are changed.
    """
    table = layout.nft_table
    with nf.Ruleset() as ruleset:
        generation = _changed_in_place(ruleset, layout, messages, before, loaded) if before and loaded else None
        if generation is None:
            removal = [] if fresh else [*nf.remove_table(nf.INET, table), *nf.remove_table(nf.NETDEV, table)]
            generation = ruleset.load([*removal, *messages])
        if not messages:
            return {}
        listed = ruleset.confirmed(table, generation)
    return {
        "rendered": nf.digest(messages),
        "generation": generation,
        # None if somebody else changed the ruleset meanwhile: the next observation then reports the table as changed.
        "listed": None if listed is None else list(listed),
    }


def _changed_in_place(
    ruleset: nf.Ruleset,
    layout: Layout,
    messages: Sequence[Message],
    before: Sequence[Message],
    loaded: Mapping[str, Any],
) -> int | None:
    """Change only the table's elements; return the new generation, or None if that isn't possible."""
    changed = nf.elements_changed(before, messages)
    now = ruleset.generation()
    if not changed or now is None or _state(ruleset, layout, loaded) != "intact":
        return None
    try:
        return ruleset.load(changed, now)
    except NetlinkError as err:
        if err.errno != errno.ERESTART:  # ERESTART: somebody else has changed the ruleset meanwhile
            raise
        return None
