"""Explanation of one environment of a fleet: why it runs on its hosts, and each host's own explanation of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from netspace.errors import NetspaceError
from netspace.fleet.compile import Compiled
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.place import Reasons
from netspace.fleet.types import Fleet
from netspace.text import hint, printable

MOST = 20
"""The most hosts whose reasons are shown."""

LONGEST = 256 * 1024
"""The most bytes of a host's explanation that are passed on."""

Ask = Callable[[Collection[str], str, Mapping[str, Any]], Mapping[str, Any]]
"""Returns the minions' own answers to a function, by minion; an exception for a minion that failed."""


def explain(declaration: FleetDeclaration, name: str, ask: Ask) -> dict[str, Any]:
    """Return why an environment runs where it does, and ``netspace.explain`` of each host where it should run.

    :param ask: calls a function on minions, and returns their answers.
    :raises NetspaceError: there is no such environment, or the declaration can't be parsed.
    """
    compiled = declaration.check()
    fleet = compiled.declared
    if fleet is None:
        raise NetspaceError("the declaration can't be parsed: salt-run netspace_fleet.check")
    if name not in fleet.environments:
        raise NetspaceError(f"the fleet has no environment {name:.100}; {hint(name, fleet.environments, most=20)}")
    hosts = compiled.placed.get(name, ())
    minions = {host: fleet.minion(host) for host in hosts}
    said = ask(list(minions.values()), "netspace.explain", {"name": name}) if minions else {}
    told = {host: _told(name, minion, said) for host, minion in minions.items()}
    return {
        "explains_in_fleet": name,
        "summary": _summary(name, told),
        "placement": placement(compiled, fleet, name, declaration.reasons(fleet, name)),
        "hosts": told,
    }


def placement(compiled: Compiled, fleet: Fleet, name: str, why: Reasons) -> dict[str, Any]:
    """Return the hosts of an environment, why it runs there, and why other hosts can't have it."""
    placing = fleet.environments[name].placing
    on = compiled.placed.get(name, ())
    wanted = len(why.possible) if placing.replicas == "all" else placing.replicas
    if not on:
        reason = why.problem or "no host that `on` matches is possible"
    elif len(why.possible) <= wanted:
        reason = "these are all hosts that `on` matches and that are possible"
    else:
        reason = f"{len(why.possible)} hosts are possible, {wanted} needed: present ones stay, a hash chooses others"
    return {
        "hosts": list(on),
        "on": list(placing.terms),
        "replicas": placing.replicas,
        "reason": reason,
        "refused": dict(list(why.refused.items())[:MOST]),
        "moves": [f"{one.environment}: {one.reason}" for one in compiled.moves if one.environment == name],
        "missing": [one.text for one in compiled.missing if one.subject in {name, *on}],
        "problems": [str(one) for one in compiled.problems[:MOST]],
    }


def _told(name: str, minion: str, said: Mapping[str, Any]) -> dict[str, Any]:
    answer = said.get(minion, NetspaceError(f"{minion} did not answer in time"))
    if isinstance(answer, NetspaceError):
        return {"error": printable(str(answer))}
    if not isinstance(answer, Mapping) or answer.get("explains") != name or _size(answer) > LONGEST:
        return {"error": f"the answer of {minion} can't be understood; synchronise the minion"}
    return dict(answer)


def _size(answer: object) -> int:
    """Return the size of an answer in bytes of JSON; infinity if the answer isn't plain data."""
    try:
        return len(msgspec.json.encode(answer))
    except (TypeError, ValueError, RecursionError):
        return LONGEST + 1


def _summary(name: str, told: Mapping[str, Mapping[str, Any]]) -> str:
    if not told:
        return f"{name} runs nowhere"
    runs = sum(one.get("state") == "running" for one in told.values())
    silent = sum("error" in one for one in told.values())
    return f"{name} runs on {runs} of {len(told)} hosts{f', and {silent} did not answer' if silent else ''}"
