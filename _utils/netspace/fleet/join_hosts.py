"""Joining of several hosts to a fleet: first each host by itself, then sealed links by an exchange of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from netspace.errors import NetspaceError
from netspace.fleet import hosts as fleet_hosts
from netspace.fleet import joining
from netspace.fleet.compile import Compiled
from netspace.fleet.declaration import REGISTER, FleetDeclaration
from netspace.fleet.joining import Minion
from netspace.fleet.types import Fleet
from netspace.link.pki.root import Root
from netspace.link.seal.exchange import exchange

Ask = Callable[[Sequence[str], str, Mapping[str, Any]], dict[str, Any]]
"""Returns the answers of minions to a function with arguments, by minion; an error for a minion that failed."""


def join(
    declaration: FleetDeclaration, names: Iterable[object], root: Root, minion: Callable[[str], Minion], ask: Ask
) -> dict[str, Any]:
    """Bring hosts into the fleet; return for each host its ``changes`` and ``missing``, or an ``error``.

    :param names: names of hosts, or ids of their minions.
    :param minion: returns the calls to a minion, by its id.
    :param ask: calls a function on minions, and returns their answers.
    :raises NetspaceError: the declaration has problems, or a name belongs to no host.
    """
    compiled, fleet = fleet_hosts.compiled(declaration, but=REGISTER)  # which joining repairs
    found: dict[str, Any] = {}
    for host in fleet_hosts.named(fleet, names):
        settings = compiled.slices[fleet.minion(host)]["netspace"]
        try:
            joined = joining.join(fleet, host, settings, declaration.register, root, minion(fleet.minion(host)))
        except (NetspaceError, OSError, ValueError) as err:
            found[host] = {"error": str(err)}
            continue
        found[host] = {"changes": joined.changes, "missing": joined.missing}
    if (refusal := declaration.apply()) is not None:
        raise NetspaceError(f"the declaration has {refusal.count} problems: {fleet_hosts.CHECK}")
    after, now = fleet_hosts.compiled(declaration)
    for host, one in found.items():
        if "missing" not in one:
            continue
        if host not in now.hosts or now.minion(host) != fleet.minion(host):
            one["missing"].append(f"the declaration of {host} changed meanwhile; join again if it is still a host")
            continue
        one["missing"] += [*_waiting(declaration, after, now, host), *_missing(after, now, host, ask)]
    return found


def _waiting(declaration: FleetDeclaration, compiled: Compiled, fleet: Fleet, host: str) -> list[str]:
    """Return a text for the operator if a host's declared slice waits for a plan (``apply: planned``); else nothing."""
    minion = fleet.minion(host)
    if not declaration.given.active() or declaration.given.has(minion, compiled.slices.get(minion)):
        return []
    return [f"{host}: its declaration waits for a plan: salt-run netspace_fleet.plan, then apply"]


def _missing(compiled: Compiled, fleet: Fleet, host: str, ask: Ask) -> list[str]:
    """Return what a joined host still lacks, after an exchange of seal keys with the hosts of its sealed links."""
    minion = fleet.minion(host)
    ends = {name for name, placed in compiled.placed.items() if host in placed}
    others = {end for link in fleet.links if {link.source, link.target} & ends for end in (link.source, link.target)}
    concerned = {host} | ends | {other for end in others for other in compiled.placed.get(end, ())}
    missing = [one.text for one in compiled.missing if one.subject in concerned]
    sealed = {fleet.minion(peer): peer for peer in joining.sealed_peers(compiled.slices[minion]["netspace"])}
    if sealed:
        problems, answers = _exchanged([minion, *sorted(sealed)], ask)
        missing += [f"seals: {problem}" for problem in problems[:5]]
        missing += joining.unapplied(answers, minion, host, sealed)
    return missing


def _exchanged(minions: Sequence[str], ask: Ask) -> tuple[list[str], dict[str, Any]]:
    """Exchange seal keys between hosts; return the problems, and the minions' last answers."""
    answers: dict[str, Any] = {}

    def bundles() -> dict[str, Any]:
        answers.update(ask(minions, "netspace_link.seal_bundles", {}))
        return answers

    def hand(minion: str, bundles: Sequence[str]) -> Any:
        adopted = ask([minion], "netspace_link.seal_adopt", {"bundles": list(bundles)})
        return adopted.get(minion, NetspaceError("did not answer in time"))

    return exchange(bundles, hand)["problems"], answers
