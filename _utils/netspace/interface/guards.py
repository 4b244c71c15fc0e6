"""The table that stands in an environment's own namespace, where its kind of interface wants one.

What is in it, the kind says (``guard``), or ``netspace.interface.inside`` for those that are
filtered there. Here is how it gets there and how one sees that it still is: by one message to
the kernel (its ruleset's generation), and only where that differs by a look at all of it.
Never touches another table.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from netspace.interface import inside, kinds, netlink
from netspace.interface import nftables as nf
from netspace.interface.ends import Ends, Place
from netspace.interface.netlink import Message
from netspace.interface.records import Record
from netspace.layout import Layout
from netspace.spec.types import Filtered

Numbers = Sequence[tuple[int, int]]


def is_inside(record: Record) -> bool:
    return bool(kinds.of(record.interface).FILTER == "inside")


def numbers(known: Collection[Record]) -> Numbers:
    """Return the addresses, as sorted (version, number), of all interfaces that the host's table doesn't see."""
    return sorted((address.version, int(address)) for address in map(ipaddress.ip_address, elsewhere(known)))


def elsewhere(known: Collection[Record]) -> list[str]:
    """Return the addresses of all interfaces that the host's table doesn't see."""
    return [one for record in known if is_inside(record) for one in record.addresses.values()]


def wanted(layout: Layout, record: Record, ends: Ends, place: Place, everybody: Numbers) -> tuple[Message, ...]:
    """Return the messages that make the table; none where there is to be none. Pure."""
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
        for family, addresses in inside.covered(spec.allow, everybody).items()
    }
    plain = (address.split("/")[0] for address in ends.inside.addresses)
    guarded = inside.Guarded(
        link=ends.inside.name,
        mac=ends.inside.mac,
        arp=ends.inside.arp,
        addresses=record.addresses,
        allow=spec.allow,
        connections=spec.connections,
        local=next((address for address in plain if address.startswith("fe80:")), ""),
        others=others,
    )
    return tuple(inside.render(layout.nft_table, guarded))


def state(layout: Layout, loaded: Mapping[str, Any]) -> str:
    """Return ``intact`` or ``changed`` for the calling thread's namespace; *loaded* is what :func:`put` returned."""
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
    """Put the table into the calling thread's namespace, in one transaction; return what to remember.

    :param fresh: there can't be one yet.
    :param before: what made the one of which *loaded* tells: where only elements of sets differ, only these change.
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
        # Where somebody else changed something meanwhile, the next look finds it changed.
        "listed": None if listed is None else list(listed),
    }


def _changed_in_place(
    ruleset: nf.Ruleset,
    layout: Layout,
    messages: Sequence[Message],
    before: Sequence[Message],
    loaded: Mapping[str, Any],
) -> int | None:
    """Change only the table's elements; return the generation that this made, None where it can't be done."""
    changed = nf.elements_changed(before, messages)
    now = ruleset.generation()
    if not changed or now is None or _state(ruleset, layout, loaded) != "intact":
        return None
    try:
        return ruleset.load(changed, now)
    except netlink.NetlinkError as err:
        if err.errno != errno.ERESTART:  # somebody else was faster
            raise
        return None
