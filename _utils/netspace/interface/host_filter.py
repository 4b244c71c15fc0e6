"""The host's packet filter as it follows from the claims of all interfaces. Pure.

A host may have thousands of interfaces, of which one changes. For this change, only things that interfaces share
matter: chains of rules, limits of connections, hooks. So :func:`parts` keeps one interface of each class of equal ones,
and makes two small tables. These differ in the same way as the complete tables would.

To see whether two sets of interfaces have the same table, compare their marks (:func:`netspace.interface.claims.mark`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import netspace
from netspace.interface import claims, endpoints, kinds
from netspace.interface.claims import Claims
from netspace.interface.firewall import host_rules
from netspace.known import without
from netspace.layout import Layout
from netspace.nftables.table import Table


def table(layout: Layout, known: Mapping[str, Claims]) -> Table:
    """Return the host's nftables table for these interfaces.

    :param known: the claims of the interfaces, by environment.
    """
    return host_rules.build([
        host_rules.HostFiltered(
            name,
            its.host_end,
            endpoints.mac(layout.instance, name),
            its.addresses,
            its.gateways,
            its.allow,
            its.connections,
            its.publish,
            its.rare is not None and its.rare.audit,
        )
        for name, its in known.items()
        if its.connections and kinds.filtered(its.kind, "host")
    ], claims.elsewhere(known))  # fmt: skip


def parts(
    layout: Layout, before: Mapping[str, Claims], after: Mapping[str, Claims], changed: Collection[str]
) -> tuple[Table, Table]:
    """Return two tables that differ exactly as the host's tables for *before* and *after* differ.

    :param changed: the environments whose claims may differ; those of all others are the same in both.
    """
    if _reaching(before) != _reaching(
        after
    ):  # then each interface, filtered here or inside, has an element more or less
        return table(layout, before), table(layout, after)
    own = [{name: known[name] for name in changed if name in known} for known in (before, after)]
    addresses = {address for one in own for its in one.values() for address in its.addresses.values()}
    left = without(before, changed)
    shared = claims.alike(left)
    if not any(its.ports or its.audit or kinds.filtered(its.kind, "inside") for its in shared.values()):
        return table(layout, shared | own[0]), table(layout, shared | own[1])
    others = dict(left.items())
    some = set(shared)
    # Interfaces on different external networks may have one address, which is one element.
    some.update(name for name, its in others.items() if its.rare and (its.ports or its.audit))
    some.update(
        name
        for name, its in others.items()
        if (its.ipv4 in addresses or its.ipv6 in addresses) and kinds.filtered(its.kind, "inside")
    )
    shared = {name: before[name] for name in before if name in some}
    return table(layout, shared | own[0]), table(layout, shared | own[1])


def _reaching(known: Mapping[str, Claims]) -> tuple[bool, bool]:
    """Return two answers about the interfaces that the host's table filters.

    The first: whether one of them has a rule or a published port. The second: whether one has a published port.
    """
    every = claims.alike(known).values()
    mine = [its for its in every if its.connections and kinds.filtered(its.kind, "host") and (its.rules or its.ports)]
    return bool(mine), any(its.ports for its in mine)


def notes(layout: Layout, known: Mapping[str, Claims], mark: str) -> dict[str, str]:
    """Return facts to record, by which :func:`loaded` later finds out whether the table for *known* is loaded.

    :param mark: see ``claims.mark``.
    """
    return {"mark": mark, "by": _library(), "sample": _sample(layout, known)}


def loaded(layout: Layout, known: Mapping[str, Claims], mark: str, noted: Mapping[str, object]) -> bool:
    """Return whether the recorded facts are those of the table that this library would make for *known*.

    The whole table isn't made for that. One version of the library makes equal tables for equal claims, so the mark of
    the claims decides. If another version recorded the facts, a table of one interface of each class is made and
    compared.

    :param mark: the mark of *known*.
    :param noted: the facts that :func:`notes` returned.
    """
    if not mark or noted.get("mark") != mark:
        return False
    return noted.get("by") == _library() or noted.get("sample") == _sample(layout, known)


def _library() -> str:
    return " ".join(map(str, netspace.LOADED))


def _sample(layout: Layout, known: Mapping[str, Claims]) -> str:
    return table(layout, dict(sorted(claims.alike(known).items()))).digest
