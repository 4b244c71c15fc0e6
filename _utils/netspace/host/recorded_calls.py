"""Refused system calls and files: counted in the kernel for audited environments, and for no others."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from netspace.plan import Outcome, Plan, Result, Step

if TYPE_CHECKING:
    from netspace.environment.desired import DesiredEnvironment
    from netspace.environment.reconciler import Environments
    from netspace.layout import Layout


def converge(
    kind: Environments, desired: Mapping[str, DesiredEnvironment], remove: Collection[str], test: bool
) -> Result:
    """Repair the record of the audited ones of these environments, and end that of others, after they were applied.

    An environment's own step has begun it already, or will. So a step here means that somebody else has ended it. If
    the kernel refuses, a note tells it, and the environments work as without.
    """
    audited = [name for name, one in desired.items() if one.spec.audit]
    if not audited and not os.path.lexists(kind.layout.run / "refusals"):
        return Result(Plan())
    from netspace.environment.refusals import recording

    wanted = recording.audited(kind.recorded(audited))
    try:
        if not wanted and not test and not recording.names(kind.layout):
            recording.end(kind.layout)  # a killed run had dropped the last one
        what = recording.difference(kind.layout, wanted, {*desired, *remove} - wanted.keys())
        if what and not test:
            recording.apply(kind.layout, what, wanted)
    except OSError as err:
        names = ", ".join(sorted(wanted))
        return Result(Plan(notes=[f"environment {names}: refused system calls and files aren't recorded: {err}"]))
    change = {"recorded": {"old": None, "new": "system calls, files"}}
    steps = [Step("environment", name, "change", change) for name in what.add]
    return Result(Plan(steps), () if test else [Outcome(step) for step in steps])


def restore(kind: Environments) -> str:
    """Record the audited environments again, after a reboot; return why that is impossible, empty if it is done."""
    known, _ = kind.readable()
    if not any(one.spec.audit for one in known.values()):
        return ""
    from netspace.environment.refusals import recording

    try:
        recording.begin(kind.layout, known)
    except OSError as err:
        return str(err)
    return ""


def end(layout: Layout) -> None:
    """Remove what a killed run left."""
    if os.path.lexists(layout.run / "refusals"):
        from netspace.environment.refusals import recording

        recording.end(layout)
