"""Compiler of a fleet's declaration: makes each host's slice, which is its minion's pillar. Pure.

A slice has the host's own environments and the links that begin or end on the host. For each other host at an end of
such a link, the slice has the facts that are needed to reach or recognise that host. A slice names no further
environment or host.

A host that hasn't joined has no keys yet. Until it joins, links between it and other hosts are left out. Its own
environments, and links between them, are not.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from netspace.errors import SpecError
from netspace.fleet import never, parse, place, public_keys, trust
from netspace.fleet.types import (
    AUTHORITY,
    Fleet,
    HostEntry,
    LinkEntry,
    Missing,
    Move,
    Problem,
    Published,
    broker_address,
)
from netspace.spec import delegations, renames
from netspace.spec import parse as spec
from netspace.spec.reach import Edge
from netspace.spec.types import Declaration, Interface

MAX_LINKS = 1_000_000
"""The most links between single instances of environments."""
MAX_EDGES = 2_000_000
"""The most edges that are computed for a fleet. An edge: one end may reach another by one link or rule."""
MAX_PROOFS = 50_000_000
"""The greatest product of the numbers of edges and assertions, because each assertion examines all edges."""
MAX_CHOICES = 5_000_000
"""The most replicas that all links together choose among. A choice computes a hash for each replica."""
_TRIED = 8
"""The most hosts on which an environment that has no host yet is checked for problems."""


class Compiled(NamedTuple):
    """The result for a whole fleet.

    :param declared: the declaration; None: it can't be parsed.
    :param slices: for each minion, its pillar: the slice under ``netspace``, and under ``trust`` the facts from
        ``trust.noted``.
    :param placed: the hosts of each environment.
    :param moves: the changes of environments' hosts.
    :param missing: the things that a correct declaration still waits for, such as a host that hasn't joined.
    :param problems: the problems of the declaration. If there are any, the slices must not be used.
    :param edges: who may reach whom; empty if the caller of :func:`fleet` didn't ask for edges and no assertion needs
        them.
    """

    declared: Fleet | None
    slices: Mapping[str, Mapping[str, Any]]
    placed: Mapping[str, tuple[str, ...]]
    moves: tuple[Move, ...]
    missing: tuple[Missing, ...]
    problems: tuple[Problem, ...]
    edges: tuple[Edge, ...] = ()


class _Way(NamedTuple):
    """One link between two instances of environments.

    :param entry: the declared link.
    :param source: the sender's host.
    :param target: the receiver's host.
    :param alone: whether the sender reaches only this instance of the receiver.
    """

    entry: LinkEntry
    source: str
    target: str
    alone: bool


def fleet(
    documents: Mapping[str, Any],
    published: Mapping[str, Published],
    nodegroups: Mapping[str, object],
    previous: Mapping[str, tuple[str, ...]],
    *,
    remembered: Mapping[str, tuple[str, ...]] | None = None,
    drained: Collection[str] = (),
    claimed: Callable[[], Mapping[str, str]] = dict,
    edges: bool = False,
) -> Compiled:
    """Compile a whole declaration.

    :param documents: the rendered content of each file, by the file's name.
    :param published: the facts that hosts have published, by minion.
    :param nodegroups: the master's nodegroups.
    :param previous: the hosts of each environment until now.
    :param remembered: the last hosts of environments that run nowhere now.
    :param drained: hosts that get an environment only if no other host is possible.
    :param claimed: returns the former name of each environment in the declaration in force; called only if needed.
    :param edges: whether to compute who may reach whom. Assertions (``never``) cause this in any case.
    :raises FleetError: the declaration can't be parsed.
    """
    declared = parse.fleet(documents)
    placement = place.place(declared, published, nodegroups, previous, remembered, drained, claimed)
    problems = list(placement.problems)
    former = declared.former()
    ways = list(_ways(declared, placement.hosts, former, problems))
    slices: dict[str, Mapping[str, Any]] = {}
    missing = list(placement.missing)
    parsed: dict[str, Declaration] = {}
    joined = _joined(declared, published, missing)
    by_host: dict[str, list[_Way]] = {}
    for way in ways:
        by_host.setdefault(way.source, []).append(way)
        if way.target != way.source:
            by_host.setdefault(way.target, []).append(way)
    later = {host: _placeholder(declared, host) for host in declared.hosts if host not in joined} | joined
    for host, names in _instances(declared, placement.hosts).items():
        made = _Slice(declared, host, names, by_host.get(host, ()), joined, former)
        slices[declared.minion(host)] = made.pillar
        found, wrong = made.parsed()
        if found is not None:
            parsed[host] = found
        problems += wrong
        if len(joined) < len(later):  # also check the slice as it will be once all hosts have joined
            problems += _Slice(declared, host, names, by_host.get(host, ()), later, former).parsed()[1]
    for name in declared.environments:
        if name not in placement.hosts:
            problems += _unplaced(declared, name, later)
    problems = _once(problems)
    between: tuple[Edge, ...] = ()
    if (declared.never or edges) and not problems:
        between = tuple(itertools.islice(_edges(declared, ways, parsed), MAX_EDGES + 1))
        if why := _too_many(len(between), len(declared.never)):
            problems.append(Problem(*(declared.never[0][:2] if declared.never else ("", "links")), why))
        else:
            problems += never.problems(never.Search(between, placement.hosts), declared.never)
    return Compiled(declared, slices, placement.hosts, placement.moves, tuple(missing), tuple(problems), between)


def _joined(declared: Fleet, published: Mapping[str, Published], missing: list[Missing]) -> dict[str, Published]:
    """Return the published facts of joined hosts, by host name; add an entry to *missing* for each other host."""
    joined: dict[str, Published] = {}
    keys: dict[str, str] = {}
    known = [(host, published.get(declared.minion(host))) for host in declared.hosts]
    for host, facts in sorted(known, key=lambda pair: pair[1].joined if pair[1] is not None else 0.0):
        again = f"salt-run netspace_fleet.join {host}"
        if facts is None:
            missing.append(Missing(host, f"{host} hasn't joined: {again}"))
        elif facts.trust_domain != declared.trust_domain(host):
            why = f"{host} joined as {facts.trust_domain}, and is declared as {declared.trust_domain(host)}"
            missing.append(Missing(host, f"{why}: {again}"))
        elif (first := keys.setdefault(public_keys.canonical(facts.public_key), host)) != host:
            missing.append(Missing(host, f"{host} has the key of {first}: give it a key of its own, then {again}"))
        else:
            joined[host] = facts
    return joined


def _placeholder(declared: Fleet, host: str) -> Published:
    """Return made-up facts of a host that hasn't joined, so that its links can be checked before it joins."""
    key = base64.urlsafe_b64encode(hashlib.sha256(host.encode()).digest()).decode().rstrip("=")
    return Published(minion=declared.minion(host), trust_domain=declared.trust_domain(host), chain="", public_key=key)


def _unplaced(declared: Fleet, name: str, joined: Mapping[str, Published]) -> list[Problem]:
    """Return the problems of an environment that has no host yet, and of its links.

    The environment is tried on the first hosts of the fleet. If it has problems on all of them, the result is its
    problems on the first one; otherwise the result is empty.
    """
    first: list[Problem] = []
    reachable = [host for host, (_, one) in declared.hosts.items() if one.address is not None]
    for host in list(declared.hosts)[:_TRIED]:
        far = next((other for other in reachable[:2] if other != host), None)
        ways = [
            _Way(entry, *((host, far) if entry.source == name else (far, host)), True)
            for entry in declared.links
            if far is not None and host in reachable and name in (entry.source, entry.target)
        ]
        problems = _Slice(declared, host, (name,), ways, joined, {}).parsed()[1]
        if not problems:
            return []
        first = first or problems
    return first


def _instances(declared: Fleet, placed: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Return the names of the environments that run on each host, by host."""
    found: dict[str, list[str]] = {host: [] for host in declared.hosts}
    for name, chosen in placed.items():
        for host in chosen:
            found[host].append(name)
    return found


def _ways(
    declared: Fleet, placed: Mapping[str, tuple[str, ...]], former: Mapping[str, str], problems: list[Problem]
) -> Iterator[_Way]:
    """Yield each link between two instances of environments.

    A link that is impossible is added to *problems* instead.

    :param former: the former names of renamed environments. They choose the replica, so that renaming changes none.
    """
    count = choices = 0
    for entry in declared.links:
        targets = placed.get(entry.target, ())
        for source in placed.get(entry.source, ()) if targets else ():
            if entry.reach == "each":
                chosen: Sequence[str] = targets
            elif source in targets:
                chosen = (source,)
            else:
                choices += len(targets)
                if choices > MAX_CHOICES:
                    why = f"links choose among more than {MAX_CHOICES} replicas; declare fewer replicas, or reach: each"
                    problems.append(Problem(entry.file, entry.path, why))
                    return
                ends = (former.get(entry.source, entry.source), former.get(entry.target, entry.target))
                chosen = (place.choose(f"{ends[0]}@{source}.{ends[1]}", targets),)
            count += len(chosen)
            if count > MAX_LINKS:
                why = f"there are more than {MAX_LINKS} links between instances; declare fewer replicas, or reach: one"
                problems.append(Problem(entry.file, entry.path, why))
                return
            for target in chosen:
                if target != source and declared.hosts[target].spec.address is None:
                    why = f"{entry.target} runs on {target}, which {source} can't reach; declare hosts:{target}:address"
                    problems.append(Problem(entry.file, f"{entry.path}:to", why))
                    continue
                if target != source and entry.body.get("attested") and not trust.verified(declared, source):
                    why = f"this master doesn't judge {source}; declare verifier: master for it (attestation)"
                    problems.append(Problem(entry.file, f"{entry.path}:attested", why))
                    continue
                yield _Way(entry, source, target, len(chosen) == 1)


class _Slice:
    """The slice of one host.

    :param names: the names of the host's environments.
    :param ways: the links that begin or end on the host.
    :param joined: the facts that joined hosts have published, by host.
    :param former: the former names of renamed environments.
    """

    def __init__(
        self,
        declared: Fleet,
        host: str,
        names: Iterable[str],
        ways: Sequence[_Way],
        joined: Mapping[str, Published],
        former: Mapping[str, str],
    ) -> None:
        self._fleet, self._host, self._joined, self._former = declared, host, joined, former
        self._links: list[LinkEntry] = []
        links: list[dict[str, Any]] = []
        out, into = set[str](), set[str]()
        for way in ways:
            other = way.target if way.source == host else way.source
            if other != host and not (host in joined and other in joined):
                continue
            if other != host:
                (out if way.source == host else into).add(other)
            links.append(self._link(way))
            self._links.append(way.entry)
        self.section: dict[str, Any] = {
            **{key: self._settings(host, key) for key in ("attestation", "network", "runtimes")},
            "broker": self._broker(out, into),
            "environments": {name: dict(declared.environments[name].body) for name in names},
            "links": links,
        }
        self.section = {key: value for key, value in self.section.items() if value}
        beside = trust.noted(declared, host, zip(self._links, links, strict=True))
        self.pillar = {"netspace": self.section, **({"trust": beside} if beside else {})}

    def parsed(self) -> tuple[Declaration | None, list[Problem]]:
        """Return the slice as its minion parses it and no problems, or None and the problems."""
        try:
            return spec.declaration(self.section), []
        except SpecError as err:
            return None, [self.located(*one) for one in err.problems]

    def _settings(self, host: str, key: str) -> dict[str, Any]:
        return {**getattr(self._fleet.defaults, key), **getattr(self._fleet.hosts[host].spec, key)}

    def _link(self, way: _Way) -> dict[str, Any]:
        """Return one link as this host declares it: the host's own environments are named without a host."""
        body = dict(way.entry.body)
        source, target = way.entry.source, way.entry.target
        if self._former:
            ends = {"from": (source, way.source), "to": (target, way.target)}
            far = {end: name for end, (name, host) in ends.items() if host != self._host and name in self._former}
            if far:
                body[renames.KEY] = {end: self._former[name] for end, name in far.items()}
        if way.source == way.target:
            body.pop("via", None)  # a link within one host needs no way between hosts
        elif way.source == self._host:
            if way.alone:
                body.setdefault("as", target)  # one name for the program, on whichever host *target* is
            target = f"{target}@{way.target}"
        else:
            body.pop("as", None)  # only the sender uses this name
            source = f"{source}@{way.source}"
        return {"from": source, "to": target, **body}

    def _broker(self, out: set[str], into: set[str]) -> dict[str, Any]:
        broker = {"kind": "local", **self._settings(self._host, "broker"), "host": self._host}
        if self._host not in self._joined:
            return broker
        broker["trust_domain"] = self._fleet.trust_domain(self._host)
        broker.setdefault("authority", AUTHORITY)
        address = self._fleet.hosts[self._host].spec.address
        if into and address is not None:
            broker["listen"] = broker_address(address)
        if out or into:
            broker["hosts"] = {other: self._remote(other, other in out) for other in sorted(out | into)}
        return broker

    def _remote(self, other: str, leads_there: bool) -> dict[str, Any]:
        """Return the facts that this host needs about another host.

        :param leads_there: whether a link leads from this host to that one.
        """
        host = self._fleet.hosts[other].spec
        found = {"trust_domain": self._fleet.trust_domain(other), "public_key": self._joined[other].public_key}
        if leads_there and host.address is not None:
            found["address"] = str(broker_address(host.address))
        if host.instance != "netspace":
            found["vhost"] = host.instance
        size = self._settings(other, "broker").get("message_size")
        if leads_there and size is not None:
            found["message_size"] = size
        return found

    def located(self, path: str, reason: str) -> Problem:
        """Return a problem of this slice, with the file and path in the fleet's declaration that cause it."""
        _, _, rest = path.partition(":")
        part, _, below = rest.partition(":")
        name, _, more = below.partition(":")
        tail = f":{more}" if more else ""
        if part == "environments" and name in self._fleet.environments:
            return Problem(self._fleet.environments[name].file, f"environments:{name}{tail}", reason)
        if part == "links" and name.isdigit() and int(name) < len(self._links):
            entry = self._links[int(name)]
            return Problem(entry.file, f"{entry.path}{tail}", reason)
        entry_: HostEntry = self._fleet.hosts[self._host]
        if rest.startswith("broker:hosts:"):
            _, _, other, *key = rest.split(":", 3)
            entry_ = self._fleet.hosts.get(other, entry_)
            return Problem(entry_.file, ":".join(("hosts", other, *key)), reason)
        settings = getattr(entry_.spec, part, None)
        if isinstance(settings, dict) and name not in settings and name in getattr(self._fleet.defaults, part, {}):
            return Problem(self._fleet.settings_file, f"defaults:{rest}", reason)
        return Problem(entry_.file, f"hosts:{self._host}:{rest}", reason)


def _too_many(edges: int, assertions: int) -> str:
    """Return why the proof of the assertions would take too long; empty if it doesn't."""
    if edges > MAX_EDGES:
        return f"more than {MAX_EDGES} edges (an end may reach another); declare fewer replicas, links or rules"
    if edges * assertions > MAX_PROOFS:
        return f"{assertions} assertions about {edges} edges are too many; declare at most {MAX_PROOFS // edges}"
    return ""


def _edges(declared: Fleet, ways: Iterable[_Way], parsed: Mapping[str, Declaration]) -> Iterator[Edge]:
    """Yield an edge for each pair of instances of which one may reach the other, by a link or by an interface."""
    interfaces: dict[str, Interface] = {}
    for host, one in parsed.items():
        interfaces |= {f"{name}@{host}": made for name, made in one.interfaces.items() if made is not None}
    ends = (
        (
            f"{way.entry.source}@{way.source}",
            f"{way.entry.target}@{way.target}",
            way.entry.body.get("pattern") == "request",
            f"{way.entry.file}: {way.entry.path}",
        )
        for way in ways
    )
    yield from never.links(ends)
    yield from never.links(_delegable(declared, parsed))
    yield from never.packets(declared, interfaces)


def _delegable(declared: Fleet, parsed: Mapping[str, Declaration]) -> Iterator[tuple[str, str, bool, str]]:
    """Yield the links that programs may delegate, in the form in which :func:`never.links` takes them."""
    for host, one in parsed.items():
        wanted = delegations.possible(one.environments)
        for link in one.links if wanted else ():
            if link.name in wanted:
                made = wanted[link.name]
                rule = f"environments:{made.holder}:delegates:{made.target}"
                file = declared.environments[made.holder].file
                asks = link.pattern == "request"
                yield f"{link.source}@{host}", f"{link.target}@{host}", asks, f"{file}: {rule}"


def _once(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems without repetitions. All replicas of an environment repeat its problems."""
    return list(dict.fromkeys(problems))
