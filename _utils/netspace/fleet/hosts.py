"""Hosts of a fleet: looked up by the names that operators type, and the actions of a rollout on them."""

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

    :param ok: whether the action succeeded.
    :param reason: an explanation for the operator; may be empty.
    """

    ok: bool
    reason: str = ""


class Hosts(Protocol):
    """Hosts on which a rollout acts. Each function returns an outcome for each of the given hosts.

    Hosts are named as in the fleet's declaration. Each function may be repeated after the master was killed within it.
    """

    def apply(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Give each host its slice of the planned declaration; the host then applies its plan, and nothing else.

        A host that has this slice and nothing left to do succeeds.
        """

    def take_back(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Give each host its previous slice, and apply that."""

    def healthy(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Check whether each host's environments are healthy and its trust is as required."""


def sound(problems: Sequence[Problem]) -> None:
    """Raise an error if a declaration has problems.

    :raises NetspaceError: *problems* isn't empty.
    """
    if problems:
        raise NetspaceError(f"{len(problems)} problems (the first: {problems[0]}): {CHECK}")


def compiled(declaration: FleetDeclaration, but: str = "", *, edges: bool = False) -> tuple[Compiled, Fleet]:
    """Return the present declaration, compiled and parsed.

    :param but: the path of problems that are ignored; empty: none.
    :param edges: whether to compute who may reach whom.
    :raises NetspaceError: the declaration has other problems.
    """
    found = declaration.check(edges=edges)
    sound([one for one in found.problems if not but or one.path != but])
    if found.declared is None:
        raise NetspaceError(f"the declaration can't be parsed: {CHECK}")
    return found, found.declared


def host(fleet: Fleet, name: str) -> str | None:
    """Return the host that is named by its own name or by its minion's id; None if there is none."""
    if name in fleet.hosts:
        return name
    return next((one for one in fleet.hosts if fleet.minion(one) == name), None)


def named(fleet: Fleet, names: Iterable[object]) -> list[str]:
    """Return the hosts for names or minions' ids, each host once.

    :raises NetspaceError: a name belongs to no host of the fleet, or *names* is empty.
    """
    found = [(str(name), host(fleet, str(name))) for name in names]
    if unknown := [name for name, one in found if one is None]:
        raise NetspaceError(f"{', '.join(unknown)}: not a host of the fleet; declare it under hosts first")
    if not found:
        raise NetspaceError("name one host or several")
    return list(dict.fromkeys(one for _, one in found if one is not None))
