"""Draining: moves a host's environments to other hosts, as far as their placement allows, before work on the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netspace.errors import NetspaceError
from netspace.fleet import hosts as fleet_hosts
from netspace.fleet import joining
from netspace.fleet.compile import Compiled
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.place import STAYS


def drain(declaration: FleetDeclaration, names: Iterable[object], *, undo: bool) -> dict[str, Any]:
    """Drain hosts; with *undo*, let them have environments again. Return which environments move, and which stay.

    With *undo* nothing moves back by itself: an environment stays on its present host.

    :param names: names of hosts, or ids of their minions.
    :raises NetspaceError: the declaration has problems, or would have problems after the change; nothing is changed.
    """
    before, fleet = fleet_hosts.compiled(declaration)
    hosts = fleet_hosts.named(fleet, names)
    known = declaration.drained.read()
    new = known - set(hosts) if undo else known | set(hosts)
    after = declaration.check(drained=new)
    if after.problems:
        raise NetspaceError(
            f"nothing is changed, because {len(after.problems)} problems would arise: {after.problems[0]}"
        )
    changed = declaration.drained.change(hosts, undo=undo)
    if (refusal := declaration.apply()) is not None:
        raise NetspaceError(f"{refusal.count} problems: {fleet_hosts.CHECK}")
    concerned = {name for name, placed in before.placed.items() if set(placed) & set(hosts)}
    concerned |= {name for name, placed in after.placed.items() if set(placed) & set(hosts)}
    different = {minion for minion in after.slices if before.slices.get(minion) != after.slices[minion]}
    return {
        "changed": changed,
        "drained": sorted(new & set(fleet.hosts)),
        "moves": [
            {"environment": one.environment, "old": list(one.old), "new": list(one.new), "reason": one.reason}
            for one in after.moves
            if one.environment in concerned
        ],
        "stay": [one.text for one in after.missing if STAYS in one.text and one.subject in concerned],
        "apply": sorted(different),
        "join": sorted(_newly_sealed(before, after)),
    }


def _newly_sealed(before: Compiled, after: Compiled) -> set[str]:
    """Return the hosts that get sealed links with a new peer. They have to exchange keys after the apply.

    :param before: the declaration in force, compiled.
    :param after: the declaration with the drain, compiled.
    """
    found = set[str]()
    for minion, pillar in after.slices.items():
        peers = joining.sealed_peers(pillar["netspace"])
        if peers - joining.sealed_peers(before.slices.get(minion, {}).get("netspace", {})):
            found.add(str(pillar["netspace"]["broker"]["host"]))
    return found
