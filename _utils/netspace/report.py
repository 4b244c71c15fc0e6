"""Results in the shape that Salt's states return. Pure; knows nothing of the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netspace.errors import NetspaceError
from netspace.plan import Result, Step, changes_by_name

MAX_LISTED = 20


def state(name: str, result: Result, *, test: bool, only: str | None = None) -> dict[str, Any]:
    """Return a state's ``{name, result, changes, comment}``.

    :param only: the state is about this one thing: its changes stand without the thing's
        name above them, and what concerns others is left out.
    """
    steps = [outcome.step for outcome in result.outcomes if not outcome.error] or (
        list(result.plan.steps) if test else []
    )
    refusals = [refusal for refusal in result.plan.refusals if only in (None, refusal.name)]
    failures = [failure for failure in result.failures if only in (None, failure.step.name)]
    if only is not None:
        steps = [step for step in steps if step.name == only]
    changes = changes_by_name(steps)
    comment = [f"{failure.step}: {failure.error}" for failure in failures]
    comment += [f"{refusal.kind} {refusal.name}: {refusal.message}" for refusal in refusals]
    if steps:
        comment += _summary(steps, test)
    elif not failures and not refusals:
        comment.append(f"{only or name} is as declared." if only else "Everything is as declared.")
    comment += result.plan.notes
    verdict: bool | None = not failures and not refusals
    if test and verdict and steps:
        verdict = None
    return {
        "name": name,
        "result": verdict,
        "changes": changes.get(only, {}) if only is not None else changes,
        "comment": "\n".join(comment),
    }


def _summary(steps: list[Step], test: bool) -> Iterable[str]:
    yield f"{len(steps)} change{'s' if len(steps) != 1 else ''} {'would be made' if test else 'made'}:"
    for step in steps[:MAX_LISTED]:
        yield f"- {step}"
    if len(steps) > MAX_LISTED:
        yield f"- and {len(steps) - MAX_LISTED} more (see changes)"


def failure(name: str, error: NetspaceError | str) -> dict[str, Any]:
    """Return a state that failed before anything was changed."""
    return {"name": name, "result": False, "changes": {}, "comment": str(error)}
