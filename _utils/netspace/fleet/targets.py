"""Hosts that the terms of an environment's ``on`` match. Pure.

A term matches by a host's name, or by its minion's id, which Salt has authenticated. A grain is a host's claim about
itself: by a false grain, an attacker with root on a host could make the fleet place environments there. So a term that
matches by a grain is refused, unless the declaration names the grain under ``trusted_grains``. If it does, the grain's
value at the time when the host joined counts.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from netspace.errors import NetspaceError
from netspace.fleet.types import Fleet, Published
from netspace.spec import minion_terms

_GLOB = frozenset("*?[")


class Waiting(NetspaceError):
    """Error: a term matches no host yet, but may match a host once that host has joined."""


class Targets:
    """Lookup of the hosts that terms of ``on`` match. Each term is looked up once; its result is cached.

    :param published: the facts that hosts have published, by minion.
    :param nodegroups: the master's nodegroups.
    """

    def __init__(self, fleet: Fleet, published: Mapping[str, Published], nodegroups: Mapping[str, Any]) -> None:
        self._fleet, self._published, self._nodegroups = fleet, published, nodegroups
        self._ids = {host: {host, fleet.minion(host)} for host in fleet.hosts}
        self._found: dict[str, tuple[str, ...]] = {}

    def match(self, terms: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the hosts that at least one of *terms* matches.

        :raises NetspaceError: a term is refused, or matches no host.
        :raises Waiting: no host matches yet.
        """
        if len(terms) == 1:
            return self._one(terms[0])
        found, waiting = set[str](), None
        for term in terms:
            try:
                found |= set(self._one(term))
            except Waiting as err:
                waiting = err
        if waiting is not None and not found:
            raise waiting
        return tuple(sorted(found))

    def waits(self, terms: tuple[str, ...]) -> bool:
        """Return whether more hosts may match once they have joined."""
        return any(term.startswith("G@") and self._unknown(term[2:].rpartition(":")[0]) for term in terms)

    def _unknown(self, grain: str) -> list[str]:
        """Return the hosts whose value of a grain isn't known."""
        known = {host: self._published.get(self._fleet.minion(host)) for host in self._fleet.hosts}
        return [host for host, facts in known.items() if facts is None or grain not in facts.grains]

    def _one(self, term: str) -> tuple[str, ...]:
        if term in self._fleet.hosts:
            return (term,)
        if term not in self._found:
            self._found[term] = self._matched(term)
        if not self._found[term] and self.waits((term,)):
            hosts = self._unknown(term[2:].rpartition(":")[0])
            more = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
            remedy = f"salt-run netspace_fleet.join {' '.join(hosts[:3])}"
            raise Waiting(f"{term!r:.100} matches no host yet; {len(hosts)} hosts lack that grain: {remedy}{more}")
        if not self._found[term]:
            alone = not set(term) & _GLOB and term[1:2] != "@"
            what = "is neither a host nor a host's minion id" if alone else "matches no host"
            raise NetspaceError(f"{term!r:.100} {what}; declare the host under hosts")
        return self._found[term]

    def _matched(self, term: str) -> tuple[str, ...]:
        if term[:2] in ("G@", "P@"):
            return self._by_grain(term)
        terms = minion_terms.expand(term, "on", self._nodegroups)
        return tuple(
            sorted(
                host
                for host, ids in self._ids.items()
                if any(minion_terms.matches(one, each) for one in ids for each in terms)
            )
        )

    def _by_grain(self, term: str) -> tuple[str, ...]:
        grain, _, wanted = term[2:].rpartition(":")
        if term[0] != "G" or not grain or grain not in self._fleet.trusted_grains:
            raise NetspaceError(
                f"{term!r:.100}: a grain is a host's claim about itself, so an attacker on a host could attract the "
                "environment to it; match by ids or labels of your own, or name the grain under trusted_grains"
            )
        known = {host: self._published.get(self._fleet.minion(host)) for host in self._fleet.hosts}
        return tuple(
            sorted(
                host
                for host, facts in known.items()
                if facts is not None and grain in facts.grains and fnmatch.fnmatchcase(facts.grains[grain], wanted)
            )
        )
