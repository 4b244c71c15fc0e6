"""Control of rollouts: start, pause, resume, stop and show. At most one rollout is unfinished at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from netspace.errors import NetspaceError
from netspace.fleet import policy as policies
from netspace.fleet.policy import Pace, Policy
from netspace.fleet.rollout import machine, records
from netspace.fleet.rollout.journal import Asked, Busy, Journal
from netspace.fleet.rollout.machine import Edges
from netspace.fleet.rollout.order import Order, Sections, order
from netspace.fleet.rollout.records import Group, Started
from netspace.fleet.rollout.state import BAD, Rollout, Status
from netspace.spec import parse

MAX_SHOWN = 1000
"""The most hosts and notes that are shown of one kind."""
PATIENCE = 10.0
"""Seconds to wait until the process that runs the rollout has carried out an operator's request."""
SHOW = "salt-run netspace_fleet.rollout"
_LOOK = 0.1

MakeEdges = Callable[[str, Pace], Edges]
"""Makes the edges of a rollout, from the plan's id and the pace."""


class Changes(NamedTuple):
    """The changes that a plan makes.

    :param plan: the plan's id.
    :param hosts: the hosts that the plan changes.
    :param old: for each host, its present slice, as it stands under ``netspace`` in the pillar.
    :param new: for each host, its slice after the change.
    """

    plan: str
    hosts: tuple[str, ...]
    old: Sections
    new: Sections


def chosen(declared: Policy, arguments: Mapping[str, Any], hosts: Collection[str]) -> Policy:
    """Return the declared policy, overridden by an operator's arguments for one rollout.

    :param hosts: the fleet's hosts.
    :raises NetspaceError: an argument is wrong.
    """
    found: Policy = parse.convert(policies.merged(declared, arguments), Policy, "rollout")
    if problems := policies.wrong(found, hosts):
        raise NetspaceError("; ".join(f"{key}: {reason}" for key, reason in problems))
    return found


@contextmanager
def alone(journal: Journal) -> Iterator[None]:
    """Hold the lock that both rollouts and single applies of plans take.

    So nobody gives slices to hosts beside a rollout, and the number of bad hosts stays bounded.

    :raises NetspaceError: a rollout isn't finished, or another process holds the lock.
    """
    with journal.lock():
        earlier = journal.read()
        if earlier is not None and earlier.ended is None:
            raise NetspaceError(
                f"the rollout of {earlier.started.plan} isn't finished ({_word(earlier, False)}); resume or stop it "
                f"first: salt-run netspace_fleet.resume, or stop; {SHOW} shows it"
            )
        yield


def start(journal: Journal, changes: Changes, policy: Policy, edges: MakeEdges) -> dict[str, Any]:
    """Roll a plan out; return the state at the end.

    :param edges: makes the rollout's connections to hosts, operators and clock.
    :raises NetspaceError: another rollout isn't finished, or no minion can be called.
    """
    if not changes.hosts:
        return {"plan": changes.plan, "state": "done", "hosts": {}}
    found, pace = _ordered(changes, policy)
    with alone(journal):
        batches = tuple(Group(hosts=batch.hosts, canary=batch.canary) for batch in found.batches)
        started = Started(changes.plan, pace, batches, dict(found.before), time.time())
        rollout = journal.begin(started)
        machine.run(journal, rollout, edges(changes.plan, pace))
    return {**_told(rollout, False), **_notes(found)}


def preview(changes: Changes, policy: Policy) -> dict[str, Any]:
    """Return the batches in which a plan would be rolled out. Changes nothing."""
    found, pace = _ordered(changes, policy)
    batches = [{"hosts": list(one.hosts), "canary": one.canary} for one in found.batches[:MAX_SHOWN]]
    paced: dict[str, Any] = {
        "step": pace.step,
        "max_fail": pace.max_fail,
        "settle": pace.settle,
        "deadline": pace.deadline,
    }
    paced["gate"] = list(pace.gate)
    return {"plan": changes.plan, "state": "not begun", "batches": batches, **paced, **_notes(found)}


def _ordered(changes: Changes, policy: Policy) -> tuple[Order, Pace]:
    pace = policies.pace(policy, len(changes.hosts))
    return order(changes.old, changes.new, changes.hosts, policy, pace.step), pace


def _notes(found: Order) -> dict[str, Any]:
    return {"notes": list(found.notes[:MAX_SHOWN])} if found.notes else {}


def resume(journal: Journal, edges: MakeEdges) -> dict[str, Any]:
    """Continue a rollout that was paused, or whose process was killed; return the state at the end.

    :raises NetspaceError: there is no unfinished rollout, or a process already runs it.
    """
    with journal.lock():
        rollout = _unfinished(journal)
        if journal.asked() == "pause":
            journal.answered()
        _go_on(journal, rollout, edges)
    return _told(rollout, False)


def _go_on(journal: Journal, rollout: Rollout, edges: MakeEdges) -> None:
    if rollout.paused:
        journal.append(records.Resumed())
        rollout.take(records.Resumed())
    machine.run(journal, rollout, edges(rollout.started.plan, rollout.started.pace))


def pause(journal: Journal, patience: float = PATIENCE) -> dict[str, Any]:
    """Pause a rollout once the present batch has been judged; return its state.

    :param patience: the most seconds to wait for the pause.
    :raises NetspaceError: there is no unfinished rollout.
    """
    _unfinished(journal)
    if not _asked(journal, "pause", patience):
        return status(journal) | {"asked": "pause"}
    try:
        with journal.lock():
            rollout = _unfinished(journal)
            journal.answered()
            if not rollout.paused:
                journal.append(records.Paused())
    except Busy:
        pass  # somebody resumed it a moment ago
    return status(journal)


def stop(journal: Journal, edges: MakeEdges, *, take_back: bool = False, patience: float = PATIENCE) -> dict[str, Any]:
    """Stop a rollout for good, whether it runs, is paused or was killed; return its state.

    Hosts that are not known to be good are taken back (get their previous slices).

    :param take_back: whether the good hosts of the last batch are taken back, too.
    :param patience: the most seconds to wait for the end.
    :raises NetspaceError: there is no unfinished rollout.
    """
    _unfinished(journal)
    asked: Asked = "stop-and-take-back" if take_back else "stop"
    if not _asked(journal, asked, patience):
        return status(journal) | {"asked": "stop"}
    with journal.lock():
        rollout = journal.read()
        if rollout is not None and rollout.ended is None:
            journal.ask(asked)  # a killed process may have removed the request
            _go_on(journal, rollout, edges)
    return status(journal)


def _asked(journal: Journal, what: Asked, patience: float) -> bool:
    """Send a request to the process that runs the rollout; return whether that process has ended.

    :param patience: the most seconds to wait for the end of the process.
    """
    journal.ask(what)
    last = time.monotonic() + patience
    while True:
        try:
            with journal.lock():
                return True
        except Busy:
            if time.monotonic() >= last:
                return False
        time.sleep(_LOOK)


def status(journal: Journal) -> dict[str, Any]:
    """Return the state of the last rollout; empty if there never was one.

    :raises NetspaceError: the journal is damaged.
    """
    running = False
    try:
        with journal.lock():
            pass
    except Busy:
        running = True
    rollout = journal.read()
    return _told(rollout, running) if rollout is not None else {}


def _unfinished(journal: Journal) -> Rollout:
    rollout = journal.read()
    if rollout is None or rollout.ended is not None:
        raise NetspaceError("no rollout is under way; salt-run netspace_fleet.rollout ID begins one")
    return rollout


def good(told: dict[str, Any]) -> bool:
    """Return whether nothing is wrong with a rollout: all its hosts are good, or it still runs, or hasn't begun.

    :param told: the state of the rollout, as :func:`status` returns it.
    """
    return told.get("state") in ("running", "not begun") or (
        told.get("state") == "done" and set(told["hosts"]) <= {Status.GOOD.value}
    )


def _word(rollout: Rollout, running: bool) -> str:
    if rollout.ended is not None:
        return "done" if rollout.stopping is None else "stopped"
    if rollout.stopping is not None:
        return "stopping" if running else "interrupted"
    return "running" if running else "paused" if rollout.paused else "interrupted"


def _told(rollout: Rollout, running: bool) -> dict[str, Any]:
    word = _word(rollout, running)
    found: dict[str, Any] = {"plan": rollout.started.plan, "state": word, "hosts": rollout.counts()}
    if rollout.stopping is not None:
        found["why"] = rollout.stopping
    reasons = {
        host: f"{rollout.hosts[host].value}: {rollout.reasons[host]}"
        for host in rollout.hosts
        if host in rollout.reasons
    }
    if reasons:
        found["failed"] = _first(reasons)
    if held := rollout.held():
        found["held"] = _first({host: f"waits for {other}" for host, other in held.items()})
    if bad := sorted(host for host in rollout.bad if rollout.hosts[host] in BAD):
        found["bad"] = bad[:MAX_SHOWN]
    found["max_fail"] = rollout.started.pace.max_fail
    if word in ("paused", "interrupted"):
        found["remedy"] = "salt-run netspace_fleet.resume goes on, salt-run netspace_fleet.stop ends it"
    return found


def _first(texts: dict[str, str]) -> dict[str, str]:
    return dict(list(texts.items())[:MAX_SHOWN])
