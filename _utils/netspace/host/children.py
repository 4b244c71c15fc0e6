"""Start and end of children, by the records of the last apply alone. A request's claims aren't believed.

An apply makes stopped environments by each template (``netspace.spec.spawns``). Each is a *place* for one child. To
start a child, netspace applies this one environment with ``state: running`` and the child's values. To end the child,
netspace applies the environment as it was declared. The child's record (``child_records``) is written before the start
and removed after the end. So the next attempt finishes the work of a killed one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from netspace import files
from netspace.environment import runs
from netspace.errors import NetspaceError
from netspace.host import child_records as record
from netspace.host import delegation_records
from netspace.host.cards import Cards, Wanted
from netspace.host.child_records import Child, Run
from netspace.layout import Layout
from netspace.spec import spawns, trust
from netspace.spec.spawns import Place
from netspace.spec.types import Environment, Template

if TYPE_CHECKING:
    from netspace.environment.record import Record

LEDGER, OWN = 0.75, 0.5
"""No child starts if the ledger of runs is filled beyond LEDGER (1: all), or beyond OWN by its parent's children."""

Code = Literal[
    "verb-not-permitted",
    "template-unknown",
    "arguments-invalid",
    "name-in-use",
    "too-many",
    "child-unknown",
    "link-unknown",
    "beyond-right",
    "delegation-unknown",
    "sealed-elsewhere",
    "key-changed",
    "not-available",
]


class Refused(NetspaceError):
    """Error: a request that the keeper answers is refused. It has the answer's code (``docs/host-peer.md``)."""

    def __init__(self, code: Code, text: str) -> None:
        self.code = code
        super().__init__(text)


def run_that_asked(layout: Layout, name: str, asked: float) -> Run:
    """Return the run of an environment's program that sent a request.

    :param asked: the time of the request, in seconds since the boot.
    :raises Refused: this run has ended. A later one has nothing by its requests, since it may be of another image.
    """
    run = record.run_of(layout, name)
    if run is None or run.began > asked:
        raise Refused("not-available", f"{name}: the program that sent the request has ended")
    return run


class Children(Cards):
    """Operations of a host that start and end children."""

    def spawn(
        self, parent: str, template: str, name: str, values: Mapping[str, Any], asked: float = math.inf
    ) -> tuple[str, Child]:
        """Start a child; return its name on the host (its place) and its record.

        :param name: the name by which the parent calls it.
        :param asked: the time of the parent's request, in seconds since the boot. If the parent's program was started
            after this time, the request is refused.
        :raises Refused: the parent may not have such a child, or the host isn't as declared.
        :raises NetspaceError: it can't be started now. The text is for the host's log, not for the parent.
        """
        with self._lock(False):
            spec, made_of = self._template(parent, template)
            if why := spawns.mistyped(made_of, values):
                raise Refused("arguments-invalid", why)
            within = run_that_asked(self.layout, parent, asked)
            places = spawns.places(parent, spec)
            taken = {place: record.read(self.layout, place) for place in record.places(self.layout, _names(places))}
            if any(child is not None and (child.parent, child.name) == (parent, name) for child in taken.values()):
                raise Refused(
                    "name-in-use", f"{name}: another child of {parent} has this name; choose another, or end it"
                )
            given = {name.partition(".")[0] for name in delegation_records.names(self.layout)}
            free = [
                place
                for place in places
                # A place that an operator has started isn't free: its program is no child. And a right that was
                # delegated to an earlier child must have ended.
                if place.template == template
                and place.name not in {*taken, *given}
                and not record.run_of(self.layout, place.name)
            ]
            if not free:
                raise Refused(
                    "too-many", f"{template}: {made_of.at_most} children run already, which is the limit; end one"
                )
            all_of_it, own = runs.filled(self.layout, _names(places))
            if all_of_it > LEDGER or own > OWN:
                raise Refused(
                    "too-many",
                    f"{template}: the host's ledger of runs has no room for more "
                    "starts of children until the host restarts",
                )
            place, there = self._startable(free, parent, spec, made_of)
            until, ends = time.time() + made_of.lifetime, record.now() + made_of.lifetime
            child = Child(parent, template, name, {**made_of.values, **values}, until, ends, within)
            record.write(self.layout, place, child)
            try:
                return place, self._begin(place, there, child)
            except (NetspaceError, OSError) as err:
                self._finish([place])
                raise NetspaceError(f"{place} can't be started: {err}") from err

    def end(self, parent: str, name: str) -> None:
        """End a child, and free its place.

        :raises Refused: the parent has no child of this name.
        :raises NetspaceError: it can't be ended now.
        """
        with self._lock(False):
            known = self.environments.recorded([parent]).get(parent)
            for place in [] if known is None else record.places(self.layout, self._places(parent)):
                child = record.read(self.layout, place)
                if child is not None and (child.parent, child.name) == (parent, name):
                    if errors := self._finish([place]):
                        raise NetspaceError(errors[place])
                    return
        raise Refused("child-unknown", f"{name}: {parent} has no child of this name")

    def children(self, parent: str) -> dict[str, Child]:
        """Return the children of an environment that run, by their places. Changes nothing."""
        found = {}
        for place in sorted(record.places(self.layout, self._places(parent))):
            child = record.read(self.layout, place)
            if child is not None and child.parent == parent and not record.due(self.layout, place):
                found[place] = child
        return found

    def finish(self, places: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
        """End the due children among those at *places* in one apply, and free their places.

        If a child's parent has ended, or the child's lifetime is over, the child is killed at once. Its template's
        ``stop_timeout`` doesn't count then, because the child could use it to live longer.

        :return: two mappings by place: the reason for each child's end, and the errors.
        :raises NetspaceError: none can be ended now.
        """
        with self._lock(False):
            taken = record.places(self.layout, places)
            due = {place: why for place in sorted(taken) if (why := record.due(self.layout, place))}
            for place, why in due.items():
                child = record.read(self.layout, place)
                if why in (record.PARENT_ENDED, record.OVER) and child is not None and child.begun is not None:
                    child.begun.kill()
            return due, self._finish(due)

    def _end_children(self, keep: Collection[str]) -> None:
        taken = record.places(self.layout)
        there = self.environments.names(taken) if taken else set()
        children = {place: record.read(self.layout, place) for place in there}
        lost = [place for place, child in children.items() if child is None or child.parent not in keep]
        if errors := self._finish(lost):
            told = "; ".join(f"{place}: {error}" for place, error in sorted(errors.items()))
            raise NetspaceError(f"children can't be ended: {told}; apply again")

    # -- parts --------------------------------------------------------------------------
    def _template(self, parent: str, template: str) -> tuple[Environment, Template]:
        known = self.environments.recorded([parent]).get(parent)
        if known is None or spawns.VERB not in known.spec.host:
            raise Refused("verb-not-permitted", f"{parent}: the key host of its declaration doesn't list {spawns.VERB}")
        if template not in known.spec.spawns:
            raise Refused("template-unknown", f"{template}: {parent} has {', '.join(sorted(known.spec.spawns))}")
        return known.spec, known.spec.spawns[template]

    def _startable(self, free: list[Place], parent: str, spec: Environment, template: Template) -> tuple[str, Record]:
        """Return the first free place whose rights don't exceed the parent's present rights, and the place's record.

        :raises Refused: the rights of each free place exceed the parent's, the host differs from the declaration, or it
            lacks trust.
        """
        from netspace.environment import record as records

        wanted, why = records.own(spawns.child(spec, template)), ""
        for place in free:
            there = self.environments.readable([place.name])[0].get(place.name)
            if there is None or records.own(_idle(there.spec, template.values)) != wanted:
                why = f"{place.name} isn't as {parent} declares it; the operator must apply again"
            elif wrong := spawns.beyond([place], parent, self._linked().links.values()):
                name, reason = next(iter(wrong.items()))
                why = f"link {name}: {reason}; the operator must apply again"
            elif lacking := trust.withheld({place.name: there.spec}, self.trust()):
                why = lacking[place.name]
            else:
                return place.name, there
        raise Refused("not-available", why)

    def _begin(self, place: str, there: Record, child: Child) -> Child:
        self.links.empty(place)
        spec = msgspec.structs.replace(there.spec, values=child.values, state="running")
        if errors := self._become({place: msgspec.structs.replace(there, spec=spec)}):
            raise NetspaceError(errors[place])
        run = record.run_of(self.layout, place) or Run(files.boot_id(), 0, 0)  # it may have ended already
        begun = msgspec.structs.replace(child, begun=run)
        record.write(self.layout, place, begun)
        return begun

    def _finish(self, places: Collection[str]) -> dict[str, str]:
        """Stop the children at these places, restore the declared environments, and free the places.

        :return: the errors, by place.
        """
        if not places:
            return {}
        # Kill first: a damaged record, of the place or of the parent, must not keep a child alive.
        errors = self.environments.stop(self.environments.names(places))
        there, _ = self.environments.readable(places)  # an apply reports one that is damaged
        children = {place: child for place in there if (child := record.read(self.layout, place)) is not None}
        parents, _ = self.environments.readable({child.parent for child in children.values()})
        idle = {}
        for place, known in there.items():
            child = children.get(place)
            parent = None if child is None else parents.get(child.parent)
            template = None if child is None or parent is None else parent.spec.spawns.get(child.template)
            spec = _idle(known.spec, {} if template is None else template.values)
            idle[place] = msgspec.structs.replace(known, spec=spec)
        errors = {**errors, **(self._become(idle) if idle else {})}
        for place in places:
            if place in errors:
                continue
            try:
                self.links.empty(place)  # again at the next start; here, so that nothing is left
            except NetspaceError as err:
                sys.stderr.write(f"netspace keeper: {place}: its messages stay until the next start: {err}\n")
            record.remove(self.layout, place)
        return errors

    def _become(self, wanted: Mapping[str, Record]) -> dict[str, str]:
        """Apply these records of environments, with their recorded links; return the errors, by name.

        :raises NetspaceError: none can be applied.
        """
        known = self._linked().links.values()
        links = tuple(link for link in known if link.source in wanted or link.target in wanted)
        specs = {name: Wanted(one.spec, one.spec.state, one.profile, one.runtime) for name, one in wanted.items()}
        result = self._run_environments(self._desired(specs, links, recorded=True), (), False, programs=False)
        refused = {refusal.name: refusal.message for refusal in result.plan.refusals}
        return {**refused, **{one.step.name: one.error for one in result.failures}}


def _names(places: list[Place]) -> list[str]:
    return [place.name for place in places]


def _idle(spec: Environment, values: Mapping[str, Any]) -> Environment:
    return msgspec.structs.replace(spec, values=dict(values), state="stopped")
