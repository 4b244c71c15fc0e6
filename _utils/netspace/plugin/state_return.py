"""Conversion of results to the return values of Salt's states. Pure: it doesn't read the host.

A state about many things has a row for each thing (Salt's ``sub_state_run``). Salt shows and counts these rows beside
the state. Requisites such as ``onchanges`` see only the state itself, so the state also has ``changes``. To show no
change twice, the state's ``changes`` name the action for each thing, and the thing's row has the changed keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from netspace import text
from netspace.errors import NetspaceError
from netspace.plan import Outcome, Refusal, Result, Step, changes_by_name

MAX_LISTED = 20
WIDTH = 66
"""The columns of a comment: Salt indents it by 14, and a terminal has 80."""
MAX_TOGETHER = 5
"""The most failed steps that a comment names before the problem that made all of them fail."""

Kind = Literal["environment", "interface", "link"]


def state(
    name: str, result: Result, *, test: bool, only: str | None = None, others: Collection[str] = ()
) -> dict[str, Any]:
    """Return a state's ``{name, result, changes, comment}``.

    :param only: the name of the one thing that the state is about. Its changes are at the top level of ``changes``;
        changes of other things (say, the broker) are under their names. None: the state is about many things.
    :param others: names of things that have states of their own. This state leaves them out.
    """
    found = _Found(
        [step for step in _steps(result, test) if step.name not in others],
        [refusal for refusal in result.plan.refusals if refusal.name not in others],
        [failure for failure in result.failures if failure.step.name not in others],
    )
    changes = changes_by_name(found.steps)
    if only is not None:
        changes = {**changes.pop(only, {}), **changes}
    comment = found.troubles()
    if found.steps:
        comment += summary(found.steps, test, MAX_LISTED)
    elif not comment:
        comment.append(f"{only} is as declared." if only else "Everything is as declared.")
    comment += result.plan.notes
    return {"name": name, "result": found.verdict(test), "changes": changes, "comment": told(*comment)}


def rows(name: str, result: Result, kind: Kind, things: Iterable[str], *, test: bool, most: int) -> dict[str, Any]:
    """Return a state's result with a row for each thing.

    :param kind: the kind of thing that the state is about.
    :param things: the names of the declared things. Other things with a step, a refusal or a failure have a row, too.
    :param most: the greatest number of rows. If there are more things, failed and changed ones come first. The state's
        comment counts the things without a row. 0: no rows.
    """
    whole = state(name, result, test=test)
    found: dict[tuple[str, str], _Found] = {(kind, thing): _Found([], [], []) for thing in sorted(things)}
    for step in _steps(result, test):
        found.setdefault((step.kind, step.name), _Found([], [], [])).steps.append(step)
    for refusal in result.plan.refusals:
        found.setdefault((refusal.kind, refusal.name), _Found([], [], [])).refusals.append(refusal)
    for failure in result.failures:
        found.setdefault((failure.step.kind, failure.step.name), _Found([], [], [])).failures.append(failure)
    shown = list(found)
    if len(shown) > most:
        shown = sorted(shown, key=lambda thing: found[thing].rank())[:most]
        more = f"{len(found) - len(shown)} of {len(found)} things have no row (netspace.rows: {most})."
        whole["comment"] = told(whole["comment"], more)
    if not shown:
        return whole
    for thing in shown:
        if found[thing].steps:
            whole["changes"][thing[1]] = ", ".join(step.action for step in found[thing].steps)
    shared = {error for error, failed in _by_error(result.failures).items() if len(failed) > 1}
    whole["sub_state_run"] = [_row(name, kind, thing, found[thing], test, shared) for thing in shown]
    return whole


class _Found(NamedTuple):
    """The steps (done or planned), the refusals and the failures of one thing, or of all things."""

    steps: list[Step]
    refusals: list[Refusal]
    failures: list[Outcome]

    def verdict(self, test: bool) -> bool | None:
        """Return the state's ``result`` in Salt's sense: True, False, or None in a test with changes."""
        if self.failures or self.refusals:
            return False
        return None if test and self.steps else True

    def troubles(self) -> list[str]:
        failed = [f"{_together(steps)}: {error}" for error, steps in _by_error(self.failures).items()]
        return failed + [f"{refusal.kind} {refusal.name}: {refusal.message}" for refusal in self.refusals]

    def rank(self) -> int:
        return 0 if self.failures or self.refusals else 1 if self.steps else 2


def _by_error(failures: Iterable[Outcome]) -> dict[str, list[Step]]:
    """Return the failed steps by their error text: many steps can fail for one reason (say, a broker that is down)."""
    found: dict[str, list[Step]] = {}
    for failure in failures:
        found.setdefault(str(failure.error), []).append(failure.step)
    return found


def _together(steps: Sequence[Step]) -> str:
    more = len(steps) - MAX_TOGETHER
    return ", ".join(map(str, steps[:MAX_TOGETHER])) + (f" and {more} more" if more > 0 else "")


def _steps(result: Result, test: bool) -> list[Step]:
    done = [outcome.step for outcome in result.outcomes if not outcome.error]
    return done or (list(result.plan.steps) if test else [])


def _row(
    name: str, kind: Kind, thing: tuple[str, str], found: _Found, test: bool, shared: Collection[str]
) -> dict[str, Any]:
    """Return the row of one thing, in the form of a state that is about this thing only.

    :param shared: error texts that several things have. The state's comment has such a text in full, the row only its
        first line.
    """
    brief = [
        Outcome(failure.step, failure.error.splitlines()[0]) if failure.error in shared else failure
        for failure in found.failures
    ]
    lines = [
        *found._replace(failures=brief).troubles(),
        *(f"would {step}" if test else str(step) for step in found.steps),
    ]
    gone = any(step.action == "remove" for step in found.steps)
    return {
        "name": thing[1],
        "result": found.verdict(test),
        "changes": changes_by_name(found.steps).get(thing[1], {}),
        "comment": told(*lines) or f"{thing[1]} is as declared.",
        # Salt identifies a row by these. The state itself has another function, so that it keeps its own row.
        "low": {
            "state": f"netspace_{kind}",
            "__id__": name,
            "name": thing[1] if thing[0] == kind else " ".join(thing),
            "fun": "absent" if gone else "present",
        },
    }


def summary(steps: Sequence[Step], test: bool, most: int | None = None) -> Iterable[str]:
    """Yield the lines that describe the changes.

    :param test: whether the steps are only planned.
    :param most: the greatest number of steps to list; None: no bound.
    """
    listed = steps[:most]
    yield f"{len(steps)} change{'s' if len(steps) != 1 else ''} {'would be made' if test else 'made'}:"
    for step in listed:
        yield f"- {step}"
    if len(steps) > len(listed):
        yield f"- and {len(steps) - len(listed)} more (see changes)"


def failure(name: str, error: NetspaceError | str, earlier: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result of a state that failed before it changed anything.

    All states of an apply read the same declaration, so a mistake in it makes each of them fail. The first one reports
    the mistake; the others refer to it.

    :param earlier: the results of the earlier states of this run, by Salt's tags (``__running__``).
    """
    comment = told(str(error))
    for tag, result in earlier.items():
        if tag.startswith("netspace_") and result.get("result") is False and result.get("comment") == comment:
            comment = told(f"Nothing done: first solve the problem that the state '{result.get('__id__')}' reports.")
            break
    return {"name": name, "result": False, "changes": {}, "comment": comment}


def told(*lines: str) -> str:
    """Return lines as a state's comment, broken so that Salt's indented output fits a terminal of 80 columns."""
    return text.folded("\n".join(lines), WIDTH)
