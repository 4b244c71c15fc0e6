"""Conversion of results to the return values of Salt's states. Pure; knows nothing of the host."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from netspace.errors import NetspaceError
from netspace.plan import Result, Step, changes_by_name

MAX_LISTED = 20


def state(
    name: str, result: Result, *, test: bool, only: str | None = None, others: Collection[str] = ()
) -> dict[str, Any]:
    """Return a state's ``{name, result, changes, comment}``.

    :param only: the one thing that the state is about. Its changes are at the top level; changes of other
        things that it needed (say, the broker) are under their names.
    :param others: things with states of their own, which are left out here.
    """
    steps = [outcome.step for outcome in result.outcomes if not outcome.error] or (
        list(result.plan.steps) if test else []
    )
    steps = [step for step in steps if step.name not in others]
    refusals = [refusal for refusal in result.plan.refusals if refusal.name not in others]
    failures = [failure for failure in result.failures if failure.step.name not in others]
    changes = changes_by_name(steps)
    if only is not None:
        changes = {**changes.pop(only, {}), **changes}
    comment = [f"{failure.step}: {failure.error}" for failure in failures]
    comment += [f"{refusal.kind} {refusal.name}: {refusal.message}" for refusal in refusals]
    if steps:
        comment += _summary(steps, test)
    elif not failures and not refusals:
        comment.append(f"{only} is as declared." if only else "Everything is as declared.")
    comment += result.plan.notes
    verdict: bool | None = not failures and not refusals
    if test and verdict and steps:
        verdict = None
    return {"name": name, "result": verdict, "changes": changes, "comment": "\n".join(comment)}


def _summary(steps: list[Step], test: bool) -> Iterable[str]:
    yield f"{len(steps)} change{'s' if len(steps) != 1 else ''} {'would be made' if test else 'made'}:"
    for step in steps[:MAX_LISTED]:
        yield f"- {step}"
    if len(steps) > MAX_LISTED:
        yield f"- and {len(steps) - MAX_LISTED} more (see changes)"


def failure(name: str, error: NetspaceError | str) -> dict[str, Any]:
    """Return the result of a state that failed before it changed anything."""
    return {"name": name, "result": False, "changes": {}, "comment": str(error)}
