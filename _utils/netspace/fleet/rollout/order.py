"""Order of hosts in a rollout: the receiver of a link changes before its sender. Pure.

Only links between two hosts count, and only those that this plan adds, changes or removes. Where a link begins or
changes, the receiver's host changes first, so that the sender's messages find a mailbox. Where a link ends, the
sender's host changes first, so that it sends nothing more when the mailbox is removed. A link within one host needs no
order, because the host changes both ends at once.

Hosts that wait for one another in a cycle change in one batch. If they are too many for a batch, they change one after
the other, and a note says so.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from netspace.fleet.policy import Policy

Sections = Mapping[str, Mapping[str, Any]]
"""What minions have under ``netspace``, by the host's name."""
Before = Mapping[str, tuple[str, ...]]
"""For each host the hosts that change before it."""
_SHOWN = 5


class Batch(NamedTuple):
    """Hosts that change at once.

    :param canary: whether the rollout stops if one of them fails.
    """

    hosts: tuple[str, ...]
    canary: bool = False


class Order(NamedTuple):
    """The batches of a rollout.

    :param before: for each host, the hosts of the plan that must be good before it changes.
    :param notes: texts about the order, for the operator.
    """

    batches: tuple[Batch, ...]
    before: Before
    notes: tuple[str, ...]


def order(old: Sections, new: Sections, hosts: Iterable[str], policy: Policy, most: int) -> Order:
    """Return the batches in which *hosts* change. Equal plans have equal batches.

    :param old: for each host, its present slice; a host without a slice is absent.
    :param new: for each host, its slice after the change.
    :param policy: the rollout's policy, which names or counts the canaries.
    :param most: the most hosts of one batch.
    """
    chosen = sorted(set(hosts))
    members = set(chosen)
    before, every = _edges(old, new, members)
    rank = _ranks(_groups(chosen, every), every)
    groups, notes = list[tuple[str, ...]](), list[str]()
    for group in _groups(chosen, before):
        group = tuple(sorted(group, key=lambda host: (rank[host], host)))
        if len(group) <= most:
            groups.append(group)
            continue
        named = ", ".join(group[:_SHOWN]) + (f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else "")
        notes.append(
            f"{named} wait for one another, and a batch has at most {most}: they change one after the other, and until "
            "all have, some of their changed links don't work"
        )
        together = set(group)
        for host in group:
            before[host] -= together
        groups += [(host,) for host in group]
    for host, earlier in before.items():
        earlier.discard(host)
    canaries = _canaries(policy, chosen, notes)
    ranked = {group: (min(rank[host] for host in group), group) for group in groups}
    batches = list(_batches(groups, before, ranked, canaries, most))
    kept = {host: tuple(sorted(earlier)) for host, earlier in before.items() if earlier}
    notes += _early(batches, kept)
    return Order(tuple(batches), kept, tuple(notes))


def _canaries(policy: Policy, hosts: Sequence[str], notes: list[str]) -> tuple[str, ...] | int:
    """Return the names of the canaries among *hosts*, or the number of canaries."""
    if isinstance(policy.canary, int):
        return policy.canary
    found = tuple(host for host in hosts if host in policy.canary)
    if policy.canary and not found:
        notes.append("this plan changes none of the declared canaries; so the first host in the order is the canary")
        return 1
    return found


def _batches(
    groups: Sequence[tuple[str, ...]],
    before: Mapping[str, set[str]],
    ranked: Mapping[tuple[str, ...], tuple[int, tuple[str, ...]]],
    canaries: tuple[str, ...] | int,
    most: int,
) -> Iterator[Batch]:
    """Yield the batches. A group of hosts comes in a later batch than all hosts that the group waits for.

    Canaries that the operator named come first, whatever they wait for.
    """
    group_of = {host: group for group in groups for host in group}
    named = () if isinstance(canaries, int) else canaries
    first = sorted({group_of[host] for host in named}, key=ranked.__getitem__)
    taken = set(first)
    # The operator's canaries come first, whatever they wait for.
    yield from (Batch(hosts, True) for hosts in _packed(first, most))
    waits = {
        group: {group_of[other] for host in group for other in before[host]} - {group} - taken
        for group in groups
        if group not in taken
    }
    followers: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for group, earlier in waits.items():
        for other in earlier:
            followers.setdefault(other, []).append(group)
    ready = [ranked[group] for group, earlier in waits.items() if not earlier]
    heapq.heapify(ready)
    left = canaries if isinstance(canaries, int) else 0
    while ready:
        limit = min(most, left) if left else most
        batch, aside = list[tuple[str, ...]](), list[tuple[int, tuple[str, ...]]]()
        room = max(limit, len(ready[0][1]))  # a group stays together, also as a canary
        while ready and room:
            one = heapq.heappop(ready)
            if len(one[1]) > room:
                aside.append(one)
                continue
            batch.append(one[1])
            room -= len(one[1])
        for one in aside:
            heapq.heappush(ready, one)
        hosts = tuple(host for group in batch for host in group)
        yield Batch(hosts, bool(left))
        left = max(0, left - len(hosts))
        for group in batch:
            for follower in followers.get(group, ()):
                waits[follower].discard(group)
                if not waits[follower]:
                    heapq.heappush(ready, ranked[follower])


def _packed(groups: Iterable[tuple[str, ...]], most: int) -> Iterator[tuple[str, ...]]:
    batch: tuple[str, ...] = ()
    for group in groups:
        if batch and len(batch) + len(group) > most:
            yield batch
            batch = ()
        batch += group
    if batch:
        yield batch


def _early(batches: Sequence[Batch], before: Before) -> list[str]:
    """Return a note if canaries change before hosts that they wait for; else nothing."""
    position = {host: place for place, batch in enumerate(batches) for host in batch.hosts}
    early = [
        f"{host} before {other}"
        for host, earlier in sorted(before.items())
        for other in earlier
        if position[other] > position[host]
    ]
    if not early:
        return []
    more = f" and {len(early) - _SHOWN} more" if len(early) > _SHOWN else ""
    return [f"canaries change too early for their links: {', '.join(early[:_SHOWN])}{more}"]


def _edges(old: Sections, new: Sections, members: set[str]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return two mappings from each host to the hosts that it waits for: by changed links alone, and by all links."""
    changed: dict[str, set[str]] = {host: set() for host in members}
    every: dict[str, set[str]] = {host: set() for host in members}
    was, will = _between(old, members), _between(new, members)
    for pair in {*was, *will}:
        sender, receiver = pair
        before, after = was.get(pair, {}), will.get(pair, {})
        if after:
            every[sender].add(receiver)
        for name in {*before, *after}:
            if name not in after:
                changed[receiver].add(sender)
            elif before.get(name) != after[name]:
                changed[sender].add(receiver)
    return changed, every


def _between(sections: Sections, members: set[str]) -> dict[tuple[str, str], dict[tuple[Any, ...], Any]]:
    """Return the links between different hosts, by pairs of sender's and receiver's host.

    Each link has, under ``sender`` and ``receiver``, what that host declares: the link, the entry for the other host's
    broker, and (receiver only) the address on which its own broker listens.
    """
    found: dict[tuple[str, str], dict[tuple[Any, ...], Any]] = {}
    for host in members & set(sections):
        section = sections[host]
        broker = section.get("broker", {})
        remote = broker.get("hosts", {})
        for link in section.get("links", ()):
            source, _, source_host = str(link["from"]).partition("@")
            target, _, target_host = str(link["to"]).partition("@")
            far = source_host or target_host
            if far not in members or far == host:
                continue
            pair = (far, host) if source_host else (host, far)
            said = (link, remote.get(far), broker.get("listen") if source_host else None)
            ends = found.setdefault(pair, {}).setdefault((source, target), {})
            ends["receiver" if source_host else "sender"] = said
    return found


def _ranks(groups: Iterable[tuple[str, ...]], before: Mapping[str, set[str]]) -> dict[str, int]:
    """Return for each host the length of the longest chain of groups that must change before it."""
    found: dict[str, int] = {}
    for group in groups:
        earlier = {other for host in group for other in before[host]} - set(group)
        found |= dict.fromkeys(group, max((found[other] + 1 for other in earlier), default=0))
    return found


def _groups(hosts: Sequence[str], before: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the groups of hosts that wait for one another in a cycle; a host in no cycle is a group by itself.

    Each group comes after all groups that it waits for. The groups are the strongly connected components (Tarjan 1972),
    found without recursion.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack, on_stack = list[str](), set[str]()
    found: list[tuple[str, ...]] = []
    for root in hosts:
        if root in index:
            continue
        work = [(root, iter(sorted(before[root])))]
        while work:
            host, waits = work[-1]
            if host not in index:
                index[host] = low[host] = len(index)
                stack.append(host)
                on_stack.add(host)
            for other in waits:
                if other not in index:
                    work.append((other, iter(sorted(before[other]))))
                    break
                if other in on_stack:
                    low[host] = min(low[host], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[host])
                if low[host] == index[host]:
                    group = list[str]()
                    while not group or group[-1] != host:
                        group.append(stack.pop())
                        on_stack.discard(group[-1])
                    found.append(tuple(sorted(group)))
    return found
