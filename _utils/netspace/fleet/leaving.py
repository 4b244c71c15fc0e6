"""Leaving: cuts a host out of a fleet at once, whatever state the fleet's declaration is in.

The host may be under an attacker's control. So nothing here needs a declaration without problems: the facts about the
host are removed first. If the declaration can't be compiled after that, the slices in force are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from netspace.errors import NetspaceError, StateError
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.hosts import CHECK
from netspace.fleet.types import AUTHORITY, Fleet
from netspace.link.pki.root import Root


def leave(declaration: FleetDeclaration, names: Iterable[str], root: Root | None) -> dict[str, Any]:
    """Take hosts out of the fleet; return a result for each of the given names.

    :param names: names of hosts, or ids of their minions.
    :param root: the root, which releases the hosts' trust domains; None: the domains stay reserved.
    :raises NetspaceError: a name is unknown: no host has it, and nothing is stored about it.
    """
    fleet = _parsed(declaration)
    in_force = hosts_in_force(declaration)
    minions = {name: _minion(name, fleet, in_force) for name in names}
    for name, minion in minions.items():
        known = minion in in_force or (fleet is not None and name in {*fleet.hosts, *map(fleet.minion, fleet.hosts)})
        if not known and not declaration.register.path(minion).exists():
            raise NetspaceError(f"{name} is not a host of the fleet, and hasn't joined; nothing to do")
    found = {name: _left(declaration, minion, fleet, in_force, root) for name, minion in minions.items()}
    hosts = {minion: _host(minion, fleet, in_force) for minion in minions.values()}
    _put_in_force(declaration, hosts, found)
    return found


def hosts_in_force(declaration: FleetDeclaration) -> dict[str, dict[str, Any]]:
    """Return the slice in force of each minion; nothing if none is in force, or if the slices are damaged."""
    try:
        return declaration.sections()
    except StateError:
        return {}


def without(
    slices: Mapping[str, Mapping[str, Any]], minion: str, name_of_host: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return slices as if a host had not joined: without the links between it and other hosts.

    :param slices: the slice of each minion, as it stands under ``netspace`` in the pillar.
    :param minion: the host's minion.
    :param name_of_host: the host's name, for a minion that has no slice.
    """
    host = slices[minion]["broker"]["host"] if minion in slices else name_of_host
    if host is None:
        return {name: dict(one) for name, one in slices.items()}
    found = {}
    for name, section in slices.items():
        broker = dict(section["broker"])
        gone = set(broker.get("hosts", ())) if name == minion else {host}
        links = [one for one in section.get("links", ()) if not gone & {_far(one["from"]), _far(one["to"])}]
        if not any(_far(one["from"]) for one in links):
            broker.pop("listen", None)
        broker["hosts"] = {far: one for far, one in broker.get("hosts", {}).items() if far not in gone}
        if name == minion:
            broker.pop("trust_domain", None)
            if broker.get("authority") == AUTHORITY:
                del broker["authority"]
        if not broker["hosts"]:
            del broker["hosts"]
        found[name] = {**section, "broker": broker, "links": links}
        if not links:
            del found[name]["links"]
    return found


def _far(end: str) -> str:
    return end.partition("@")[2]


def _parsed(declaration: FleetDeclaration) -> Fleet | None:
    """Return the present declaration, with or without problems; None if it can't be parsed."""
    try:
        return declaration.check().declared
    except Exception:  # whatever it is: it must not keep a host in the fleet
        return None


def _minion(name: str, fleet: Fleet | None, in_force: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the minion of the host *name*; if there is no such host, return *name* itself, taken as a minion's id."""
    if fleet is not None and name in fleet.hosts:
        return fleet.minion(name)
    return next((minion for minion, one in in_force.items() if one["broker"]["host"] == name), name)


def _host(minion: str, fleet: Fleet | None, in_force: Mapping[str, Mapping[str, Any]]) -> str | None:
    if minion in in_force:
        return str(in_force[minion]["broker"]["host"])
    return next((host for host in fleet.hosts if fleet.minion(host) == minion), None) if fleet is not None else None


def _left(
    declaration: FleetDeclaration,
    minion: str,
    fleet: Fleet | None,
    in_force: Mapping[str, Mapping[str, Any]],
    root: Root | None,
) -> dict[str, Any]:
    try:
        facts = declaration.register.read(minion)
    except StateError:
        facts = None  # damaged: it is removed all the same
    found: dict[str, Any] = {}
    if root is not None:
        domains = {fleet.minion(host): fleet.trust_domain(host) for host in fleet.hosts} if fleet is not None else {}
        domain = facts.trust_domain if facts is not None else domains.get(minion)
        domain = domain or in_force.get(minion, {}).get("broker", {}).get("trust_domain")
        try:
            if domain is None:
                raise NetspaceError("its trust domain isn't known; release it: salt-run netspace_link.release DOMAIN")
            root.release(domain)
            found["released"] = domain
        except (NetspaceError, OSError, ValueError) as err:
            found["error"] = f"not released: {err}"
    peers = in_force.get(minion, {}).get("broker", {}).get("hosts", {})
    found["left"] = declaration.register.remove(minion)
    found["apply"] = sorted(name for name, one in in_force.items() if one["broker"]["host"] in peers)
    return found


def _put_in_force(declaration: FleetDeclaration, hosts: Mapping[str, str | None], found: dict[str, Any]) -> None:
    """Put the present declaration in force. If that fails, cut the hosts out of the slices in force.

    With ``apply: planned``, changes of the declaration wait for a plan, but the hosts are cut out at once.

    :param hosts: the hosts' names, by minion.
    :param found: the results by name, to which errors are added.
    """
    try:
        refusal = declaration.apply()
        if refusal is None and not declaration.given.active():
            return
        if refusal is None:
            why = "other changes of the declaration wait for a plan: salt-run netspace_fleet.plan"
        else:
            why = f"the declaration has {refusal.count} problems: {CHECK}"
    except Exception as err:  # a renderer's, or the disk's: the hosts must be cut out in any case
        why = f"the declaration can't be compiled: {type(err).__name__}: {err}"
    try:
        declaration.cut(lambda slices: _without_all(slices, hosts))
    except (NetspaceError, OSError, ValueError) as err:
        for one in found.values():
            one["error"] = f"removed, but the slices in force still have it: {err}; {why}"
        return
    for one in found.values():
        one["warning"] = f"the slices that were in force are in force without it; {why}"


def _without_all(
    slices: Mapping[str, Mapping[str, Any]], hosts: Mapping[str, str | None]
) -> Mapping[str, Mapping[str, Any]]:
    for minion, host in hosts.items():
        slices = without(slices, minion, host)
    return slices
