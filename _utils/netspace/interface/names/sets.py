"""Sets of the packet filters that hold the present addresses of names. One transaction fills all sets of a table.

The sets are part of the tables that an apply loads (``firewall.host_rules.name_sets``). The kernel removes an address
when its time ends, even if no process of netspace runs.
"""

from __future__ import annotations

import errno
import ipaddress
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from netspace.interface import kinds, match, netns
from netspace.interface import record as records
from netspace.interface.firewall import netns_table
from netspace.interface.names import answers
from netspace.interface.names import record as known_answers
from netspace.interface.names.answers import Known, Own
from netspace.interface.names.record import Key
from netspace.interface.record import Record
from netspace.layout import Layout
from netspace.netlink.connection import Socket
from netspace.nftables import library, words
from netspace.nftables.ruleset import Ruleset
from netspace.spec.types import Allow, Filtered
from netspace.threads import in_thread

_TOLD = 8  # refused addresses that a text lists
Contents = dict[str, dict[str, float]]
"""By set: the seconds for which each address counts."""


def rules(record: Record) -> list[Allow]:
    """Return the interface's rules with names: one rule for each address family that the interface has."""
    spec = record.interface
    if not isinstance(spec, Filtered):
        return []
    each = (one for rule in spec.allow if rule.name is not None for one in rule.each)
    return [one for one in each if match.family(one) in record.addresses]


def contents(
    wanted: Iterable[Allow], known: Mapping[Key, Known], own: Own, now: float
) -> tuple[Contents, dict[str, list[str]]]:
    """Return the contents of these rules' sets, and for each name texts about its refused addresses. Pure.

    :param wanted: the rules, each for one family.
    :param known: the state of each name.
    :param own: the host's own addresses and networks.
    """
    found: Contents = {}
    refused: dict[str, list[str]] = {}
    for rule in wanted:
        assert rule.cidr is not None and rule.name is not None
        family = match.family(rule)
        one = known.get((rule.name, family), Known())
        counting, against = answers.counting(one, rule.cidr.network, own, now)
        found[_set(rule)] = counting
        if against:
            refused.setdefault(rule.name, []).extend(against)
    return found, refused


def described(record: Record, known: Mapping[Key, Known], own: Own, now: float) -> dict[str, dict[str, Any]]:
    """Return, for each name in the interface's rules, its present addresses and its ``problem``, if any. Pure.

    ``problem`` has a ``code``: one of :data:`answers.Code`, or ``name-new`` before the first answer.
    """
    found: dict[str, dict[str, Any]] = {}
    every = rules(record)
    for name in sorted({str(rule.name) for rule in every}):
        mine = [rule for rule in every if rule.name == name]
        families = {family: known[name, family] for family in map(match.family, mine) if (name, family) in known}
        filled, refused = contents(mine, known, own, now)
        about: dict[str, Any] = {"addresses": sorted({one for addresses in filled.values() for one in addresses})}
        if not families and (why := known_answers.unkept(known)):
            about["problem"] = {"code": "name-refused", "text": f"{name}: {why}"}
        elif text := answers.problem(name, families, now):
            about["problem"] = {"code": answers.code(families) or "name-new", "text": text}
        elif against := refused.get(name):
            text = f"{name}: {'; '.join(sorted(set(against))[:_TOLD])}"
            about["problem"] = {"code": "name-refused", "text": text}
        found[name] = about
    return found


def text(table: str, of: Contents) -> str:
    """Return the nft commands that replace the contents of these sets. Pure."""
    lines = []
    for name, addresses in sorted(of.items()):
        where = f"inet {words.name(table)} {words.name(name)}"
        lines.append(f"flush set {where}")
        listed = [f"{ipaddress.ip_address(one)} timeout {_seconds(left)}s" for one, left in sorted(addresses.items())]
        if listed:
            lines.append(f"add element {where} {{ {', '.join(listed)} }}")
    return "".join(f"{line}\n" for line in lines)


def _seconds(left: float) -> int:
    return min(max(math.ceil(left), 1), int(answers.CEILING + answers.STALE))


def own_addresses() -> Own:
    """Return the host's own addresses, and the networks of its interfaces."""
    with Socket() as host:
        return Own.of(one.text for one in host.addresses())


def fill_host(
    layout: Layout,
    now: float,
    names: Collection[str] | None = None,
    there: Collection[str] = (),
    known: Mapping[Key, Known] | None = None,
) -> None:
    """Fill the sets of the host's table.

    :param names: fill only sets of these names; None: of all.
    :param there: the sets that the table has; empty: all that the recorded interfaces need.
    :param known: the state of each name; None: it is read from the record.
    :raises NftablesError: the kernel refused. If some sets don't exist (yet), all existing sets are filled before this
        is raised.
    """
    every = records.some(layout, _recorded(layout))
    wanted = [
        rule
        for record in every.values()
        if kinds.of(record.interface).FILTER == "host"
        for rule in rules(record)
        if (names is None or rule.name in names) and (not there or _set(rule) in there)
    ]
    _fill(layout, wanted, own_addresses() if wanted else Own(), now, known)


def fill_here(
    layout: Layout,
    record: Record,
    own: Own,
    now: float,
    names: Collection[str] | None = None,
    known: Mapping[Key, Known] | None = None,
) -> None:
    """Fill the sets of the table in the calling thread's namespace, which is the namespace of *record*.

    :param own: the result of :func:`own_addresses`.
    :param names: fill only sets of these names; None: of all.
    :param known: the state of each name; None: it is read from the record.
    :raises NftablesError: as for :func:`fill_host`.
    """
    _fill(layout, [rule for rule in rules(record) if names is None or rule.name in names], own, now, known)


def fill(layout: Layout, names: Collection[str], now: float, known: Mapping[Key, Known]) -> dict[str, str]:
    """Fill all sets of these names; return the errors by environment.

    The error of the host's table has the key ``host``.

    :param known: the state of each name.
    """
    errors: dict[str, str] = {}
    try:
        fill_host(layout, now, names, known=known)
    except OSError as err:
        errors["host"] = str(err)
    every = records.some(layout, _recorded(layout))
    inside = {
        name: record
        for name, record in every.items()
        if netns_table.is_inside(record) and any(rule.name in names for rule in rules(record))
    }
    own = own_addresses() if inside else Own()

    def each() -> None:
        for name, record in inside.items():
            try:
                netns.enter(layout.netns(name))
                fill_here(layout, record, own, now, names, known)
            except OSError as err:
                errors[name] = str(err)

    if inside:
        in_thread(each)
    return errors


def _set(rule: Allow) -> str:
    return match.name_set(str(rule.name), str(rule.cidr), match.family(rule))


def _recorded(layout: Layout) -> set[str]:
    from netspace import files

    return files.record_names(layout.records(records.KIND))


def _fill(layout: Layout, wanted: Collection[Allow], own: Own, now: float, known: Mapping[Key, Known] | None) -> None:
    if not wanted:
        return
    found, _ = contents(wanted, known_answers.read(layout) if known is None else known, own, now)
    try:
        library.run(text(layout.nft_table, found), removes=True)
    except library.NftablesError as err:
        if err.errno != errno.ENOENT:
            raise
        # An apply may have been killed between its record and its table. The other names don't wait for the next one.
        with Ruleset() as ruleset:
            there = ruleset.sets(layout.nft_table, "inet")
        if present := {name: addresses for name, addresses in found.items() if name in there}:
            library.run(text(layout.nft_table, present), removes=True)
        if present != found:
            raise
