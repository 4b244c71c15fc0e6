"""Renamed environments in the result of an apply: one step for the removal of the old name and the new creation. Pure.

For the reconcilers, a renamed environment is one that goes and one that comes. For the operator it is one change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from netspace import files
from netspace.plan import NAME, RENAME, Changes, Outcome, Plan, Result, Step
from netspace.spec import parse
from netspace.spec.types import Environment, Interface

if TYPE_CHECKING:
    from netspace.environment.record import Record


def reason(old: str, mailed: bool) -> str:
    """Return the reason of a step.

    :param old: the former name.
    :param mailed: whether a link leads to the environment, so that it has a mailbox.
    """
    return f"renamed from {old}" + ("; its mailbox is kept" if mailed else "")


def differing(old: Interface | None, new: Interface) -> Changes:
    """Return how an interface of a renamed environment differs from the one under the former name.

    :param old: the declared interface of the former name; None: it isn't known.
    :param new: the interface that is declared now.
    """
    return files.differences({} if old is None else parse.written(old), parse.written(new))


def differences(old: Record | None, new: Environment) -> Changes | None:
    """Return the keys in which a renamed environment differs from its record under the former name.

    :param old: that record; None: it can't be read, so the differences are unknown, and the result is None.
    """
    if old is None:
        return None
    from netspace.environment.comparison import differences as compared

    return compared.differences(
        msgspec.structs.replace(old.spec, formerly=None), msgspec.structs.replace(new, formerly=None)
    )


def joined(
    result: Result,
    former: Mapping[str, str],
    changes: Callable[[str], Changes | None],
    reason: Callable[[str], str] = lambda name: "",
) -> Result:
    """Return *result* with one step ``rename`` for each environment that was renamed.

    :param former: the former names, by the present ones.
    :param changes: returns what else changes for an environment, by its present name. None: that is unknown, so the
        step has all keys, as a creation has.
    :param reason: returns the reason of its step.
    """
    actions = {(step.name, step.action) for step in result.plan.steps}
    pairs = {new: old for new, old in former.items() if (old, "remove") in actions and (new, "create") in actions}
    if not pairs:
        return result
    others = {name: changes(name) for name in pairs}

    def told(step: Step) -> Step | None:
        if step.action == "remove" and step.name in pairs.values():
            return None
        if step.action != "create" or step.name not in pairs:
            return step
        name, old, other, why = step.name, pairs[step.name], others[step.name], reason(step.name)
        if other is None:
            other, why = step.changes, f"{why}; the record of {old} can't be read, so all keys are shown"
        return Step(step.kind, name, RENAME, {NAME: {"old": old, "new": name}, **other}, why, step.data)

    errors = {one.step.name: one.error for one in result.outcomes if one.step.action == "remove" and one.error}
    outcomes = []
    for one in result.outcomes:
        step = told(one.step)
        if step is not None:
            error = one.error or (errors.get(pairs[step.name], "") if step.action == RENAME else "")
            outcomes.append(Outcome(step, error))
    steps = [step for step in map(told, result.plan.steps) if step is not None]
    return Result(Plan(steps, result.plan.refusals, result.plan.notes), outcomes)
