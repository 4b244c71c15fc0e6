"""Updates on trial: which environments are, until when, and the verdict.

An environment that ran well and is changed keeps its previous self (``Record.previous``) until the
new one is healthy. ``apply`` acts on the verdict; this module only observes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping

from netspace.environment import observe, runtime, tenders
from netspace.environment.observe import Seen
from netspace.environment.records import Failed, Previous, Record, fingerprint
from netspace.errors import NetspaceError
from netspace.health import machine, verdict
from netspace.layout import Layout
from netspace.spec.types import Environment
from netspace.supervision import Status, Supervisor

LOOK = 0.1
BEGUN = 300.0  # seconds that the watch has to begin, its library compiled, on however slow a host
SLACK = 10.0  # seconds beside what is declared: a busy host's


def worth_keeping(seen: Seen, new: Environment) -> Previous | None:
    """Return the version to go back to if an update fails; None if no proof is needed or that version isn't up."""
    record = seen.record
    if new.health is None or not new.update.rollback:
        return None
    if record.previous is not None:  # the update before was not proved: what was there before that is
        return record.previous
    if not observe.is_up(record, seen.status, seen.verdict):
        return None
    return Previous(record.spec, record.image, record.profile, record.runtime)


def failed(record: Record, reason: str) -> Failed:
    """Return the note of an update that is taken back."""
    image, declared = record.image, fingerprint(record.spec, record.profile, record.runtime)
    source = tenders.source(record.spec, record.runtime)
    return Failed(declared, source, image.identity, image.digest, reason)


def wait(layout: Layout, supervisor: Supervisor, trials: Mapping[str, Record]) -> dict[str, str]:
    """Wait for each of these environments, just started, until it is healthy, has failed or its time is up.

    :return: why it has failed, by name; empty if it is healthy.
    """
    began = time.monotonic()
    services = {runtime.service_name(name) for name in trials}
    found: dict[str, str] = {}
    while len(found) < len(trials):
        statuses = supervisor.observe(services)
        for name in trials.keys() - found.keys():
            status = statuses.get(runtime.service_name(name), Status("stopped"))
            late = time.monotonic() - began > trials[name].spec.update.deadline
            if (reason := _finding(layout, name, trials[name], status, late)) is not None:
                found[name] = reason
        if len(found) < len(trials):
            time.sleep(LOOK)
    return found


def _finding(layout: Layout, name: str, record: Record, status: Status, late: bool) -> str | None:
    """Return why the trial failed; empty if it has passed, None if that is not known yet."""
    if observe.is_up(record, status, observe.current(layout, name, record, status)):
        return ""
    # Also of one that was ended for that: what was thought of it before the trial was cleared.
    known = verdict.read(layout, name)
    said = f": {known.judgement.detail}" if known is not None and known.judgement.detail else ""
    if verdict.condemned(layout, name).exists() or (known is not None and known.judgement.state == "unhealthy"):
        return f"its health check failed{said}"
    if status.state in ("stopped", "failed"):
        return f"it ended ({status.exit or 'no reason known'})"
    if status.restarts:
        return f"it ended ({status.exit or 'no reason known'}) and was started again"
    if late:
        return f"it was not healthy within {record.spec.update.deadline:g} s{said}"
    return None


def watched(layout: Layout, supervisor: Supervisor) -> None:
    """Wait until the watch has begun to probe: only then does the time of a trial run.

    :raises NetspaceError: when it doesn't begin.
    """
    until = time.monotonic() + BEGUN
    while True:
        status = supervisor.observe([runtime.HEALTH]).get(runtime.HEALTH, Status("stopped"))
        with contextlib.suppress(OSError):
            if status.pid and verdict.ready(layout).read_text() == str(status.pid):
                return
        if time.monotonic() > until:
            raise NetspaceError(f"what watches health has not begun within {BEGUN:.0f} s; its log may say why")
        time.sleep(LOOK)


def awaited(
    layout: Layout, supervisor: Supervisor, names: Collection[str], known: Mapping[str, Record]
) -> dict[str, str]:
    """Wait for environments that come after others to be started; return why some are not, by name.

    The supervisor starts them, also after this function has returned: nothing is lost by not waiting longer.
    No time is given to environments that come after one that is declared to be stopped.
    """
    soon = {name for name in names if not _after_stopped(name, known)}
    until = time.monotonic() + max((_patience(name, known) for name in soon), default=0.0)
    services = {runtime.service_name(name) for name in names}
    while True:
        statuses = supervisor.observe(services)
        left = [name for name in names if _waits(statuses.get(runtime.service_name(name)))]
        if soon.isdisjoint(left) or time.monotonic() > until:
            statuses = supervisor.observe() if left else {}  # also of what they wait for
            missing = {name: observe.awaited(layout, name, known, statuses) for name in left}
            return {name: why for name, why in missing.items() if why}
        time.sleep(LOOK)


def _after_stopped(name: str, known: Mapping[str, Record]) -> bool:
    """Return whether it comes after an environment that is declared to be stopped."""
    return any(other in known and known[other].spec.state == "stopped" for other in known[name].spec.after)


def _waits(status: Status | None) -> bool:
    """Return whether it is not started yet, and never was."""
    return status is not None and status.state == "starting" and not status.exit


def _patience(name: str, known: Mapping[str, Record], trail: tuple[str, ...] = ()) -> float:
    """Return the seconds that all environments it comes after may take, one after the other."""
    longest = SLACK
    for other in known[name].spec.after if name in known else ():
        if other in known and other not in (*trail, name):
            health = known[other].spec.health
            own = machine.allowance(health) + health.timeout if health is not None else 0.0
            longest = max(longest, own + _patience(other, known, (*trail, name)))
    return longest
