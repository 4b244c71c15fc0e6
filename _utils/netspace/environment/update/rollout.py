"""Trials of updates: wait until updated environments are healthy, and judge them.

When a healthy environment is updated, its record keeps the previous version (``Record.previous``) until the new version
is healthy. ``apply`` acts on the judgement; this module only observes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping

from netspace.environment import observe
from netspace.environment import services as environment_services
from netspace.environment.container import oci_runtime, unikernel
from netspace.environment.health import record as verdict
from netspace.environment.health import state
from netspace.environment.observe import ObservedEnvironment
from netspace.environment.record import Failed, Previous, Record, fingerprint
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.spec.types import Environment
from netspace.supervision.service import Status, Supervisor

LOOK = 0.1
BEGUN = 300.0  # seconds until the health service must have begun: a slow host has to compile the library first
SLACK = 10.0  # seconds in addition to the declared ones, for a busy host


def worth_keeping(seen: ObservedEnvironment, new: Environment) -> Previous | None:
    """Return the version to go back to if the update fails; None if there is no such version.

    There is none if the new declaration has no trial, or if the present version isn't up. While an earlier update is
    still on trial, the version before that update is returned.
    """
    record = seen.record
    if new.health is None or not new.update.rollback:
        return None
    if record.previous is not None:  # the last update is still on trial: keep the version before it
        return record.previous
    if not observe.is_up(record, seen.status, seen.verdict):
        return None
    return Previous(record.spec, record.image, record.profile, record.runtime)


def failed(record: Record, reason: str) -> Failed:
    """Return the note about an update that failed and is taken back.

    :param reason: why the update failed.
    """
    image, declared = record.image, fingerprint(record.spec, record.profile, record.runtime)
    source = unikernel.source(record.spec, record.runtime)
    return Failed(declared, source, image.identity, image.digest, reason)


def wait(layout: Layout, supervisor: Supervisor, trials: Mapping[str, Record]) -> dict[str, str]:
    """Wait until each of these just started environments is healthy, has failed or has used up its time.

    :return: by name, why the environment failed; an empty text if it is healthy.
    """
    began = time.monotonic()
    services = {oci_runtime.service_name(name) for name in trials}
    found: dict[str, str] = {}
    while len(found) < len(trials):
        statuses = supervisor.observe(services)
        for name in trials.keys() - found.keys():
            status = statuses.get(oci_runtime.service_name(name), Status("stopped"))
            late = time.monotonic() - began > trials[name].spec.update.deadline
            if (reason := _finding(layout, name, trials[name], status, late)) is not None:
                found[name] = reason
        if len(found) < len(trials):
            time.sleep(LOOK)
    return found


def _finding(layout: Layout, name: str, record: Record, status: Status, late: bool) -> str | None:
    """Return why the trial failed; an empty text if it passed; None if that isn't known yet."""
    if observe.is_up(record, status, observe.current(layout, name, record, status)):
        return ""
    # The health service may have ended the process for its failed check. Verdicts from before the trial were deleted.
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
    """Wait until the health service has begun to probe, since the time of a trial begins with the first probe.

    :raises NetspaceError: when the service doesn't begin.
    """
    until = time.monotonic() + BEGUN
    while True:
        status = supervisor.observe([environment_services.HEALTH]).get(environment_services.HEALTH, Status("stopped"))
        with contextlib.suppress(OSError):
            if status.pid and verdict.ready(layout).read_text() == str(status.pid):
                return
        if time.monotonic() > until:
            raise NetspaceError(f"the health service has not begun within {BEGUN:.0f} s; its log may say why")
        time.sleep(LOOK)


def awaited(
    layout: Layout, supervisor: Supervisor, names: Collection[str], known: Mapping[str, Record]
) -> dict[str, str]:
    """Wait until environments with ``after`` are started; return the reasons, by name, for those that aren't started.

    The supervisor starts them, if need be after this function has returned. The function doesn't wait for an
    environment that must start after an environment whose declared state is stopped.
    """
    soon = {name for name in names if not _after_stopped(name, known)}
    until = time.monotonic() + max((_patience(name, known) for name in soon), default=0.0)
    services = {oci_runtime.service_name(name) for name in names}
    while True:
        statuses = supervisor.observe(services)
        left = [name for name in names if _waits(statuses.get(oci_runtime.service_name(name)))]
        if soon.isdisjoint(left) or time.monotonic() > until:
            before = {other for name in left for other in known[name].spec.after}
            statuses = supervisor.observe({*map(oci_runtime.service_name, before)}) if left else {}
            missing = {name: observe.awaited(layout, name, known, statuses) for name in left}
            return {name: why for name, why in missing.items() if why}
        time.sleep(LOOK)


def _after_stopped(name: str, known: Mapping[str, Record]) -> bool:
    """Return whether *name* must start after (key ``after``) an environment that is declared as stopped."""
    return any(other in known and known[other].spec.state == "stopped" for other in known[name].spec.after)


def _waits(status: Status | None) -> bool:
    """Return whether a service still waits for its first start."""
    return status is not None and status.state == "starting" and not status.exit


def _patience(name: str, known: Mapping[str, Record], trail: tuple[str, ...] = ()) -> float:
    """Return how long to wait for *name*: the seconds in which all environments before it must become healthy.

    Environments that wait for each other become healthy one after another, so their times are added.
    """
    longest = SLACK
    for other in known[name].spec.after if name in known else ():
        if other in known and other not in (*trail, name):
            health = known[other].spec.health
            own = state.allowance(health) + health.timeout if health is not None else 0.0
            longest = max(longest, own + _patience(other, known, (*trail, name)))
    return longest
