"""Sums of the declared limits of a tenant's environments, and the quotas that these sums may not exceed. Pure.

The kernel or the broker enforces each of these limits for each environment. So if the sum of the limits is within a
quota, the running environments can't exceed the quota together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set

from netspace.errors import Problem
from netspace.spec import peer
from netspace.spec.tenancy import names
from netspace.spec.types import Declaration, Environment, Filtered, Link, Quota, Size

MAILBOX_MESSAGES = 10_000
MAILBOX_BYTES = 64 * 1024 * 1024
REPLIES_MESSAGES = 10_000
REPLIES_BYTES = 16 * 1024 * 1024
"""The bounds of queues that no link bounds (``netspace.link.topology.policies``)."""


def instances(spec: Environment) -> int:
    """Return how many processes of an environment may run at once: two while an update is on trial, else one."""
    return 2 if spec.health is not None and spec.update.rolling else 1


def used(declared: Declaration, tenant: str) -> Quota:
    """Return the resources that a tenant's environments may use together: the sums of their declared limits.

    :param declared: a declaration with the places of children, and without the links to the host.
    """
    own = {name: declared.environments[name] for name in names.of(declared, tenant)}
    children = sum(template.at_most for spec in own.values() for template in spec.spawns.values())
    every = (*declared.links, *peer.links(own))
    linked = [link for link in every if {link.source, link.target} & own.keys()]
    messages, waiting = _queues(own.keys(), linked)
    return Quota(
        environments=len(own) - children,
        memory=Size(sum(instances(spec) * spec.limits.memory for spec in own.values())),
        # A float's own error must not exceed a quota of 0.3 by three environments of 0.1 each.
        cpus=round(sum(instances(spec) * spec.limits.cpus for spec in own.values()), 6),
        pids=sum(instances(spec) * spec.limits.pids for spec in own.values()),
        disk=Size(sum(map(_disk, own.values()))),
        children=children,
        links=len(linked),
        messages=messages,
        waiting=Size(waiting),
        connections=sum(map(_connections, own.values())),
    )


def _disk(spec: Environment) -> int:
    return instances(spec) * (spec.limits.disk or 0) + sum(volume.size or 0 for volume in spec.volumes)


def _connections(spec: Environment) -> int:
    """Return the most connections of an environment. Connections through published ports have a separate limit."""
    its = spec.interface
    if not isinstance(its, Filtered):
        return 0
    return its.connections * (2 if getattr(its, "publish", ()) else 1)


def _queues(own: Set[str], linked: Collection[Link]) -> tuple[int, int]:
    """Return the greatest number of messages that may wait in a tenant's queues, and of their bytes.

    A queue counts for the tenant whose environment reads it. The queue of requests to the host, and an outbox to
    another host, count for the sender's tenant.
    """
    boxes = {end for link in linked for end in (link.source, link.target)} & own
    asking = {link.source for link in linked if link.pattern == "request"} & own
    messages = len(boxes) * MAILBOX_MESSAGES + len(asking) * REPLIES_MESSAGES
    waiting = len(boxes) * MAILBOX_BYTES + len(asking) * REPLIES_BYTES
    for link in linked:
        if peer.is_link(link):
            messages, waiting = messages + peer.LENGTH, waiting + peer.LENGTH * peer.SIZE
        elif (link.via == "buffered" and link.to_host is not None) or (link.bounds and link.target in own):
            messages, waiting = messages + (link.length or MAILBOX_MESSAGES), waiting + MAILBOX_BYTES
    return messages, waiting


def exceeded(quota: Quota, use: Quota) -> Iterable[tuple[str, str, str]]:
    """Yield each part of a quota that is exceeded: (key, the sum, the quota), as a declaration writes them."""
    for key in Quota.__struct_fields__:
        most, now = getattr(quota, key), getattr(use, key)
        if now > most >= 0:  # a quota that can't be one is reported already
            yield key, written(now), written(most)


def written(value: float | Size) -> str:
    """Return a number of a quota as a declaration has it."""
    return value.written if isinstance(value, Size) else f"{value:g}" if isinstance(value, float) else str(value)


def problems(declared: Declaration, path: str) -> list[Problem]:
    """Return a problem for each part of a tenant's quota that its environments exceed.

    :param path: the path of the declaration.
    """
    found = []
    for name, tenant in declared.tenants.items():
        for key, now, most in exceeded(tenant.quota, used(declared, name)):
            text = f"the tenant's environments may use {now} together, and the quota is {most}; {_REMEDIES[key]}"
            found.append(Problem(f"{path}:tenants:{name}:quota:{key}", text))
    return found


_LESS = "lower their limits, or raise the quota"
_FEWER = "leave some out, or raise the quota"
_REMEDIES = {
    "environments": _FEWER,
    "memory": _LESS,
    "cpus": _LESS,
    "pids": _LESS,
    "disk": _LESS,
    "children": "lower at_most of templates, or raise the quota",
    "links": _FEWER,
    "messages": "give links a length, link fewer environments, or raise the quota",
    "waiting": "link fewer environments, or raise the quota",
    "connections": "lower connections of interfaces, or raise the quota",
}


def unsound(quota: Quota) -> Iterable[tuple[str, str]]:
    """Yield the invalid values in a quota: (key, message)."""
    for key in Quota.__struct_fields__:
        value = getattr(quota, key)
        if not 0 <= value <= 2**53:
            yield key, f"{written(value)} is out of 0..{2**53}"
