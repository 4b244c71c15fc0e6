"""Notes for the operator: problems of environments, and limits that this host can't enforce. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from netspace.environment.desired import DesiredEnvironment
from netspace.environment.observe import Observed, ObservedEnvironment
from netspace.environment.storage import disk_sizes
from netspace.plan import Step
from netspace.spec.types import Io
from netspace.supervision import restart_policy


def problems(name: str, seen: ObservedEnvironment, now: float) -> list[str]:
    """Return notes about the problems of an existing environment: out of memory, unhealthy, flapping."""
    found = []
    status = seen.status
    if status is not None and status.exit == "oom":
        bound = seen.record.spec.limits.memory.written
        found.append(f"environment {name} was last killed for lack of memory (limits:memory {bound})")
    elif status is not None and status.oom_kills:
        found.append(
            f"environment {name}: {status.oom_kills} of its processes were killed for lack of memory "
            f"(limits:memory {seen.record.spec.limits.memory.written})"
        )
    if seen.verdict is not None and seen.verdict.judgement.state == "unhealthy":
        detail = seen.verdict.judgement.detail
        found.append(f"environment {name} is unhealthy{': ' + detail if detail else ''}")
    if status is not None and restart_policy.flapping(status.state, status.restarts, status.since, now):
        how = f" ({seen.problem or status.exit})" if seen.problem or status.exit else ""
        found.append(f"environment {name} is flapping: it ended and was restarted {status.restarts} times{how}")
    return found


def why_down(want: DesiredEnvironment, seen: ObservedEnvironment, step: Step | None, now: float) -> str:
    """Return why an environment that should run is down, if this plan doesn't start it; otherwise an empty text."""
    status = seen.status
    if status is None or want.state != "running" or want.kept or (step is not None and step.data.start):
        return ""
    if status.state == "failed":
        return (
            f"it does not run: {seen.problem}; with restart: never it is run again only by netspace_environment.start, "
            "or by a change that needs a restart"
        )
    if status.state != "starting" or not seen.problem:
        return ""
    if restart_policy.flapping(status.state, status.restarts, status.since, now):
        return f"it does not run: {seen.problem}; it is started again and again ({status.restarts} times by now)"
    return "" if status.exit else f"it does not run: {seen.problem}"


def unconfined(desired: Mapping[str, DesiredEnvironment], observed: Observed) -> list[str]:
    """Return a note if the host has AppArmor but can't load a profile."""
    names = sorted(name for name, want in desired.items() if want.spec.apparmor == "prefer")
    why = observed.confining.told
    return [f"environments are made without an AppArmor profile ({', '.join(names)}): {why}"] if names and why else []


def oversubscribed(desired: Mapping[str, DesiredEnvironment], observed: Observed, remove: Collection[str]) -> list[str]:
    """Return a note if all declared sizes together exceed the disk.

    This is no error, since few file systems are ever full.
    """
    if observed.budget is None:
        return []
    kept = (its.promised for name, its in observed.claims.items() if name not in remove and name not in desired)
    promised = sum(kept) + sum(size for want in desired.values() for size in disk_sizes.sizes(want.spec).values())
    if promised <= observed.budget:
        return []
    has, sizes = f"{observed.budget / 1024**3:.1f} GiB", f"{promised / 1024**3:.1f} GiB"
    return [f"layers and volumes may hold {sizes}, more than the disk has for them ({has}): if it is full, all fail"]


def unslowed(desired: Mapping[str, DesiredEnvironment], observed: Observed) -> list[str]:
    """Return a note that names the environments whose ``limits:io`` this host can't enforce."""
    names = sorted(name for name, want in desired.items() if want.spec.limits.io != Io())
    if not names or not (observed.idle or "io" in observed.unkept):
        return []
    why = "no cgroup controller" if "io" in observed.unkept else "its state folder in memory or on a network"
    return [f"environments run without limits:io, since this host has {why}: {', '.join(names)}"]


def outdated(observed: Observed, steps: Collection[Step]) -> list[str]:
    """Return a note that names the running environments with the hardening of an earlier version of netspace."""
    renewed = {step.name for step in steps if step.action == "remove" or "hardening" in step.changes}
    names = sorted(
        name
        for name, seen in observed.environments.items()
        if seen.record.revision != observed.revision and name not in renewed and seen.status is not None
    )
    what = "environments have the hardening of an earlier version of netspace until they are started again"
    return [f"{what}: {', '.join(names)}; restart them by netspace_environment.restart when it suits"] if names else []
