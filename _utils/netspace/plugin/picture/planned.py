"""A plan of a fleet, as the picture shows it: the things that the plan adds, changes and removes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from netspace.errors import short
from netspace.fleet.planning.plans import Change as Step
from netspace.fleet.planning.records import PlanRecord

MOST = 8
"""The most keys of one step that are shown."""
_VALUE = 60
_ORDER = ("removed", "added", "changed")


class PlannedChange(NamedTuple):
    """A change that a plan would make on one host.

    :param kind: the kind of the changed thing; ``host``: something that all environments of the host share.
    :param name: the name of the environment, or of the link: ``<from>.<to>`` as its host names it (``web.orders@h2``).
    :param text: the change in words.
    """

    host: str
    kind: Literal["environment", "link", "host"]
    name: str
    change: Literal["added", "changed", "removed"]
    text: str = ""


class Planned(NamedTuple):
    """A plan for the whole fleet.

    :param id: the id of the plan.
    :param silent: the reason for each host that has no plan, by host.
    """

    id: str
    changes: Sequence[PlannedChange]
    silent: Mapping[str, str] = {}


def of_record(record: PlanRecord) -> Planned:
    """Return a plan from the master's record of it."""
    changes = [one for host, plan in sorted(record.plans.items()) for one in of_steps(host, plan.steps)]
    return Planned(record.id, changes, dict(record.silent))


def of_steps(host: str, steps: Iterable[Step]) -> list[PlannedChange]:
    """Return the changes of one host's plan: one for each environment, one for each link, and one for the host.

    A change of an interface counts as a change of its environment.
    """
    found: dict[tuple[str, str], PlannedChange] = {}
    for step in steps:
        kind: Literal["environment", "link", "host"] = "host"
        if step.kind in ("environment", "interface"):
            kind = "environment"
        elif step.kind == "link" and "." in step.name:
            kind = "link"
        name = "" if kind == "host" else step.name
        whole = step.kind == kind
        change: Literal["added", "changed", "removed"] = "changed"
        if whole and step.action in ("create", "remove"):
            change = "added" if step.action == "create" else "removed"
        one = PlannedChange(host, kind, name, change, _words(step, "" if whole else f"{step.kind} {step.name}: "))
        before = found.get((kind, name))
        if before is not None:
            first = min(before.change, change, key=_ORDER.index)
            one = one._replace(change=first, text=f"{before.text}\n{one.text}")
        found[kind, name] = one
    return list(found.values())


def _words(step: Step, about: str) -> str:
    keys = [f"{key}: {_side(one, 'old')} -> {_side(one, 'new')}" for key, one in list(step.changes.items())[:MOST]]
    more = [f"{len(step.changes) - MOST} more keys"] if len(step.changes) > MOST else []
    return "\n".join(filter(None, [f"{about}{step.action}", step.reason, *keys, *more]))


def _side(change: object, side: str) -> str:
    value = change.get(side) if isinstance(change, Mapping) else None
    return "none" if value is None else short(str(value), _VALUE)
