"""Recording of refused system calls and files: started for environments that become audited, ended for the others."""

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
    """Repair the recording for audited environments after they were applied, and end it for others.

    The step that changes an environment begins the recording itself. So a step here means that somebody else has ended
    the recording. If the kernel refuses to record, a note says so, and the environments run without the recording.

    :param desired: the applied environments.
    :param remove: names of removed environments.
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
    """Begin the recording for audited environments again after a reboot; return why that failed, or an empty text."""
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
    """Remove the recording program and its maps, if a killed run left them."""
    if os.path.lexists(layout.run / "refusals"):
        from netspace.environment.refusals import recording

        recording.end(layout)
