"""Hosts of a kept plan, for a rollout.

Over Salt's bus, each gets its slice of the declaration that the plan was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from netspace.errors import NetspaceError
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.hosts import Outcome
from netspace.fleet.planning import planner
from netspace.fleet.planning.planner import Calls, Heard, PlannedHosts
from netspace.fleet.planning.records import PlanRecord
from netspace.fleet.policy import Pace
from netspace.fleet.rollout.control import Changes

LOOKS, SHORTEST = 3, 10.0
"""How often a host is asked for its health until the deadline, and the fewest seconds that it has for each answer."""

Attest = Callable[[Sequence[str]], None]
"""Attests minions; raises ``NetspaceError`` if that isn't possible at all."""


def changes(declaration: FleetDeclaration, plan: object) -> Changes:
    """Return the changes that a kept plan makes.

    :raises NetspaceError: there is no such plan, or the fleet lacks ``apply: planned``, so that nothing could be taken
        back.
    """
    record = planner.plans_of(declaration).read(plan)
    if not record.generation:
        raise NetspaceError(
            "without `apply: planned` in the fleet's file, hosts get a saved change at once, and nothing is kept that "
            "could be taken back; write that line, plan, and roll that plan out; or use netspace_fleet.apply"
        )
    hosts = record.changing()
    given = declaration.given.sections()
    old = {host: given.get(record.hosts[host].minion, {}) for host in hosts}
    new = {host: _section(declaration, record, host) for host in hosts}
    return Changes(record.id, tuple(hosts), old, new)


def _section(declaration: FleetDeclaration, record: PlanRecord, host: str) -> Mapping[str, Any]:
    """Return a host's section ``netspace`` of the pillar, by the declaration that the plan was made from."""
    found = declaration.given.candidate_slice(record.generation, record.hosts[host].minion) or {}
    section: Mapping[str, Any] = found.get("netspace", {})
    return section


class _Noting:
    """Calls to minions, with a note whether a call failed because no minion could be called at all.

    In that case ``PlannedHosts`` counts each host as failed. A rollout must not do that: no host has changed, and the
    rollout can go on once the master runs again.
    """

    def __init__(self, minions: planner.Minions) -> None:
        self._minions = minions
        self._down: NetspaceError | None = None

    def each(self, function: str, calls: Calls, timeout: float, heard: Heard) -> None:
        try:
            self._minions.each(function, calls, timeout, heard)
        except NetspaceError as err:
            self._down = err
            raise

    def tell(self, function: str, minions: Sequence[str]) -> None:
        self._minions.tell(function, minions)

    @contextmanager
    def up(self) -> Iterator[None]:
        """Raise an error when the context ends, if a call in it failed because no minion could be called."""
        self._down = None
        yield
        if self._down is not None:
            raise self._down


class RolledOut:
    """The hosts of a kept plan, as a rollout calls them (:class:`netspace.fleet.rollout.machine.RolloutHosts`).

    :param plan: the plan's id.
    :param attest: attests minions.
    :param gate: the conditions that a changed host must meet.
    :param timeout: seconds that a host may take for each step.
    """

    def __init__(
        self,
        declaration: FleetDeclaration,
        plan: str,
        minions: planner.Minions,
        attest: Attest,
        pace: Pace,
        timeout: float,
    ) -> None:
        self._declaration, self._plan, self._attest = declaration, plan, attest
        self._gate, self._timeout = tuple(pace.gate), timeout
        self._look = min(timeout, max(SHORTEST, pace.deadline / LOOKS))
        self._minions = _Noting(minions)

    def prepare(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Attest the hosts that the master verifies, and let all hosts fetch or build their images."""
        record = self._record()
        asked = [host for host in hosts if _section(self._declaration, record, host)]
        found = {host: Outcome(True) for host in hosts if host not in asked}  # such a host only loses its slice
        if "trust" in self._gate:
            by_master = [
                record.hosts[host].minion
                for host in asked
                if _section(self._declaration, record, host).get("attestation", {}).get("verifier") == "master"
            ]
            if by_master:
                self._attest(by_master)
        host_of = {record.hosts[host].minion: host for host in asked}

        def heard(minion: str, answer: Any) -> None:
            found[host_of[minion]] = _ready(answer)

        calls = [(list(host_of), {"generation": record.generation, "gate": list(self._gate)})]
        self._minions.each("netspace_fleet.prepare", calls, self._timeout, heard)
        return found

    def apply(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        with self._minions.up():
            return self._hosts(self._timeout).apply(hosts)

    def take_back(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        with self._minions.up():
            return self._hosts(self._timeout).take_back(hosts)

    def healthy(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        with self._minions.up():
            return self._hosts(self._look).healthy(hosts)

    def _hosts(self, timeout: float) -> PlannedHosts:
        return PlannedHosts(self._declaration, self._record(), self._minions, timeout, gate=self._gate)

    def _record(self) -> PlanRecord:
        """Return the plan from the store. Reading it also marks it as used, so that it is kept longer."""
        return planner.plans_of(self._declaration).read(self._plan)


def _ready(answer: Any) -> Outcome:
    if isinstance(answer, NetspaceError):
        return Outcome(False, str(answer)[: planner.MAX_TOLD])
    if not isinstance(answer, list):
        return Outcome(False, "its answer doesn't say whether it is prepared; synchronise it (saltutil.sync_all)")
    return Outcome(not answer, "; ".join(str(one)[: planner.MAX_TOLD] for one in answer[:3]))
