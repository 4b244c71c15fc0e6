"""Picture of a fleet: its hosts, its environments, and the connections that are allowed between them. Pure.

The picture can also show the state of hosts, and the changes that a plan would make.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from netspace.fleet import seen as hosts_seen
from netspace.fleet.compile import Compiled
from netspace.fleet.seen import Mark, Seen
from netspace.fleet.status import Expected, Now
from netspace.fleet.types import Fleet, LinkEntry
from netspace.plugin.graph import rendered
from netspace.plugin.picture.model import Arrow, Change, Facts, Graph, Group, Node
from netspace.plugin.picture.planned import Planned, PlannedChange
from netspace.spec.reach import Edge

_LINK_KEYS = ("seal", "rate", "via", "ttl", "length", "full", "durable", "size", "content_type", "monitor", "as")
_WHOSE = {"master": "reported by the master's verifier", "host": "reported by the host itself", "nobody": "no report"}


def picture(form: object, compiled: Compiled, now: Now | None = None, planned: Planned | None = None) -> str:
    """Return the picture in one of the forms of :mod:`netspace.plugin.graph`. Equal fleets have equal pictures.

    :param form: ``dot``, ``mermaid`` or ``html``. Only ``html`` shows states and changes.
    :param compiled: a declaration without problems, with its edges.
    :param now: the reported state of the hosts; None: show only the declaration.
    :param planned: a plan whose changes are shown; None: show no changes.
    :raises NetspaceError: there is no such form.
    """
    whole = str(form) == "html"  # the others show neither states nor changes
    return rendered(form, graph(compiled, now if whole else None, planned if whole else None))


def graph(compiled: Compiled, now: Now | None = None, planned: Planned | None = None) -> Graph:
    """Return the graph of a fleet."""
    fleet = compiled.declared or Fleet({}, {}, ())
    begun = [edge for edge in compiled.edges if not edge.answers and not edge.name]
    replicas = {f"{name}@{host}": (name, host) for name, hosts in compiled.placed.items() for host in hosts}
    outside = {end for edge in begun for end in (edge.source, edge.target)} - replicas.keys()
    changes = _Changes(planned)
    gone = [one for one in changes.ends() if one not in replicas]
    expected = Expected({host: fleet.minion(host) for host in fleet.hosts}, compiled.placed)
    live = None if now is None else _Live(expected, now)
    nodes = [
        _node(fleet, name, *replicas[name], live, changes)
        for name in sorted(replicas, key=lambda one: replicas[one][::-1])
    ]
    nodes += [_removed(name, changes) for name in gone]
    nodes += [Node(end, "outside") for end in sorted(outside)]
    links = {f"{one.file}: {one.path}": one for one in fleet.links}
    arrows = [_arrow(edge, replicas, links.get(edge.rule), live, changes) for edge in begun]
    arrows += _new_arrows(arrows, {node.name for node in nodes}, changes)
    groups = [_group(fleet, host, live, changes) for host in sorted(fleet.hosts)]
    known = set(fleet.hosts)
    groups += [Group(host) for host in sorted({node.group for node in nodes if node.group} - known)]
    return Graph(nodes, arrows, groups, "Fleet", _notes(compiled, now, planned))


def _notes(compiled: Compiled, now: Now | None, planned: Planned | None) -> list[str]:
    if now is None:
        notes = ["It shows the declaration, and no state of any host."]
    else:
        at = _moment(now.time)
        unseen = sum(one.glance is None for one in now.seen.values())
        notes = [f"State of {at}, in the hosts' own words. Each trust level names its source."]
        notes += [f"{unseen} of {len(now.seen)} hosts did not answer."] if unseen else []
    if planned is not None:
        notes.append(f"Changes of plan {planned.id}.")
        notes += [f"{host} has no plan: {why}" for host, why in sorted(planned.silent.items())[:5]]
    return [*notes, *(one.text for one in compiled.missing[:5])]


class _Live(NamedTuple):
    """The states that hosts report, beside the declared ones."""

    expected: Expected
    now: Now

    def seen(self, host: str) -> Seen:
        return self.now.seen.get(host, Seen(None, "it was not asked"))

    def link(self, host: str, name: str) -> tuple[Mark, str]:
        """Return the state of a link as its sender's host reports it, with the reason if the link doesn't work."""
        there = self.seen(host)
        if there.glance is None:
            return "unknown", there.problem
        row = there.glance.links.get(name)
        if row is None:
            return "bad", "not applied"
        return ("well" if row.state == "active" else "bad"), ": ".join(filter(None, [row.state, row.why]))


class _Changes:
    """The changes of a plan, sorted by the environment, link or host that they change."""

    def __init__(self, planned: Planned | None) -> None:
        self._environments: dict[str, PlannedChange] = {}
        self._links: dict[tuple[str, str], PlannedChange] = {}
        self._hosts: dict[str, PlannedChange] = {}
        for one in planned.changes if planned is not None else ():
            if one.kind == "host":
                self._hosts[one.host] = one
                continue
            if one.kind == "environment":
                self._environments[f"{one.name}@{one.host}"] = one
                continue
            source, _, target = one.name.partition(".")
            ends = tuple(end if "@" in end else f"{end}@{one.host}" for end in (source, target))
            self._links.setdefault((ends[0], ends[1]), one)

    def ends(self) -> list[str]:
        """Return the names of all environments that change, and of the ends of all links that change."""
        return sorted({*self._environments, *(end for ends in self._links for end in ends)})

    def environment(self, name: str) -> PlannedChange | None:
        return self._environments.get(name)

    def link(self, source: str, target: str) -> PlannedChange | None:
        return self._links.get((source, target))

    def host(self, name: str) -> PlannedChange | None:
        return self._hosts.get(name)

    def links(self) -> Iterable[tuple[tuple[str, str], PlannedChange]]:
        return sorted(self._links.items())


def _node(fleet: Fleet, name: str, environment: str, host: str, live: _Live | None, changes: _Changes) -> Node:
    entry = fleet.environments[environment]
    facts: list[tuple[str, str]] = []
    mark: Mark | None = None
    refused = 0
    if live is not None:
        there = live.seen(host)
        one = hosts_seen.standing(environment, host, there, off=entry.body.get("state") == "stopped")
        mark = one.mark
        facts += [("state", " ".join(filter(None, [one.state, one.health])))]
        facts += [("why", one.text), ("since", _moment(one.since)), ("restarts", str(one.restarts or ""))]
        rows = there.glance.refused.get(environment, []) if there.glance is not None else []
        refused = sum(max(row.count, 0) for row in rows)
        facts += [("refused", "\n".join(f"{row.what} ({row.count} times)" for row in rows))]
    planned = changes.environment(name)
    if planned is not None:
        facts.append(("plan", planned.text or planned.change))
    facts += _declared(entry.body)
    facts.append(("file", entry.file))
    change: Change = planned.change if planned is not None else ""
    return Node(name, "environment", host, environment, "", mark, change, refused, facts)


def _declared(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the declared values of an environment that the picture shows: (key, value).

    The environment's ``env`` and files are left out, because they may be secret.
    """
    for key in ("image", "kernel", "runtime", "restart"):
        yield key, _plain(body.get(key))
    if body.get("state") == "stopped":
        yield "declared", "stopped"
    attestation = body.get("attestation")
    if isinstance(attestation, Mapping):
        yield (
            "requires",
            " ".join(filter(None, [_plain(attestation.get("policy")), _plain(attestation.get("minimum"))])),
        )
    interface = body.get("interface")
    if isinstance(interface, Mapping):
        yield "interface", _plain(interface.get("kind"))
    limits = body.get("limits")
    if isinstance(limits, Mapping):
        yield "limits", ", ".join(f"{key} {_plain(value)}" for key, value in limits.items())


def _removed(name: str, changes: _Changes) -> Node:
    """Return the node of an environment that only the plan names, because the declaration doesn't have it."""
    environment, _, host = name.partition("@")
    planned = changes.environment(name)
    facts: Facts = [] if planned is None else [("plan", planned.text or planned.change)]
    return Node(name, "environment", host, environment, "", None, planned.change if planned else "", 0, facts)


def _arrow(
    edge: Edge, replicas: Mapping[str, tuple[str, str]], entry: LinkEntry | None, live: _Live | None, changes: _Changes
) -> Arrow:
    if entry is None:
        return Arrow(edge.source, edge.target, edge.what, edge.rule, edge.by)
    facts = [("pattern", _plain(entry.body.get("pattern")) or "send")]
    facts += [(key, _plain(entry.body[key])) for key in _LINK_KEYS if key in entry.body]
    mark: Mark | None = None
    if live is not None:
        (source, host), (target, far) = replicas[edge.source], replicas[edge.target]
        mark, told = live.link(host, f"{source}.{target}{'' if far == host else f'@{far}'}")
        facts.insert(0, ("state", told))
    planned = changes.link(edge.source, edge.target)
    if planned is not None:
        facts.append(("plan", planned.text or planned.change))
    seal = entry.body.get("seal") is True
    rate = entry.body.get("rate")
    what = ", ".join([edge.what, *(["sealed"] if seal else []), *([f"{_plain(rate)}/s"] if rate is not None else [])])
    change: Change = planned.change if planned is not None else ""
    return Arrow(edge.source, edge.target, what, edge.rule, edge.by, seal, mark, change, facts)


def _new_arrows(arrows: Iterable[Arrow], nodes: set[str], changes: _Changes) -> list[Arrow]:
    """Return an arrow for each link that only the plan names, because the declaration doesn't have it."""
    there = {(one.source, one.target) for one in arrows}
    return [
        Arrow(source, target, one.text or "a link", f"only in the plan for {one.host}: {one.name}", change=one.change)
        for (source, target), one in changes.links()
        if (source, target) not in there and {source, target} <= nodes
    ]


def _group(fleet: Fleet, host: str, live: _Live | None, changes: _Changes) -> Group:
    spec = fleet.hosts[host].spec
    facts: list[tuple[str, str]] = []
    level, mark = "", None
    if live is not None:
        there, trust = live.seen(host), live.now.trust(live.expected, host) if host in live.now.seen else None
        marks: list[Mark] = ["unknown" if there.glance is None else "well"]
        if there.glance is None:
            facts.append(("state", there.problem))
        elif there.glance.problems:
            marks.append("odd")
            facts.append(("problems", "\n".join(there.glance.problems[:20])))
        if trust is not None:
            level = trust.level
            marks += [trust.mark] if trust.mark in ("bad", "odd") else []
            facts += [("trust", f"{' '.join(filter(None, [level, trust.state])) or 'unknown'}, {_WHOSE[trust.by]}")]
            facts += [("why", trust.why), ("evidence of", _moment(trust.evidence)), ("to raise it", trust.remedy)]
        mark = min(marks, key=hosts_seen.ORDER.index)
    elif spec.level is not None:
        level = spec.level
        facts.append(("trust", f"{level}, as declared"))
    planned = changes.host(host)
    facts += [
        ("plan", planned.text if planned is not None else ""),
        ("minion", fleet.minion(host)),
        ("address", spec.address or ""),
        ("trust domain", fleet.trust_domain(host)),
        ("labels", ", ".join(f"{key}: {value}" for key, value in spec.labels.items())),
        ("file", fleet.hosts[host].file),
    ]
    return Group(host, level, mark, planned.change if planned is not None else "", facts)


def _moment(seconds: float | None) -> str:
    """Return a time (seconds since the epoch) as text in UTC; empty if there is none, or it is out of range."""
    if not seconds or not 0 < seconds < 253402300800:  # 9999-12-31
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:400] if isinstance(value, str | int | float) else ""
