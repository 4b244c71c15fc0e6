"""Control of rollouts: start, pause, resume, stop and show. At most one rollout is under way."""

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
"""Seconds in which the process that runs the rollout should do what was asked of it."""
SHOW = "salt-run netspace_fleet.rollout"
_LOOK = 0.1

MakeEdges = Callable[[str, Pace], Edges]
"""Makes the edges of a rollout, from the plan's id and the pace."""


class Changes(NamedTuple):
    """The changes that a plan makes.

    :param hosts: the hosts that it changes.
    :param old: for each host, what it has under ``netspace``.
    :param new: for each host, what it will have.
    """

    plan: str
    hosts: tuple[str, ...]
    old: Sections
    new: Sections


def chosen(declared: Policy, arguments: Mapping[str, Any], hosts: Collection[str]) -> Policy:
    """Return the declared policy with the arguments that an operator gave for one rollout.

    :param hosts: the fleet's hosts.
    :raises NetspaceError: an argument is wrong.
    """
    found: Policy = parse.convert(policies.merged(declared, arguments), Policy, "rollout")
    if problems := policies.wrong(found, hosts):
        raise NetspaceError("; ".join(f"{key}: {reason}" for key, reason in problems))
    return found


@contextmanager
def alone(journal: Journal) -> Iterator[None]:
    """Hold the right to give hosts a plan's slices. Only one process has it: a rollout bounds the number of bad hosts.

    :raises NetspaceError: a rollout isn't finished, or somebody else has the right.
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

    :raises NetspaceError: another rollout isn't finished, or the hosts can't be asked.
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
    """Return the batches in which a plan would be rolled out; change nothing."""
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
    """Go on with a rollout that was paused, or whose process was killed; return the state at the end.

    :raises NetspaceError: no rollout is unfinished, or a process runs it.
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
    """Have a rollout pause once the present batch has been judged; return its state.

    :raises NetspaceError: no rollout is unfinished.
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

    Hosts that are not known to be good are taken back.

    :param take_back: whether the good hosts of the last batch are taken back, too.
    :raises NetspaceError: no rollout is unfinished.
    """
    _unfinished(journal)
    asked: Asked = "stop-and-take-back" if take_back else "stop"
    if not _asked(journal, asked, patience):
        return status(journal) | {"asked": "stop"}
    with journal.lock():
        rollout = journal.read()
        if rollout is not None and rollout.ended is None:
            journal.ask(asked)  # another process may have answered it, and been killed then
            _go_on(journal, rollout, edges)
    return status(journal)


def _asked(journal: Journal, what: Asked, patience: float) -> bool:
    """Ask the process that runs the rollout for something, and wait for its end; return whether it has ended.

    :param patience: the most seconds to wait.
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
    """Return whether a rollout has changed all its hosts, or is going to."""
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
