"""State of a fleet for its runner: the check of its declaration, and the answers of its hosts and of the verifier."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netspace.fleet import hosts, seen, status
from netspace.fleet.compile import Compiled
from netspace.fleet.declaration import FOLDER, FleetDeclaration
from netspace.fleet.reach import Reach
from netspace.plugin.minions import Minions

MAX_SHOWN = 1000
"""The most problems and moves that are shown."""


def checked(compiled: Compiled) -> dict[str, Any]:
    """Return the result of a check of the declaration, for operators and programs."""
    told: dict[str, Any] = {"ok": not compiled.problems}
    if compiled.declared is not None:
        told["hosts"] = len(compiled.declared.hosts)
        told["environments"] = len(compiled.declared.environments)
        told["links"] = len(compiled.declared.links)
    told["problems"] = [one._asdict() for one in compiled.problems[:MAX_SHOWN]]
    told["missing"] = [one.text for one in compiled.missing[:MAX_SHOWN]]
    told["moves"] = [
        {"environment": one.environment, "old": list(one.old), "new": list(one.new), "reason": one.reason}
        for one in compiled.moves[:MAX_SHOWN]
    ]
    return told


def reach(declaration: FleetDeclaration) -> Reach:
    """Return an object that answers questions about who may reach whom.

    :raises NetspaceError: the declaration has problems.
    """
    compiled, _ = hosts.compiled(declaration, edges=True)
    return Reach(compiled.edges, compiled.placed)


def now(
    declaration: FleetDeclaration, minions: Minions, judged: Callable[[], Mapping[str, Any]], seconds: int
) -> tuple[status.Expected, status.Now]:
    """Return the declared state of the fleet, and the state that its hosts and the master's verifier report.

    :param judged: a function that returns the verifier's results, in the form of ``netspace_attestation.status``.
    :param seconds: the time limit for the hosts' answers.
    :raises NetspaceError: the master can't ask any minion, or there is no declaration.
    """
    fleet = status.expected(declaration)
    given = minions.ask(list(fleet.hosts.values()), "netspace.glance", {}, seconds)
    answers = seen.answers(list(fleet.hosts.values()), given, seconds)
    verdicts = judged()
    if verdicts.get("valid") is False:
        fleet = fleet._replace(notes=(*fleet.notes, f"the verifier's results can't be read: {verdicts.get('reason')}"))
        verdicts = {}
    by_host = {host: answers[minion] for host, minion in fleet.hosts.items()}
    return fleet, status.Now(by_host, verdicts, time.time())


def verifies(opts: Mapping[str, Any]) -> bool:
    """Return whether the master's verifier has a key. A verifier without a key has never appraised a host.

    :param opts: the master's configuration.
    """
    settings = opts.get("netspace.attestation") or {}
    folder = settings.get("folder") if isinstance(settings, dict) else None
    return (Path(str(folder or Path(FOLDER).parent)) / "verifier.pem").exists()
