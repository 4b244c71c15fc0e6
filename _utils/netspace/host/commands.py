"""Commands for callers other than Salt: ``check``, ``plan``, ``apply`` and ``list`` of ``python -m netspace``.

They do the same as Salt's states and functions with a whole declaration; only their output differs. Each function
returns the command's exit code.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from netspace import text
from netspace.errors import NetspaceError, Problem, SpecError
from netspace.host import declaration_file
from netspace.host.host import Host
from netspace.host.overview import problem_of
from netspace.layout import Layout
from netspace.plan import Outcome, Plan, Refusal, Result
from netspace.plugin import state_return
from netspace.spec.types import Declaration

DONE, FAILED, CHANGES = 0, 1, 2
_SECTIONS = {"attestation": "attestation", "interface": "environments", "link": "links", "environment": "environments"}


def check(layout: Layout, file: str, *, as_json: bool, host: bool = True) -> int:
    """Print whether a declaration can be applied, like ``netspace.check``; return the exit code.

    :param host: whether to check the declaration against this host, too.
    """
    try:
        declared = declaration_file.read(file)
        problems = [*_unfetched(declared), *Host(layout).check(declared)] if host else []
    except NetspaceError as err:
        problems = _problems(err)
    if as_json:
        _print_json({"valid": not problems, "problems": [problem._asdict() for problem in problems]})
    else:
        _complain(problems)
        if not problems:
            print("The declaration is valid.")
    return FAILED if problems else DONE


def converge(layout: Layout, file: str, *, as_json: bool, test: bool) -> int:
    """Apply a declaration, like ``state.apply netspace``; with *test*, only print what an apply would change."""
    host = Host(layout) if as_json else Host(layout, progress=lambda told: print(told, file=sys.stderr))
    try:
        declared = declaration_file.read(file)
        if unfetched := _unfetched(declared):
            raise SpecError(unfetched)
        result, problems = _converged(host, declared, test)
    except NetspaceError as err:
        result, problems = Result(Plan()), _problems(err)
    outcomes = [Outcome(step) for step in result.plan.steps] if test else result.outcomes
    changes = [outcome.step for outcome in outcomes if not outcome.error]
    if as_json:
        steps = [_step(one) for one in outcomes]
        told = [problem._asdict() for problem in problems]
        _print_json({"changed": bool(changes), "steps": steps, "problems": told, "notes": list(result.plan.notes)})
    else:
        _complain(problems)
        for line in state_return.summary(changes, test) if changes else ():
            print(text.harmless(line))
        if not changes and not problems:
            print("Everything is as declared.")
        for note in result.plan.notes:
            print(f"note: {text.harmless(note)}")
    if problems:
        return FAILED
    return CHANGES if test and changes else DONE


def overview(layout: Layout, *, as_json: bool) -> int:
    """Print the environments, links and trust of this host, like ``netspace.overview``."""
    from netspace.plugin import tables, views

    try:
        found = Host(layout).overview()
    except NetspaceError as err:
        problems = _problems(err)
        if as_json:
            _print_json({"problems": [problem._asdict() for problem in problems]})
        else:
            _complain(problems)
        return FAILED
    if as_json:
        _print_json(found)
    else:
        print("\n".join(views.render(found, views.Screen(time.time(), tables.plain)) or ()))
    return DONE


def _unfetched(declared: Declaration) -> list[Problem]:
    """Return a problem for each image on Salt's file server, since only Salt can fetch it."""
    message = "only Salt fetches from its file server; copy the file to this host and name its path"
    return [
        Problem(f"netspace:environments:{name}:image", f"{spec.image}: {message}")
        for name, spec in declared.environments.items()
        if ":salt://" in spec.image
    ]


def _converged(host: Host, declared: Declaration, test: bool) -> tuple[Result, list[Problem]]:
    """Apply each kind in its order, like Salt's states. If one kind fails, the later ones are still applied."""
    result, problems = Result(Plan()), list[Problem]()
    for kind, apply in host.each_kind(declared, test=test).items():
        try:
            result = result.joined(apply())
        except SpecError as err:
            problems += err.problems
        except NetspaceError as err:
            problems.append(Problem(f"netspace:{_SECTIONS[kind]}", str(err)))
    failures = [Refusal(one.step.kind, one.step.name, f"{one.step.action}: {one.error}") for one in result.failures]
    problems += [problem_of(refusal) for refusal in (*result.plan.refusals, *failures)]
    return result, list(dict.fromkeys(problems))


def _problems(err: NetspaceError) -> list[Problem]:
    return list(err.problems) if isinstance(err, SpecError) else [Problem("netspace", str(err))]


def _step(outcome: Outcome) -> dict[str, Any]:
    step = outcome.step
    return {
        "kind": step.kind,
        "name": step.name,
        "action": step.action,
        "changes": step.changes,
        "reason": step.reason,
        "error": outcome.error,
    }


def _complain(problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(text.harmless(str(problem)), file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, default=str))
