"""Hosts of a fleet, as operators name them and as a rollout acts on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from netspace.errors import NetspaceError
from netspace.fleet.compile import Compiled
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.types import Fleet, Problem

CHECK = "salt-run netspace_fleet.check"


class Outcome(NamedTuple):
    """The outcome of an action on one host.

    :param reason: in words; empty if there is nothing to say.
    """

    ok: bool
    reason: str = ""


class Hosts(Protocol):
    """Hosts on which a rollout acts. Each function returns an outcome for each of the given hosts.

    Hosts are named as in the fleet's declaration. Each function may be repeated after the master was killed within it.
    """

    def apply(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Give each host the plan's generation, and apply exactly its plan.

        A host that has that generation and nothing left to do succeeds.
        """

    def take_back(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Give each host its previous generation, and apply it."""

    def healthy(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Tell whether each host's environments are healthy and its trust is as required."""


def sound(problems: Sequence[Problem]) -> None:
    """Refuse a declaration with problems.

    :raises NetspaceError: there are some.
    """
    if problems:
        raise NetspaceError(f"{len(problems)} problems (the first: {problems[0]}): {CHECK}")


def compiled(declaration: FleetDeclaration, but: str = "", *, edges: bool = False) -> tuple[Compiled, Fleet]:
    """Return the declaration as it is now.

    :param but: the path of problems that don't matter.
    :param edges: whether to compute who may reach whom.
    :raises NetspaceError: it has problems.
    """
    found = declaration.check(edges=edges)
    sound([one for one in found.problems if not but or one.path != but])
    if found.declared is None:
        raise NetspaceError(f"the declaration can't be parsed: {CHECK}")
    return found, found.declared


def host(fleet: Fleet, name: str) -> str | None:
    """Return the host that a name or a minion's id means; None if there is none."""
    if name in fleet.hosts:
        return name
    return next((one for one in fleet.hosts if fleet.minion(one) == name), None)


def named(fleet: Fleet, names: Iterable[object]) -> list[str]:
    """Return the hosts that names or minions' ids mean, each once.

    :raises NetspaceError: one is no host of the fleet, or none is named.
    """
    found = [(str(name), host(fleet, str(name))) for name in names]
    if unknown := [name for name, one in found if one is None]:
        raise NetspaceError(f"{', '.join(unknown)}: no host of the fleet; declare it under hosts first")
    if not found:
        raise NetspaceError("name one host or several")
    return list(dict.fromkeys(one for _, one in found if one is not None))
