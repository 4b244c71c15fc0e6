"""Types of a change, shared by all kinds: observe, plan, apply.

A *kind* (environment, interface, link, attestation) offers::

    observe()                                 reads the observed state, never writes
    plan(desired, observed, remove) -> Plan   pure: the steps that lead to the desired state
    apply(steps) -> [Outcome]                 applies the steps, batched, in the given order

``test=True`` shows the plan; a second apply plans nothing. The next run repairs a failed step. ``remove`` names the
things to remove: a kind removes nothing just because it is not in ``desired``.
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
    :param changes: for the operator, ``{"old": ..., "new": ...}`` by key; never a secret.
    :param reason: why the step is needed; empty if the changes show that.
    :param data: further input of ``apply``; never shown.
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
    """The outcome of a step. It succeeded if ``error`` is empty."""

    step: Step
    error: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """A declared thing that the plan omits on purpose, for example for lack of trust."""

    kind: str
    name: str
    message: str


class Plan(msgspec.Struct, frozen=True):
    """Steps in the order to apply them, with refusals and notes."""

    steps: Sequence[Step] = ()
    refusals: Sequence[Refusal] = ()
    notes: Sequence[str] = ()


class Result(msgspec.Struct, frozen=True):
    """A plan and the outcomes of its steps; ``outcomes`` is empty for ``test=True``."""

    plan: Plan
    outcomes: Sequence[Outcome] = ()

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    @property
    def ok(self) -> bool:
        return not self.failures and not self.plan.refusals

    def joined(self, other: Result) -> Result:
        """Return one result with the plan and outcomes of this result, followed by the plan and outcomes of *other*."""
        plan = Plan(
            [*self.plan.steps, *other.plan.steps],
            [*self.plan.refusals, *other.plan.refusals],
            [*self.plan.notes, *other.plan.notes],
        )
        return Result(plan, [*self.outcomes, *other.outcomes])


Desired = TypeVar("Desired", contravariant=True)
Observed = TypeVar("Observed")


class Reconciler(Protocol[Desired, Observed]):
    """Interface of a kind, which changes the observed state into the desired one."""

    def observe(self) -> Observed: ...

    def plan(self, desired: Desired, observed: Observed, remove: Collection[str] = ()) -> Plan: ...

    def apply(self, steps: Sequence[Step]) -> list[Outcome]: ...


RENAME, NAME = "rename", "name"
"""The action of a step that renames an environment, and the key of its changes that has both names."""


def renamed(steps: Iterable[Step]) -> dict[str, str]:
    """Return the former name of each environment that a plan renames."""
    return {
        step.name: str(step.changes[NAME]["old"])
        for step in steps
        if step.kind == "environment" and step.action == RENAME and NAME in step.changes
    }


def changes_by_name(steps: Iterable[Step]) -> dict[str, dict[str, Any]]:
    """Return the steps' changes as Salt's ``changes``: ``{"old", "new"}`` by name and key."""
    merged: dict[str, dict[str, Any]] = {}
    for step in steps:
        entry = merged.setdefault(step.name, {})
        entry.update({key: dict(change) for key, change in step.changes.items()})
        if not step.changes:
            entry[step.action] = {"old": None, "new": step.reason or True}
    return merged
