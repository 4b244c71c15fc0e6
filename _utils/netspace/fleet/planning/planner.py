"""Making and applying plans of a fleet: the master calls the hosts' minions, and gives each host its slice.

Each minion's answer must be signed with its key (``own_answers``). A forged answer could let an operator apply a plan
that nobody has looked at, or let a rollout go on after a host has failed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from netspace.errors import NetspaceError
from netspace.fleet import given, hosts
from netspace.fleet.compile import Compiled
from netspace.fleet.declaration import FleetDeclaration
from netspace.fleet.given import NONE, Candidate
from netspace.fleet.hosts import Outcome
from netspace.fleet.planning import plans
from netspace.fleet.planning.plans import Change, HostPlan
from netspace.fleet.planning.records import HostRecord, PlanRecord, Plans

BATCH = 32
"""The most hosts of one message, if the message has a value of its own for each host."""
MAX_TOLD = 300
Heard = Callable[[str, Any], None]
Calls = Sequence[tuple[Sequence[str], Mapping[str, Any]]]


class Minions(Protocol):
    """Calls of the functions of a fleet's minions."""

    def each(self, function: str, calls: Calls, timeout: float, heard: Heard) -> None:
        """Call a function on many minions, each at its own speed.

        :param calls: pairs: minions, and the arguments of the call to them.
        :param heard: a function that is called for each minion as soon as it answers, with the minion and its answer.
            The answer is a ``NetspaceError`` if the minion failed or did not answer in time.
        :raises NetspaceError: no minion can be called at all.
        """

    def tell(self, function: str, minions: Sequence[str]) -> None:
        """Call a function on minions, without waiting for results."""


def make(declaration: FleetDeclaration, names: Sequence[object], minions: Minions, timeout: float) -> PlanRecord:
    """Make a plan of the whole fleet, or of some hosts, and keep it.

    :param names: names of hosts, or ids of their minions; empty: all.
    :raises NetspaceError: the declaration has problems, or no minion can be called.
    """
    compiled, candidate = _compiled(declaration)
    if compiled.declared is None:
        raise NetspaceError(f"the declaration can't be parsed: {hosts.CHECK}")
    fleet = compiled.declared
    of = {host: fleet.minion(host) for host in (hosts.named(fleet, names) if names else fleet.hosts)}
    generation = candidate.generation if candidate is not None else ""
    found, silent = _gathered(of, {"generation": generation}, minions, timeout)
    new = candidate.digests if candidate is not None else {}
    old = {minion: declaration.given.digest_of(minion) if candidate is not None else "" for minion in of.values()}
    records = {
        host: HostRecord(of[host], plan, old[of[host]], new.get(of[host], "")) for host, plan in sorted(found.items())
    }
    if candidate is not None and not names:
        records |= _leaving(declaration, set(candidate.digests))
    record = PlanRecord(
        plans.identity({host: one.plan for host, one in records.items()}),
        time.time(),
        generation,
        candidate is not None and not fleet.planned,
        records,
        silent,
        tuple((one.environment, one.reason) for one in compiled.moves[:1000]),
    )
    store = plans_of(declaration)
    with declaration.store.lock():
        store.keep(record)
        declaration.given.forget(store.generations())
    return record


def drift(declaration: FleetDeclaration, names: Sequence[object], minions: Minions, timeout: float) -> PlanRecord:
    """Return the plan that would undo the drift of hosts. This plan isn't kept.

    With ``apply: planned``, a host compares its state with the slice that it was given. Without this setting, a saved
    change of the declaration is in force at once, so a host compares its state with the declaration that it applied
    last.

    :raises NetspaceError: the declaration can't be parsed, or no minion can be called.
    """
    planned = declaration.given.active()
    sections = declaration.sections()
    known = {str(section["broker"]["host"]): minion for minion, section in sections.items()}
    wanted = [str(name) for name in names]
    of = {host: one for host, one in known.items() if not wanted or host in wanted or one in wanted}
    if unknown := [name for name in wanted if name not in of and name not in of.values()]:
        raise NetspaceError(f"{', '.join(unknown)}: not a host or minion of the fleet's declaration in force")
    found, silent = _gathered(of, {"applied": not planned}, minions, timeout)
    records = {host: HostRecord(of[host], plan) for host, plan in sorted(found.items())}
    return PlanRecord(plans.identity(found), time.time(), "", False, records, silent)


def plans_of(declaration: FleetDeclaration) -> Plans:
    """Return the store of the master's plans."""
    return Plans(declaration.store.folder / "plans")


def _compiled(declaration: FleetDeclaration) -> tuple[Compiled, Candidate | None]:
    """Compile the declaration. With ``apply: planned``, the result is kept as a candidate; else it is put in force.

    :return: the compiled declaration and the candidate, if any.
    :raises NetspaceError: the declaration has problems.
    """
    if not declaration.given.active() and (refusal := declaration.apply()) is not None:
        raise NetspaceError(f"{refusal.count} problems: {hosts.CHECK}")
    if not declaration.given.active():
        return hosts.compiled(declaration)[0], None
    compiled, candidate = declaration.candidate()
    hosts.sound(compiled.problems)
    return compiled, candidate


def _leaving(declaration: FleetDeclaration, declared: set[str]) -> dict[str, HostRecord]:
    """Return plans for hosts that are no longer declared. Such hosts lose their slices, but their programs go on."""
    found = {}
    why = "it is no longer declared, and gets no pillar of the fleet any more; its programs go on"
    for minion, section in declaration.given.sections().items():
        if minion not in declared:
            host, old = str(section["broker"]["host"]), declaration.given.digest_of(minion)
            hashed = hashlib.sha256(plans.encoded((minion, NONE))).hexdigest()
            digest = hashlib.sha256(plans.encoded((minion, old, NONE))).hexdigest()
            plan = HostPlan(digest, hashed, (Change("host", host, "leave", {}, why),))
            found[host] = HostRecord(minion, plan, old, NONE)
    return found


def _gathered(
    of: Mapping[str, str], arguments: Mapping[str, Any], minions: Minions, timeout: float
) -> tuple[dict[str, HostPlan], dict[str, str]]:
    """Return the plans by host, and for each host without a plan the reason.

    :param of: the hosts' minions.
    """
    host_of = {minion: host for host, minion in of.items()}
    found: dict[str, HostPlan] = {}
    silent: dict[str, str] = {}

    def heard(minion: str, answer: Any) -> None:
        host = host_of[minion]
        try:
            if isinstance(answer, NetspaceError):
                raise answer
            found[host] = plans.received(answer)
        except NetspaceError as err:
            silent[host] = str(err)[:MAX_TOLD]

    minions.each("netspace_fleet.plan", [(list(of.values()), arguments)], timeout, heard)
    return found, silent


class PlannedHosts:
    """The hosts of a plan, called over Salt's bus (:class:`netspace.fleet.hosts.Hosts`).

    :param told: a function that is called with each host and its outcome, as soon as the outcome is known.
    :param gate: the conditions that a healthy host must meet.
    """

    def __init__(
        self,
        declaration: FleetDeclaration,
        record: PlanRecord,
        minions: Minions,
        timeout: float,
        told: Callable[[str, Outcome], None] = lambda host, outcome: None,
        gate: Sequence[str] = ("health", "trust"),
    ) -> None:
        self._declaration, self._given, self._record = declaration, declaration.given, record
        self._minions, self._timeout, self._told = minions, timeout, told
        self._gate = list(gate)

    def apply(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Apply exactly the hosts' plans.

        The master gives a host its new slice once the host has applied it. If the master is killed in between, the host
        has applied the new slice, but the master still has the old slice for it. If the host then applies its pillar,
        it returns to the old slice. If the plan is applied again, nothing is left to do on the host, and the master
        gives it the new slice.
        """
        found: dict[str, Outcome] = {}
        asked = []
        for host in dict.fromkeys(hosts):
            outcome = self._before(host)
            if outcome is None:
                asked.append(host)
            else:
                self._note(found, host, outcome)
        generation = self._record.generation

        def arguments(some: Sequence[str]) -> dict[str, Any]:
            return {"generation": generation, "expected": [self._record.hosts[host].plan.digest for host in some]}

        def judged(host: str, answer: Any) -> Outcome:
            done = plans.told_outcome(answer)
            if not done.applied:
                return Outcome(False, done.reason)
            self._promote(host)
            return Outcome(True, done.reason)

        self._ask("netspace_fleet.apply", asked, arguments, judged, found)
        if generation:
            self._refresh([self._record.hosts[host].minion for host in asked if found[host].ok])
            self._settle()
        return found

    def take_back(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Give the hosts the slices that they had when the plan was made, and apply these slices.

        A host that failed half-way was not given the plan's slice. It applies its present slice again.
        """
        found: dict[str, Outcome] = {}
        asked = []
        for host in dict.fromkeys(hosts):
            known = self._record.hosts.get(host)
            if not self._record.generation or known is None or not self._given.active():
                why = "it isn't in the plan" if known is None else "without `apply: planned`, no previous slice is kept"
                self._note(found, host, Outcome(False, why))
                continue
            try:
                with self._declaration.store.lock():
                    self._given.take_back(known.minion, known.new, known.old)
            except (NetspaceError, OSError) as err:
                self._note(found, host, Outcome(False, str(err)))
                continue
            if self._given.digest_of(known.minion) == NONE:
                why = "it had no slice before, so its programs go on: salt-call netspace.teardown removes them"
                self._note(found, host, Outcome(False, why))
            else:
                asked.append(host)

        def judged(host: str, answer: Any) -> Outcome:
            done = plans.told_outcome(answer)
            return Outcome(done.applied, done.reason)

        self._ask("netspace_fleet.apply", asked, lambda some: {}, judged, found)
        self._refresh([self._record.hosts[host].minion for host in asked])
        return found

    def healthy(self, hosts: Sequence[str]) -> Mapping[str, Outcome]:
        """Check whether each host's environments are healthy, and have the trust that they require."""
        found: dict[str, Outcome] = {}
        known = [host for host in dict.fromkeys(hosts) if host in self._record.hosts]
        for host in dict.fromkeys(hosts):
            if host not in self._record.hosts:
                found[host] = Outcome(False, "it isn't in the plan")

        def judged(host: str, answer: Any) -> Outcome:
            if not isinstance(answer, list):
                raise NetspaceError("its answer doesn't say whether it is healthy")
            return Outcome(not answer, "; ".join(str(one)[:MAX_TOLD] for one in answer[:3]))

        self._ask("netspace_fleet.ailing", known, lambda some: {"gate": self._gate}, judged, found)
        return found

    # -- steps ------------------------------------------------------------------------
    def _before(self, host: str) -> Outcome | None:
        """Return the outcome for a host that needn't be called; None if it must be called."""
        known = self._record.hosts.get(host)
        if known is None:
            why = self._record.silent.get(host)
            return Outcome(False, f"it has no plan{f': {why}' if why else ''}; plan again")
        if not self._record.generation:
            return None if known.plan.steps else Outcome(True, "nothing to do")
        if not self._given.active():
            return Outcome(False, "the fleet's declaration no longer has the setting 'apply: planned'; plan again")
        if self._given.candidate(self._record.generation) is None:
            return Outcome(False, "the declaration of this plan was deleted; plan again")
        now = self._given.digest_of(known.minion)
        if now == known.new and (now != known.old or not known.plan.steps):
            return Outcome(True, "it has this slice already")
        if now not in (known.old, known.new):
            return Outcome(False, "the host got another slice in the meantime; plan again")
        if known.new == NONE:
            try:
                self._promote(host)
            except (NetspaceError, OSError) as err:
                return Outcome(False, str(err))
            return Outcome(True, "it gets no pillar of the fleet any more")
        return None

    def _promote(self, host: str) -> None:
        """Give a host its slice of the candidate.

        :raises NetspaceError: the host was given another slice meanwhile.
        """
        known = self._record.hosts[host]
        if not self._record.generation:
            return
        with self._declaration.store.lock():
            raw = None
            if known.new != NONE:
                raw = given.encoded(self._given.candidate_slice(self._record.generation, known.minion))
            self._given.promote(known.minion, raw, known.old)

    def _settle(self) -> None:
        if self._record.ends:
            with self._declaration.store.lock():
                self._given.settle(self._record.generation, self._given.sections(), self._declaration.store)

    def _refresh(self, minions: Sequence[str]) -> None:
        if minions:
            self._minions.tell("saltutil.refresh_pillar", minions)

    def _ask(
        self,
        function: str,
        asked: Sequence[str],
        arguments: Callable[[Sequence[str]], Mapping[str, Any]],
        judged: Callable[[str, Any], Outcome],
        found: dict[str, Outcome],
    ) -> None:
        """Call a function on hosts, and add an outcome for each of them to *found*.

        :param arguments: returns the arguments of the call to the given hosts.
        :param judged: returns the outcome that follows from an answer, or raises ``NetspaceError``.
        """
        host_of = {self._record.hosts[host].minion: host for host in asked}

        def heard(minion: str, answer: Any) -> None:
            host = host_of[minion]
            try:
                if isinstance(answer, NetspaceError):
                    raise answer
                self._note(found, host, judged(host, answer))
            except (NetspaceError, OSError) as err:
                self._note(found, host, Outcome(False, str(err)[:MAX_TOLD]))

        calls = [([self._record.hosts[host].minion for host in some], arguments(some)) for some in _parts(asked)]
        why = "it was not asked"
        try:
            self._minions.each(function, calls, self._timeout, heard)
        except NetspaceError as err:
            why = str(err)[:MAX_TOLD]
        for host in asked:
            if host not in found:
                self._note(found, host, Outcome(False, why))

    def _note(self, found: dict[str, Outcome], host: str, outcome: Outcome) -> None:
        found[host] = outcome
        self._told(host, outcome)


def _parts(hosts: Sequence[str]) -> Iterable[Sequence[str]]:
    return (hosts[start : start + BATCH] for start in range(0, len(hosts), BATCH))
