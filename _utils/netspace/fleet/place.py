"""Placement: the hosts that each environment runs on. Pure.

An environment stays on a host for as long as that host is possible. Replicas without a host get one by rendezvous
hashing (Thaler and Ravishankar 1998): each host has a score that follows from its name and the environment's, and the
highest scores win. So a new host moves no environment. If a host is gone, only its environments move. Even without a
record of earlier placements, the result is the same on every master.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from netspace.errors import NetspaceError
from netspace.fleet.targets import Targets, Waiting
from netspace.fleet.types import Fleet, Missing, Move, Placing, Problem, Published
from netspace.spec.types import LevelName

STAYS = "stays on the drained"
MAX_SCORES = 20_000_000
"""The most hosts that all environments together choose among. A choice computes a hash for each host."""


class Placement(NamedTuple):
    """The hosts of each environment.

    :param hosts: by environment; an environment without a host is absent.
    :param moves: the changes from the previous placement.
    :param missing: the reasons why environments have fewer hosts than declared, though the declaration is right.
    :param problems: the reasons why the declaration can't be fulfilled.
    """

    hosts: Mapping[str, tuple[str, ...]]
    moves: tuple[Move, ...]
    missing: tuple[Missing, ...]
    problems: tuple[Problem, ...]


class _Candidates(NamedTuple):
    possible: tuple[str, ...]
    refused: Mapping[str, str]
    """The reason for each host that matches but isn't possible."""
    waiting: bool
    """True if a host may be possible, but some fact about it is not known yet."""


def score(environment: str, host: str) -> bytes:
    """Return a host's score for an environment: a hash. The hosts with the highest scores get the environment."""
    return hashlib.sha256(f"{environment}\0{host}".encode()).digest()


def choose(key: str, hosts: Iterable[str]) -> str:
    """Return the host with the highest score for *key*."""
    return max(hosts, key=lambda host: score(key, host))


def level(fleet: Fleet, published: Mapping[str, Published], host: str) -> LevelName | None:
    """Return a host's trust level for ``at_least``: the declared level, or else the level when the host joined."""
    declared = fleet.hosts[host].spec.level
    if declared is not None:
        return declared
    facts = published.get(fleet.minion(host))
    return facts.level if facts is not None else None


class Reasons(NamedTuple):
    """The hosts that one environment could run on, and why other hosts can't run it.

    :param possible: the hosts that match ``on`` and are possible.
    :param refused: for each host that matches ``on`` but isn't possible, the reason.
    :param problem: why no host matches ``on``; empty if one does.
    """

    possible: tuple[str, ...]
    refused: Mapping[str, str]
    problem: str = ""


def reasons(fleet: Fleet, published: Mapping[str, Published], nodegroups: Mapping[str, object], name: str) -> Reasons:
    """Return which hosts an environment could run on, and why others can't run it.

    :param name: the name of a declared environment.
    """
    placing = fleet.environments[name].placing
    try:
        matching = Targets(fleet, published, nodegroups).match(placing.terms)
    except NetspaceError as err:
        return Reasons((), {}, str(err))
    levels = {host: level(fleet, published, host) for host in matching}
    found = _candidates(fleet, levels, placing, matching)
    return Reasons(found.possible, found.refused)


def place(
    fleet: Fleet,
    published: Mapping[str, Published],
    nodegroups: Mapping[str, object],
    previous: Mapping[str, tuple[str, ...]],
    remembered: Mapping[str, tuple[str, ...]] | None = None,
    drained: Collection[str] = (),
    claimed: Callable[[], Mapping[str, str]] = dict,
) -> Placement:
    """Return the hosts of each environment.

    :param published: the facts that hosts have published, by minion.
    :param nodegroups: the master's nodegroups.
    :param previous: the hosts of each environment until now.
    :param remembered: the last hosts of environments that run nowhere now.
    :param drained: hosts that get an environment only if no other host is possible.
    :param claimed: returns the former name of each environment in the declaration in force; called only if needed.
    """
    before = {**(remembered or {}), **previous}
    former = fleet.former()
    renamed = _mailboxes(former, previous, remembered or {}, claimed)
    # A renamed environment stays where its former name was: its mailbox is there.
    before |= {name: (*previous.get(name, ()), *hosts) for name, hosts in renamed.items()}
    targets = Targets(fleet, published, nodegroups)
    levels = {host: level(fleet, published, host) for host in fleet.hosts}
    placed: dict[str, tuple[str, ...]] = {}
    moves, missing, problems = list[Move](), list[Missing](), list[Problem]()
    scores = 0
    for name, (file, placing, _) in fleet.environments.items():
        try:
            matching = targets.match(placing.terms)
        except Waiting as err:
            missing.append(Missing(name, f"{name}: {err}"))
            moves += [Move(name, previous[name], (), str(err))] if name in previous else []
            continue
        except NetspaceError as err:
            problems.append(Problem(file, f"environments:{name}:on", str(err).removeprefix("on: ")))
            continue
        candidates = _candidates(fleet, levels, placing, matching)
        free = tuple(host for host in candidates.possible if host not in drained)
        last = tuple(host for host in candidates.possible if host in drained)
        wanted = len(free or last) if placing.replicas == "all" else placing.replicas
        scores += len(candidates.possible) if len(candidates.possible) > wanted else 0
        if scores > MAX_SCORES:
            why = f"environments choose among more than {MAX_SCORES} hosts; name fewer hosts in each on"
            problems.append(Problem(file, f"environments:{name}:on", why))
            break
        prefer = (previous.get(name, ()), before.get(name, ())) if name in renamed else (before.get(name, ()),)
        chosen = _chosen(fleet, name, placing, free, wanted, *prefer)
        if last and len(chosen) < wanted:
            stay = _chosen(fleet, name, placing, last, wanted - len(chosen), *prefer)
            chosen = tuple(sorted((*chosen, *stay)))
            missing.append(Missing(name, f"{name}: {STAYS} {', '.join(stay)}: no other host is possible"))
        if chosen:
            placed[name] = chosen
        if lost := [host for host in renamed.get(name, ()) if host not in chosen and host in fleet.hosts]:
            problems.append(
                Problem(file, f"environments:{name}:formerly", _elsewhere(name, former[name], lost, chosen))
            )
        if not chosen or len(chosen) < wanted:
            text = _too_few(placing, wanted, candidates)
            if candidates.waiting or targets.waits(placing.terms):
                missing.append(Missing(name, f"{name}: {text}"))
            else:
                problems.append(Problem(file, f"environments:{name}:on", text))
        if name in previous and set(previous[name]) != set(chosen):
            why = _why(fleet, candidates, matching, previous[name], chosen, drained)
            moves.append(Move(name, previous[name], chosen, why))
    now = {old: name for name, old in former.items()}
    moves += [
        Move(name, old, (), f"it is renamed to {now[name]}" if name in now else "it is no longer declared")
        for name, old in previous.items()
        if name not in fleet.environments
    ]
    return Placement(placed, tuple(moves), tuple(missing), tuple(problems))


def _mailboxes(
    former: Mapping[str, str],
    previous: Mapping[str, tuple[str, ...]],
    remembered: Mapping[str, tuple[str, ...]],
    claimed: Callable[[], Mapping[str, str]],
) -> dict[str, tuple[str, ...]]:
    """Return the hosts of the mailbox that each renamed environment is about to get. Parameters as for :func:`place`.

    An environment that got its mailbox earlier is left out, since it may have moved after that.
    """
    found = {name: previous[old] for name, old in former.items() if old in previous}
    parked = {name: old for name, old in former.items() if name not in found and old in remembered}
    if any(name in previous for name in parked):
        known = claimed()
        parked = {name: old for name, old in parked.items() if name not in previous or known.get(name) != old}
    return found | {name: remembered[old] for name, old in parked.items()}


def _candidates(
    fleet: Fleet, levels: Mapping[str, LevelName | None], placing: Placing, matching: tuple[str, ...]
) -> _Candidates:
    if placing.at_least is None and placing.spread is None:
        return _Candidates(matching, {}, False)
    refused: dict[str, str] = {}
    waiting = False
    for host in matching:
        own = levels[host]
        if placing.spread is not None and placing.spread not in fleet.hosts[host].spec.labels:
            refused[host] = f"{host} has no label {placing.spread}"
        elif placing.at_least is not None and own is None:
            refused[host] = f"the level of {host} isn't known: salt-run netspace_fleet.join {host}, or declare it"
            waiting = True
        elif placing.at_least is not None and own is not None and own < placing.at_least:
            refused[host] = f"{host} has {own}, and at_least is {placing.at_least}"
    return _Candidates(tuple(host for host in matching if host not in refused), refused, waiting)


def _chosen(
    fleet: Fleet, name: str, placing: Placing, possible: tuple[str, ...], wanted: int, *preferred: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the hosts of one environment, sorted by name: preferred ones first, then those with the highest scores.

    With ``spread``, the hosts have as many different values of that label as possible.

    :param preferred: groups of preferred hosts, such as its present ones. The first group comes first.
    """
    if len(possible) <= wanted:
        return possible
    ranked = sorted(possible, key=lambda host: score(name, host), reverse=True)
    pools, taken = list[list[str]](), set[str]()
    for group in (*preferred, possible):
        members = set(group) - taken
        pools.append([host for host in ranked if host in members])
        taken |= members
    if placing.spread is None:
        return tuple(sorted([host for pool in pools for host in pool][:wanted]))
    label = {host: fleet.hosts[host].spec.labels[placing.spread] for host in possible}
    used: Counter[str] = Counter()
    chosen: list[str] = []
    for pool in pools:
        while pool and len(chosen) < wanted:
            best = min(pool, key=lambda host: used[label[host]])  # the first of equals has the highest score
            pool.remove(best)
            chosen.append(best)
            used[label[best]] += 1
    return tuple(sorted(chosen))


def _elsewhere(name: str, old: str, lost: list[str], chosen: tuple[str, ...]) -> str:
    """Return why an environment can't be renamed and moved at once: a mailbox stays on its host."""
    where = ", ".join(chosen) or "nowhere"
    why = f"the mailbox of {old} is on {', '.join(lost)}, and {name} would run on {where}"
    return f"{why}; rename it there first and move it after the apply, or leave this out, so that the mail is parked"


def _too_few(placing: Placing, wanted: int, candidates: _Candidates) -> str:
    reasons = list(candidates.refused.values())
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    why = "; ".join(reasons[:3]) + more if reasons else "no more hosts match"
    return f"{len(candidates.possible)} of {max(wanted, 1)} hosts are possible: {why}"


def _why(
    fleet: Fleet,
    candidates: _Candidates,
    matching: tuple[str, ...],
    old: tuple[str, ...],
    new: tuple[str, ...],
    drained: Collection[str],
) -> str:
    """Return the reason for a change of an environment's hosts."""
    reasons = []
    for host in sorted(set(old) - set(new)):
        if host not in fleet.hosts:
            reasons.append(f"{host} is no longer declared")
        elif host not in matching:
            reasons.append(f"`on` no longer matches {host}")
        elif host in candidates.refused:
            reasons.append(candidates.refused[host])
        elif host in drained:
            reasons.append(f"{host} is drained")
    if len(old) != len(new):
        reasons.append(f"{len(new)} replicas instead of {len(old)}")
    return "; ".join(reasons)
