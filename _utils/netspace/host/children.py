"""Start and end of children, from the records of the last apply alone. The caller's claims count for nothing.

A child is an environment that an apply made as its template says (``netspace.spec.spawns``): a place. To start a child
is an apply of this one environment with ``state: running`` and the child's values; to end it, an apply of it as it was
declared. The record of the child (``record``) is written before the first and removed after the second. So the next
attempt finishes what a killed one began.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from netspace import files
from netspace.errors import NetspaceError
from netspace.host import child_records as record
from netspace.host.cards import Cards, Wanted
from netspace.host.child_records import Child, Run
from netspace.layout import Layout
from netspace.spec import spawns, trust
from netspace.spec.spawns import Place
from netspace.spec.types import Environment, Template

if TYPE_CHECKING:
    from netspace.environment.record import Record

Code = Literal[
    "verb-not-permitted",
    "template-unknown",
    "arguments-invalid",
    "name-in-use",
    "too-many",
    "child-unknown",
    "not-available",
]


class Refused(NetspaceError):
    """The refusal of a request about children, with its code (``docs/host-peer.md``)."""

    def __init__(self, code: Code, text: str) -> None:
        self.code = code
        super().__init__(text)


class Children(Cards):
    """Use cases that start and end children."""

    def spawn(self, parent: str, template: str, name: str, values: Mapping[str, Any]) -> tuple[str, Child]:
        """Start a child; return its place and its record.

        :param name: the name by which the parent calls it.
        :raises Refused: the parent may not have such a child, or it can't be started now.
        """
        with self._lock(False):
            spec, made_of = self._template(parent, template)
            if why := spawns.mistyped(made_of, values):
                raise Refused("arguments-invalid", why)
            within = record.run_of(self.layout, parent)
            if within is None:
                raise Refused("not-available", f"{parent} doesn't run")
            places = spawns.places(parent, spec)
            taken = {place: record.read(self.layout, place) for place in record.places(self.layout, _names(places))}
            if any(child is not None and (child.parent, child.name) == (parent, name) for child in taken.values()):
                raise Refused(
                    "name-in-use", f"{name}: another child of {parent} has this name; choose another, or end it"
                )
            free = [
                place
                for place in places
                # An operator may have started a place. What runs there is nobody's child.
                if place.template == template and place.name not in taken and not record.run_of(self.layout, place.name)
            ]
            if not free:
                raise Refused("too-many", f"{template}: {made_of.at_most} children run, and no more may; end one")
            there = self._startable(free[0], parent, spec, made_of)
            until = time.time() + made_of.lifetime
            child = Child(parent, template, name, {**made_of.values, **values}, until, within)
            record.write(self.layout, free[0].name, child)
            try:
                return free[0].name, self._begin(free[0].name, there, child)
            except (NetspaceError, OSError) as err:
                self._finish(free[0].name)
                raise Refused("not-available", f"{name} can't be started: {err}") from err

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
                    return self._finish(place)
        raise Refused("child-unknown", f"{name}: {parent} has no child of this name")

    def children(self, parent: str) -> dict[str, Child]:
        """Return the children of an environment that run, by their places. Changes nothing."""
        found = {}
        for place in sorted(record.places(self.layout, self._places(parent))):
            child = record.lasting(self.layout, place)
            if child is not None and child.parent == parent and child.begun is not None and child.begun.lasts():
                found[place] = child
        return found

    def due(self, place: str) -> str:
        """Return why the child at a place must end; empty if it may go on. Changes nothing."""
        child = record.read(self.layout, place)
        if child is None:
            return "its record is damaged"
        if child.begun is None:
            return "its start was interrupted"
        if not child.within.lasts():
            return f"its parent {child.parent} has ended"
        if not child.begun.lasts():
            return "its program has ended"
        if time.time() >= child.until:
            return "its lifetime is over"
        if child.template not in self._templates(child.parent):
            return "its template is gone"
        return "" if self.environments.names([place]) else "its environment is gone"

    def finish(self, place: str) -> None:
        """End the child at a place if it is due, and free the place.

        :raises NetspaceError: it can't be ended now.
        """
        with self._lock(False):
            if place in record.places(self.layout, [place]) and self.due(place):
                self._finish(place)

    def _templates(self, parent: str) -> frozenset[str]:
        from netspace.environment import record as records

        path = records.path(self.layout, parent)
        return _templates(self.layout, parent, files.stamp(path)) if path.exists() else frozenset()

    # -- parts --------------------------------------------------------------------------
    def _template(self, parent: str, template: str) -> tuple[Environment, Template]:
        known = self.environments.recorded([parent]).get(parent)
        if known is None or spawns.VERB not in known.spec.host:
            raise Refused("verb-not-permitted", f"{parent}: its declaration has no host: [{spawns.VERB}]")
        if template not in known.spec.spawns:
            raise Refused("template-unknown", f"{template}: {parent} has {', '.join(sorted(known.spec.spawns))}")
        return known.spec, known.spec.spawns[template]

    def _startable(self, place: Place, parent: str, spec: Environment, template: Template) -> Record:
        """Return the record of a place if what runs there may do no more than its parent may now.

        :raises Refused: it could do more, or the host isn't as declared, or lacks trust.
        """
        from netspace.environment import record as records

        there = self.environments.recorded([place.name]).get(place.name)
        wanted = records.own(spawns.child(spec, template))
        if there is None or records.own(_idle(there.spec, template.values)) != wanted:
            raise Refused("not-available", f"{place.name} isn't as {parent} declares it; the operator must apply again")
        if wrong := spawns.beyond([place], parent, self._linked().links.values()):
            name, why = next(iter(wrong.items()))
            raise Refused("not-available", f"link {name}: {why}; the operator must apply again")
        if lacking := trust.withheld({place.name: there.spec}, self.trust()):
            raise Refused("not-available", lacking[place.name])
        return there

    def _begin(self, place: str, there: Record, child: Child) -> Child:
        self.links.empty(place)
        self._become(place, there, msgspec.structs.replace(there.spec, values=child.values, state="running"))
        run = record.run_of(self.layout, place) or Run(record.boot(), 0, 0)  # it may have ended already
        begun = msgspec.structs.replace(child, begun=run)
        record.write(self.layout, place, begun)
        return begun

    def _finish(self, place: str) -> None:
        there = self.environments.recorded([place]).get(place)
        if there is not None:
            child = record.read(self.layout, place)
            parent = None if child is None else self.environments.recorded([child.parent]).get(child.parent)
            template = None if child is None or parent is None else parent.spec.spawns.get(child.template)
            self._become(place, there, _idle(there.spec, {} if template is None else template.values))
            try:
                self.links.empty(place)  # again at the next start; here, so that nothing is left
            except NetspaceError as err:
                sys.stderr.write(f"netspace keeper: {place}: its messages stay until the next start: {err}\n")
        record.remove(self.layout, place)

    def _become(self, place: str, there: Record, spec: Environment) -> None:
        """Apply one environment with its recorded links.

        :raises NetspaceError: it can't be applied.
        """
        links = tuple(link for link in self._linked().links.values() if place in (link.source, link.target))
        wanted = Wanted(spec, spec.state, there.profile, there.runtime)
        result = self._run_environments(self._desired({place: wanted}, links, recorded=True), (), False, programs=False)
        for one in result.failures:
            raise NetspaceError(one.error)
        for refusal in result.plan.refusals:
            raise NetspaceError(refusal.message)


@functools.lru_cache(maxsize=64)
def _templates(layout: Layout, parent: str, stamp: tuple[int, int, int]) -> frozenset[str]:
    """Return the templates in the record of an environment, which is read only once while it stays as it is."""
    from netspace.environment import record as records

    found = records.some(layout, [parent]).get(parent)
    return frozenset() if found is None else frozenset(found.spec.spawns)


def _names(places: list[Place]) -> list[str]:
    return [place.name for place in places]


def _idle(spec: Environment, values: Mapping[str, Any]) -> Environment:
    return msgspec.structs.replace(spec, values=dict(values), state="stopped")
