"""The one shape of change that all kinds of thing share: observe, plan, apply.

A *kind* (environment, interface, link, attestation) offers::

    observe()                                   what is there: reads, never writes
    plan(desired, observed, remove) -> [Step]   pure: what would have to change
    apply(steps) -> [Outcome]                   does it, batched, in the given order

``test=True`` is the plan; applying twice plans nothing the second time. A step
that fails leaves what the next run repairs. ``remove`` names what shall go:
nothing is ever removed just because it is not in ``desired``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

Changes = Mapping[str, Mapping[str, Any]]


class Step(msgspec.Struct, frozen=True):
    """One change to one thing.

    :param kind: ``environment``, ``interface``, ``link``, ``attestation``.
    :param name: the thing's name within its kind.
    :param action: a verb: ``create``, ``change``, ``restart``, ``start``, ``stop``, ``remove``...
    :param changes: per key ``{"old": ..., "new": ...}``, for the operator; never a secret.
    :param reason: why, where the changes alone don't tell.
    :param data: what ``apply`` needs besides; never shown.
    """

    kind: str
    name: str
    action: str
    changes: Changes = msgspec.field(default_factory=dict)
    reason: str = ""
    data: Any = None

    def __str__(self) -> str:
        keys = ", ".join(self.changes)
        text = f"{self.action} {self.kind} {self.name}"
        if keys and self.action not in ("create", "remove"):
            text += f" ({keys})"
        return f"{text}: {self.reason}" if self.reason else text


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of a step: it was done when ``error`` is empty."""

    step: Step
    error: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """Something declared that the plan leaves undone on purpose, e.g. for want of trust."""

    kind: str
    name: str
    message: str


class Plan(msgspec.Struct, frozen=True):
    """Steps in the order to apply them, and what was refused or is worth saying."""

    steps: Sequence[Step] = ()
    refusals: Sequence[Refusal] = ()
    notes: Sequence[str] = ()


class Result(msgspec.Struct, frozen=True):
    """A plan and what came of it; ``outcomes`` is empty for ``test=True``."""

    plan: Plan
    outcomes: Sequence[Outcome] = ()

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    @property
    def ok(self) -> bool:
        return not self.failures and not self.plan.refusals


Desired = TypeVar("Desired", contravariant=True)
Observed = TypeVar("Observed")


class Kind(Protocol[Desired, Observed]):
    """Protocol of the four kinds of thing."""

    def observe(self) -> Observed: ...

    def plan(self, desired: Desired, observed: Observed, remove: Collection[str] = ()) -> Plan: ...

    def apply(self, steps: Sequence[Step]) -> list[Outcome]: ...


def changes_by_name(steps: Iterable[Step]) -> dict[str, dict[str, Any]]:
    """Merge steps into Salt's ``changes``: per name, per key, ``{"old", "new"}``."""
    merged: dict[str, dict[str, Any]] = {}
    for step in steps:
        entry = merged.setdefault(step.name, {})
        entry.update({key: dict(change) for key, change in step.changes.items()})
        if not step.changes:
            entry[step.action] = {"old": None, "new": step.reason or True}
    return merged
