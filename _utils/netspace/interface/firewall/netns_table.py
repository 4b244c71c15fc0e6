"""The nftables table in an environment's namespace, for kinds of interface that need one.

The kind's own module renders the table (``guard``), or ``netspace.interface.firewall.netns_rules`` does. This module
loads the table, and detects changes by other programs. One message asks the kernel for its ruleset's generation (the
number of changes). Only if it differs from the recorded one, the table is listed and compared. No other table is ever
touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netspace.interface import kinds
from netspace.interface.endpoints import EndpointContext, Endpoints
from netspace.interface.firewall import netns_rules
from netspace.interface.record import Record
from netspace.layout import Layout
from netspace.nftables import table as tables
from netspace.nftables.library import NftablesError
from netspace.nftables.ruleset import FAMILIES, Ruleset
from netspace.nftables.table import Table
from netspace.spec.types import Filtered

Numbers = Sequence[tuple[int, int]]


def is_inside(record: Record) -> bool:
    return bool(kinds.of(record.interface).FILTER == "inside")


def wanted(record: Record, ends: Endpoints, place: EndpointContext, everybody: Numbers) -> tuple[Table, ...]:
    """Return the desired tables; none if no table is wanted. Pure.

    :param everybody: the addresses of all interfaces that the host's table doesn't filter.
    """
    kind, spec = kinds.of(record.interface), record.interface
    if ends.inside is None:
        return ()
    if hasattr(kind, "guard"):
        guard: tuple[Table, ...] = kind.guard(ends, place)
        return guard
    if kind.FILTER != "inside" or not isinstance(spec, Filtered):
        return ()
    own, allow = set(record.addresses.values()), tuple(one for rule in spec.allow for one in rule.each)
    others = {
        family: [address for address in addresses if address not in own]
        for family, addresses in netns_rules.covered(allow, everybody).items()
    }
    plain = (address.split("/")[0] for address in ends.inside.addresses)
    guarded = netns_rules.NetnsFiltered(
        link=ends.inside.name,
        mac=ends.inside.mac,
        arp=ends.inside.arp,
        addresses=record.addresses,
        allow=allow,
        connections=spec.connections,
        local=next((address for address in plain if address.startswith("fe80:")), ""),
        others=others,
        audit=spec.audit,
    )
    return netns_rules.render(guarded)


def state(layout: Layout, loaded: Mapping[str, Any]) -> str:
    """Return whether the table in the calling thread's namespace is ``intact`` or ``changed``.

    :param loaded: the facts that :func:`put` returned.
    """
    with Ruleset() as ruleset:
        return _state(ruleset, layout, loaded)


def _state(ruleset: Ruleset, layout: Layout, loaded: Mapping[str, Any]) -> str:
    generation = ruleset.generation()
    if generation is not None and generation == loaded.get("generation"):
        return "intact"
    return "intact" if list(ruleset.listed(layout.nft_table) or ()) == loaded.get("listed") else "changed"


def put(
    layout: Layout,
    wanted: Sequence[Table],
    *,
    fresh: bool,
    before: Sequence[Table] = (),
    loaded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load the tables in the calling thread's namespace, in one transaction; return the facts to record.

    :param fresh: whether the namespace is new and has no table yet.
    :param before: the tables that *loaded* describes. If only elements of sets differ, only these are changed.
    :param loaded: the facts that the last call returned.
    """
    name = layout.nft_table
    with Ruleset() as ruleset:
        generation = _changed_in_place(ruleset, layout, wanted, before, loaded) if before and loaded else None
        if generation is None:
            removal = "" if fresh else "".join(tables.removal(family, name) for family in FAMILIES)
            text = removal + "".join(tables.creation(name, table) for table in wanted)
            since = ruleset.generation()
            generation = ruleset.load(text, since)
        if not wanted:
            return {}
        listed = None if generation is None else ruleset.confirmed(name, generation)
    return {
        "rendered": tables.digest(wanted),
        "generation": generation,
        # None if somebody else changed the ruleset meanwhile: the next observation then reports the table as changed.
        "listed": None if listed is None else list(listed),
    }


def _changed_in_place(
    ruleset: Ruleset,
    layout: Layout,
    wanted: Sequence[Table],
    before: Sequence[Table],
    loaded: Mapping[str, Any],
) -> int | None:
    """Change only the tables' elements; return the new generation. None: the tables must be loaded whole."""
    pairs = [(old, new) for old, new in zip(before, wanted, strict=False) if old.family == new.family]
    same = len(pairs) == len(before) == len(wanted) and all(old.same_structure(new) for old, new in pairs)
    text = "".join(tables.difference(layout.nft_table, old, new) for old, new in pairs) if same else ""
    now = ruleset.generation()
    if not text or now is None or _state(ruleset, layout, loaded) != "intact":
        return None
    try:
        return ruleset.load(text, now)
    except NftablesError:
        if ruleset.generation() == now:
            raise
        return None  # somebody else has changed the ruleset meanwhile
